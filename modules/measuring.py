"""What a loaded model and its use really took, beside what its plan said: entries for the ledger. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import metadata

from modules.engine.base import EngineStats, ModelInfo
from modules.hardware import Inventory
from modules.memory.forecasting.budget import Budget
from modules.memory.planning.ledger import Entry, Moment
from modules.memory.planning.planner import Plan

_TORCH, _LLAMACPP = ("torch", "transformers"), ("xllamacpp",)


def entries_after_load(plan: Plan, info: ModelInfo, machine: Inventory) -> list[Entry]:
    """The bytes of weights on each device, which a forecast should meet to the byte, or as its log rounds llama.cpp's.

    None where nobody says what was taken.
    """
    return _entries(
        plan,
        machine,
        "weights",
        (
            (device, budget.weights + budget.quant_meta, info.placement.get(device, 0))
            for device, budget in plan.budgets.items()
        ),
    )


def entries_after_use(plan: Plan, info: ModelInfo, stats: EngineStats, machine: Inventory) -> list[Entry]:
    """The peak on each device over the engine's whole life, held against the forecast for as much context as it saw.

    Where a loop takes the memory of the whole context at once, all of it counts. None for an engine that made nothing.
    """
    share = min(1.0, stats.longest_tokens / max(1, plan.run.context_tokens))
    if not share:
        return []
    pairs = []
    for device, budget in plan.budgets.items():
        if device in stats.peak_bytes:
            most = _reached(budget, share, device=device, whole=_is_taken_whole(plan, info, device))
            measured = stats.peak_bytes[device]
            pairs.append((device, min(most, max(most - _at_most(budget), measured)), measured))
    return _entries(plan, machine, "use", pairs, share)


def _at_most(budget: Budget) -> int:
    """Bytes that are taken in part or not at all, and nobody counts in which: anything up to them is as forecast.

    What idle conversations and the first text to embed take, and adapters where each device may hold all of them.
    """
    adapters = budget.figures.get("adapters")
    shared = adapters.bytes if adapters is not None and adapters.method != "exact" else 0
    return budget.idle_cache + budget.embeddings + shared


def _is_taken_whole(plan: Plan, info: ModelInfo, device: str) -> bool:
    """Whether the KV cache takes all its memory at once.

    llama.cpp clears its cache at the start, and so is a cache of fixed size. The batched loop's pool is cleared too, of
    which Linux gives RAM only where something else is written, a GPU all.
    """
    on_gpu = device.startswith("cuda")
    return info.loop == "llamacpp" or plan.run.kv_cache == "static" or (info.loop == "batched" and on_gpu)


def _reached(budget: Budget, share: float, *, device: str, whole: bool) -> int:
    """The forecast peak when `share` of the context is used; without the CUDA context, which no allocator counts.

    `whole`: all of the cache is taken however much is used.
    """
    on_gpu = device.startswith("cuda")
    unused = 0 if whole else round(budget.kv_cache * (1 - share))
    runtime = budget.context if on_gpu else 0
    return max(budget.resident + budget.transient - unused, budget.load_peak) - runtime


def _entries(
    plan: Plan, machine: Inventory, moment: Moment, pairs: Iterable[tuple[str, int, int]], share: float = 0.0
) -> list[Entry]:
    """One entry for each (device, forecast, measured); none of a model in processes that one cannot measure."""
    if plan.loader in ("deepspeed", "vllm"):
        return []
    names = {device.id: device.name for device in (*machine.gpus, machine.cpu)}
    return [
        Entry(
            model=plan.spec.name,
            family=plan.spec.model_type,
            loader=plan.loader,
            quantization=plan.run.quantization,
            way=plan.title or f"{plan.run.dtype} on {device}",
            device=device,
            device_name=names.get(device, device),
            moment=moment,
            forecast_bytes=forecast,
            measured_bytes=measured,
            context_used=share,
            version=_version(plan),
        )
        for device, forecast, measured in pairs
        if forecast and measured
    ]


def _version(plan: Plan) -> str:
    """`torch 2.13.0, transformers 5.23.0`: what the measured bytes depend on."""
    libraries = _LLAMACPP if plan.loader == "llamacpp" else _TORCH
    return ", ".join(f"{name} {metadata.version(name)}" for name in libraries)
