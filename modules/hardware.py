"""What this machine has: GPUs, RAM (and the cgroup's limit), disk. Read now, never assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DeviceKind = Literal["cuda", "cpu", "disk"]


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Another program's share of a GPU."""

    pid: int
    name: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A place for bytes: `id` is "cuda:0", "cpu" or "disk"."""

    id: str
    kind: DeviceKind
    name: str
    total_bytes: int
    free_bytes: int
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """A machine at one moment."""

    gpus: tuple[Device, ...]
    cpu: Device
    disk: Device
    physical_cores: int
