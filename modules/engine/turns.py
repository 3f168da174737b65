"""Turns at what one thread at a time may do, person after person. What is done in them is not known here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from modules.engine.admission import FairQueue

WAITING = 128  # of one person, where others wait too, their share of as many


class Turns:
    """One at a time, person after person: who comes a hundred times waits behind the own hundred."""

    def __init__(self, waiting: int = WAITING) -> None:
        """So many may wait, and of a person who comes to a full line the share of as many."""
        self._changed = threading.Condition()
        self._waiting: FairQueue[object] = FairQueue(waiting)
        self._taken = False

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for a turn."""
        return bool(self._waiting)

    @contextmanager
    def turn(self, whose: str) -> Iterator[None]:
        """A turn of that person's, when it has come. Raises QueueFull where too many of theirs wait already."""
        ticket = object()
        with self._changed:
            self._waiting.push(whose, ticket)
            try:
                self._changed.wait_for(lambda: not self._taken and self._waiting.peek() is ticket)
            except BaseException:  # Ctrl-C: nobody is to wait for one that went
                self._waiting.remove(ticket)
                self._changed.notify_all()
                raise
            self._waiting.pop()
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
