"""Which model is loaded: lists, plans, loads, swaps with a way back, unloads, and reloads one that died.

One model answers at a time. The next one is loaded beside it where memory allows that without changing the plan;
else the old one goes first and comes back if the new one fails. Replies that run at the moment of a change get
DRAIN_S seconds to end, then they end with an error that says so. Where memory runs out, rescue.py takes over; who wants
engines beside the one that answers gets a loan (loan.py).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from modules import heap
from modules.engine.base import EngineStats, LoadEngine, ModelInfo, OnProgress, Progress
from modules.engine.host.host import PATIENCE, EngineHost, Generation, Patience, ignore
from modules.errors import EngineDied, ModelChanged, OutOfMemory, SnugError
from modules.hardware import Inventory, read_inventory
from modules.memory.known_gpus import Gpu
from modules.memory.model.listing import ModelEntry, check_loadable, list_models
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.planner import Plan, PlanTable
from modules.memory.planning.smaller import Failure
from modules.memory.planning.speed import Speeds, defaults
from modules.meter import Meter
from modules.models.loan import Loan
from modules.models.planning import DryRunner, DryRunProgress, Planning
from modules.models.records import Records
from modules.models.remembered import ModelMemory
from modules.models.rescue import Rescue, told
from modules.models.slot import Slot
from modules.models.starting import LOADERS, EngineStarter
from modules.models.state import Current, ModelState, as_snug, held_by, still_to_take
from modules.settings import LoadOptions, Settings

log = logging.getLogger(__name__)

DRAIN_S = 5.0

Result = TypeVar("Result")
Replies = list[Generation]


class ModelManager:
    """Holds the one engine. Every method may be called from any thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        loaders: Mapping[str, LoadEngine] = LOADERS,
        read_inventory: Callable[[Path], Inventory] = read_inventory,
        speeds: Callable[[Inventory], Speeds] = defaults,
        patience: Patience = PATIENCE,
        drain_s: float = DRAIN_S,
        in_process: bool = False,
        dry_runs: DryRunner | None = None,
    ) -> None:
        """`dry_runs` sharpen what `plans` says, and are closed with this."""
        self._settings = settings
        self._read_inventory = read_inventory
        self._drain_s = drain_s
        self.memory = ModelMemory(settings)
        self.meter = Meter()
        self._slot = Slot()
        self._records = Records(settings.user_data_dir, self.machine)
        self._planning = Planning(
            settings, self._records, read_inventory=read_inventory, speeds=speeds, dry_runs=dry_runs
        )
        self._starter = EngineStarter(
            self._slot, self._records, loaders=loaders, in_process=in_process,
            patience=replace(patience, queue_s=settings.queue_timeout),
            on_starved=self._save_replies, meter=self.meter,
        )  # fmt: skip
        self._rescue = Rescue(self._slot, self._starter, self._planning)

    @property
    def defaults(self) -> LoadOptions:
        """The load options that the server was started with."""
        return self._settings.load_options

    @property
    def options(self) -> LoadOptions | None:
        """What the model that answers (or, having died, will again) was loaded with; None without one."""
        current = self._slot.current
        return current.options if current else None

    @property
    def state(self) -> ModelState:
        """How things stand."""
        return self._slot.state

    def wait_state(self, version: int, timeout_s: float) -> ModelState:
        """The state as soon as it is newer than `version`, or as it is after `timeout_s`."""
        return self._slot.wait_state(version, timeout_s)

    def list(self) -> list[ModelEntry]:
        """What is in the models folder, and first of all the model that runs elsewhere, if a flag names one."""
        server = self._settings.remote_server
        there = [] if server is None else [ModelEntry(server.name, "remote", 0)]
        return there + list_models(self._settings.model_dir, trust_remote_code=self._settings.trust_remote_code)

    def plan(self, options: LoadOptions) -> Plan:
        """What loading with `options` would do now, if the loaded model gave way. Raises SnugError if nothing fits."""
        return self._planning.plan(options, self.stats())

    def plans(self, options: LoadOptions) -> PlanTable:
        """Every way to load under `options` now, if the loaded model gave way. SnugError for impossible flags.

        The chosen way is by formulas until a dry run has counted it, which this sets off unless a model is loading:
        ask again when `dry_run_progress` has more answers.
        """
        return self._planning.table(options, self.stats(), sharpen=not self._slot.busy)

    def plans_on(self, options: LoadOptions, gpus: Sequence[Gpu], ram_bytes: int | None) -> PlanTable:
        """Every way to load under `options` on a machine with these cards and this much RAM, by formulas."""
        return self._planning.table_on(options, gpus, ram_bytes)

    def plans_of(self, spec: ModelSpec) -> PlanTable:
        """Every way to load a model that is not here, as the server was started. SnugError for impossible flags."""
        options = self.defaults.model_copy(update={"model": spec.name})
        return self._planning.table_of(spec, options, self.stats())

    def guest_plans(
        self, options: LoadOptions, *, tokens: int, instead: bool = False, taken: Mapping[str, int] | None = None
    ) -> PlanTable:
        """Every way to run a model with `tokens` of context beside the loaded one, or `instead` of it. No dry run.

        What the loaded one will still take when its context fills counts as taken, and so do the bytes of `taken`.
        Raises SnugError for impossible flags.
        """
        freed, spoken_for = self._room(instead, taken or {})
        return self._planning.guest(options, freed, tokens=tokens, taken=spoken_for)

    def guest_room(self, *, instead: bool = False) -> dict[str, int]:
        """Bytes by device for such models."""
        freed, spoken_for = self._room(instead, {})
        return self._planning.free_bytes(freed, spoken_for)

    def _room(self, instead: bool, taken: Mapping[str, int]) -> tuple[EngineStats, dict[str, int]]:
        if instead:
            return self.stats(), dict(taken)
        rest = still_to_take(self._slot.current)
        return EngineStats(), {key: taken.get(key, 0) + rest.get(key, 0) for key in {*taken, *rest}}

    def lend(self, why: str) -> Loan:
        """The machine for engines beside the one that answers, until `give_back`. `why` is what others are told.

        Raises Busy while a model loads, or another loan runs.
        """
        self._slot.take_turn("a model", why=why)
        self._planning.end_dry_runs()
        return Loan(self._slot, self._starter, self._rescue, self._records)

    @property
    def dry_run_progress(self) -> DryRunProgress:
        """How far the dry runs behind `plans` are."""
        return self._planning.dry_run_progress

    @property
    def idle(self) -> bool:
        """Whether nothing is being loaded and no reply is under way."""
        current = self._slot.current
        if self._slot.busy or current is None or not current.host.alive:
            return not self._slot.busy
        try:
            stats = current.host.stats()
        except SnugError:  # it does not even answer
            return False
        return stats.active == 0 and stats.queued == 0

    def machine(self) -> Inventory:
        """This machine as it is now."""
        return self._read_inventory(self._settings.user_data_dir / "cache")

    def stats(self) -> EngineStats:
        """What the engine that answers holds now; nothing where there is none or it does not say."""
        return held_by(self._slot.current)

    def load(self, options: LoadOptions, on_progress: OnProgress | None = None) -> ModelInfo:
        """Load a model and make it the one that answers; blocks until it does.

        Raises Busy while another load runs, else the SnugError that says what was wrong. The model that answered
        before still does then, unless the error says that it could not be brought back.
        """
        self._slot.take_turn(options.model or "a model")
        return self._load(options, on_progress or ignore).info

    def start_load(self, options: LoadOptions, *, remember: bool = False) -> None:
        """`load` in a thread: watch `state`. Raises Busy at once. `remember`: as the way to load that model again."""
        self._slot.take_turn(options.model or "a model")
        threading.Thread(target=self._load_quietly, args=(options, remember), name="load", daemon=True).start()

    def stop(self, user: str, name: str = "") -> int:
        """Cancel what this user has open in the engine that answers, or what of it goes by `name`; how many."""
        current = self._slot.current
        return current.host.stop(user, name) if current is not None else 0

    def unload(self) -> None:
        """Stop a load that runs, end the engine and give back its memory. Open replies end with an error."""
        self._empty(ModelChanged("The model was unloaded during this reply.", remedy="Load a model and go on."))

    def close(self) -> None:
        """End the engine for good; open replies end as cancelled. Later loads are refused."""
        self._slot.close()
        self._planning.end_dry_runs(for_good=True)
        self._empty(None)

    def engine(self) -> EngineHost:
        """The engine that answers. Waits for a load that runs; loads one anew that died.

        Raises NoModelLoaded, what the reload raises, or Busy if a load takes longer than slot.WAIT_FOR_LOAD_S.
        """
        current, our_turn = self._slot.answering()
        return self._load_anew(current) if our_turn else current.host

    def with_engine(self, use: Callable[[EngineHost], Result]) -> Result:
        """`use` of the engine that answers; done once more, with the engine loaded anew, if it dies meanwhile.

        What `use` submits is complete before a loan takes the engine away.
        """
        with self._held_engine() as engine:
            try:
                return use(engine)
            except EngineDied:
                if engine.alive:
                    raise
        with self._held_engine() as engine:
            return use(engine)

    @contextmanager
    def _held_engine(self) -> Iterator[EngineHost]:
        """The engine that answers; no loan takes it before this ends, and no other model unless it takes too long."""
        current, our_turn = self._slot.answering(hold=True)
        try:
            yield self._load_anew(current) if our_turn else current.host
        finally:
            self._slot.release(current)

    def _load_quietly(self, options: LoadOptions, remember: bool) -> None:
        try:
            self._load(options, ignore)
            if remember and self._planning.elsewhere(options) is None:
                self.memory.keep(options)
        except SnugError as error:
            log.warning("%s", error)

    def _load(self, options: LoadOptions, on_progress: OnProgress) -> EngineHost:
        """One load, its turn taken; ends the turn."""
        old = self._slot.current
        try:
            progress = Progress("Planning", 0.0)
            self._slot.announce(status="loading", name=options.model or "", progress=progress, error=None)
            self._planning.end_dry_runs()
            plan, beside = self._choose(options, old)
            check_loadable(plan.spec)
            if old is not None and old.host.alive and not beside:
                self._retire(old)
                plan = self._planning.plan(options, EngineStats())
            try:
                new = Current(self._starter.start(plan, on_progress), options)
            except OutOfMemory as error:
                if old is not None and beside:
                    self._retire(old)
                failure = Failure(plan, options, flags_bind=True)
                new = self._rescue.load(failure, error, on_progress, again=[plan] if beside else [])
                beside = False
            self._slot.install(new, error=told(new, plan))
            if old is not None and beside:
                self._retire(old)
            return new.host
        except Exception as error:
            raise self._roll_back(options, old, as_snug(error)) from error
        finally:
            self._slot.end_turn()

    def _load_anew(self, dead: Current) -> EngineHost:
        """Load the model of an engine that died, its turn taken: as it was, or smaller if memory was the cause."""
        if not dead.reduced and not dead.host.starved:
            return self._load(dead.options, ignore)
        try:
            if dead.host.starved:
                return self._rescue.shrink(dead, dead.host.death or OutOfMemory("Memory ran out."), [])
            new = replace(dead, host=self._starter.start(dead.host.plan, ignore))
            self._slot.install(new)
            return new.host
        except SnugError as failure:
            raise self._roll_back(dead.options, dead, failure) from failure
        finally:
            self._slot.end_turn()

    def _save_replies(self, host: EngineHost, error: SnugError, replies: Replies) -> None:
        self._rescue.replies_soon(host, error, replies)

    def _choose(self, options: LoadOptions, old: Current | None) -> tuple[Plan, bool]:
        """The plan for `options`, and whether the old engine can stay until the new one answers."""
        if old is None or not old.host.alive:
            return self._planning.plan(options, EngineStats()), False
        alone = self._planning.plan(options, held_by(old))
        if "deepspeed" in (alone.loader, old.host.plan.loader):
            return alone, False  # the ranks have one rendezvous
        try:
            beside = self._planning.plan(options, EngineStats())
        except SnugError as error:
            log.info("%s must go before %s is loaded: %s", old.host.plan.spec.name, alone.spec.name, error)
            return alone, False
        same = (beside.placement, beside.run) == (alone.placement, alone.run)
        return (beside, True) if same else (alone, False)

    def _retire(self, old: Current) -> None:
        """End an engine whose place is taken, or needed."""
        self._slot.vacate(old)
        self._slot.wait_released(self._drain_s, old)  # who holds it has a request on the way
        old.host.wait_idle(self._drain_s)
        self._records.used(old)
        old.host.close(ModelChanged("The model was changed during this reply.", remedy="Continue or regenerate it."))
        heap.give_back()

    def _roll_back(self, options: LoadOptions, old: Current | None, error: SnugError) -> SnugError:
        """Let the old model answer again if there was one; returns the error that tells how that went."""
        name = options.model or ""
        if self._slot.emptying or old is None:
            self._slot.announce(status="failed", name=name, progress=None, error=error, info=None, plan=None)
            return error
        old_name = old.host.plan.spec.name
        if self._slot.current is old:
            fate = f"{old_name} is still loaded." if old.host.alive else ""
            error = _with_fate(error, fate)
            self._slot.install(old, error=error)
            return error
        self._slot.announce(name=old_name, progress=Progress(f"Bringing back {old_name}", 0.0))
        try:
            host = self._starter.start(old.host.plan, ignore)
        except SnugError as second:
            log.warning("%s did not come back: %s", old_name, second)
            error = _with_fate(error, f"{old_name} could not be loaded again either: {second.message}")
            self._slot.announce(status="failed", name=name, progress=None, error=error, info=None, plan=None)
            return error
        error = _with_fate(error, f"{old_name} is loaded again.")
        self._slot.install(replace(old, host=host), error=error)
        return error

    def _empty(self, because: SnugError | None) -> None:
        """Stop whatever loads, close whatever is loaded."""
        with self._slot.emptied() as current:
            if current is not None:
                self._records.used(current)
                current.host.close(because)


def _with_fate(error: SnugError, fate: str) -> SnugError:
    """`error`, telling too what became of the model that was loaded before."""
    return type(error)(f"{error.message} {fate}".strip(), remedy=error.remedy, param=error.param)
