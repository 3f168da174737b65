"""The one place for an engine: which one answers, whose turn it is to change that, and what people see of it.

Decides nothing: the manager, the rescue and whoever holds a loan do, each in its turn.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from modules.engine.host.host import EngineHost
from modules.errors import Busy, NoModelLoaded, SnugError
from modules.models.state import Current, ModelState, Status

WAIT_FOR_LOAD_S = 600.0


class Closable(Protocol):
    """What an emptying of the slot ends: a load, or a loan."""

    def close(self) -> None:
        """End it."""


class Slot:
    """Every method may be called from any thread. No wait is longer than WAIT_FOR_LOAD_S."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._state = ModelState()
        self._current: Current | None = None
        self._starting: Closable | None = None
        self._busy_with = ""
        self._busy_why = ""
        self._held: list[Current] = []
        self._withheld = False
        self._emptying = 0
        self._closed = False

    @property
    def state(self) -> ModelState:
        """How things stand."""
        return self._state

    @property
    def current(self) -> Current | None:
        """The engine that answers, or did until it died."""
        return self._current

    @property
    def busy(self) -> bool:
        """Whether somebody has the turn."""
        return bool(self._busy_with)

    @property
    def emptying(self) -> bool:
        """Whether it is being emptied, and no load is wanted any more."""
        return self._emptying > 0

    def wait_state(self, version: int, timeout_s: float) -> ModelState:
        """The state as soon as it is newer than `version`, or as it is after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._state.version > version, timeout_s)
            return self._state

    def announce(self, **changes: object) -> None:
        """Let `changes` of ModelState be seen."""
        with self._changed:
            self._state = replace(self._state, version=self._state.version + 1, **changes)  # type: ignore[arg-type]
            self._changed.notify_all()

    def take_turn(self, name: str, *, why: str = "") -> None:
        """Begin a load of `name`. Raises Busy while somebody else has the turn; `why` is what others are told then."""
        with self._changed:
            if self._busy_with:
                why_not = self._busy_why or f"{self._busy_with} is being loaded."
                remedy = (
                    "Wait until it is complete, or stop it."
                    if self._busy_why
                    else "Wait until it is ready, or unload it."
                )
                raise Busy(why_not, remedy=remedy)
            if self._closed or self._emptying:
                raise Busy("The model is being unloaded.", remedy="Try again in a moment.")
            self._busy_with, self._busy_why = name, why

    def end_turn(self) -> None:
        """Let the next one have it."""
        with self._changed:
            self._busy_with = self._busy_why = ""
            self._withheld = False
            self._changed.notify_all()

    def answering(self, *, hold: bool = False) -> tuple[Current, bool]:
        """The engine that answers, waiting for a load that runs; with True a dead one, and the turn is the caller's.

        With `hold` it is not withheld before `release`. Raises NoModelLoaded, or Busy if a load takes longer than
        WAIT_FOR_LOAD_S; while an engine is withheld nobody is sent away.
        """
        deadline = time.monotonic() + WAIT_FOR_LOAD_S
        with self._changed:
            while True:
                current = self._current
                if current is not None and current.host.alive and not self._withheld:
                    self._held += [current] * hold
                    return current, False
                if not self._busy_with and not self._emptying:
                    break
                if self._withheld:
                    deadline = time.monotonic() + WAIT_FOR_LOAD_S
                if not self._changed.wait(deadline - time.monotonic()) and not self._withheld:
                    raise Busy(f"{self._busy_with} is still being loaded.", remedy="Try again when it is ready.")
            if current is None or self._closed:
                raise NoModelLoaded("No model is loaded.", remedy="Load one on the Model tab.")
            self._busy_with = current.host.plan.spec.name
            self._held += [current] * hold
            return current, True

    def release(self, held: Current) -> None:
        """Whoever got `held` from `answering` to hold it has sent it what there was to send."""
        with self._changed:
            self._held.remove(held)
            self._changed.notify_all()

    def withhold(self) -> None:
        """Let whoever wants the engine that answers wait until the turn ends; the caller has the turn."""
        with self._changed:
            self._withheld = True

    def wait_released(self, timeout_s: float, held: Current | None = None) -> bool:
        """Whether nobody holds `held` (any engine, without it) any more, waiting for that at most `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held if held is None else held not in self._held, timeout_s)

    def instead_of(self, host: EngineHost) -> tuple[Current, bool] | None:
        """Another engine of the same model that answers now; with True `host`, or a dead one, and the turn is the
        caller's. None where the model is gone or a load takes too long. A loan ends for it.
        """
        deadline = time.monotonic() + WAIT_FOR_LOAD_S
        with self._changed:
            loan = self._starting if self._busy_why else None
        if loan is not None:
            loan.close()
        with self._changed:
            while self._busy_with or self._emptying:
                if not self._changed.wait(deadline - time.monotonic()):
                    return None
            current = self._current
            if self._closed or current is None or current.host.plan.spec.path != host.plan.spec.path:
                return None
            if current.host is not host and current.host.alive:
                return current, False
            self._busy_with = host.plan.spec.name
            return current, True

    @contextmanager
    def starting(self, what: Closable) -> Iterator[None]:
        """`what` loads, or is a loan; emptying the slot meanwhile ends it."""
        with self._changed:
            self._starting = what
            unwanted = self.emptying
        try:
            if unwanted:
                what.close()
            yield
        finally:
            with self._changed:
                self._starting = None

    def install(self, new: Current, *, error: SnugError | None = None) -> None:
        """Let `new` answer from now on."""
        info, plan = new.host.info, new.host.plan
        with self._changed:
            self._current = new
            status: Status = "ready" if new.host.alive else "died"
            error = error or new.host.death
            self.announce(status=status, name=plan.spec.name, progress=None, error=error, info=info, plan=plan)

    def vacate(self, old: Current) -> None:
        """`old` answers no more, if it did."""
        with self._changed:
            if self._current is old:
                self._current = None
                self.announce(info=None, plan=None)

    def note_death(self, error: SnugError) -> None:
        """An engine ended by itself: say so if it is the one that answered."""
        with self._changed:
            current = self._current
            if current is not None and not current.host.alive and self._state.status == "ready":
                self.announce(status="died", error=error)

    def close(self) -> None:
        """Refuse every later turn."""
        self._closed = True

    @contextmanager
    def emptied(self) -> Iterator[Current | None]:
        """Stop whatever loads, and give the caller what answered, to end it; no load begins meanwhile.

        Raises Busy where a load does not stop.
        """
        with self._changed:
            self._emptying += 1
            starting = self._starting
        try:
            if starting is not None:
                starting.close()
            with self._changed:
                if not self._changed.wait_for(lambda: not self._busy_with, WAIT_FOR_LOAD_S):
                    raise Busy(f"{self._busy_with} is still being loaded.", remedy="Try again in a moment.")
                current, self._current = self._current, None
            yield current
            self.announce(status="empty", name="", progress=None, error=None, info=None, plan=None)
        finally:
            with self._changed:
                self._emptying -= 1
                self._changed.notify_all()
