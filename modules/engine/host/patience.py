"""How long a host waits for its engine, and when one that says nothing counts as hung."""

from __future__ import annotations

from dataclasses import dataclass

from modules.errors import EngineDied, SnugError, TimedOut
from modules.units import format_duration

TRY_AGAIN = "Try again: the model is loaded anew."


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a host waits, in seconds.

    `load_s` without a sign of progress, or `reply_s` without an event while a request runs, and the engine counts as
    hung. One token of a model on a slow disk may take minutes. A cancelled reply ends for its reader after `cancel_s`
    even if the engine is still busy with a step. A request to the API waits `queue_s` for its turn, 0 is without end.
    """

    load_s: float = 1800.0
    reply_s: float = 900.0
    cancel_s: float = 0.8
    call_s: float = 60.0
    close_s: float = 3.0
    queue_s: float = 600.0

    def verdict(self, silent_s: float, *, loaded: bool) -> SnugError | None:
        """Why an engine that has said nothing for `silent_s` is given up; None while it is not."""
        if silent_s <= (self.reply_s if loaded else self.load_s):
            return None
        silence = f"no sign of life for {format_duration(silent_s)}, and was stopped"
        if loaded:
            return EngineDied(f"The engine showed {silence}.", remedy=TRY_AGAIN)
        return TimedOut(f"The load showed {silence}.", remedy="Try again, or load a smaller model.")


PATIENCE = Patience()
