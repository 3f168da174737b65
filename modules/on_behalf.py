"""For whom something is done, and what is held meanwhile, however deep down: set at the door of a request."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from hashlib import blake2b
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

Held = TypeVar("Held")

ASKED_FOR: ContextVar[str] = ContextVar("asked_for", default="")
"""Who waits for it: api/doors/places.py says it for each request, chat/writing.py for each reply; an engine's process
hears it with each question."""
UNTIL_ANSWERED: ContextVar[ExitStack | None] = ContextVar("until_answered", default=None)
"""What a request holds until its answer is sent, as api/doors/places.py lets go of it; None where nobody answers."""


def own_key(*texts: str) -> bytes:
    """By what texts are known that are kept to answer sooner: 16 bytes, other ones for each person. Kept for everybody,
    the time would tell who asks about a text that somebody else has written it.
    """
    digest = blake2b(digest_size=16)
    for text in (ASKED_FOR.get(), *texts):
        data = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d " % len(data))
        digest.update(data)
    return digest.digest()


class _Own(Generic[Held]):
    """One thing for each person, who is forgotten when nobody holds theirs. Safe to use from any thread."""

    def __init__(self, make: Callable[[], Held]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._own: WeakValueDictionary[str, Held] = WeakValueDictionary()

    def of(self, whose: str) -> Held:
        """That person's: hold on to it for as long as it is used."""
        with self._lock:
            own = self._own.get(whose)
            if own is None:
                own = self._own[whose] = self._make()
            return own


class OwnPlaces(_Own[threading.BoundedSemaphore]):
    """So many places for each person."""

    def __init__(self, each: int) -> None:
        super().__init__(lambda: threading.BoundedSemaphore(each))


class OwnLocks(_Own["threading.RLock"]):
    """A lock for each person, which may be taken again by who has it."""

    def __init__(self) -> None:
        super().__init__(threading.RLock)

    def all(self) -> list[threading.RLock]:
        """Those that somebody holds or is about to take."""
        with self._lock:
            return list(self._own.values())
