"""For whom something is done, and what is held meanwhile, however deep down: set at the door of a request."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from contextvars import ContextVar
from weakref import WeakValueDictionary

ASKED_FOR: ContextVar[str] = ContextVar("asked_for", default="")
"""Who waits for it: api/doors/places.py says it for each request, chat/writing.py for each reply."""
UNTIL_ANSWERED: ContextVar[ExitStack | None] = ContextVar("until_answered", default=None)
"""What a request holds until its answer is sent, as api/doors/places.py lets go of it; None where nobody answers."""


class OwnPlaces:
    """So many places for each person, who is forgotten when none of theirs is held. Safe to use from any thread."""

    def __init__(self, each: int) -> None:
        self._each = each
        self._lock = threading.Lock()
        self._own: WeakValueDictionary[str, threading.BoundedSemaphore] = WeakValueDictionary()

    def of(self, whose: str) -> threading.BoundedSemaphore:
        """That person's places: hold on to it for as long as to a place."""
        with self._lock:
            own = self._own.get(whose)
            if own is None:
                own = self._own[whose] = threading.BoundedSemaphore(self._each)
            return own
