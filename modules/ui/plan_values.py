"""A plan as bars: for each device what lies where, from left to right, and what is measured. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modules.engine.base import EngineStats, ModelInfo
from modules.hardware import Device, Inventory
from modules.memory.forecasting.budget import PURPOSE_TITLES, Budget, Figure
from modules.memory.forecasting.formulas import explained
from modules.memory.planning.planner import Plan
from modules.memory.planning.problem import lacks_bytes
from modules.ui.words import format_size, t, told

LENS_BELOW = 0.25  # of the bar: models smaller than that are shown larger below it
LENS_ROOM = 1.04  # what the lens shows, over the largest forecast
KINDS = (*PURPOSE_TITLES, "loading")


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a bar: `kind` is a purpose of the budget, or "loading" for what only the load takes."""

    kind: str
    title: str
    start: int
    bytes: int
    figure: Figure


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes that a loaded model really takes on one device: its weights, and all of its process just now."""

    weights: int
    now: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One device with the forecast for it and, once loaded, the truth."""

    device: Device
    budget: Budget
    measured: Measured | None = None

    @property
    def span(self) -> int:
        """The bytes that the bar's whole width stands for: the device, or the forecast where that is more."""
        return max(self.device.total_bytes, round(self.budget.high * 1.02), 1)

    @property
    def idle(self) -> bool:
        """Whether the plan leaves the device alone."""
        return not self.budget.total

    @property
    def over(self) -> int:
        """Bytes beyond what is free. A disk's are the model's own files, most of which lie there already."""
        return 0 if self.device.kind == "disk" else max(0, self.budget.total - self.device.free_bytes)

    @property
    def lacks(self) -> int:
        """Bytes that must be free in addition, as plans count it: with what a plan keeps free."""
        return 0 if self.device.kind == "disk" else lacks_bytes(self.device.free_bytes, self.budget.total)

    @property
    def lens_span(self) -> int:
        """The bytes that the lens's width stands for; 0 where none is needed."""
        needed = max(self.budget.high, self.measured.now if self.measured else 0)
        worth = len(self.parts()) > 1 or self.measured is not None
        return round(needed * LENS_ROOM) if worth and 0 < needed < LENS_BELOW * self.span else 0

    def parts(self) -> list[Part]:
        """The stretches from left to right; they sum to the forecast's total."""
        parts, start = [], 0
        for purpose, size in self.budget.parts():
            parts.append(
                Part(purpose, capital(told(PURPOSE_TITLES[purpose])), start, size, self.budget.figures[purpose])
            )
            start += size
        if rest := self.budget.loading:
            formula = t(
                "{peak} while loading, {counted} of them counted here",
                peak=format_size(self.budget.load_peak), counted=format_size(start),
            )  # fmt: skip
            parts.append(Part("loading", t("More while loading"), start, rest, Figure(rest, "formula", formula)))
        return parts


def bars_of(
    plan: Plan, inventory: Inventory, measured: Mapping[str, Measured] | None = None, *, idle_gpus: bool = False
) -> list[Bar]:
    """A bar for every device that the plan puts something on, with `idle_gpus` for every GPU; disk last.

    None at all for a plan without forecast, one that DeepSpeed alone knows.
    """
    found, budgets = measured or {}, {id: budget for id, budget in plan.budgets.items() if budget.total}
    devices = (*inventory.gpus, inventory.cpu, inventory.disk) if budgets else ()
    return [
        Bar(device, explained(budgets.get(device.id, Budget()), plan.spec, plan.run), found.get(device.id))
        for device in devices
        if device.id in budgets or (idle_gpus and device.kind == "cuda")
    ]


def measured_by_device(info: ModelInfo, stats: EngineStats) -> dict[str, Measured]:
    """What a loaded model takes: weights as its loader counted them, and its process's memory at the moment."""
    now = {"cpu": stats.rss_bytes, **stats.gpu_bytes}
    return {
        device: Measured(info.placement.get(device, 0), max(now.get(device, 0), info.placement.get(device, 0)))
        for device in dict.fromkeys((*info.placement, *stats.gpu_bytes, "cpu"))
        if now.get(device, 0) or info.placement.get(device, 0)
    }


def capital(title: str) -> str:
    """With a capital first letter, the rest as it is."""
    return title[:1].upper() + title[1:]
