"""What a layout takes of each device: its Budget, a dry run's figures in it where they are known, and what is lacking.

Pure. Which layouts are tried is fitting.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.figures import Held, beside_gpus_budget, device_budget
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, layer_cache_away, weight_bytes
from modules.memory.forecasting.llamacpp_sizes import Beside
from modules.memory.forecasting.remembered import PerSpec
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import Way
from modules.memory.planning.drafts import draft_figure, draft_figures_beside_gpus
from modules.memory.planning.gguf_layers import (
    Parts,
    count_units,
    parts_of,
)
from modules.memory.planning.merging import with_merging
from modules.memory.planning.native import (
    embedding_figure,
    embedding_figures_beside_gpus,
    lora_figure,
    lora_figures_beside_gpus,
)
from modules.memory.planning.placement import (
    Group,
    Layout,
    make_groups,
    with_caches,
)
from modules.memory.planning.problem import LEAST_MARGIN, Problem, Solution, lacks_bytes

# Of bytes that are not counted exactly a forecast may miss this share: docs/memory.md has the rows.
_UNSURE_SHARE = 0.05

computing_beside = PerSpec[tuple[RunSpec, str, Beside], Budget](
    lambda spec, key: beside_gpus_budget(spec, key[0], key[1], None, key[2])
)
gguf_parts = PerSpec[RunSpec, Parts](parts_of)
cached_groups = PerSpec[RunSpec, tuple[Group, ...]](lambda spec, run: with_caches(make_groups(spec, run), spec, run))
_computing = PerSpec[tuple[RunSpec, str, bool], Budget](
    lambda spec, key: device_budget(spec, key[0], key[1], computes=key[2])
)


def empty_budget(problem: Problem, run: RunSpec, device: str, *, computes: bool = True) -> Budget:
    """What computing takes on a device beside weights and caches."""
    budget = _computing(problem.spec, (run, like_first(device), computes))
    return _with_peaks(problem, run, device, budget, computes=computes)


def like_first(device: str) -> str:
    """The first device of the same kind, for which the formulas say the same."""
    return "cuda:0" if device.startswith("cuda") else device


def encoder_output(spec: ModelSpec, run: RunSpec) -> int:
    """Bytes of what an encoder hands to every decoder layer: a cache that belongs to no layer."""
    if not spec.is_encoder_decoder:
        return 0
    return kv_cache_bytes(spec, run, run.context_tokens) - sum(group.cache for group in cached_groups(spec, run))


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
        there = _computing(problem.spec, (counted.run, like_first(device), True))
        for purpose, size in counted.figures:
            ratio = max(1.0, size / max(1, there[purpose] + there.dequant_buffer))
            figures[purpose] = Figure(int((budget[purpose] + within) * ratio), "formula")
    return Budget.of(figures, load_peak=budget.load_peak, margin=budget.margin)


def solution_of(problem: Problem, way: Way, run: RunSpec, layout: Layout) -> Solution:
    """The budgets of a layout. The buffer of offloaded weights lies on the first device that computes."""
    if way.loader == "llamacpp" and way.place != "cpu":
        return _llamacpp_solution(problem, way, run, layout)
    computing = [gpu.id for gpu in problem.gpus if layout.weights.get(gpu.id) or layout.caches.get(gpu.id)] or ["cpu"]
    encoder, away = encoder_output(problem.spec, run), _cache_away(problem.spec, run)
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
    if problem.loras and run.runtime == "llamacpp":
        budgets[computing[0]] = budgets[computing[0]].with_figure("adapters", lora_figure(problem.loras))
    elif problem.loras:
        width = 4 if run.dtype == "float32" else 2
        budgets |= {device: with_merging(budgets[device], problem.loras, width) for device in computing}
    written = {"disk": layout.rewritten} if layout.rewritten else {}
    return Solution(way, run, layout, budgets, dict(layout.weights), _lacking(problem, budgets, written))


def _llamacpp_solution(problem: Problem, way: Way, run: RunSpec, layout: Layout) -> Solution:
    """The budgets of a GGUF file with layers on GPUs. The first GPU computes prompts for what lies in CPU memory."""
    gpus = [gpu.id for gpu in problem.gpus]
    counts = count_units(layout, gpus)
    used = [gpu for gpu, count in zip(gpus, counts, strict=True) if count]
    if len(used) > 1:  # llama.cpp then computes on the first even where no layer lies there
        used = list(dict.fromkeys((gpus[0], *used)))
    beside = gguf_parts(problem.spec, run).beside(sum(counts))
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


def zero3_solution(problem: Problem, way: Way, run: RunSpec) -> Solution:
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
    unsure = max(unsure, int(budget.uncertain * _UNSURE_SHARE), LEAST_MARGIN // 2)
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
