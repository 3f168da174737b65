"""The ledger of this server's loads: what each took is kept beside its forecast, and told to the planner."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from modules.engine.base import ModelInfo
from modules.engine.host.host import EngineHost
from modules.hardware import Inventory
from modules.measuring import entries_after_load, entries_after_use
from modules.memory.planning.ledger import LEDGER_NAME, Ledger
from modules.memory.planning.planner import Plan
from modules.memory.planning.ranking import ErrorsOf
from modules.models.state import Current, held_by


class Records:
    """Keeps nothing itself. Thread-safe."""

    def __init__(self, user_data_dir: Path, machine: Callable[[], Inventory]) -> None:
        self._ledger = Ledger(user_data_dir / LEDGER_NAME)
        self._machine = machine

    def loaded(self, plan: Plan, info: ModelInfo) -> None:
        """A load is done."""
        self._ledger.record(entries_after_load(plan, info, self._machine()))

    def used(self, current: Current) -> None:
        """An engine is about to go: what it took in all its life. Of one that is idle only, so that nobody waits."""
        host: EngineHost = current.host
        if host.alive and host.wait_idle(0):
            self._ledger.record(entries_after_use(host.plan, host.info, held_by(current), self._machine()))

    def errors_of(self, family: str) -> ErrorsOf:
        """How far forecasts for models of `family` were off so far, by device, loader and quantization."""
        return partial(self._ledger.observed_error, family)
