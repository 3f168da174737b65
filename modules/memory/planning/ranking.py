"""A way solved and timed: with what was missed before, and with what a dry run counts.

Pure, but for what it asks through `PeaksOf` and `ErrorsOf`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

from modules.memory.dryruns.asking import Kind
from modules.memory.forecasting.budget import Purpose
from modules.memory.forecasting.encoding import batch_tokens
from modules.memory.forecasting.forecast import Quantization, RunSpec, kv_traffic_bytes
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import Loader, Way
from modules.memory.planning.choosing import TIE, Ranked
from modules.memory.planning.fitting import lacking, solve, solve_at
from modules.memory.planning.placement import make_groups
from modules.memory.planning.problem import CHUNKS, Counted, Problem, Solution
from modules.memory.planning.speed import Estimate, Speeds, Work, estimate

# Ratios of small models say little of large ones: what was observed raises forecasts by a quarter at most.
_MOST_WIDENED = 1.25


class RunPeaks(Protocol):
    """Bytes of one run as a dry run counted them: memory/dryruns/asking.py's Peaks."""

    @property
    def prefill_peak(self) -> int:
        """Most bytes beyond weights and cache while the prompt is read."""

    @property
    def decode_peak(self) -> int:
        """The same while a token is written."""


PeaksOf = Callable[[ModelSpec, RunSpec, Kind], RunPeaks | None]
"""(model, run, where it computes) → what a dry run counted; None while it is not known."""
ErrorsOf = Callable[[str, Loader, Quantization], float]
"""(device name, loader, quantization) → measured over forecast, as 95 % of such loads stayed within."""


def rank_way(
    problem: Problem, way: Way, *, speeds: Speeds, observed: ErrorsOf | None, counted: Counted | None = None
) -> Ranked | None:
    """`way` solved and timed; None if it is no way here.

    In the largest chunks that fit, unless smaller ones leave room for layers and make it more than a tie faster.
    """
    problem = replace(problem, widened=widened(problem, way, observed), counted=counted)
    solution = solve(problem, way)
    if solution is None:
        return None
    found = _ranked(problem.spec, solution, speeds)
    if not solution.fits or solution.run.prefill_chunk < CHUNKS[0] or not _is_shared(solution):
        return found
    finer = solve_at(problem, way, found.context, CHUNKS[1:])
    if finer is None:
        return found
    other = _ranked(problem.spec, finer, speeds)
    return other if other.pace_s * TIE < found.pace_s else found


def rank_cut(problem: Problem, way: Way, *, speeds: Speeds, observed: ErrorsOf | None) -> Ranked | None:
    """`way` cut down as far as Snug does unasked, with what it lacks even so; None where it then fits, or is no way."""
    solution = lacking(replace(problem, widened=widened(problem, way, observed)), way)
    return None if solution is None else _ranked(problem.spec, solution, speeds)


def _is_shared(solution: Solution) -> bool:
    """Whether weights lie both on GPUs and elsewhere."""
    weights = () if solution.layout is None else solution.layout.weights
    return len({name.startswith("cuda") for name in weights}) == 2


def _ranked(spec: ModelSpec, solution: Solution, speeds: Speeds) -> Ranked:
    """`solution` timed: a model that embeds reads all that it is given, so both of its rates are that of reading."""
    found = estimate(work_of(spec, solution), speeds)
    if spec.embedder is not None:
        found = Estimate(found.prefill_tokens_per_s, found.prefill_tokens_per_s)
    return Ranked(solution, found)


def rank_ways(ways: Iterable[Way], rank: Callable[[Way], Ranked | None], wished_context: int) -> list[Ranked]:
    """`ways` ranked, without those that are none here; of ways alike, those with a smaller cache follow.

    Where the wished context fits, none that differs only in a smaller cache is of use.
    """
    found: list[Ranked] = []
    enough: set[Way] = set()
    for way in ways:
        alike = replace(way, run=replace(way.run, kv_cache="plain"), quality=1.0)
        one = None if alike in enough else rank(way)
        if one is not None:
            found.append(one)
            if one.solution.fits and one.context >= wished_context:
                enough.add(alike)
    return found


def with_dry_runs(
    spec: ModelSpec,
    found: list[Ranked],
    chosen: Ranked | None,
    peaks: PeaksOf,
    rank: Callable[..., Ranked | None],
    choose_again: Callable[[list[Ranked]], Ranked | None],
) -> tuple[list[Ranked], Ranked | None]:
    """The chosen way held to what a dry run of it counts, where that is known; what is chosen then likewise.

    Only chosen ways are asked for: each question may set off a dry run.
    """
    asked: set[Way] = set()
    while chosen is not None and chosen.solution.way not in asked:
        way = chosen.solution.way
        asked.add(way)
        counted = count_run(peaks, spec, chosen.solution.run, chosen.solution.budgets)
        if counted is None:
            break
        again = rank(way, counted=counted)
        found = [again if one is chosen and again is not None else one for one in found]
        chosen = choose_again(found)
    return found, chosen


def count_run(peaks: PeaksOf, spec: ModelSpec, run: RunSpec, devices: Iterable[str]) -> Counted | None:
    """What a dry run of `run` on `devices` counted; None while it is not known, where llama.cpp uses a GPU, and for a
    model that embeds.
    """
    if spec.embedder is not None:  # its batches are not a prompt's chunks
        return None
    on_gpu = any(device.startswith("cuda") for device in devices)
    if on_gpu and run.runtime == "llamacpp":  # its dry fit is asked on the CPU, where no prompt passes into a GPU
        return None
    known = peaks(spec, run, "cuda" if on_gpu else "cpu")
    if known is None:
        return None
    figures: tuple[tuple[Purpose, int], ...] = (
        ("prefill_peak", known.prefill_peak), ("decode_peak", known.decode_peak),
    )  # fmt: skip
    return Counted(run, figures)


def widened(problem: Problem, way: Way, observed: ErrorsOf | None) -> dict[str, float]:
    """By how much forecasts for each device are raised: what 95 % of those before stayed within."""
    if observed is None:
        return {}
    return {
        device.id: min(_MOST_WIDENED, observed(device.name, way.loader, way.run.quantization))
        for device in (*problem.gpus, problem.cpu)
    }  # fmt: skip


def work_of(spec: ModelSpec, solution: Solution) -> Work:
    """What `solution` does for each token. ZeRO-3 gathers every parameter for each, experts that rest included."""
    run, layout = solution.run, solution.layout
    groups = make_groups(spec, run)
    plain = make_groups(spec, RunSpec(run.dtype)) if spec.prequantized == "none" else groups
    width = 4 if run.dtype == "float32" else 2
    read = sum(group.read for group in groups)
    computing = max(solution.budgets, key=lambda name: solution.budgets[name].kv_cache)
    gathered = sum(group.loaded for group in groups if group.kind != "idle")
    return Work(
        reads=layout.reads if layout else {computing: read},
        streamed=layout.streamed if layout else gathered if computing.startswith("cuda") else 0,
        from_disk=layout.from_disk if layout else gathered if solution.way.disk else 0,
        active=sum(group.read for group in plain) // width,
        full_cache=kv_traffic_bytes(spec, run, run.context_tokens),
        cache_away=run.kv_cache == "offloaded",
        layers=spec.layers,
        chunk=min(run.prefill_chunk, run.context_tokens) if spec.embedder is None else batch_tokens(run),
        quantization=run.quantization,
        double_quant=run.double_quant,
        gathered=layout is None,
        native=run.runtime == "llamacpp",
        caches=layout.caches if run.runtime == "llamacpp" and layout is not None else {},
        lends=run.runtime == "llamacpp" and layout is not None and len(layout.reads) > 1,
    )
