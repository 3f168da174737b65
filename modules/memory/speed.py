"""How fast a way of running will be: bytes over bandwidths, as a range, with the factors that we measured or guess.

Pure arithmetic. The bandwidths are measured by engine/bandwidth.py; until then `defaults` guesses them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from modules.hardware import Inventory

# Guesses until measured: one desktop's memory, a SATA-like disk, and per card by the name that the driver gives.
_CPU_READ_BPS = 20e9
_DISK_READ_BPS = 1.7e9  # with the link below fits accelerate's published offload figures (docs/memory.md)
_FROM_CPU_BPS = 6.6e9
_GPU_READ_BPS = 400e9
_GPUS_BY_NAME = {
    "H200": 4800e9, "H100": 3350e9, "A100": 1555e9, "L40": 864e9, "A6000": 768e9, "5090": 1792e9, "4090": 1008e9,
    "4080": 717e9, "4070": 504e9, "4060": 272e9, "3090": 936e9, "3080": 760e9, "3070": 448e9, "3060": 360e9,
    "2080": 448e9, "1080": 320e9, "V100": 900e9, "T4": 300e9,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """Bytes a second of one GPU: out of its own memory, and into it from the CPU's."""

    read_Bps: float
    from_cpu_Bps: float


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes a second of a machine; `gpus` by device id ("cuda:0"). `measured` False: guesses."""

    cpu_read_Bps: float
    disk_read_Bps: float
    gpus: Mapping[str, GpuSpeed] = field(default_factory=dict)
    measured: bool = False


def defaults(inventory: Inventory) -> Speeds:
    """Guesses for a machine that was not measured."""
    gpus = {
        gpu.id: GpuSpeed(next((rate for name, rate in _GPUS_BY_NAME.items() if name in gpu.name), _GPU_READ_BPS),
                         _FROM_CPU_BPS)
        for gpu in inventory.gpus
    }  # fmt: skip
    return Speeds(_CPU_READ_BPS, _DISK_READ_BPS, gpus)


def from_bandwidths(found: Mapping[str, Mapping[str, Any]], inventory: Inventory) -> Speeds:
    """What engine/bandwidth.py printed, with guesses for what it could not measure."""
    guessed = defaults(inventory)
    gpus = dict(guessed.gpus)
    for device, rates in found.items():
        if device in gpus:
            gpus[device] = GpuSpeed(
                float(rates.get("read_Bps", gpus[device].read_Bps)),
                float(rates.get("from_cpu_Bps", gpus[device].from_cpu_Bps)),
            )
    cpu = float(found.get("cpu", MappingProxyType({})).get("read_Bps", guessed.cpu_read_Bps))
    disk = float(found.get("disk", MappingProxyType({})).get("read_Bps", guessed.disk_read_Bps))
    return Speeds(cpu, disk, gpus, measured="cpu" in found)
