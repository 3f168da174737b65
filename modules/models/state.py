"""What is known of the one model: for people, ModelState; for the rooms here, the engine that answers. Values only."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from modules.engine.base import EngineStats, ModelInfo, Progress
from modules.engine.host.host import EngineHost
from modules.errors import LoadFailed, SnugError
from modules.memory.planning.planner import Plan
from modules.settings import LoadOptions

__all__ = ["Current", "ModelState", "Status", "as_snug", "held_by"]

log = logging.getLogger(__name__)

Status = Literal["empty", "loading", "ready", "failed", "died"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the page shows of the model. Every change makes a new one with a higher `version`.

    `name` is the model that `status` speaks of; `info` and `plan` belong to the model that answers now (while another
    one loads beside it too) or, after "died", will answer again. `error` is what went wrong last, also while "ready":
    then another model failed to load and this one answers on, or memory ran out and it is loaded in another way.
    `lent`: it is "loading" since something else has its memory for a while.
    """

    status: Status = "empty"
    name: str = ""
    progress: Progress | None = None
    error: SnugError | None = None
    info: ModelInfo | None = None
    plan: Plan | None = None
    version: int = 0
    lent: bool = False


@dataclass(frozen=True, slots=True)
class Current:
    """The engine that answers, or did until it died, and the options that made it; `reduced` where memory ran out
    for what they say, and its plan is another one.
    """

    host: EngineHost
    options: LoadOptions
    reduced: bool = False


def still_to_take(current: Current | None) -> dict[str, int]:
    """Bytes by device that an engine holds not yet, but will as its plan says when its context fills."""
    if current is None or not current.host.alive:
        return {}
    held = held_by(current)
    now = {"cpu": held.rss_bytes, **held.gpu_bytes}
    return {
        device: max(0, budget.total - (budget.context if device != "cpu" else 0) - now.get(device, 0))
        for device, budget in current.host.plan.budgets.items()
    }


def held_by(current: Current | None) -> EngineStats:
    """What an engine holds; nothing, if there is none or it does not say."""
    try:
        return current.host.stats() if current is not None and current.host.alive else EngineStats()
    except SnugError:
        return EngineStats()


def as_snug(error: Exception) -> SnugError:
    """What people are told of a load that failed."""
    if isinstance(error, SnugError):
        return error
    log.error("A load failed", exc_info=error)
    return LoadFailed(f"The model could not be loaded: {error}.", remedy="The log says more.")
