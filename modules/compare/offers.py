"""The ways to run a model that a column may be given: what the planner says is possible on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from modules.memory.planning.planner import Plan, PlanTable
from modules.memory.planning.quality import loss_text
from modules.models.manager import ModelManager
from modules.settings import LoadOptions
from modules.units import format_size

Precision = tuple[str, str, str, bool]


@dataclass(frozen=True, slots=True)
class Offer:
    """One way. `flags` None: as it is loaded, or as Snug would load it. `why` tells why it cannot be, or its cost."""

    title: str
    flags: tuple[str, ...] | None
    possible: bool = True
    why: str = ""


def offers(models: ModelManager, name: str, *, tokens: int) -> list[Offer]:
    """The loaded or chosen way first, then each other precision, the best first, whether it fits or not.

    Counted as if the chat's model gave way. Raises SnugError for a model that cannot be loaded at all.
    """
    table = models.guest_plans(base_options(models.defaults, name), tokens=tokens, instead=True)
    loaded = models.state.plan
    here = loaded if loaded is not None and loaded.spec.name == name else None
    first = here or table.chosen
    found = [] if first is None else [Offer(_first_title(first, loaded=here is not None), None)]
    seen = set() if first is None else {precision(first)}
    for plan in _by_precision(table):
        if precision(plan) not in seen:
            why = loss_text(plan.quality) if plan.fits else f"lacks {format_size(plan.short_bytes, up=True)}"
            found.append(Offer(plan.title, _without_context(plan.flags), plan.fits, why))
    return found


def base_options(defaults: LoadOptions, name: str) -> LoadOptions:
    """What counts for every way of a column: where the server may compute and keep things, nothing of precision."""
    kept = {key: getattr(defaults, key) for key in ("cpu", "disk", "disk_cache_dir", "attn_implementation")}
    return LoadOptions.model_validate(kept | {"model": name, "kv_cache": "plain"})


def precision(plan: Plan) -> Precision:
    """What decides which tokens a model gives, as far as people choose it: two plans alike in this answer alike."""
    run = plan.run
    return run.runtime, run.dtype, run.quantization, run.double_quant


def _by_precision(table: PlanTable) -> list[Plan]:
    """One plan a precision: the first that fits, which is the fastest, else the one that lacks least."""
    best: dict[Precision, Plan] = {}
    for plan in sorted(table.plans, key=lambda plan: not plan.fits):
        if plan.loader not in ("deepspeed", "vllm"):  # their processes do not go beside others
            best.setdefault(precision(plan), plan)
    return sorted(best.values(), key=lambda plan: -plan.quality)


def _first_title(plan: Plan, *, loaded: bool) -> str:
    return f"As loaded: {plan.title}" if loaded else f"{plan.title} (Snug's choice)" if plan.title else "Snug's choice"


def _without_context(flags: tuple[str, ...]) -> tuple[str, ...]:
    """How long the context is follows from the prompt."""
    if "--ctx-size" not in flags:
        return flags
    at = flags.index("--ctx-size")
    return (*flags[:at], *flags[at + 2 :])
