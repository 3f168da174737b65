"""Which model is loaded: lists, plans, loads, swaps with a way back, unloads, and reloads one that died.

One model answers at a time. The next one is loaded beside it where memory allows that without changing the plan;
else the old one goes first and comes back if the new one fails. Replies that run at the moment of a change get
DRAIN_S seconds to end, then they end with an error that says so.

Where memory runs out, in a load or in the midst of replies, the model is loaded in a way that needs less
(memory/smaller.py), and the replies go on from their tokens.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from modules.engine.base import Degraded, EngineStats, LoadEngine, ModelInfo, OnProgress, Progress
from modules.engine.host import PATIENCE, EngineHost, Generation, Patience, ignore
from modules.engine.worker import LoadByName
from modules.errors import (
    Busy,
    EngineDied,
    GenerationFailed,
    LoadFailed,
    ModelNotFound,
    NoModelLoaded,
    OutOfMemory,
    SnugError,
)
from modules.files import safe_path
from modules.hardware import Device, Inventory, read_inventory
from modules.measuring import entries_after_load, entries_after_use
from modules.memory.describing import describer_for
from modules.memory.ledger import LEDGER_NAME, Ledger, ObservedErrors
from modules.memory.listing import ModelEntry, check_loadable, list_models
from modules.memory.planner import Plan, PlanTable, Question, list_plans, make_plan
from modules.memory.smaller import Failure, difference, smaller_plans
from modules.memory.spec import inspect
from modules.memory.speed import Speeds, defaults
from modules.settings import LoadOptions, Settings, check_machine, check_together

__all__ = ["LOADERS", "ModelEntry", "ModelManager", "ModelState", "Status", "load_engine_for"]

log = logging.getLogger(__name__)

LOADERS: Mapping[str, LoadEngine] = {
    "transformers": LoadByName("modules.engine.huggingface:load"),
    "deepspeed": LoadByName("modules.engine.zero3:load"),
}
DRAIN_S = 5.0
WAIT_FOR_LOAD_S = 600.0
MOST_RELOADS = 2  # in other ways, for one reply or one load that memory ran out for
ROOM_TOKENS = 64  # that a reply which goes on shall have at least

Result = TypeVar("Result")
Replies = list[Generation]
Plans = list[Plan]
Status = Literal["empty", "loading", "ready", "failed", "died"]


@dataclass(frozen=True, slots=True)
class ModelState:
    """What the page shows of the model. Every change makes a new one with a higher `version`.

    `name` is the model that `status` speaks of; `info` and `plan` belong to the model that answers now (while another
    one loads beside it too) or, after "died", will answer again. `error` is what went wrong last, also while "ready":
    then another model failed to load and this one answers on, or memory ran out and it is loaded in another way.
    """

    status: Status = "empty"
    name: str = ""
    progress: Progress | None = None
    error: SnugError | None = None
    info: ModelInfo | None = None
    plan: Plan | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class _Current:
    """The engine that answers, or did until it died, and the options that made it; `reduced` where memory ran out
    for what they say, and its plan is another one.
    """

    host: EngineHost
    options: LoadOptions
    reduced: bool = False


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
    ) -> None:
        self._settings = settings
        self._loaders = loaders
        self._read_inventory = read_inventory
        self._speeds = speeds
        self._patience = patience
        self._drain_s = drain_s
        self._in_process = in_process
        self._ledger = Ledger(settings.user_data_dir / LEDGER_NAME)
        self._changed = threading.Condition()
        self._state = ModelState()
        self._current: _Current | None = None
        self._starting: EngineHost | None = None
        self._busy_with = ""
        self._stopping = 0
        self._closed = False

    @property
    def defaults(self) -> LoadOptions:
        """The load options that the server was started with."""
        return self._settings.load_options

    @property
    def options(self) -> LoadOptions | None:
        """What the model that answers (or, having died, will again) was loaded with; None without one."""
        current = self._current
        return current.options if current else None

    @property
    def state(self) -> ModelState:
        """How things stand."""
        return self._state

    def wait_state(self, version: int, timeout_s: float) -> ModelState:
        """The state as soon as it is newer than `version`, or as it is after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.version > version, timeout_s)
            return self._state

    def list(self) -> list[ModelEntry]:
        """What is in the models folder."""
        return list_models(self._settings.model_dir, trust_remote_code=self._settings.trust_remote_code)

    def plan(self, options: LoadOptions) -> Plan:
        """What loading with `options` would do now, if the loaded model gave way. Raises SnugError if nothing fits."""
        current = self._current
        return self._plan(options, _stats(current.host) if current else EngineStats())

    def plans(self, options: LoadOptions) -> PlanTable:
        """Every way to load under `options` now, if the loaded model gave way. SnugError for impossible flags."""
        current = self._current
        return self._table(options, _stats(current.host) if current else EngineStats())

    def _table(self, options: LoadOptions, freed: EngineStats) -> PlanTable:
        return list_plans(self._question(options, freed))

    @property
    def idle(self) -> bool:
        """Whether nothing is being loaded and no reply is under way."""
        stats = self.stats()
        return not self._busy_with and stats.active == 0 and stats.queued == 0

    def machine(self) -> Inventory:
        """This machine as it is now."""
        return self._read_inventory(self._cache)

    def stats(self) -> EngineStats:
        """What the engine that answers holds now; nothing where there is none or it does not say."""
        current = self._current
        return _stats(current.host) if current else EngineStats()

    def load(self, options: LoadOptions, on_progress: OnProgress | None = None) -> ModelInfo:
        """Load a model and make it the one that answers; blocks until it does.

        Raises Busy while another load runs, else the SnugError that says what was wrong. The model that answered
        before still does then, unless the error says that it could not be brought back.
        """
        self._take_turn(options.model or "a model")
        return self._load(options, on_progress or ignore).info

    def start_load(self, options: LoadOptions) -> None:
        """`load` in a thread: watch `state`. Raises Busy at once."""
        self._take_turn(options.model or "a model")
        threading.Thread(target=self._load_quietly, args=(options,), name="load", daemon=True).start()

    def unload(self) -> None:
        """Stop a load that runs, end the engine and give back its memory. Open replies end with an error."""
        self._empty(GenerationFailed("The model was unloaded during this reply.", remedy="Load a model and go on."))

    def close(self) -> None:
        """End the engine for good; open replies end as cancelled. Later loads are refused."""
        self._closed = True
        self._empty(None)

    def engine(self) -> EngineHost:
        """The engine that answers. Waits for a load that runs; loads one anew that died.

        Raises NoModelLoaded, what the reload raises, or Busy if a load takes longer than WAIT_FOR_LOAD_S.
        """
        deadline = time.monotonic() + WAIT_FOR_LOAD_S
        with self._changed:
            while True:
                current = self._current
                if current is not None and current.host.alive:
                    return current.host
                if not self._busy_with and not self._stopping:
                    break
                if not self._changed.wait(deadline - time.monotonic()):
                    raise Busy(f"{self._busy_with} is still being loaded.", remedy="Try again when it is ready.")
            if current is None or self._closed:
                raise NoModelLoaded("No model is loaded.", remedy="Load one on the Model tab.")
            self._busy_with = current.host.plan.spec.name
        return self._load_anew(current)

    def with_engine(self, use: Callable[[EngineHost], Result]) -> Result:
        """`use` of the engine that answers; done once more, with the engine loaded anew, if it dies meanwhile."""
        engine = self.engine()
        try:
            return use(engine)
        except EngineDied:
            if engine.alive:
                raise
            return use(self.engine())

    def _take_turn(self, name: str) -> None:
        with self._changed:
            if self._busy_with:
                raise Busy(f"{self._busy_with} is being loaded.", remedy="Wait until it is ready, or unload it.")
            if self._closed or self._stopping:
                raise Busy("The model is being unloaded.", remedy="Try again in a moment.")
            self._busy_with = name

    def _end_turn(self) -> None:
        with self._changed:
            self._busy_with = ""
            self._changed.notify_all()

    def _load_quietly(self, options: LoadOptions) -> None:
        try:
            self._load(options, ignore)
        except SnugError as error:
            log.warning("%s", error)

    def _load(self, options: LoadOptions, on_progress: OnProgress) -> EngineHost:
        """One load, its turn taken; ends the turn."""
        old = self._current
        try:
            self._announce(status="loading", name=options.model or "", progress=Progress("Planning", 0.0), error=None)
            plan, beside = self._choose(options, old)
            check_loadable(plan.spec)
            if old is not None and old.host.alive and not beside:
                self._retire(old)
                plan = self._plan(options, EngineStats())
            try:
                new = _Current(self._start(plan, on_progress), options)
            except OutOfMemory as error:
                if old is not None and beside:
                    self._retire(old)
                failure = Failure(plan, options, flags_bind=True)
                plans = [*([plan] if beside else []), *self._smaller(failure, EngineStats())]
                new, beside = self._start_smaller(failure, plans, error, on_progress), False
            self._install(new, error=_told(new, plan))
            if old is not None and beside:
                self._retire(old)
            return new.host
        except Exception as error:
            raise self._roll_back(options, old, _as_snug(error)) from error
        finally:
            self._end_turn()

    def _load_anew(self, dead: _Current) -> EngineHost:
        """Load the model of an engine that died, its turn taken: as it was, or smaller if memory was the cause."""
        if not dead.reduced and not dead.host.starved:
            return self._load(dead.options, ignore)
        try:
            if dead.host.starved:
                return self._shrink(dead, dead.host.death or OutOfMemory("Memory ran out."), [])
            new = replace(dead, host=self._start(dead.host.plan, ignore))
            self._install(new)
            return new.host
        except SnugError as failure:
            raise self._roll_back(dead.options, dead, failure) from failure
        finally:
            self._end_turn()

    def _rescue_soon(self, host: EngineHost, error: SnugError, replies: Replies) -> None:
        """The host's thread may not wait for a load."""
        threading.Thread(target=self._rescue, args=(host, error, replies), name="rescue", daemon=True).start()

    def _rescue(self, host: EngineHost, error: SnugError, replies: Replies) -> None:
        """Let replies that memory ran out for go on in an engine that needs less, or end with what they have."""
        going_on = [reply for reply in replies if reply.reloads < MOST_RELOADS]
        for reply in replies:
            if reply.reloads >= MOST_RELOADS:
                reply.finish("error", error)
        if not going_on:
            return
        try:
            engine = self._smaller_engine(host, error, going_on)
        except Exception as failure:
            for reply in going_on:
                reply.finish("error", _as_snug(failure))
        else:
            for reply in going_on:
                engine.adopt(reply)

    def _smaller_engine(self, host: EngineHost, error: SnugError, replies: Replies) -> EngineHost:
        """An engine for `replies`, which grow by those that the old one had under way. Raises SnugError."""
        deadline = time.monotonic() + WAIT_FOR_LOAD_S
        with self._changed:
            while self._busy_with or self._stopping:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise error
            current = self._current
            if self._closed or current is None or current.host.plan.spec.path != host.plan.spec.path:
                raise error
            if current.host is host or not current.host.alive:
                self._busy_with = host.plan.spec.name
        for reply in replies:
            reply.reloads += 1
        if current.host is not host and current.host.alive:
            _tell(replies, host.plan, current.host.plan, error)
            return current.host
        try:
            return self._shrink(current, error, replies)
        finally:
            self._end_turn()

    def _shrink(self, old: _Current, error: SnugError, replies: Replies) -> EngineHost:
        """Load the model in a way that needs less, its turn taken. Replies under way join `replies`.

        Raises OutOfMemory where there is no such way; an engine that is alive then stays, one that is not and has no
        replies to go on with comes back as it was.
        """
        name = old.host.plan.spec.name
        try:
            least = max((reply.tokens + ROOM_TOKENS for reply in replies), default=0)
            failure = Failure(old.host.plan, old.options, least)
            plans = self._smaller(failure, _stats(old.host))
            if not plans and replies:
                raise _end_of_ladder(name, error)
            self._announce(status="loading", name=name, progress=Progress("Planning", 0.0), error=None)
            replies += old.host.hand_over()
            new = self._start_smaller(failure, plans or [old.host.plan], error, ignore, replies)
            self._install(new, error=_told(new, old.host.plan))
            return new.host
        except Exception as caught:
            if not old.host.alive:
                self._announce(status="died", progress=None, error=_as_snug(caught))
            raise

    def _smaller(self, failure: Failure, freed: EngineStats) -> Plans:
        """What to try instead of a plan that memory ran out for; nothing where that cannot be told."""
        try:
            table = self._table(failure.options, freed)
            replan = lambda options: make_plan(table.question.asking(options))  # noqa: E731
            return smaller_plans(failure, table, replan)[:MOST_RELOADS]
        except SnugError as error:
            log.warning("no smaller plan: %s", error)
            return []

    def _start_smaller(
        self,
        failure: Failure,
        plans: Plans,
        error: SnugError,
        on_progress: OnProgress,
        replies: Sequence[Generation] = (),
    ) -> _Current:
        """The first of `plans` that loads; `replies` are told of each. Raises OutOfMemory where none does."""
        for plan in plans:
            log.warning("%s: %s It is loaded with %s", plan.spec.name, error, difference(failure.plan, plan))
            _tell(replies, failure.plan, plan, error)
            try:
                return _Current(self._start(plan, on_progress), failure.options, reduced=plan is not failure.plan)
            except OutOfMemory as again:
                error = again
        raise _end_of_ladder(failure.plan.spec.name, error) if replies else error

    def _choose(self, options: LoadOptions, old: _Current | None) -> tuple[Plan, bool]:
        """The plan for `options`, and whether the old engine can stay until the new one answers."""
        if old is None or not old.host.alive:
            return self._plan(options, EngineStats()), False
        alone = self._plan(options, _stats(old.host))
        if "deepspeed" in (alone.loader, old.host.plan.loader):
            return alone, False  # the ranks have one rendezvous
        try:
            beside = self._plan(options, EngineStats())
        except SnugError as error:
            log.info("%s must go before %s is loaded: %s", old.host.plan.spec.name, alone.spec.name, error)
            return alone, False
        same = (beside.placement, beside.run) == (alone.placement, alone.run)
        return (beside, True) if same else (alone, False)

    def _plan(self, options: LoadOptions, freed: EngineStats) -> Plan:
        """The plan for `options` on this machine as if what `freed` holds were free."""
        return make_plan(self._question(options, freed))

    def _observed(self, family: str, device_name: str, quantization: str) -> ObservedErrors:
        """How far forecasts for such models on such a device were off so far."""
        return self._ledger.observed_error(family=family, device_name=device_name, quantization=quantization)

    @property
    def _cache(self) -> Path:
        """Where the disk cache goes if no flag says otherwise."""
        return self._settings.user_data_dir / "cache"

    def _question(self, options: LoadOptions, freed: EngineStats) -> Question:
        """What to ask the planner: the model and the machine as they are now, with what `freed` holds given back.

        Raises SnugError.
        """
        check_together(options)
        inventory = self._read_inventory(options.disk_cache_dir or options.nvme_offload_dir or self._cache)
        check_machine(options, inventory)
        path = find_model(self._settings.model_dir, options.model)
        trusted = self._settings.trust_remote_code
        spec = inspect(path, trust_remote_code=trusted, describe=describer_for(path, self._cache / "described"))
        return Question(
            spec,
            options,
            _with_freed(inventory, freed),
            self._cache,
            trust_remote_code=trusted,
            speeds=self._speeds(inventory),
            observed=partial(self._observed, spec.model_type),
        )

    def _start(self, plan: Plan, on_progress: OnProgress) -> EngineHost:
        """A loaded engine for `plan`; raises the load's SnugError."""

        def tell(progress: Progress) -> None:
            self._announce(progress=progress)
            on_progress(progress)

        tell(Progress("Starting the engine", 0.0))
        log.info("Loading %s: %s", plan.spec.name, " ".join(plan.reasons))
        host = EngineHost(
            plan,
            load_engine_for(plan, self._loaders),
            tell,
            in_process=self._in_process,
            patience=self._patience,
            on_death=self._note_death,
            on_starved=self._rescue_soon,
        )
        with self._changed:
            self._starting = host
            stop = self._stopping
        try:
            if stop:
                host.close()
            info = host.wait_loaded()
        finally:
            with self._changed:
                self._starting = None
        self._ledger.record(entries_after_load(plan, info, self._read_inventory(self._cache)))
        return host

    def _install(self, new: _Current, *, error: SnugError | None = None) -> None:
        """Let `new` answer from now on."""
        info, plan = new.host.info, new.host.plan
        with self._changed:
            self._current = new
            status: Status = "ready" if new.host.alive else "died"
            error = error or new.host.death
            self._announce(status=status, name=plan.spec.name, progress=None, error=error, info=info, plan=plan)

    def _retire(self, old: _Current) -> None:
        """End an engine whose place is taken, or needed."""
        with self._changed:
            if self._current is old:
                self._current = None
                self._announce(info=None, plan=None)
        old.host.wait_idle(self._drain_s)
        self._note_use(old.host)
        old.host.close(
            GenerationFailed("The model was changed during this reply.", remedy="Continue or regenerate it.")
        )

    def _roll_back(self, options: LoadOptions, old: _Current | None, error: SnugError) -> SnugError:
        """Let the old model answer again if there was one; returns the error that tells how that went."""
        name = options.model or ""
        if self._stopping or old is None:
            self._announce(status="failed", name=name, progress=None, error=error, info=None, plan=None)
            return error
        old_name = old.host.plan.spec.name
        if self._current is old:
            fate = f"{old_name} is still loaded." if old.host.alive else ""
            error = _with_fate(error, fate)
            self._install(old, error=error)
            return error
        self._announce(name=old_name, progress=Progress(f"Bringing back {old_name}", 0.0))
        try:
            host = self._start(old.host.plan, ignore)
        except SnugError as second:
            log.warning("%s did not come back: %s", old_name, second)
            error = _with_fate(error, f"{old_name} could not be loaded again either: {second.message}")
            self._announce(status="failed", name=name, progress=None, error=error, info=None, plan=None)
            return error
        error = _with_fate(error, f"{old_name} is loaded again.")
        self._install(replace(old, host=host), error=error)
        return error

    def _empty(self, because: SnugError | None) -> None:
        """Stop whatever loads, close whatever is loaded."""
        with self._changed:
            self._stopping += 1
            starting = self._starting
        try:
            if starting is not None:
                starting.close()
            with self._changed:
                if not self._changed.wait_for(lambda: not self._busy_with, WAIT_FOR_LOAD_S):
                    raise Busy(f"{self._busy_with} is still being loaded.", remedy="Try again in a moment.")
                current, self._current = self._current, None
            if current is not None:
                self._note_use(current.host)
                current.host.close(because)
            self._announce(status="empty", name="", progress=None, error=None, info=None, plan=None)
        finally:
            with self._changed:
                self._stopping -= 1
                self._changed.notify_all()

    def _note_use(self, host: EngineHost) -> None:
        """Keep what an engine took in all its life beside its forecast; of one that is idle, so that nobody waits."""
        if host.alive and host.wait_idle(0):
            self._ledger.record(entries_after_use(host.plan, _stats(host), self._read_inventory(self._cache)))

    def _note_death(self, error: SnugError) -> None:
        """The engine ended by itself: say so; the next `engine()` loads it anew."""
        with self._changed:
            current = self._current
            if current is not None and not current.host.alive and self._state.status == "ready":
                self._announce(status="died", error=error)

    def _announce(self, **changes: object) -> None:
        with self._changed:
            self._state = replace(self._state, version=self._state.version + 1, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()


def load_engine_for(plan: Plan, loaders: Mapping[str, LoadEngine] = LOADERS) -> LoadEngine:
    """The way to load that `plan` names."""
    return loaders[plan.loader]


def _stats(host: EngineHost) -> EngineStats:
    """What an engine holds; nothing, if it does not say."""
    try:
        return host.stats() if host.alive else EngineStats()
    except SnugError:
        return EngineStats()


def find_model(model_dir: Path, name: str | None) -> Path:
    """Where the model `name` lies. Raises ModelNotFound, BadName."""
    if not name:
        raise ModelNotFound("No model is named.", remedy="Choose one from the list.", param="model")
    path = safe_path(model_dir, name)
    if not path.exists():
        raise ModelNotFound(
            f"There is no model {name!r} in {model_dir}.",
            remedy="Choose one that is there, or put its folder there.",
            param="model",
        )
    return path


def _with_freed(inventory: Inventory, freed: EngineStats) -> Inventory:
    """The machine as it will be when what `freed` holds is given back."""

    def roomier(device: Device, more_bytes: int) -> Device:
        return replace(device, free_bytes=min(device.free_bytes + more_bytes, device.total_bytes))

    return replace(
        inventory,
        cpu=roomier(inventory.cpu, freed.rss_bytes),
        gpus=tuple(roomier(gpu, freed.gpu_bytes.get(gpu.id, 0)) for gpu in inventory.gpus),
    )


def _tell(replies: Sequence[Generation], before: Plan, after: Plan, error: SnugError) -> None:
    """Say in the midst of `replies` that the model is loaded in another way, and why."""
    why = error.message if isinstance(error, EngineDied) else "Memory ran out."
    for reply in replies:
        reply.push(Degraded(f"{after.spec.name} is loaded again, with {difference(before, after)}.", why))


def _told(current: _Current, before: Plan) -> SnugError | None:
    """What people should know of a model that is loaded in another way than was planned."""
    if not current.reduced:
        return None
    plan = current.host.plan
    return OutOfMemory(
        f"Memory ran out: {plan.spec.name} is loaded with {difference(before, plan)}.",
        remedy="Close other programs and load it anew to have it as it was.",
    )


def _end_of_ladder(name: str, error: SnugError) -> OutOfMemory:
    """The error of replies that nothing more can be given up for."""
    return OutOfMemory(
        f"Memory ran out, and no other way of loading {name} takes less and holds this text; what was written is kept.",
        remedy=error.remedy if isinstance(error, OutOfMemory) else "Close other programs, or choose a smaller model.",
    )


def _with_fate(error: SnugError, fate: str) -> SnugError:
    """`error`, telling too what became of the model that was loaded before."""
    return type(error)(f"{error.message} {fate}".strip(), remedy=error.remedy, param=error.param)


def _as_snug(error: Exception) -> SnugError:
    if isinstance(error, SnugError):
        return error
    log.error("A load failed", exc_info=error)
    return LoadFailed(f"The model could not be loaded: {error}.", remedy="The log says more.")
