"""The machine lent for a while: engines beside the one that answers, or in its place.

Whoever has a loan has the slot's turn: nobody loads another model meanwhile. The model that answers goes on doing so;
only `make_room` takes it away, when its replies are complete, and then `give_back` brings it back as it was. Messages
that come in between wait, and are answered then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from modules.engine.base import OnProgress, Progress
from modules.engine.host.host import EngineHost, ignore
from modules.errors import Busy, OutOfMemory, SnugError
from modules.memory.planning.planner import Plan
from modules.memory.planning.smaller import Failure
from modules.models.records import Records
from modules.models.rescue import Rescue, told
from modules.models.slot import Slot
from modules.models.starting import EngineStarter
from modules.models.state import Current, as_snug
from modules.settings import LoadOptions

log = logging.getLogger(__name__)

TICK_S = 0.2


class Loan:
    """What the slot's turn was taken for. `close` may be called from any thread, the rest from the borrower's."""

    def __init__(self, slot: Slot, starter: EngineStarter, rescue: Rescue, records: Records) -> None:
        self._slot = slot
        self._starter = starter
        self._rescue = rescue
        self._records = records
        self._lock = threading.Lock()
        self._guests: list[EngineHost] = []
        self._closed = False
        self._away: Current | None = None
        self._on_close: Callable[[], None] = lambda: None
        self._held = ExitStack()
        self._held.enter_context(slot.starting(self))

    @property
    def loaded(self) -> Current | None:
        """The engine that answers, if there is one and it is not away."""
        return None if self._away else self._slot.current

    @property
    def away(self) -> bool:
        """Whether that engine has made room."""
        return self._away is not None

    def is_over(self) -> bool:
        """Whether its engines have ended, or are about to."""
        return self._closed

    def when_closed(self, do: Callable[[], None]) -> None:
        """Have `do` done as soon as it is over, whoever ends it."""
        with self._lock:
            self._on_close = do
            over = self._closed
        if over:
            do()

    def start(self, plan: Plan, on_progress: OnProgress) -> EngineHost:
        """One more engine. Raises the load's SnugError, or Busy when it is over."""
        return self._starter.start_guest(plan, on_progress, self._keep)

    def end(self, host: EngineHost) -> None:
        """End an engine of `start`; its memory is free afterwards."""
        self._records.used(Current(host, LoadOptions.model_validate({})))
        host.close()
        with self._lock:
            self._guests.remove(host)

    def make_room(self) -> None:
        """End the engine that answers, once its replies are complete. Raises Busy when it is over before that."""
        current = self._slot.current
        if self._away is not None or current is None or not current.host.alive:
            return
        self._slot.withhold()
        while not (self._slot.wait_released(TICK_S) and current.host.wait_idle(TICK_S)):
            if self._closed:
                raise _over()
        progress = Progress("Lent to a comparison", 0.0)
        self._slot.announce(
            status="loading", name=current.host.plan.spec.name, progress=progress, error=None, lent=True
        )
        self._away = current
        self._records.used(current)
        current.host.close()

    def close(self) -> None:
        """Its engines end now, and no other begins; `give_back` remains to be done."""
        with self._lock:
            self._closed = True
            guests, do = tuple(self._guests), self._on_close
        do()
        for host in guests:
            host.close()

    def give_back(self) -> None:
        """End all its engines, bring the model back that made room, and let others load."""
        try:
            self.close()
            if self._away is not None and not self._slot.emptying:
                self._bring_back(self._away)
        finally:
            self._held.close()
            self._slot.announce(lent=False)
            self._slot.end_turn()

    def _keep(self, host: EngineHost) -> None:
        with self._lock:
            self._guests.append(host)
            closed = self._closed
        if closed:
            host.close()
            raise _over()

    def _bring_back(self, old: Current) -> None:
        """Load what made room; where that fails it counts as died, and the next message tries again."""
        plan = old.host.plan
        self._slot.announce(progress=Progress(f"Bringing back {plan.spec.name}", 0.0))
        try:
            try:
                new = replace(old, host=self._starter.start(plan, ignore))
            except OutOfMemory as error:
                new = self._rescue.load(Failure(plan, old.options, flags_bind=True), error, ignore)
            self._slot.install(new, error=told(new, plan))
        except Exception as failure:
            told_of = _not_back(plan.spec.name, as_snug(failure))
            log.warning("%s", told_of)
            self._slot.announce(status="died", progress=None, error=told_of)


def _not_back(name: str, error: SnugError) -> SnugError:
    message = f"{name} could not be loaded again after the comparison: {error.message}"
    return type(error)(message, remedy=error.remedy or "Send a message to try again, or load it on the Model tab.")


def _over() -> Busy:
    return Busy("The comparison was stopped.", remedy="Start it again.")
