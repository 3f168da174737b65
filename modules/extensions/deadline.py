"""A call of someone else's code with an end: in a thread of its own, which is stopped when it takes too long.

A thread that waits inside a C function (`time.sleep`) cannot be stopped; it is left behind, and ends when that does.
Watch does the same for calls that must stay in the thread that makes them.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

log = logging.getLogger(__name__)
Result = TypeVar("Result")
SLOW_S = 1.0
END_S = 0.5
LOOK_EVERY_S = 0.25
IDLE_LOOKS = 40


class Overdue(Exception):
    """The call did not return in time."""


class Ended(Exception):
    """The call raised SystemExit, or the like."""


class _Stop(BaseException):
    """Raised inside a thread that is to end."""


def call_within(
    timeout_s: float, function: Callable[[], Result], *, name: str, on_slow: Callable[[], None] = lambda: None
) -> Result:
    """What `function()` returns or raises; Overdue after `timeout_s`, Ended where it would have ended its thread.

    `on_slow` is called once where it takes longer than SLOW_S.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(min(SLOW_S, timeout_s))
    if thread.is_alive() and timeout_s > SLOW_S:
        on_slow()
        thread.join(timeout_s - SLOW_S)
    if thread.is_alive():
        stop(thread)
        thread.join(END_S)
        raise Overdue(f"it did not return within {timeout_s:g} s")
    if errors and not isinstance(errors[0], Exception):
        raise Ended(f"{type(errors[0]).__name__} {errors[0]}".strip()) from errors[0]
    if errors:
        raise errors[0]
    return results[0]


def stop(thread: threading.Thread) -> None:
    """Raise an exception in a running thread, at its next step in Python."""
    if thread.ident is not None:
        _raise_in(thread.ident)


class Watch:
    """A deadline for calls made one after the other in one thread, cheap enough for one a token."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._target: int | None = None
        self._name = ""
        self._since = 0.0
        self._looking = False

    def call(self, name: str, function: Callable[[], Result]) -> Result:
        """What `function()` returns or raises; Overdue as soon as Python can stop it after the limit."""
        try:
            try:
                self._enter(name)
                return function()
            finally:
                self._leave()
        except _Stop:
            self._leave()
            raise Overdue(f"it did not return within {self._limit_s:g} s") from None

    def _enter(self, name: str) -> None:
        with self._lock:
            self._target, self._name, self._since = threading.get_ident(), name, time.monotonic()
            if not self._looking:
                self._looking = True
                threading.Thread(target=self._look, name="extension watch", daemon=True).start()

    def _leave(self) -> None:
        """Afterwards nothing more is raised here."""
        with self._lock:
            self._target = None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threading.get_ident()), None)

    def _look(self) -> None:
        """Until nothing is called any more for a while."""
        idle = 0
        while True:
            time.sleep(LOOK_EVERY_S)
            with self._lock:
                idle = idle + 1 if self._target is None else 0
                if idle > IDLE_LOOKS:
                    self._looking = False
                    return
                if self._target is not None and time.monotonic() - self._since > self._limit_s:
                    log.error("%s does not return: it is stopped", self._name)
                    _raise_in(self._target)
                    self._target = None


def _raise_in(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Stop))
