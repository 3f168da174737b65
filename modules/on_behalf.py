"""For whom something is done, and what is held meanwhile, however deep down: set at the door of a request."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
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


class FairLock:
    """A lock that people take by turns: who waits for it a hundred times waits behind the own hundred."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()

    def __enter__(self) -> None:
        whose, turn = ASKED_FOR.get(), threading.Event()
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            self._waiting.setdefault(whose, deque()).append(turn)
        try:
            turn.wait()
        except BaseException:  # Ctrl-C: nobody is to wait for one that went
            self._leave(whose, turn)
            raise

    def __exit__(self, *_: object) -> None:
        with self._lock:
            whose = next(iter(self._waiting), None)
            if whose is None:
                self._taken = False
                return
            turns = self._waiting.pop(whose)
            turns.popleft().set()  # it stays taken
            if turns:
                self._waiting[whose] = turns  # behind all others

    def _leave(self, whose: str, turn: threading.Event) -> None:
        with self._lock:
            turns = self._waiting.get(whose, deque())
            if turn in turns:
                turns.remove(turn)
                if not turns:
                    del self._waiting[whose]
                return
        self.__exit__()  # its turn had come


class OwnLocks:
    """A lock for each person, who is forgotten when nobody holds theirs. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._own: WeakValueDictionary[str, threading.RLock] = WeakValueDictionary()

    def of(self, whose: str) -> threading.RLock:
        """That person's lock, which may be taken again by who has it."""
        with self._lock:
            own = self._own.get(whose)
            if own is None:
                own = self._own[whose] = threading.RLock()
            return own

    def all(self) -> list[threading.RLock]:
        """Those that somebody holds or is about to take."""
        with self._lock:
            return list(self._own.values())
