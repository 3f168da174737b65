"""What is to be planned for and what came of it, as the planner's parts hand it on: Problem, Solution; what stays free.

Values only. How a solution is found is fitting.py's, what it takes budgeting.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from modules.hardware import Device
from modules.memory.forecasting.budget import Budget, Purpose
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.lora import Lora
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import Way
from modules.memory.planning.placement import Layout
from modules.settings import LoadOptions
from modules.units import MiB

LEAST_CONTEXT = 1024
CONTEXT_STEP = 256
# A prompt is read in chunks of this many tokens; in the smaller ones only where that makes the difference.
CHUNKS = (512, 128)
# Never plan to the last byte: max(256 MiB, 2 % of what is free).
LEAST_MARGIN = 256 * MiB
# What stays free of a device below this, or below this share of it, is little: a fit is close then.
_LITTLE_BYTES, _LITTLE_SHARE = 512 * MiB, 0.05


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


def margin(free_bytes: int) -> int:
    """Bytes of a device that a plan leaves alone."""
    return max(LEAST_MARGIN, free_bytes // 50)


def is_close(free_bytes: int, total_bytes: int) -> bool:
    """Whether next to nothing of a device stays free under a forecast of `total_bytes`."""
    return free_bytes - total_bytes < max(_LITTLE_BYTES, _LITTLE_SHARE * free_bytes)


def lacks_bytes(free_bytes: int, total_bytes: int, widened: float = 1.0) -> int:
    """How many bytes more must be free for a forecast of `total_bytes` to fit, with the margin that it then leaves;
    0 where it fits.
    """
    raised = math.ceil(total_bytes * max(1.0, widened))
    needed = max(raised + LEAST_MARGIN, -(-raised * 50 // 49))
    return max(0, needed - free_bytes)
