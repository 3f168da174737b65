"""From a Plan to a loaded engine, its progress told to all who watch and its bytes kept in the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from modules.engine.base import LoadEngine, ModelInfo, OnProgress, Progress
from modules.engine.host.host import EngineHost, OnStarved, Patience
from modules.engine.host.worker import LoadByName
from modules.errors import SnugError
from modules.memory.planning.planner import Plan
from modules.meter import Meter
from modules.models.records import Records
from modules.models.slot import Slot

log = logging.getLogger(__name__)

LOADERS: Mapping[str, LoadEngine] = {
    "transformers": LoadByName("modules.engine.loading.huggingface:load"),
    "deepspeed": LoadByName("modules.engine.zero3.doors:load"),
    "llamacpp": LoadByName("modules.engine.llamacpp.engine:load"),
    "vllm": LoadByName("modules.engine.vllm.engine:load"),
    "remote": LoadByName("modules.engine.remote.engine:load"),
}


class EngineStarter:
    """Starts engines for a slot, which it does not put them in. Thread-safe."""

    def __init__(
        self,
        slot: Slot,
        records: Records,
        *,
        loaders: Mapping[str, LoadEngine],
        patience: Patience,
        in_process: bool,
        on_starved: OnStarved,
        meter: Meter,
    ) -> None:
        """`on_starved` is every engine's; see EngineHost. `meter` counts loads and what the engines do."""
        self.meter = meter
        self._slot = slot
        self._records = records
        self._loaders = loaders
        self._patience = patience
        self._in_process = in_process
        self._on_starved = on_starved

    def start(self, plan: Plan, on_progress: OnProgress) -> EngineHost:
        """A loaded engine for `plan`; raises the load's SnugError."""

        def tell(progress: Progress) -> None:
            self._slot.announce(progress=progress)
            on_progress(progress)

        tell(Progress("Starting the engine", 0.0))
        log.info("Loading %s: %s", plan.spec.name, " ".join(plan.reasons))
        host = EngineHost(
            plan,
            load_engine_for(plan, self._loaders),
            tell,
            in_process=self._in_process,
            patience=self._patience,
            on_death=self._slot.note_death,
            on_starved=self._on_starved,
            follow=self.meter.follow,
        )
        with self._slot.starting(host):
            info = self._wait_loaded(host)
        self._records.loaded(plan, info)
        return host

    def start_guest(self, plan: Plan, on_progress: OnProgress, keep: Callable[[EngineHost], None]) -> EngineHost:
        """A loaded engine that is nobody's but the caller's: `keep` gets it as its load begins, to end it.

        Raises the load's SnugError.
        """
        host = EngineHost(
            plan,
            load_engine_for(plan, self._loaders),
            on_progress,
            in_process=self._in_process,
            patience=self._patience,
            follow=self.meter.follow,
        )
        keep(host)
        self._records.loaded(plan, self._wait_loaded(host))
        return host

    def _wait_loaded(self, host: EngineHost) -> ModelInfo:
        """What was loaded, counted; raises the load's SnugError, counted too."""
        began = time.monotonic()
        result = "ok"
        try:
            return host.wait_loaded()
        except SnugError as error:
            result = error.code
            raise
        finally:
            self.meter.load_ends(result, time.monotonic() - began)


def load_engine_for(plan: Plan, loaders: Mapping[str, LoadEngine] = LOADERS) -> LoadEngine:
    """The way to load that `plan` names."""
    return loaders[plan.loader]
