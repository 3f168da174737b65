"""The search for a layout that fits: one GPU, several, a shorter context, then CPU and disk beside them.

Pure. It knows devices and bytes; what the user is told about them is planner.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from modules.hardware import Device
from modules.memory.budget import Budget
from modules.memory.figures import device_budget
from modules.memory.forecast import (
    CPU_PROCESS_BYTES,
    CUDA_CONTEXT_BYTES,
    RunSpec,
    kv_cache_bytes,
    prefill_peak_bytes,
)
from modules.memory.placement import Group, Layout, Room, fill_gpus, fill_memory_and_disk, split, with_caches
from modules.memory.spec import ModelSpec
from modules.settings import LoadOptions
from modules.units import MiB

LEAST_CONTEXT = 1024
# Never plan to the last byte: max(256 MiB, 2 % of what is free).
_LEAST_MARGIN = 256 * MiB
_UNLIMITED = 2**62


@dataclass(frozen=True, slots=True)
class Problem:
    """A model, the wishes and the machine, with what follows from them alone."""

    spec: ModelSpec
    options: LoadOptions
    gpus: tuple[Device, ...]
    cpu: Device
    disk: Device
    base: RunSpec
    groups: tuple[Group, ...]
    transient: int


@dataclass(frozen=True, slots=True)
class Solution:
    """A layout that fits, for one context length, with the room that it had."""

    run: RunSpec
    layout: Layout
    budgets: dict[str, Budget]
    limits: dict[str, int]


_Attempt = Callable[[Problem, RunSpec], Solution | None]


def solve(problem: Problem) -> Solution | None:
    """The first way that fits: one GPU, all, with a shorter context, with help from CPU and disk, the CPU alone.

    A context that the user gave is never shortened. Quantized models leave the GPU only where a flag asks for it,
    since what leaves it is not quantized.
    """
    if not problem.gpus:
        return _longest(problem, _on_cpu)
    may_leave = problem.base.quantization == "none" or asks_to_split(problem.options)
    # Half the context costs less than moving layers to the CPU does; less than half, more.
    least = problem.base.context_tokens // 2 if may_leave else LEAST_CONTEXT
    on_gpus = _on_one_gpu(problem, problem.base) or _longest(problem, _on_gpus, least=least)
    if on_gpus is not None or not may_leave:
        return on_gpus
    return _longest(problem, _with_offload) or _longest(problem, _on_cpu)


def asks_to_split(options: LoadOptions) -> bool:
    """Whether the user named a way to split the model."""
    return options.auto_devices or options.disk or bool(options.gpu_memory) or options.cpu_memory is not None


def _longest(problem: Problem, attempt: _Attempt, least: int = LEAST_CONTEXT) -> Solution | None:
    """`attempt` with the longest context that works: the wished one, else the largest multiple of 256 below it."""
    whole = attempt(problem, problem.base)
    if whole is not None or problem.options.ctx_size is not None:
        return whole
    low, high = least // 256, problem.base.context_tokens // 256
    best: Solution | None = None
    while low <= high:
        middle = (low + high) // 2
        found = attempt(problem, replace(problem.base, context_tokens=middle * 256))
        if found is not None:
            best, low = found, middle + 1
        else:
            high = middle - 1
    return best


def peak_bytes(problem: Problem, run: RunSpec) -> int:
    """What one device needs beyond weights and cache while it computes."""
    return prefill_peak_bytes(problem.spec, run, with_head=True) + problem.transient


def margin(free_bytes: int) -> int:
    """Bytes of a device that a plan leaves alone."""
    return max(_LEAST_MARGIN, free_bytes // 50)


def _gpu_rooms(problem: Problem, run: RunSpec) -> tuple[Room, ...]:
    """What each GPU has for weights and cache: free, less context and margin, within --gpu-memory, less the peak."""
    limits = problem.options.gpu_memory or (_UNLIMITED,) * len(problem.gpus)
    peak = peak_bytes(problem, run)
    return tuple(
        Room(gpu.id, min(gpu.free_bytes - margin(gpu.free_bytes) - CUDA_CONTEXT_BYTES, limit) - peak)
        for gpu, limit in zip(problem.gpus, limits, strict=True)
    )


def _cpu_room(problem: Problem) -> Room:
    """What the CPU has for weights: free, less the engine process and margin, within --cpu-memory."""
    free = problem.cpu.free_bytes
    room = free - margin(free) - CPU_PROCESS_BYTES
    return Room("cpu", room if problem.options.cpu_memory is None else min(room, problem.options.cpu_memory))


def _on_one_gpu(problem: Problem, run: RunSpec) -> Solution | None:
    groups = with_caches(problem.groups, problem.spec, run)
    for room in _gpu_rooms(problem, run):
        layout = fill_gpus(groups, (room,))
        if layout is not None:
            return _solution(problem, run, layout)
    return None


def _on_gpus(problem: Problem, run: RunSpec) -> Solution | None:
    layout = fill_gpus(with_caches(problem.groups, problem.spec, run), _gpu_rooms(problem, run))
    return None if layout is None else _solution(problem, run, layout)


def _with_offload(problem: Problem, run: RunSpec) -> Solution | None:
    groups = with_caches(problem.groups, problem.spec, run)
    layout = split(groups, _gpu_rooms(problem, run), _cpu_room(problem), disk=problem.options.disk)
    return None if layout is None else _solution(problem, run, layout)


def _on_cpu(problem: Problem, run: RunSpec) -> Solution | None:
    """All in CPU memory, or there and on disk; caches and the peak come off what is free, not off --cpu-memory."""
    groups = with_caches(problem.groups, problem.spec, run)
    disk = problem.options.disk and run.quantization == "none"
    allowed = _cpu_room(problem).free
    free = problem.cpu.free_bytes - margin(problem.cpu.free_bytes) - CPU_PROCESS_BYTES
    needed = kv_cache_bytes(problem.spec, run, run.context_tokens) + peak_bytes(problem, run)
    layout = fill_memory_and_disk(groups, Room("cpu", min(allowed, free - needed)), disk=False)
    if layout is None and disk:
        needed += max(group.largest for group in groups)
        layout = fill_memory_and_disk(groups, Room("cpu", min(allowed, free - needed)), disk=True)
    return _solution(problem, run, layout) if layout is not None and needed <= free else None


def _solution(problem: Problem, run: RunSpec, layout: Layout) -> Solution:
    """The budgets of a layout. The buffer of offloaded weights lies on the first device that computes."""
    computing = [gpu.id for gpu in problem.gpus if layout.weights.get(gpu.id) or layout.caches.get(gpu.id)] or ["cpu"]
    budgets: dict[str, Budget] = {}
    for device in sorted({*layout.weights, *layout.caches, *computing}):
        meta = layout.quant_meta.get(device, 0)
        budgets[device] = device_budget(
            problem.spec,
            run,
            device,
            weights=layout.weights.get(device, 0) - meta,
            quant_meta=meta,
            kv_cache=layout.caches.get(device, 0),
            offload_buffer=layout.offload_buffer if device == computing[0] else 0,
            computes=device in computing,
        )
    limits = dict(layout.weights)
    return Solution(run, layout, budgets, limits)
