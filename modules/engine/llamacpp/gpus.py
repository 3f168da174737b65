"""The GPUs that llama.cpp sees, held against the plan: whether they are there, and whether memory ran out on one.

`devices` is what xllamacpp's get_device_info says; nothing native is touched here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modules.errors import NotAvailableHere
from modules.memory.dryruns.llamacpp_fit import Buffers
from modules.memory.llamacpp_build import GPU_BUILD, OTHER_BUILDS, can_use_gpus
from modules.units import format_size

Devices = Sequence[Mapping[str, Any]]


def check_gpus(devices: Devices, gpu_layers: Sequence[int]) -> None:
    """Raise NotAvailableHere where llama.cpp does not see every GPU of which `gpu_layers` (as in Plan) wants layers."""
    there, needed = len(_gpus(devices)), max(number + 1 for number, count in enumerate(gpu_layers) if count)
    if there >= needed:
        return
    if can_use_gpus():
        raise NotAvailableHere(
            f"llama.cpp sees {there} of the {needed} GPUs that the plan uses.",
            remedy="Does nvidia-smi show them? The driver may be older than the build needs. "
            "Without them: --cpu, or --loader transformers.",
        )
    raise NotAvailableHere(
        "The plan has layers on the GPU, but the installed xllamacpp computes on the CPU alone.",
        remedy=f"Install its build for GPUs: {GPU_BUILD} ({OTHER_BUILDS}). Or use --cpu, or --loader transformers.",
    )


def find_full(devices: Devices, gpu_bytes: Sequence[int]) -> str:
    """Where a GPU has less free than the plan's bytes there, in words: after a load that failed, the likely reason."""
    for number, (device, planned) in enumerate(zip(_gpus(devices), gpu_bytes, strict=False)):
        free = int(device["memory_free"])
        if free < planned:
            need = format_size(planned, up=True)
            return f"GPU {number} has {format_size(free)} free, where llama.cpp needs {need}"
    return ""


def taken_bytes(before: Devices, after: Devices) -> dict[str, int]:
    """How much less each GPU has free than it had: what a load took, as long as no other program took or gave any."""
    pairs = zip(_gpus(before), _gpus(after), strict=False)
    taken = (int(then["memory_free"]) - int(now["memory_free"]) for then, now in pairs)
    return {f"cuda:{number}": size for number, size in enumerate(taken) if size > 0}


def most_taken(taken: Mapping[str, int], buffers: Mapping[str, Buffers]) -> dict[str, int]:
    """What a load took of each GPU: at least what llama.cpp allocated there, since others may have given some back."""
    said = {device: one.total for device, one in buffers.items() if device != "cpu"}
    return {device: max(taken.get(device, 0), said.get(device, 0)) for device in sorted({*taken, *said})}


def _gpus(devices: Devices) -> Devices:
    """Those that llama.cpp deals layers to: graphics cards; where there is none, what shares the CPU's memory."""
    cards = [device for device in devices if device["type"].name.endswith("_GPU")]
    return cards or [device for device in devices if device["type"].name.endswith("_IGPU")]
