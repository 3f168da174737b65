"""Where memory ran out although a plan fitted: which ways of running the same model need less, and what they change.

Pure, as planner.py is. Who loads them, and for which replies, is models/rescue.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from modules.errors import SnugError
from modules.memory.forecasting.forecast import DTYPE_FLAGS
from modules.memory.forecasting.kv_cache import LABELS, KVCache
from modules.memory.planning.planner import Plan, PlanTable
from modules.settings import LoadOptions

SMALLEST_CONTEXT = 512
# Less saved than this share is within the error of the forecast that has just failed.
LEAST_SAVING = 0.1

Replan = Callable[[LoadOptions], Plan]


@dataclass(frozen=True, slots=True)
class Failure:
    """What ran out of memory: the plan, the options behind it, and what has to fit its successor.

    `least_tokens` is the longest sequence that has to go on. `flags_bind`: it was a load, and options that the user set
    stay as they are; in the midst of a reply a shorter context or fewer bits are better than no answer.
    """

    plan: Plan
    options: LoadOptions
    least_tokens: int = 0
    flags_bind: bool = False


def smaller_plans(failure: Failure, table: PlanTable, replan: Replan) -> list[Plan]:
    """What to try next, in this order: a shorter context, fewer layers on the GPUs, a smaller cache, the planner's own
    list, fewer bits, layers elsewhere.

    Each takes at least LEAST_SAVING less than the one that failed where that ran out. Sizes need not fall from one to
    the next. `replan` raises SnugError for what does not fit. What embeds texts as long as before comes first.
    """
    found: dict[str, Plan] = {}
    for plan in _candidates(failure, table, replan):
        way = repr((plan.run, sorted(plan.placement.items()), plan.loader))
        enough = plan.run.context_tokens >= failure.least_tokens
        if plan.fits and not plan.short_bytes and enough and way not in found and _saves(failure, plan):
            found[way] = plan
    return sorted(found.values(), key=lambda plan: _embeds_up_to(plan) < _embeds_up_to(failure.plan))


def rungs(plans: Sequence[Plan], most: int) -> list[Plan]:
    """Which of `plans` to load, one after the other: the first `most`, and at last what llama.cpp needs no GPU for.

    How far a GPU's memory was overestimated nobody knows: two smaller steps may be too small both.
    """
    first, rest = list(plans[:most]), plans[most:]
    sure = next((plan for plan in rest if _off_gpus(plan)), None)
    return [*first, sure] if sure is not None and not any(map(_off_gpus, first)) else first


def difference(before: Plan, after: Plan) -> str:
    """What `after` does otherwise: `4,096 tokens of context instead of 8,192, weights in 8-bit`."""
    parts = []
    if after.run.context_tokens != before.run.context_tokens:
        parts.append(f"{after.run.context_tokens:,} tokens of context instead of {before.run.context_tokens:,}")
    if after.run.kv_cache != before.run.kv_cache:
        parts.append(LABELS[after.run.kv_cache] or "KV cache as computed")
    bits = [_precision(plan) for plan in (before, after)]
    if bits[0] != bits[1]:
        parts.append(f"weights in {bits[1]} instead of {bits[0]}")
    if _embeds_up_to(after) < _embeds_up_to(before):
        parts.append(f"texts of up to {_embeds_up_to(after):,} tokens to embed instead of {_embeds_up_to(before):,}")
    layers = [min(sum(plan.gpu_layers), plan.spec.layers) for plan in (before, after)]
    if layers[1] < layers[0]:
        whole = after.spec.layers
        kept = (
            f"{layers[1]} of its {whole} layers on a GPU" if layers[1] else f"all of its {whole} layers in CPU memory"
        )
        parts.append(f"{kept} instead of {layers[0]}{'' if layers[1] else ' on a GPU'}")
    for place, where in (("cpu", "in CPU memory"), ("disk", "on disk")):
        more = _weights(after, place) - _weights(before, place)
        if more > 0 and len(after.budgets) > 1 and not before.gpu_layers:
            parts.append(f"more of the weights {where}")
    return ", ".join(parts) or after.title or "another way of loading"


def _candidates(failure: Failure, table: PlanTable, replan: Replan) -> Iterator[Plan]:
    shorter = _shorter(failure)
    for changes in (*islice(shorter, 1), *_fewer_layers(failure), *shorter):
        yield from _try(failure.options, changes, replan)
    for changes in _packed_caches(failure):
        yield from _try(failure.options, changes, replan)
    yield from table.plans
    for changes in _other_ways(failure):
        yield from _try(failure.options, changes, replan)


def _try(options: LoadOptions, changes: Mapping[str, Any], replan: Replan) -> Iterator[Plan]:
    try:
        yield replan(options.model_copy(update=dict(changes)))
    except SnugError:
        return


def _shorter(failure: Failure) -> Iterator[dict[str, Any]]:
    """The context halved again and again, down to what has to fit."""
    if failure.flags_bind and failure.options.ctx_size is not None:
        return
    tokens = failure.plan.run.context_tokens // 2
    while tokens >= max(SMALLEST_CONTEXT, failure.least_tokens):
        yield {"ctx_size": tokens} | _same_bits(failure.plan)
        tokens //= 2


def _packed_caches(failure: Failure) -> Iterator[dict[str, Any]]:
    """The same context and bits with a cache of fewer bits."""
    if failure.flags_bind and failure.options.kv_cache != "auto":
        return
    context = {"ctx_size": failure.plan.run.context_tokens}
    kinds: tuple[KVCache, ...] = ("int8", "int4")
    for kind in kinds[1:] if failure.plan.run.kv_cache == "int8" else kinds:
        yield {"kv_cache": kind} | context | _same_bits(failure.plan)


def _other_ways(failure: Failure) -> Iterator[dict[str, Any]]:
    """Fewer bits, then layers off the device that is full; each with a context that holds what has to fit."""
    plan, options = failure.plan, failure.options
    context = {"ctx_size": max(SMALLEST_CONTEXT, failure.least_tokens)}
    bits_bound = options.dtype != "auto" or options.bf16 or options.load_in_8bit or options.load_in_4bit
    if not (failure.flags_bind and bits_bound) and plan.spec.prequantized == "none" and not options.deepspeed:
        if plan.run.quantization == "none":
            yield {"load_in_8bit": True, "load_in_4bit": False}
        if plan.run.quantization in ("none", "int8"):
            yield {"load_in_8bit": False, "load_in_4bit": True}
            yield {"load_in_8bit": False, "load_in_4bit": True} | context
    if not failure.flags_bind and not options.deepspeed:
        yield {"auto_devices": True, "disk": True} | context


def _fewer_layers(failure: Failure) -> Iterator[dict[str, Any]]:
    """Of the layers that llama.cpp computes on GPUs three quarters, half, a quarter, none; the same context."""
    plan, options = failure.plan, failure.options
    if not plan.gpu_layers or (failure.flags_bind and options.gpu_layers is not None):
        return
    whole = sum(plan.gpu_layers)
    for quarters in (3, 2, 1, 0):
        layers = {"gpu_layers": whole * quarters // 4}
        yield layers | {"ctx_size": max(plan.run.context_tokens, failure.least_tokens)}
    yield {"gpu_layers": 0, "ctx_size": max(SMALLEST_CONTEXT, failure.least_tokens)}


def _off_gpus(plan: Plan) -> bool:
    return plan.loader == "llamacpp" and not plan.gpu_layers


def _embeds_up_to(plan: Plan) -> int:
    """Tokens of a text that one step computes for its embedding; 0 where none are made."""
    return min(plan.run.prefill_chunk, plan.run.context_tokens) if plan.embeds else 0


def _same_bits(plan: Plan) -> dict[str, Any]:
    """Flags for the bits that a plan has: a step at a time."""
    if plan.spec.prequantized != "none":
        return {}
    return {
        "load_in_8bit": plan.run.quantization == "int8",
        "load_in_4bit": plan.run.quantization in ("nf4", "fp4"),
        "use_double_quant": plan.run.double_quant,
    }


def _saves(failure: Failure, after: Plan) -> bool:
    """Whether memory is saved where it ran out: on the GPUs if there are any in the plan, else in RAM."""
    place = "cuda" if any(device.startswith("cuda") for device in failure.plan.budgets) else "cpu"
    loading = failure.flags_bind
    before = _chosen_bytes(failure.plan, place, loading=loading)
    return _chosen_bytes(after, place, loading=loading) <= (1 - LEAST_SAVING) * before


def _chosen_bytes(plan: Plan, place: str, *, loading: bool) -> int:
    """What a plan decides about: all but the process or CUDA context itself, its heap's holes and what is given only
    where there is room; the load's own peak only in a load.
    """
    budgets = [budget for device, budget in plan.budgets.items() if device.startswith(place)]
    return sum(
        (b.total if loading else b.resident + b.transient) - b.context - b["allocator"] - b.idle_cache for b in budgets
    )


def _weights(plan: Plan, place: str) -> int:
    return plan.budgets[place].weights if place in plan.budgets else 0


def _precision(plan: Plan) -> str:
    run = plan.run
    return DTYPE_FLAGS[run.dtype] if run.quantization == "none" else "8-bit" if run.quantization == "int8" else "4-bit"
