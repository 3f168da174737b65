"""The web process's side of an engine: starts it, relays requests and events, notices its death at once.

No wait here is endless: a dead engine ends every open generation with an error, and one that says nothing for too
long is killed. Nothing is restarted here: models.py decides that.
"""

from __future__ import annotations

import copy
import itertools
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import psutil

from modules.engine.base import (
    EngineStats,
    Finished,
    GenerationRequest,
    LoadEngine,
    ModelInfo,
    OnProgress,
    Progress,
    TextPiece,
)
from modules.engine.child import Child, ProcessChild, ThreadChild
from modules.engine.deaths import MemoryWatch
from modules.engine.generation import Generation
from modules.engine.wire import (
    Answer,
    Call,
    Cancel,
    Close,
    Emitted,
    LoadBroke,
    Loaded,
    Loading,
    Message,
    Method,
    Start,
    Submit,
    Writer,
)
from modules.errors import EngineDied, LoadFailed, OutOfMemory, SnugError, TimedOut
from modules.memory.planner import Plan
from modules.units import format_duration, format_size

__all__ = ["PATIENCE", "EngineHost", "Generation", "Patience", "ignore"]

log = logging.getLogger(__name__)
TICK_S = 0.2
TRY_AGAIN = "Try again: the model is loaded anew."


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a host waits, in seconds.

    `load_s` without a sign of progress, or `reply_s` without an event while a request runs, and the engine counts as
    hung. One token of a model on a slow disk may take minutes. A cancelled reply ends for its reader after `cancel_s`
    even if the engine is still busy with a step.
    """

    load_s: float = 1800.0
    reply_s: float = 900.0
    cancel_s: float = 0.8
    call_s: float = 60.0
    close_s: float = 3.0


PATIENCE = Patience()
OnStarved: TypeAlias = "Callable[[EngineHost, SnugError, list[Generation]], None]"


@dataclass(slots=True)
class _Owed:
    """A request for which the engine has not sent Finished."""

    since: float
    on_abandon: weakref.finalize[..., Generation]


def ignore(progress: Progress) -> None:
    """Hear of progress and do nothing."""


class EngineHost:
    """One engine, from its start to its end. Every method may be called from any thread."""

    def __init__(
        self,
        plan: Plan,
        load: LoadEngine,
        on_progress: OnProgress = ignore,
        *,
        in_process: bool = False,
        patience: Patience = PATIENCE,
        on_death: Callable[[SnugError], None] | None = None,
        on_starved: OnStarved | None = None,
    ) -> None:
        """Begin to load and return at once; `wait_loaded` tells the rest.

        `on_progress`, `on_death` (the engine ended without `close`) and `on_starved` are called from the host's own
        thread. The last one gets the replies that memory ran out for, which are then its to end: `adopt` in another
        host lets them go on. Without it they end with that error.
        """
        self.plan = plan
        self._patience = patience
        self._on_progress = on_progress
        self._on_death = on_death
        self._on_starved = on_starved
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._closing = threading.Event()
        self._loaded: Future[ModelInfo] = Future()
        self._open: weakref.WeakValueDictionary[str, Generation] = weakref.WeakValueDictionary()
        self._waited_for: set[Generation] = set()
        self._owed: dict[str, _Owed] = {}
        self._calls: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._dead: SnugError | None = None
        self._verdict: SnugError | None = None
        self._starved = False
        self._heard = self._checked = time.monotonic()
        self._child: Child | None = None
        self._watch = MemoryWatch(None)
        self._writer: Writer | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(
            target=self._live, args=(Start(plan, load), in_process), name=f"engine of {plan.spec.name}", daemon=True
        )
        self._thread.start()
        self._begun.wait()

    @classmethod
    def start(
        cls,
        plan: Plan,
        load: LoadEngine,
        on_progress: OnProgress = ignore,
        *,
        in_process: bool = False,
        patience: Patience = PATIENCE,
    ) -> EngineHost:
        """A host whose engine is loaded. Raises SnugError, the process gone, where the load fails."""
        host = cls(plan, load, on_progress, in_process=in_process, patience=patience)
        host.wait_loaded()
        return host

    def wait_loaded(self) -> ModelInfo:
        """What was loaded, once it is. Raises the load's SnugError, the process gone."""
        try:
            return self._loaded.result()
        except SnugError:
            self.close()
            raise

    @property
    def info(self) -> ModelInfo:
        """What was loaded; still known of a dead engine. Blocks while the load runs."""
        return self._loaded.result()

    @property
    def alive(self) -> bool:
        """Whether the engine is loaded and answers."""
        return self._dead is None and not self._closing.is_set() and self._loaded.done()

    @property
    def death(self) -> SnugError | None:
        """Why the engine ended; None while it runs."""
        return self._dead

    @property
    def starved(self) -> bool:
        """Whether want of memory is the likely cause of its death."""
        return self._starved

    @property
    def pid(self) -> int | None:
        """The engine's process; None for one in a thread."""
        return self._child.pid if self._child else None

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether the engine is done with every request, waiting for that at most `timeout_s`."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._owed, timeout_s)

    def submit(self, request: GenerationRequest) -> Generation:
        """Send a request; returns at once.

        Refusals (ContextLengthExceeded, QueueFull) and a dead engine arrive as the first event, Finished("error").
        Raises ValueError if a request of this id is running.
        """
        generation = Generation(request, partial(self._post, Cancel(request.id)), self._waited_for)
        self._take_on(generation, request)
        return generation

    def adopt(self, generation: Generation) -> None:
        """Let `generation`, which another host gave up, go on here."""
        request = generation.move(partial(self._post, Cancel(generation.id)), self._waited_for)
        if request is None:
            generation.finish("cancelled" if generation.cancelled_at is not None else "length")
        else:
            self._take_on(generation, request)

    def hand_over(self) -> list[Generation]:
        """End the engine as `close` does; the open generations do not end, they are the caller's."""
        generations = self._leave_open()
        for generation in generations:
            generation.park()
        self.close()
        return [generation for generation in generations if not generation.ended]

    def _take_on(self, generation: Generation, request: GenerationRequest) -> None:
        with self._lock:
            if request.id in self._owed:
                raise ValueError(f"request {request.id} is running already")
            dead = self._dead
            if dead is None:
                # Cancelled when nobody holds it any more; posting is safe in a finalizer, taking locks would not be.
                abandon = weakref.finalize(generation, self._post, Cancel(request.id))
                abandon.atexit = False
                self._open[request.id] = generation
                self._owed[request.id] = _Owed(time.monotonic(), abandon)
                self._post(Submit(request))
        if dead is not None:
            generation.finish("error", dead)

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of `pieces`. Raises EngineDied or TimedOut."""
        return list(self._call("encode", tuple(pieces)))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`. Raises EngineDied or TimedOut."""
        return str(self._call("decode", tuple(token_ids)))

    def stats(self) -> EngineStats:
        """How busy the engine is now. Raises EngineDied or TimedOut."""
        stats: EngineStats = self._call("stats")
        return stats

    def close(self, because: SnugError | None = None) -> None:
        """End the engine and its process; all its memory is free afterwards.

        Open generations end at once: with the error `because` if one is given, else as cancelled.
        """
        first = not self._closing.is_set()
        self._closing.set()
        for generation in self._leave_open():
            generation.finish("error" if because else "cancelled", because)
        if threading.current_thread() is self._thread:
            return
        if first:
            self._post(Close())
            self._thread.join(self._patience.close_s if self._loaded.done() else 0)
        if self._child is not None:
            for end in (self._child.terminate, self._child.kill):
                if self._thread.is_alive():
                    end()
                    self._thread.join(self._patience.close_s)

    def _call(self, method: Method, *arguments: object) -> Any:
        answer: Future[Any] = Future()
        with self._lock:
            if self._dead is not None:
                raise copy.copy(self._dead)  # one instance raised again and again would grow its traceback
            number = next(self._numbers)
            self._calls[number] = answer
        self._post(Call(number, method, arguments))
        try:
            return answer.result(self._patience.call_s)
        except TimeoutError as error:
            raise TimedOut(
                f"The engine did not answer within {format_duration(self._patience.call_s)}.",
                remedy="It may be busy; try again, or load the model anew.",
            ) from error
        finally:
            with self._lock:
                self._calls.pop(number, None)

    def _post(self, message: Message) -> None:
        if self._writer is not None:
            self._writer.post(message)

    def _live(self, start: Start, in_process: bool) -> None:
        """The host's thread. It makes the process, and so must live as long as that (see ProcessChild)."""
        try:
            self._child = ThreadChild() if in_process else ProcessChild(os.environ)
            self._watch = MemoryWatch(self._child.pid)
            self._child.pipe.send(start)
            self._writer = Writer(self._child.pipe, f"{self._thread.name} outbox")
        except Exception as error:
            log.exception("The engine process did not start")
            self._verdict = LoadFailed(f"The engine process did not start: {error}.", remedy="The log says more.")
            self._verdict.__cause__ = error
        finally:
            self._begun.set()
        if self._child is not None and self._verdict is None:
            self._listen(self._child)
        self._bury()

    def _listen(self, child: Child) -> None:
        """Take messages until the engine is gone."""
        try:
            while True:
                if child.pipe.poll(TICK_S):
                    for message in child.pipe.recv():
                        self._take(message)
                elif child.exit_code() is not None:
                    return
                self._watch_clock(child)
        except (EOFError, OSError):
            return

    def _take(self, message: Message) -> None:
        if not isinstance(message, Answer):  # answers come even while the engine's loop is stuck
            self._heard = time.monotonic()
        if isinstance(message, Emitted):
            generation = self._open.get(message.request_id)
            error = message.event.error if isinstance(message.event, Finished) else None
            starved = isinstance(error, OutOfMemory) and self._on_starved is not None
            if generation is not None and not starved:
                generation.push(message.event)
            if isinstance(message.event, Finished):
                self._settle(message.request_id)
            if generation is not None and starved and error is not None:
                self._give_up([generation], error)
        elif isinstance(message, Answer):
            self._resolve(message)
        elif isinstance(message, Loading):
            self._tell_progress(message.progress)
        elif isinstance(message, Loaded):
            self._loaded.set_result(message.info)
        elif isinstance(message, LoadBroke):
            self._verdict = message.error

    def _settle(self, request_id: str) -> None:
        """The engine is done with a request."""
        with self._lock:
            owed = self._owed.pop(request_id, None)
            self._open.pop(request_id, None)
            if not self._owed:
                self._idle.notify_all()
        if owed is not None:
            owed.on_abandon.detach()

    def _resolve(self, answer: Answer) -> None:
        with self._lock:
            future = self._calls.pop(answer.number, None)
        if future is None:
            return  # its caller gave up
        if answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.value)

    def _tell_progress(self, progress: Progress) -> None:
        try:
            self._on_progress(progress)
        except Exception:
            log.exception("A listener to load progress failed")

    def _watch_clock(self, child: Child) -> None:
        """Give up on an engine that says nothing, and end cancelled replies that a long step holds up."""
        now = time.monotonic()
        if now - self._checked < TICK_S:
            return
        self._checked = now
        if self._owed or not self._loaded.done():
            self._watch.look()
        with self._lock:
            generations = list(self._open.values())
            oldest = min((owed.since for owed in self._owed.values()), default=now)
        for generation in generations:
            if generation.cancelled_at is not None and now - generation.cancelled_at > self._patience.cancel_s:
                generation.finish("cancelled")
        loaded = self._loaded.done()
        silent_s = now - (max(self._heard, oldest) if loaded else self._heard)
        if silent_s > (self._patience.reply_s if loaded else self._patience.load_s) and self._verdict is None:
            silence = f"no sign of life for {format_duration(silent_s)}, and was stopped"
            self._verdict = (
                EngineDied(f"The engine showed {silence}.", remedy=TRY_AGAIN)
                if loaded
                else TimedOut(f"The load showed {silence}.", remedy="Try again, or load a smaller model.")
            )
            child.kill()

    def _bury(self) -> None:
        """The engine is gone: tell everyone who waits."""
        child = self._child
        if child is not None:
            child.wait(1.0)
            child.kill()  # it, if it lingers, and in any case what it started
            child.wait(self._patience.close_s)
        error = self._verdict or self._cause_of_death()
        with self._lock:
            self._dead = error
            calls = list(self._calls.values())
            self._calls.clear()
        died = self._loaded.done() and not self._closing.is_set()
        generations = self._leave_open()
        if not (died and self._starved):
            for generation in generations:
                generation.finish("error", error)
        for call in calls:
            call.set_exception(error)
        if not self._loaded.done():
            self._loaded.set_exception(error)
        if child is not None:
            if self._writer is not None:
                self._writer.finish(1.0)
            child.pipe.close()
        if died:
            log.error("%s", error)
            if self._on_death is not None:
                self._on_death(error)
            if self._starved and generations:
                self._give_up(generations, error)

    def _give_up(self, generations: list[Generation], error: SnugError) -> None:
        """Memory ran out for these replies: somebody else may let them go on."""
        if self._on_starved is None:
            for generation in generations:
                generation.finish("error", error)
            return
        for generation in generations:
            generation.park()
        self._on_starved(self, error, generations)

    def _leave_open(self) -> list[Generation]:
        """The open generations, which this host then forgets."""
        with self._lock:
            generations = list(self._open.values())
            self._open.clear()
            for owed in self._owed.values():
                owed.on_abandon.detach()
            self._owed.clear()
            self._idle.notify_all()
        return generations

    def _cause_of_death(self) -> SnugError:
        code = self._child.exit_code() if self._child is not None else None
        loading = not self._loaded.done()
        if self._closing.is_set():
            if loading:
                return LoadFailed("The load was stopped.")
            return EngineDied("The model was unloaded.", remedy="Load a model on the Model tab.")
        killed = code is not None and code == -getattr(signal, "SIGKILL", 9)
        if loading and killed:
            return OutOfMemory(
                f"The engine process was killed while it was loading{_guess(self.plan)}.",
                remedy="Close other programs, or load with fewer bits, a shorter context or --disk.",
            )
        again = "Try again; the log says more." if loading else TRY_AGAIN
        when = " while it was loading" if loading else ""
        if killed:
            self._starved = self._watch.was_memory()
            seen = f" ({seen})" if (seen := self._watch.evidence()) else ""
            why = f"because memory ran out{seen}" if self._starved else "by another program or a person"
            return EngineDied(f"The engine process was killed (SIGKILL), most likely {why}.", remedy=again)
        return EngineDied(f"The engine process ended{when} ({_exit_words(code)}).", remedy=again)


def _exit_words(code: int | None) -> str:
    if code is None:
        return "no exit code"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _guess(plan: Plan) -> str:
    """Memory as the likely cause, with the plan's need and what is free now."""
    needed = plan.budgets["cpu"].total if "cpu" in plan.budgets else 0
    need = f"the plan needs {format_size(needed)}, " if needed else ""
    free = format_size(int(psutil.virtual_memory().available))
    return f", most likely because memory ran out ({need}{free} are free now)"
