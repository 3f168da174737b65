"""The host's side of questions that an engine answers with one value each: encode, decode, stats."""

from __future__ import annotations

import copy
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from modules.engine.host.wire import Answer, Call, Method
from modules.engine.turns import Turns
from modules.errors import SnugError, TimedOut
from modules.on_behalf import ASKED_FOR
from modules.units import format_duration

__all__ = ["Calls", "LongReads"]

LONG = 10_000  # characters: a hundredth of a second
MOST_PAUSE_S = 2.0  # after one that the engine did not answer, say


class LongReads:
    """Long texts that a tokenizer reads: one at a time, person after person, and after each as long a pause.

    While it reads no reply goes on; so replies have at least half of the time, however many such texts come.
    """

    def __init__(self, *, long: int = LONG) -> None:
        self._long = long
        self._turns = Turns(sys.maxsize)  # doors/places.py bounds how many of one person's wait
        self._free_at = 0.0

    @contextmanager
    def turn(self, characters: int) -> Iterator[None]:
        """When a text of so many may be read; at once if it is short."""
        if characters <= self._long:
            yield
            return
        with self._turns.turn(ASKED_FOR.get()):
            time.sleep(max(0.0, self._free_at - time.monotonic()))
            began = time.monotonic()
            try:
                yield
            finally:
                ended = time.monotonic()
                self._free_at = ended + min(MOST_PAUSE_S, ended - began)


class Calls:
    """Calls under way. Every method may be called from any thread."""

    def __init__(self, post: Callable[[Call], None]) -> None:
        self._post = post
        self._lock = threading.Lock()
        self._futures: dict[int, Future[Any]] = {}
        self._numbers = itertools.count()
        self._over: SnugError | None = None

    @property
    def waiting(self) -> int:
        """How many wait for an answer."""
        return len(self._futures)

    def ask(self, method: Method, *arguments: object, timeout_s: float) -> Any:
        """What the engine answers. Raises its SnugError, what `end` was told, or TimedOut."""
        future: Future[Any] = Future()
        with self._lock:
            if self._over is not None:
                raise copy.copy(self._over)  # one instance raised again and again would grow its traceback
            number = next(self._numbers)
            self._futures[number] = future
        self._post(Call(number, method, arguments, time.monotonic() + timeout_s, ASKED_FOR.get()))
        try:
            return future.result(timeout_s)
        except TimeoutError as error:
            raise TimedOut(
                f"The engine did not answer within {format_duration(timeout_s)}.",
                remedy="It may be busy; try again, or load the model anew.",
            ) from error
        finally:
            with self._lock:
                self._futures.pop(number, None)

    def resolve(self, answer: Answer) -> None:
        """Give an answer to its caller, unless that gave up."""
        with self._lock:
            future = self._futures.pop(answer.number, None)
        if future is None:
            return
        if answer.error is not None:
            future.set_exception(answer.error)
        else:
            future.set_result(answer.value)

    def end(self, error: SnugError) -> None:
        """The engine is gone: every call, now and later, ends with `error`."""
        with self._lock:
            self._over = error
            futures = list(self._futures.values())
            self._futures.clear()
        for future in futures:
            future.set_exception(error)
