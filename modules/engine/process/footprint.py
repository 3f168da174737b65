"""What a loaded model really takes: bytes of weights per device, where each module went, the peak of the load.

Measured on the loaded objects and the process, nothing is forecast here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from modules.engine.process.resident import peak_resident, reset_peak_resident


def reset_peak() -> None:
    """Begin a new peak for `peak_bytes`: of this process, where the system can, and of every GPU."""
    reset_peak_resident()
    for index in range(torch.cuda.device_count()):
        torch.cuda.reset_peak_memory_stats(index)


def peak_bytes(*, on_gpu: bool) -> int:
    """The most bytes since `reset_peak`: of torch's GPU allocators together, or resident in RAM of this process."""
    if on_gpu:
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    return peak_resident()


def peaks_by_device() -> dict[str, int]:
    """The most bytes since `reset_peak`: "cpu" resident in RAM of this process, a GPU those that torch held on it."""
    gpus = {f"cuda:{index}": torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count())}
    return {"cpu": peak_bytes(on_gpu=False), **gpus}


def module_devices(model: Any, default: str) -> dict[str, str]:
    """Module name → "cuda:N", "cpu" or "disk", as transformers placed them; {"": `default`} where nothing is split."""
    placed = getattr(model, "hf_device_map", None) or {"": default}
    return {name: _device_name(device) for name, device in placed.items()}


def weight_bytes_by_device(model: Any, modules: dict[str, str]) -> dict[str, int]:
    """Bytes of weights and buffers per device, shared tensors counted once, quantization constants included.

    Offloaded tensors are on torch's meta device while idle: they count for the device that `modules` names.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    for name, tensor in _tensors(model):
        meta = tensor.device.type == "meta"
        key = id(tensor) if meta else tensor.data_ptr()
        if key in seen and tensor.numel():
            continue
        seen.add(key)
        device = _place_of(name, modules) if meta else str(tensor.device)
        found[device] = found.get(device, 0) + tensor.numel() * tensor.element_size()
    return found


def _tensors(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers, and what bitsandbytes keeps beside its packed weights."""
    yield from model.named_buffers()
    for name, parameter in model.named_parameters():
        yield name, parameter
        scales = getattr(parameter, "SCB", None)
        if isinstance(scales, torch.Tensor):
            yield f"{name}.SCB", scales
        state = getattr(parameter, "quant_state", None)
        nested = getattr(state, "state2", None)
        for owner in filter(None, (state, nested)):
            yield f"{name}.absmax", owner.absmax


def _place_of(name: str, modules: dict[str, str]) -> str:
    """The device of the longest module name that `name` begins with."""
    owners = [module for module in modules if not module or name == module or name.startswith(module + ".")]
    return modules[max(owners, key=len)] if owners else "cpu"


def _device_name(device: object) -> str:
    return f"cuda:{device}" if isinstance(device, int) else str(device)
