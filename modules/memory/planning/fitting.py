"""One way of running on one machine: the layout with the longest context that fits, or how much is lacking.

Pure. It knows devices and bytes; which way is the best is planner.py's, what the user is told explaining.py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from modules.hardware import Device
from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.figures import Held, beside_gpus_budget, device_budget
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, layer_cache_away, weight_bytes
from modules.memory.forecasting.llamacpp_sizes import Beside
from modules.memory.forecasting.remembered import PerSpec
from modules.memory.model.lora import Lora
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import Way
from modules.memory.planning.drafts import draft_figure, draft_figures_beside_gpus
from modules.memory.planning.gguf_layers import (
    Parts,
    count_units,
    lay_out_split,
    lay_out_whole,
    only_roomiest,
    parts_of,
)
from modules.memory.planning.native import (
    embedding_figure,
    embedding_figures_beside_gpus,
    lora_figure,
    lora_figures_beside_gpus,
)
from modules.memory.planning.placement import (
    Group,
    Layout,
    Room,
    fill_gpus,
    fill_memory_and_disk,
    make_groups,
    split,
    with_caches,
)
from modules.settings import LoadOptions
from modules.units import MiB

LEAST_CONTEXT = 1024
CONTEXT_STEP = 256
# A prompt is read in chunks of this many tokens; in the smaller ones only where that makes the difference.
CHUNKS = (512, 128)
# Never plan to the last byte: max(256 MiB, 2 % of what is free).
_LEAST_MARGIN = 256 * MiB
# Of bytes that are not counted exactly a forecast may miss this share: docs/memory.md has the rows.
_UNSURE_SHARE = 0.05
_UNLIMITED = 2**62
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes that a dry run of `run` counted, by purpose."""

    run: RunSpec
    figures: tuple[tuple[Purpose, int], ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """A model, the wishes and the machine. `widened`: by how much forecasts for a device are raised, from 1 on, since
    they were too low before. `counted`: what a dry run counted, where one is known. `draft`: a model that guesses
    ahead, `loras` what changes the model, both on the first device that computes.
    `gpus` are those that may be used, of `gpus_there`; `imagined`: the machine is not here.
    """

    spec: ModelSpec
    options: LoadOptions
    gpus: tuple[Device, ...]
    cpu: Device
    disk: Device
    gpus_there: int = 0
    imagined: bool = False
    widened: Mapping[str, float] = field(default_factory=dict)
    counted: Counted | None = None
    draft: ModelSpec | None = None
    loras: tuple[Lora, ...] = ()

    def device(self, name: str) -> Device:
        """The device of that id."""
        return next(device for device in (*self.gpus, self.cpu, self.disk) if device.id == name)

    def usable(self, name: str) -> int:
        """The most bytes that a forecast for a device may say: free, less the margin, less what was too low before."""
        free = self.device(name).free_bytes
        return int((free - margin(free)) / max(1.0, self.widened.get(name, 1.0)))


@dataclass(frozen=True, slots=True)
class Solution:
    """How `way` is done: with `run`, what lies where, and what that takes. `short` is what devices lack; {}: it fits.

    `layout` is None where DeepSpeed places the weights.
    """

    way: Way
    run: RunSpec
    layout: Layout | None
    budgets: dict[str, Budget]
    limits: dict[str, int]
    short: dict[str, int] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        """Whether no device lacks anything."""
        return not self.short


_Attempt = Callable[["_Try"], Layout | None]


@dataclass(frozen=True, slots=True)
class _Try:
    """One attempt: a run, what to keep free beyond the formulas a device, and whether limits may be overrun."""

    problem: Problem
    way: Way
    run: RunSpec
    reserve: Mapping[str, int] = field(default_factory=dict)
    overflow: bool = False

    def gpu_rooms(self) -> tuple[Room, ...]:
        """What each GPU has for weights and cache: usable, within --gpu-memory, less what computing takes."""
        problem = self.problem
        limits = problem.options.gpu_memory or (_UNLIMITED,) * len(problem.gpus)
        return tuple(Room(gpu.id, self._left(gpu.id, limit)) for gpu, limit in zip(problem.gpus, limits, strict=True))

    def _left(self, name: str, limit: int) -> int:
        empty = _empty(self.problem, self.run, name)
        usable = self.problem.usable(name) - empty.context
        return min(usable, limit) - (empty.total - empty.context) - self.reserve.get(name, 0)

    def llamacpp_rooms(self, beside: Beside, *, alone: bool = False) -> tuple[Room, ...]:
        """What each GPU has for layers and caches of llama.cpp, of which the first, or with `alone` each as if it were
        the only one, computes as `beside` says.
        """
        problem = self.problem
        limits = problem.options.gpu_memory or (_UNLIMITED,) * len(problem.gpus)
        rooms = []
        for number, (gpu, limit) in enumerate(zip(problem.gpus, limits, strict=True)):
            like = replace(beside, first=alone or number == 0)
            empty = _computing_beside(problem.spec, (self.run, _like(gpu.id), like))
            usable = min(problem.usable(gpu.id) - empty.context, limit)
            rooms.append(Room(gpu.id, usable - (empty.total - empty.context) - self.reserve.get(gpu.id, 0)))
        return tuple(rooms)

    def cpu_room(self, *, computes: bool, passing: int = 0) -> Room:
        """What the CPU has for weights, within --cpu-memory. Caches, peaks and what is `passing` through come off
        what is free, not off that.
        """
        problem, run = self.problem, self.run
        empty = _empty(problem, run, "cpu", computes=computes)
        room = problem.usable("cpu") - empty.total - self.reserve.get("cpu", 0) - passing
        if computes:
            room -= sum(group.cache for group in _cached_groups(problem.spec, run)) + _encoder_output(problem.spec, run)
        return Room("cpu", room if problem.options.cpu_memory is None else min(room, problem.options.cpu_memory))


def margin(free_bytes: int) -> int:
    """Bytes of a device that a plan leaves alone."""
    return max(_LEAST_MARGIN, free_bytes // 50)


def lacks_bytes(free_bytes: int, total_bytes: int, widened: float = 1.0) -> int:
    """How many bytes more must be free for a forecast of `total_bytes` to fit, with the margin that it then leaves;
    0 where it fits.
    """
    raised = math.ceil(total_bytes * max(1.0, widened))
    needed = max(raised + _LEAST_MARGIN, -(-raised * 50 // 49))
    return max(0, needed - free_bytes)


def solve(problem: Problem, way: Way) -> Solution | None:
    """`way` with the longest context that fits; one with `short` where none does; None if the way is no way here.

    A context that the user gave is never shortened.
    """
    found = solve_at(problem, way, way.run.context_tokens)
    if found is not None or problem.options.ctx_size is not None:
        return found or _short(problem, way)
    return longest(problem, way, way.run.context_tokens) or _short(problem, way)


def longest(problem: Problem, way: Way, most: int, *, least: int = LEAST_CONTEXT) -> Solution | None:
    """`way` with the longest context from `least` to `most` that fits, in steps of CONTEXT_STEP; None if none does."""
    low, high = -(-least // CONTEXT_STEP), most // CONTEXT_STEP
    best: Solution | None = None
    while low <= high:
        middle = (low + high) // 2
        found = solve_at(problem, way, middle * CONTEXT_STEP)
        if found is not None:
            best, low = found, middle + 1
        else:
            high = middle - 1
    return best


def solve_at(problem: Problem, way: Way, tokens: int) -> Solution | None:
    """`way` with exactly this context, in the largest chunks that fit."""
    for chunk in CHUNKS:
        run = replace(way.run, context_tokens=tokens, prefill_chunk=chunk)
        found = _solve_run(problem, way, run)
        if found is not None:
            return found
    return None


def _solve_run(problem: Problem, way: Way, run: RunSpec) -> Solution | None:
    """`way` as `run`; None if it does not fit. Whatever the rooms left out, the budgets must be within the limits."""
    if way.place == "zero3":
        found = _zero3(problem, way, run)
        return found if found.fits else None
    reserve: dict[str, int] = {}
    for _ in range(_TRIES):
        layout = _attempt_of(way)(_Try(problem, way, run, reserve))
        if layout is None or (way.disk and "disk" not in layout.weights):
            return None
        found = _solution(problem, way, run, layout)
        if found.fits:
            return found
        reserve = {name: reserve.get(name, 0) + lacking for name, lacking in found.short.items()}
    return None


def lacking(problem: Problem, way: Way) -> Solution | None:
    """What `way` lacks where it is cut down as far as Snug does unasked; None if it fits so, or is no way here."""
    tokens = way.run.context_tokens
    if problem.options.ctx_size is None:
        tokens = min(tokens, LEAST_CONTEXT)
    return _short(problem, replace(way, run=replace(way.run, context_tokens=tokens)), CHUNKS[-1])


def _short(problem: Problem, way: Way, chunk: int = CHUNKS[0]) -> Solution | None:
    """What `way` would take with its own context, and what is lacking for it."""
    run = replace(way.run, prefill_chunk=chunk)
    if way.place == "zero3":
        return _zero3(problem, way, run)
    layout = _attempt_of(way)(_Try(problem, way, run, overflow=not way.disk))
    if layout is None or (way.disk and "disk" not in layout.weights):
        return None
    found = _solution(problem, way, run, layout)
    return None if found.fits else found


def _on_one_gpu(attempt: _Try) -> Layout | None:
    """All on the GPU with most room, the first of equals: one that is busy is passed over."""
    groups = _cached_groups(attempt.problem.spec, attempt.run)
    room = max(attempt.gpu_rooms(), key=lambda room: room.free)
    return fill_gpus(groups, (room,), overflow=attempt.overflow)


def _on_gpus(attempt: _Try) -> Layout | None:
    """On as few GPUs as it takes, in order; without --gpu-memory evenly, so that each keeps as much free as can be."""
    groups, rooms = _cached_groups(attempt.problem.spec, attempt.run), attempt.gpu_rooms()
    layout = fill_gpus(groups, rooms, overflow=attempt.overflow)
    if layout is None or len(layout.weights) < 2:
        return None
    if attempt.problem.options.gpu_memory or attempt.overflow:
        return layout
    return _evened(groups, rooms[: len(layout.weights)]) or layout


def _evened(groups: Sequence[Group], rooms: Sequence[Room]) -> Layout | None:
    """`groups` on all of `rooms`, with the most free that each can keep, to a MiB; None if they do not fit."""
    best: Layout | None = None
    low, high = 0, max(room.free for room in rooms) // MiB
    while low <= high:
        kept = (low + high) // 2
        layout = fill_gpus(groups, [replace(room, free=room.free - kept * MiB) for room in rooms])
        if layout is None:
            high = kept - 1
        else:
            best, low = layout, kept + 1
    return best if best is not None and len(best.weights) == len(rooms) else None


def _over_gpus_and_cpu(attempt: _Try) -> Layout | None:
    groups = _cached_groups(attempt.problem.spec, attempt.run)
    cpu = attempt.cpu_room(computes=False)
    layout = split(groups, attempt.gpu_rooms(), cpu, disk=attempt.way.disk, overflow=attempt.overflow)
    return layout if layout is not None and len(layout.weights) > 1 else None


def _on_cpu(attempt: _Try) -> Layout | None:
    """All in CPU memory, or there and on disk; what passes through from disk needs room too."""
    groups = _cached_groups(attempt.problem.spec, attempt.run)
    passing = max(group.largest for group in groups) if attempt.way.disk else 0
    room = attempt.cpu_room(computes=True, passing=passing)
    if room.free < 0 and not attempt.overflow:
        return None
    return fill_memory_and_disk(groups, room, disk=attempt.way.disk, overflow=attempt.overflow)


def _llamacpp_on_gpus(attempt: _Try) -> Layout | None:
    """All layers of a GGUF file and its output on the GPU with most room, or on as few as it takes."""
    parts, alone = _gguf_parts(attempt.problem.spec, attempt.run), attempt.way.place == "gpu"
    rooms = attempt.llamacpp_rooms(parts.beside(len(parts.units)), alone=alone)
    if alone:
        return lay_out_whole(parts, (max(rooms, key=lambda room: room.free),), overflow=attempt.overflow)
    layout = lay_out_whole(parts, rooms, even=not attempt.problem.options.gpu_memory, overflow=attempt.overflow)
    return layout if layout is not None and len(layout.reads) > 1 else None


def _llamacpp_split(attempt: _Try) -> Layout | None:
    """As many of a GGUF file's last layers on the GPUs as fit, or as --gpu-layers says; the rest in CPU memory."""
    parts, asked = _gguf_parts(attempt.problem.spec, attempt.run), attempt.problem.options.gpu_layers
    beside = parts.beside(1 if asked is None else asked)
    rooms = attempt.llamacpp_rooms(beside)
    if rooms[0].free < 0:  # the first GPU has to compute: without room for that, one does it alone
        rooms = only_roomiest(attempt.llamacpp_rooms(beside, alone=True))
    return lay_out_split(parts, rooms, asked=asked, overflow=attempt.overflow)


_computing_beside = PerSpec[tuple[RunSpec, str, Beside], Budget](
    lambda spec, key: beside_gpus_budget(spec, key[0], key[1], None, key[2])
)
_gguf_parts = PerSpec[RunSpec, Parts](parts_of)
_cached_groups = PerSpec[RunSpec, tuple[Group, ...]](lambda spec, run: with_caches(make_groups(spec, run), spec, run))
_computing = PerSpec[tuple[RunSpec, str, bool], Budget](
    lambda spec, key: device_budget(spec, key[0], key[1], computes=key[2])
)
_ATTEMPTS: dict[str, _Attempt] = {
    "gpu": _on_one_gpu, "gpus": _on_gpus, "split": _over_gpus_and_cpu, "cpu": _on_cpu,
}  # fmt: skip


def _attempt_of(way: Way) -> _Attempt:
    if way.loader == "llamacpp" and way.place != "cpu":
        return _llamacpp_split if way.place == "split" else _llamacpp_on_gpus
    return _ATTEMPTS[way.place]


def _empty(problem: Problem, run: RunSpec, device: str, *, computes: bool = True) -> Budget:
    """What computing takes on a device beside weights and caches."""
    budget = _computing(problem.spec, (run, _like(device), computes))
    return _with_peaks(problem, run, device, budget, computes=computes)


def _like(device: str) -> str:
    """The first device of the same kind, for which the formulas say the same."""
    return "cuda:0" if device.startswith("cuda") else device


def _encoder_output(spec: ModelSpec, run: RunSpec) -> int:
    """Bytes of what an encoder hands to every decoder layer: a cache that belongs to no layer."""
    if not spec.is_encoder_decoder:
        return 0
    return kv_cache_bytes(spec, run, run.context_tokens) - sum(group.cache for group in _cached_groups(spec, run))


def _cache_away(spec: ModelSpec, run: RunSpec) -> int:
    """Bytes of an offloaded cache, in CPU memory."""
    return sum(layer_cache_away(spec, run, layer, run.context_tokens) for layer in range(spec.layers))


def _with_peaks(problem: Problem, run: RunSpec, device: str, budget: Budget, *, computes: bool) -> Budget:
    """`budget` of `device` with what a dry run counted, weights that it dequantized included, instead of the formulas.

    Runs of another context or chunk than the counted one keep their formulas, raised as far as they were too low there.
    """
    counted = problem.counted
    if (
        counted is None
        or not computes
        or (run.dtype, run.quantization) != (counted.run.dtype, counted.run.quantization)
    ):
        return budget
    figures: dict[Purpose, Figure] = dict(budget.figures)
    within = figures.pop("dequant_buffer", Figure(0, "formula")).bytes
    if run == counted.run:
        read = min(run.prefill_chunk, run.context_tokens)
        told: dict[Purpose, str] = {
            "prefill_peak": f"the last {read:,} of {run.context_tokens:,} tokens read",
            "decode_peak": f"a token written after {run.context_tokens:,}",
        }
        for purpose, size in counted.figures:
            figures[purpose] = Figure(size, "dry-run", f"{told[purpose]}: counted on the model without its weights")
    else:
        there = _computing(problem.spec, (counted.run, _like(device), True))
        for purpose, size in counted.figures:
            ratio = max(1.0, size / max(1, there[purpose] + there.dequant_buffer))
            figures[purpose] = Figure(int((budget[purpose] + within) * ratio), "formula")
    return Budget.of(figures, load_peak=budget.load_peak, margin=budget.margin)


def _solution(problem: Problem, way: Way, run: RunSpec, layout: Layout) -> Solution:
    """The budgets of a layout. The buffer of offloaded weights lies on the first device that computes."""
    if way.loader == "llamacpp" and way.place != "cpu":
        return _llamacpp_solution(problem, way, run, layout)
    computing = [gpu.id for gpu in problem.gpus if layout.weights.get(gpu.id) or layout.caches.get(gpu.id)] or ["cpu"]
    encoder, away = _encoder_output(problem.spec, run), _cache_away(problem.spec, run)
    budgets: dict[str, Budget] = {}
    for device in sorted({*layout.weights, *layout.caches, *computing, *(["cpu"] if away else [])}):
        meta = layout.quant_meta.get(device, 0)
        beside = (encoder if device == computing[0] else 0) + (away if device == "cpu" else 0)
        held = Held(
            weights=layout.weights.get(device, 0) - meta,
            quant_meta=meta,
            kv_cache=layout.caches.get(device, 0) + beside,
            offload_buffer=layout.offload_buffer if device == computing[0] else 0,
        )
        budgets[device] = _budget(problem, run, device, held, computes=device in computing)
    if problem.draft is not None:
        figure = draft_figure(problem.draft, problem.spec, run)
        budgets[computing[0]] = budgets[computing[0]].with_figure("draft", figure)
    if problem.options.embeddings:
        figure = embedding_figure(problem.spec, run)
        budgets[computing[0]] = budgets[computing[0]].with_figure("embeddings", figure)
    if problem.loras:
        budgets[computing[0]] = budgets[computing[0]].with_figure("adapters", lora_figure(problem.loras))
    written = {"disk": layout.rewritten} if layout.rewritten else {}
    return Solution(way, run, layout, budgets, dict(layout.weights), _lacking(problem, budgets, written))


def _llamacpp_solution(problem: Problem, way: Way, run: RunSpec, layout: Layout) -> Solution:
    """The budgets of a GGUF file with layers on GPUs. The first GPU computes prompts for what lies in CPU memory."""
    gpus = [gpu.id for gpu in problem.gpus]
    counts = count_units(layout, gpus)
    used = [gpu for gpu, count in zip(gpus, counts, strict=True) if count]
    if len(used) > 1:  # llama.cpp then computes on the first even where no layer lies there
        used = list(dict.fromkeys((gpus[0], *used)))
    beside = _gguf_parts(problem.spec, run).beside(sum(counts))
    budgets = {}
    for device in sorted(("cpu", *used)):
        held = Held(layout.weights.get(device, 0), kv_cache=layout.caches.get(device, 0))
        budget = beside_gpus_budget(problem.spec, run, device, held, replace(beside, first=device == used[0]))
        budgets[device] = _with_margin(problem, device, budget)
    if problem.draft is not None:
        for device, figure in draft_figures_beside_gpus(problem.draft, run, used).items():
            budgets[device] = budgets[device].with_figure("draft", figure)
    if problem.options.embeddings:
        for device, figure in embedding_figures_beside_gpus(problem.spec, run, used).items():
            budgets[device] = budgets[device].with_figure("embeddings", figure)
    if problem.loras:
        for device, figure in lora_figures_beside_gpus(problem.loras, list(budgets)).items():
            budgets[device] = budgets[device].with_figure("adapters", figure)
    return Solution(way, run, layout, budgets, dict(layout.weights), _lacking(problem, budgets, {}))


def _zero3(problem: Problem, way: Way, run: RunSpec) -> Solution:
    """ZeRO-3 places the weights itself: in CPU memory, or on disk. The largest block is live where it computes."""
    computing = problem.gpus[0].id if problem.gpus else "cpu"
    stored = "disk" if way.disk else "cpu"
    weights = weight_bytes(problem.spec, run)
    live = max(group.loaded for group in make_groups(problem.spec, run))
    budgets = {
        device: _budget(
            problem,
            run,
            device,
            Held(
                weights=weights if device == stored else 0,
                kv_cache=kv_cache_bytes(problem.spec, run, run.context_tokens) if device == computing else 0,
                offload_buffer=live if device == computing else 0,
            ),
            computes=device == computing,
            deepspeed=True,
        )
        for device in dict.fromkeys(("cpu", computing, stored))
    }
    if stored == "cpu":  # DeepSpeed gathers a part whole, to cut it anew, before the last one is gone
        budgets["cpu"] = replace(budgets["cpu"], load_peak=budgets["cpu"].load_peak + live)
    written = {"disk": weights} if way.disk else {}
    return Solution(way, run, None, budgets, {}, _lacking(problem, budgets, written))


def _budget(
    problem: Problem, run: RunSpec, device: str, held: Held, *, computes: bool, deepspeed: bool = False
) -> Budget:
    """One device's budget. Its margin is the observed error, or a share of what is not exact, within reason."""
    budget = device_budget(problem.spec, run, device, held, computes=computes, deepspeed=deepspeed)
    return _with_margin(problem, device, _with_peaks(problem, run, device, budget, computes=computes))


def _with_margin(problem: Problem, device: str, budget: Budget) -> Budget:
    unsure = int(budget.total * (max(1.0, problem.widened.get(device, 1.0)) - 1))
    unsure = max(unsure, int(budget.uncertain * _UNSURE_SHARE), _LEAST_MARGIN // 2)
    return replace(budget, margin=0 if device == "disk" else unsure)


def _lacking(problem: Problem, budgets: Mapping[str, Budget], written: Mapping[str, int]) -> dict[str, int]:
    """What each device lacks: of the disk only what must be written counts, and only once."""
    taken = {name: budget.total for name, budget in budgets.items() if name != "disk"} | dict(written)
    lacking = {
        name: lacks_bytes(problem.device(name).free_bytes, size, problem.widened.get(name, 1.0))
        for name, size in taken.items()
    }
    limits = dict(zip((gpu.id for gpu in problem.gpus), problem.options.gpu_memory or (), strict=False))
    for name, limit in limits.items():
        if name in budgets:
            lacking[name] = max(lacking[name], budgets[name].total - budgets[name].context - limit)
    if problem.options.cpu_memory is not None and "cpu" in budgets:
        held = budgets["cpu"].weights + budgets["cpu"].quant_meta
        lacking["cpu"] = max(lacking["cpu"], held - problem.options.cpu_memory)
    return {name: size for name, size in lacking.items() if size > 0}
