"""From a Plan to a loaded engine, its progress told to all who watch and its bytes kept in the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from modules.engine.base import LoadEngine, OnProgress, Progress
from modules.engine.host.host import EngineHost, OnStarved, Patience
from modules.engine.host.worker import LoadByName
from modules.memory.planning.planner import Plan
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
    ) -> None:
        """`on_starved` is every engine's; see EngineHost."""
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
        )
        with self._slot.starting(host):
            info = host.wait_loaded()
        self._records.loaded(plan, info)
        return host


def load_engine_for(plan: Plan, loaders: Mapping[str, LoadEngine] = LOADERS) -> LoadEngine:
    """The way to load that `plan` names."""
    return loaders[plan.loader]
