"""Reads attached files in a process of their own each, which is killed when a file takes too long or too much."""

from __future__ import annotations

import base64
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from modules.attachments.extracted import MAX_FILE_BYTES, MAX_PICTURE_SIDE, Extracted, clean_name, refuse
from modules.errors import BadAttachment, Busy
from modules.killable import KillableWorker, WorkerDoesNotStart, WorkerEnded, WorkerLate, bare_environment
from modules.on_behalf import ASKED_FOR, OwnPlaces
from modules.units import format_size

EXTRACT_S = 45.0
AT_ONCE = 3
EACH_AT_ONCE = 2  # so that nobody's files alone take all places
_WAIT_S = 120.0
_START_S = 60.0  # on a machine that has no core to spare


class Read(Protocol):
    """Extractor.extract."""

    def __call__(self, name: str, data: bytes, *, most_side: int = MAX_PICTURE_SIDE) -> Extracted: ...


class Extractor:
    """Safe to use from any thread; more than AT_ONCE files wait for one another, of one person EACH_AT_ONCE."""

    def __init__(self, *, extract_s: float = EXTRACT_S) -> None:
        self._extract_s = extract_s
        self._places = threading.BoundedSemaphore(AT_ONCE)
        self._own = OwnPlaces(EACH_AT_ONCE)
        self._workers: set[KillableWorker] = set()

    def extract(self, name: str, data: bytes, *, most_side: int = MAX_PICTURE_SIDE) -> Extracted:
        """The text of a file, or its picture with no side longer than `most_side` pixels.

        Raises BadAttachment for one that has none, is too large or too hard; Busy.
        """
        with self.several() as read:
            return read(name, data, most_side=most_side)

    @contextmanager
    def several(self) -> Iterator[Read]:
        """`extract`, for files that come one after the other: they share a process, until one of them ends it."""
        with self._place():
            worker = KillableWorker(
                [sys.executable, "-P", "-m", "modules.attachments.worker"], bare_environment(), start_s=_START_S
            )
            self._workers.add(worker)
            try:
                yield partial(self._asked, worker)
            finally:
                self._workers.discard(worker)
                worker.close()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of this person's places, and then one of all. Raises Busy."""
        own = self._own.of(ASKED_FOR.get())
        until = time.monotonic() + _WAIT_S
        for taken, places in enumerate((own, self._places)):
            if not places.acquire(timeout=max(0.0, until - time.monotonic())):
                if taken:
                    own.release()
                raise Busy("Other files are still being read.", remedy="Try again in a minute.")
        try:
            yield
        finally:
            self._places.release()
            own.release()

    def close(self) -> None:
        """End what is being read."""
        for worker in tuple(self._workers):
            worker.kill()

    def _asked(self, worker: KillableWorker, name: str, data: bytes, *, most_side: int = MAX_PICTURE_SIDE) -> Extracted:
        name = clean_name(name)
        if len(data) > MAX_FILE_BYTES:
            refuse(
                f"{name} has {format_size(len(data))}; Snug takes files up to {format_size(MAX_FILE_BYTES)}.",
                "Attach a part of it.",
            )
        encoded = name.encode()
        head = most_side.to_bytes(2, "big") + len(encoded).to_bytes(2, "big")
        try:
            answer = worker.ask(head + encoded + data, timeout_s=self._extract_s)
        except WorkerLate as error:
            raise BadAttachment(
                f"{name} took longer than {self._extract_s:.0f} s to read.",
                remedy="Attach a part of it, or plain text.",
            ) from error
        except WorkerDoesNotStart as error:
            raise BadAttachment(
                "The process that reads files does not start.",
                remedy="Try again. If it stays so, run ./start.sh: a library may be missing.",
            ) from error
        except WorkerEnded as error:
            raise BadAttachment(
                f"{name} ended the process that read it.", remedy="Save it anew, or as plain text."
            ) from error
        if "error" in answer:
            raise BadAttachment(answer["error"]["message"], remedy=answer["error"]["remedy"])
        return Extracted(**answer | {"picture": base64.b64decode(answer["picture"])})
