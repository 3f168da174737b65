"""The web process's side of an engine: starts it, relays requests and events, notices its death at once.

No wait here is endless: a dead engine ends every open generation with an error, and one that says nothing for too
long is killed. Nothing is restarted here: models/manager.py decides that.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeAlias

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
from modules.engine.host.calls import Calls, LongReads
from modules.engine.host.child import Child, ProcessChild, ThreadChild
from modules.engine.host.deaths import MemoryWatch
from modules.engine.host.generation import Generation
from modules.engine.host.open_requests import Follow, OpenRequests
from modules.engine.host.patience import PATIENCE, Patience
from modules.engine.host.verdicts import death_of, stopped
from modules.engine.host.wire import (
    Answer,
    Close,
    Emitted,
    LoadBroke,
    Loaded,
    Loading,
    Message,
    Start,
    Writer,
    wait_for_reading,
)
from modules.errors import EngineDied, LoadFailed, OutOfMemory, SnugError
from modules.memory.planning.planner import Plan

__all__ = ["PATIENCE", "EngineHost", "Generation", "Patience", "ignore"]

log = logging.getLogger(__name__)
TICK_S = 0.2
OnStarved: TypeAlias = "Callable[[EngineHost, SnugError, list[Generation]], None]"


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
        follow: Follow | None = None,
    ) -> None:
        """Begin to load and return at once; `wait_loaded` tells the rest.

        `on_progress`, `on_death` (the engine ended without `close`) and `on_starved` are called from the host's own
        thread. The last one gets the replies that memory ran out for, which are then its to end: `adopt` in another
        host lets them go on. Without it they end with that error. `follow` hears of every request and its events.
        """
        self.plan = plan
        self._patience = patience
        self._on_progress = on_progress
        self._on_death = on_death
        self._on_starved = on_starved
        self._closing = threading.Event()
        self._loaded: Future[ModelInfo] = Future()
        self._requests = OpenRequests(self._post, follow)
        self._calls = Calls(self._post)
        self._long_reads = LongReads()
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
    def queue_s(self) -> float:
        """How long a request to the API waits here for its turn, in seconds; 0 without end."""
        return self._patience.queue_s

    @property
    def pid(self) -> int | None:
        """The engine's process; None for one in a thread."""
        return self._child.pid if self._child else None

    def wait_idle(self, timeout_s: float) -> bool:
        """Whether the engine is done with every request, waiting for that at most `timeout_s`."""
        return self._requests.wait_idle(timeout_s)

    def submit(self, request: GenerationRequest) -> Generation:
        """Send a request; returns at once.

        Refusals (ContextLengthExceeded, QueueFull) and a dead engine arrive as the first event, Finished("error").
        Raises ValueError if a request of this id is running.
        """
        return self._requests.submit(request)

    def stop(self, user: str, name: str = "") -> int:
        """Cancel what this user has open, or what of it goes by `name` in its id; how many requests that are."""
        return self._requests.stop(user, name)

    def adopt(self, generation: Generation) -> None:
        """Let `generation`, which another host gave up, go on here."""
        self._requests.adopt(generation)

    def hand_over(self) -> list[Generation]:
        """End the engine as `close` does; the open generations do not end, they are the caller's."""
        generations = self._requests.leave()
        for generation in generations:
            generation.park()
        self.close()
        return [generation for generation in generations if not generation.ended]

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of `pieces`; long ones wait for one another. Raises EngineDied or TimedOut."""
        with self._long_reads.turn(sum(len(piece.text) for piece in pieces)):
            return list(self._calls.ask("encode", tuple(pieces), timeout_s=self._patience.call_s))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`. Raises EngineDied or TimedOut."""
        return str(self._calls.ask("decode", tuple(token_ids), timeout_s=self._patience.call_s))

    def stats(self) -> EngineStats:
        """How busy the engine is now. Raises EngineDied or TimedOut."""
        stats: EngineStats = self._calls.ask("stats", timeout_s=self._patience.call_s)
        return stats

    def close(self, because: SnugError | None = None) -> None:
        """End the engine and its process; all its memory is free afterwards.

        Open generations end at once: with the error `because` if one is given, else as cancelled.
        """
        first = not self._closing.is_set()
        self._closing.set()
        for generation in self._requests.leave():
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
        """Take messages until the engine is gone, or can be followed no further."""
        has_news = wait_for_reading(child.pipe)
        try:
            while True:
                if has_news(TICK_S):
                    for message in child.pipe.recv():
                        self._take(message)
                elif child.exit_code() is not None:
                    return
                self._watch_clock(child)
        except (EOFError, OSError):
            return
        except Exception as error:  # whoever waits must hear of it: nobody else listens to this engine
            log.exception("The engine can be followed no further")
            kind = EngineDied if self._loaded.done() else LoadFailed
            self._verdict = kind(f"Snug could not follow the engine any further: {error}.", remedy="The log says more.")

    def _take(self, message: Message) -> None:
        if not isinstance(message, Answer):  # answers come even while the engine's loop is stuck
            self._heard = time.monotonic()
        if isinstance(message, Emitted):
            generation = self._requests.find(message.request_id)
            error = message.event.error if isinstance(message.event, Finished) else None
            starved = isinstance(error, OutOfMemory) and self._on_starved is not None
            if generation is not None and not starved:
                generation.push(message.event)
            if isinstance(message.event, Finished):
                self._requests.settle(message.request_id)
            if generation is not None and starved and error is not None:
                self._give_up([generation], error)
        elif isinstance(message, Answer):
            self._calls.resolve(message)
        elif isinstance(message, Loading):
            self._tell_progress(message.progress)
        elif isinstance(message, Loaded):
            self._loaded.set_result(message.info)
        elif isinstance(message, LoadBroke):
            self._verdict = message.error

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
        loaded = self._loaded.done()
        if self._requests.owed or not loaded:
            self._watch.look()
        self._requests.end_cancelled(now, self._patience.cancel_s)
        since = max(self._heard, self._requests.oldest_since(now)) if loaded else self._heard
        verdict = self._patience.verdict(now - since, loaded=loaded)
        if verdict is not None and self._verdict is None:
            self._verdict = verdict
            child.kill()

    def _bury(self) -> None:
        """The engine is gone: tell everyone who waits."""
        child = self._child
        if child is not None:
            child.wait(1.0)
            child.kill()  # it, if it lingers, and in any case what it started
            child.wait(self._patience.close_s)
        error = self._verdict or self._cause_of_death()
        self._dead = error
        died = self._loaded.done() and not self._closing.is_set()
        generations = self._requests.leave(error)
        if not (died and self._starved):
            for generation in generations:
                generation.finish("error", error)
        self._calls.end(error)
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
        if self._on_starved is not None:
            for generation in generations:
                generation.park()
            try:
                self._on_starved(self, error, generations)
                return
            except Exception:
                log.exception("Nobody lets the replies go on that memory ran out for")
        for generation in generations:
            generation.finish("error", error)

    def _cause_of_death(self) -> SnugError:
        loading = not self._loaded.done()
        if self._closing.is_set():
            return stopped(loading=loading)
        code = self._child.exit_code() if self._child is not None else None
        said = self._child.last_lines if self._child is not None else ()
        error, self._starved = death_of(self.plan, code, self._watch, loading=loading, said=said)
        return error
