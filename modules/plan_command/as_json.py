"""What `--plan --json` prints: the same as the terminal shows, for programs.

Every number carries its unit at the end of its name: `_bytes` (integers), `_tokens`, `_tokens_per_s`, `_count`,
`_ratio`. Of a device's parts the `counted_bytes` sum to its `total_bytes`: reading the prompt, writing the reply and a
training step's activations take turns, so only the largest of them counts, and "loading" is what the load takes beyond
all others. `schema_version` grows when a name changes its meaning or goes away; new names may come at any time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from modules.errors import SnugError
from modules.hardware import Device, Inventory
from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.formulas import explained
from modules.memory.forecasting.kinds import count_layers
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.ledger import Entry
from modules.memory.planning.planner import Plan, PlanTable
from modules.plan_command.training import TrainingTable, TrainingWay

SCHEMA_VERSION = 1


def report_json(inventory: Inventory, models: Sequence[Mapping[str, Any]], *, imagined: bool) -> dict[str, Any]:
    """The whole answer."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": {
            "imagined": imagined,
            "devices": [_device(device) for device in (*inventory.gpus, inventory.cpu, inventory.disk)],
        },
        "models": list(models),
        "how_to_add_up": "Of each device the parts' counted_bytes sum to total_bytes; a part that counts 0 "
        "takes turns with a larger one.",
    }


def table_json(table: PlanTable, *, longest_context: int) -> dict[str, Any]:
    """One model with every way to run it, the chosen one first. `longest_context` 0 is unknown: null."""
    return {
        "model": _spec(table.spec),
        "mode": "infer",
        "fits": table.chosen is not None,
        "longest_context_tokens": longest_context or None,
        "plans": [_plan(plan, chosen=plan is table.chosen) for plan in table.plans],
        "refusal": error_json(table.refusal) if table.refusal else None,
        "dropped": [{"way": way, "why": why} for way, why in table.dropped],
    }


def training_json(table: TrainingTable, mode: str) -> dict[str, Any]:
    """One model with every way to train it in `mode`."""
    return {
        "model": _spec(table.spec),
        "mode": mode,
        "fits": table.chosen is not None,
        "plans": [_training_way(way, chosen=way is table.chosen) for way in table.ways],
        "refusal": error_json(table.refusal) if table.refusal else None,
    }


def error_json(error: SnugError) -> dict[str, str]:
    """An error as the API gives it."""
    return {"code": error.code, "message": error.message, "remedy": error.remedy}


def entries_json(entries: Sequence[Entry]) -> dict[str, Any]:
    """The ledger, oldest first."""
    return {"schema_version": SCHEMA_VERSION, "records": [_entry(entry) for entry in entries]}


def _entry(entry: Entry) -> dict[str, Any]:
    values = asdict(entry)
    used = values.pop("context_used")
    return values | {"context_used_ratio": used, "measured_to_forecast_ratio": entry.ratio}


def _device(device: Device) -> dict[str, Any]:
    return {
        "id": device.id,
        "name": device.name if device.kind == "cuda" else "",
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
    }


def _spec(spec: ModelSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "source": spec.source,
        "architecture": spec.architecture,
        "family": spec.model_type,
        "parameter_count": spec.parameters,
        "layer_count": spec.layers,
        "layers": [{"kind": kind, "layer_count": count} for kind, count in count_layers(spec).items()],
        "longest_context_tokens": spec.max_context,
        "embeds": None
        if spec.embedder is None
        else {"pooling": spec.embedder.pooling, "normalizes": spec.embedder.normalizes},
        "stored_dtype": spec.stored_dtype,
        "stored_bytes": sum(tensor.size_bytes for tensor in spec.tensors),
        "warnings": list(spec.warnings),
    }


def _plan(plan: Plan, *, chosen: bool) -> dict[str, Any]:
    return {
        "title": plan.title,
        "chosen": chosen,
        "fits": plan.fits,
        "short_bytes": plan.short_bytes,
        "flags": list(plan.flags),
        "loader": plan.loader,
        "dtype": plan.run.dtype,
        "quantization": plan.run.quantization,
        "double_quant": plan.run.double_quant,
        "attention": plan.run.attention,
        "kv_cache": plan.run.kv_cache,
        "context_tokens": plan.run.context_tokens,
        "prefill_chunk_tokens": plan.run.prefill_chunk,
        "quality_ratio": plan.quality,
        "low_tokens_per_s": plan.tokens_per_s[0],
        "high_tokens_per_s": plan.tokens_per_s[1],
        "low_prefill_tokens_per_s": plan.prefill_tokens_per_s[0],
        "high_prefill_tokens_per_s": plan.prefill_tokens_per_s[1],
        "devices": {device: _budget(explained(budget, plan.spec, plan.run)) for device, budget in plan.budgets.items()},
        "placement": plan.placement,
        "gpu_layers": list(plan.gpu_layers),
        "reasons": list(plan.reasons),
    }


def _training_way(way: TrainingWay, *, chosen: bool) -> dict[str, Any]:
    return {
        "title": way.title,
        "chosen": chosen,
        "fits": not way.short_bytes,
        "short_bytes": way.short_bytes,
        "optimizer": way.run.optimizer,
        "checkpointing": way.run.checkpointing,
        "batch_count": way.run.batch,
        "step_tokens": way.run.tokens,
        "lora_rank_count": way.run.rank,
        "cost": way.cost,
        "devices": {way.device.id: _budget(way.budget)},
    }


def _budget(budget: Budget) -> dict[str, Any]:
    counted = dict(budget.parts())
    parts: list[dict[str, Any]] = [
        {
            "purpose": purpose,
            "size_bytes": figure.bytes,
            "counted_bytes": counted.get(purpose, 0),
            "method": figure.method,
            "formula": figure.formula,
        }
        for purpose, figure in budget.figures.items()
    ]
    if budget.loading:
        formula = f"{budget.load_peak:,} B while loading - {budget.total - budget.loading:,} B counted above"
        more = {"purpose": "loading", "size_bytes": budget.loading, "counted_bytes": budget.loading}
        parts.append(more | {"method": "formula", "formula": formula})
    return {
        "total_bytes": budget.total,
        "low_bytes": budget.low,
        "high_bytes": budget.high,
        "resident_bytes": budget.resident,
        "load_peak_bytes": budget.load_peak,
        "parts": parts,
    }
