"""Where memory ran out: the model is loaded in a way that needs less, and the replies go on from their tokens.

Which ways need less is memory/planning/smaller.py's. Each reply sees this MOST_RELOADS times at most.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

from modules.engine.base import Degraded, OnProgress, Progress
from modules.engine.host.host import EngineHost, Generation, ignore
from modules.errors import EngineDied, OutOfMemory, SnugError
from modules.memory.planning.planner import Plan
from modules.memory.planning.smaller import Failure, difference, rungs
from modules.models.planning import Planning
from modules.models.slot import Slot
from modules.models.starting import EngineStarter
from modules.models.state import Current, as_snug, held_by

log = logging.getLogger(__name__)

MOST_RELOADS = 2  # in other ways, for one reply or one load that memory ran out for
ROOM_TOKENS = 64  # that a reply which goes on shall have at least


class Rescue:
    """Loads in smaller ways. Thread-safe, as far as only who has the slot's turn calls `load` and `shrink`."""

    def __init__(self, slot: Slot, starter: EngineStarter, planning: Planning) -> None:
        self._slot = slot
        self._starter = starter
        self._planning = planning

    def replies_soon(self, host: EngineHost, error: SnugError, replies: list[Generation]) -> None:
        """`replies` in a thread: the host's own may not wait for a load."""
        threading.Thread(target=self.replies, args=(host, error, replies), name="rescue", daemon=True).start()

    def replies(self, host: EngineHost, error: SnugError, replies: list[Generation]) -> None:
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
                reply.finish("error", as_snug(failure))
        else:
            for reply in going_on:
                engine.adopt(reply)

    def load(
        self, failure: Failure, error: OutOfMemory, on_progress: OnProgress, *, again: Sequence[Plan] = ()
    ) -> Current:
        """A load that memory ran out for, in ways that need less; plans `again` first. Raises OutOfMemory."""
        plans = [*again, *rungs(self._planning.smaller(failure, held_by(None)), MOST_RELOADS)]
        return self._start_first(failure, plans, error, on_progress)

    def shrink(self, old: Current, error: SnugError, replies: list[Generation]) -> EngineHost:
        """Load the model in a way that needs less, the turn taken. Replies under way join `replies`.

        Raises OutOfMemory where there is no such way; an engine that is alive then stays, one that is not and has no
        replies to go on with comes back as it was.
        """
        plan = old.host.plan
        try:
            least = max((reply.tokens + ROOM_TOKENS for reply in replies), default=0)
            failure = Failure(plan, old.options, least)
            plans = rungs(self._planning.smaller(failure, held_by(old)), MOST_RELOADS)
            if not plans and replies:
                raise _end_of_ladder(plan.spec.name, error)
            progress = Progress("Planning", 0.0)
            self._slot.announce(status="loading", name=plan.spec.name, progress=progress, error=None)
            replies += old.host.hand_over()
            new = self._start_first(failure, plans or [plan], error, ignore, replies)
            self._slot.install(new, error=told(new, plan))
            return new.host
        except Exception as caught:
            if not old.host.alive:
                self._slot.announce(status="died", progress=None, error=as_snug(caught))
            raise

    def _smaller_engine(self, host: EngineHost, error: SnugError, replies: list[Generation]) -> EngineHost:
        """An engine for `replies`, which grow by those that the old one had under way. Raises SnugError."""
        found = self._slot.instead_of(host)
        if found is None:
            raise error
        current, our_turn = found
        for reply in replies:
            reply.reloads += 1
        if not our_turn:
            _tell(replies, host.plan, current.host.plan, error)
            return current.host
        try:
            return self.shrink(current, error, replies)
        finally:
            self._slot.end_turn()

    def _start_first(
        self,
        failure: Failure,
        plans: Sequence[Plan],
        error: SnugError,
        on_progress: OnProgress,
        replies: Sequence[Generation] = (),
    ) -> Current:
        """The first of `plans` that loads; `replies` are told of each. Raises OutOfMemory where none does."""
        for plan in plans:
            log.warning("%s: %s It is loaded with %s", plan.spec.name, error, difference(failure.plan, plan))
            _tell(replies, failure.plan, plan, error)
            try:
                host = self._starter.start(plan, on_progress)
                self._starter.meter.rescued()
                return Current(host, failure.options, reduced=plan is not failure.plan)
            except OutOfMemory as again:
                error = again
        raise _end_of_ladder(failure.plan.spec.name, error) if replies else error


def told(current: Current, before: Plan) -> SnugError | None:
    """What people should know of a model that is loaded in another way than was planned."""
    if not current.reduced:
        return None
    plan = current.host.plan
    return OutOfMemory(
        f"Memory ran out: {plan.spec.name} is loaded with {difference(before, plan)}.",
        remedy="Close other programs and load it anew to have it as it was.",
    )


def _tell(replies: Sequence[Generation], before: Plan, after: Plan, error: SnugError) -> None:
    """Say in the midst of `replies` that the model is loaded in another way, and why."""
    why = error.message if isinstance(error, EngineDied) else "Memory ran out."
    for reply in replies:
        reply.push(Degraded(f"{after.spec.name} is loaded again, with {difference(before, after)}.", why))


def _end_of_ladder(name: str, error: SnugError) -> OutOfMemory:
    """The error of replies that nothing more can be given up for."""
    return OutOfMemory(
        f"Memory ran out, and no other way of loading {name} takes less and holds this text; what was written is kept.",
        remedy=error.remedy if isinstance(error, OutOfMemory) else "Close other programs, or choose a smaller model.",
    )
