"""One way of running on one machine: the layout with the longest context that fits, or how much is lacking.

Pure. It knows devices and bytes; which way is the best is planner.py's, what the user is told explaining.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.llamacpp_sizes import Beside
from modules.memory.planning.budgeting import (
    cached_groups,
    computing_beside,
    empty_budget,
    encoder_output,
    gguf_parts,
    like_first,
    solution_of,
    zero3_solution,
)
from modules.memory.planning.candidates import Way
from modules.memory.planning.gguf_layers import (
    lay_out_split,
    lay_out_whole,
    only_roomiest,
)
from modules.memory.planning.placement import (
    Group,
    Layout,
    Room,
    fill_gpus,
    fill_memory_and_disk,
    split,
)
from modules.memory.planning.problem import CHUNKS, CONTEXT_STEP, LEAST_CONTEXT, Problem, Solution
from modules.units import MiB

_UNLIMITED = 2**62
_TRIES = 4

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
        empty = empty_budget(self.problem, self.run, name)
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
            empty = computing_beside(problem.spec, (self.run, like_first(gpu.id), like))
            usable = min(problem.usable(gpu.id) - empty.context, limit)
            rooms.append(Room(gpu.id, usable - (empty.total - empty.context) - self.reserve.get(gpu.id, 0)))
        return tuple(rooms)

    def cpu_room(self, *, computes: bool, passing: int = 0) -> Room:
        """What the CPU has for weights, within --cpu-memory. Caches, peaks and what is `passing` through come off
        what is free, not off that.
        """
        problem, run = self.problem, self.run
        empty = empty_budget(problem, run, "cpu", computes=computes)
        room = problem.usable("cpu") - empty.total - self.reserve.get("cpu", 0) - passing
        if computes:
            room -= sum(group.cache for group in cached_groups(problem.spec, run)) + encoder_output(problem.spec, run)
        return Room("cpu", room if problem.options.cpu_memory is None else min(room, problem.options.cpu_memory))


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


def solve_at(problem: Problem, way: Way, tokens: int, chunks: Sequence[int] = CHUNKS) -> Solution | None:
    """`way` with exactly this context, in the largest of `chunks` that fit."""
    for chunk in chunks:
        run = replace(way.run, context_tokens=tokens, prefill_chunk=chunk)
        found = _solve_run(problem, way, run)
        if found is not None:
            return found
    return None


def _solve_run(problem: Problem, way: Way, run: RunSpec) -> Solution | None:
    """`way` as `run`; None if it does not fit. Whatever the rooms left out, the budgets must be within the limits."""
    if way.place == "zero3":
        found = zero3_solution(problem, way, run)
        return found if found.fits else None
    reserve: dict[str, int] = {}
    for _ in range(_TRIES):
        layout = _attempt_of(way)(_Try(problem, way, run, reserve))
        if layout is None or (way.disk and "disk" not in layout.weights):
            return None
        found = solution_of(problem, way, run, layout)
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
        return zero3_solution(problem, way, run)
    layout = _attempt_of(way)(_Try(problem, way, run, overflow=not way.disk))
    if layout is None or (way.disk and "disk" not in layout.weights):
        return None
    found = solution_of(problem, way, run, layout)
    return None if found.fits else found


def _on_one_gpu(attempt: _Try) -> Layout | None:
    """All on the GPU with most room, the first of equals: one that is busy is passed over."""
    groups = cached_groups(attempt.problem.spec, attempt.run)
    room = max(attempt.gpu_rooms(), key=lambda room: room.free)
    return fill_gpus(groups, (room,), overflow=attempt.overflow)


def _on_gpus(attempt: _Try) -> Layout | None:
    """On as few GPUs as it takes, in order; without --gpu-memory evenly, so that each keeps as much free as can be."""
    groups, rooms = cached_groups(attempt.problem.spec, attempt.run), attempt.gpu_rooms()
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
    """Some on the GPUs, the rest elsewhere. No way where all would fit on them: with the embedding alone in CPU memory,
    the buffer that it passes through takes its place.
    """
    groups, rooms = cached_groups(attempt.problem.spec, attempt.run), attempt.gpu_rooms()
    if not attempt.overflow and fill_gpus(groups, rooms) is not None:
        return None
    cpu = attempt.cpu_room(computes=False)
    layout = split(groups, rooms, cpu, disk=attempt.way.disk, overflow=attempt.overflow)
    return layout if layout is not None and len(layout.weights) > 1 else None


def _on_cpu(attempt: _Try) -> Layout | None:
    """All in CPU memory, or there and on disk; what passes through from disk needs room too."""
    groups = cached_groups(attempt.problem.spec, attempt.run)
    passing = max(group.largest for group in groups) if attempt.way.disk else 0
    room = attempt.cpu_room(computes=True, passing=passing)
    if room.free < 0 and not attempt.overflow:
        return None
    return fill_memory_and_disk(groups, room, disk=attempt.way.disk, overflow=attempt.overflow)


def _llamacpp_on_gpus(attempt: _Try) -> Layout | None:
    """All layers of a GGUF file and its output on the GPU with most room, or on as few as it takes."""
    parts, alone = gguf_parts(attempt.problem.spec, attempt.run), attempt.way.place == "gpu"
    rooms = attempt.llamacpp_rooms(parts.beside(len(parts.units)), alone=alone)
    if alone:
        return lay_out_whole(parts, (max(rooms, key=lambda room: room.free),), overflow=attempt.overflow)
    layout = lay_out_whole(parts, rooms, even=not attempt.problem.options.gpu_memory, overflow=attempt.overflow)
    return layout if layout is not None and len(layout.reads) > 1 else None


def _llamacpp_split(attempt: _Try) -> Layout | None:
    """As many of a GGUF file's last layers on the GPUs as fit, or as --gpu-layers says; the rest in CPU memory."""
    parts, asked = gguf_parts(attempt.problem.spec, attempt.run), attempt.problem.options.gpu_layers
    beside = parts.beside(1 if asked is None else asked)
    rooms = attempt.llamacpp_rooms(beside)
    if rooms[0].free < 0:  # the first GPU has to compute: without room for that, one does it alone
        rooms = only_roomiest(attempt.llamacpp_rooms(beside, alone=True))
    return lay_out_split(parts, rooms, asked=asked, overflow=attempt.overflow)


_ATTEMPTS: dict[str, _Attempt] = {
    "gpu": _on_one_gpu, "gpus": _on_gpus, "split": _over_gpus_and_cpu, "cpu": _on_cpu,
}  # fmt: skip


def _attempt_of(way: Way) -> _Attempt:
    if way.loader == "llamacpp" and way.place != "cpu":
        return _llamacpp_split if way.place == "split" else _llamacpp_on_gpus
    return _ATTEMPTS[way.place]
