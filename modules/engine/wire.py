"""What a host and its engine process say to each other, and a writer that never makes the speaker wait.

Messages are frozen values, sent in batches (lists) over a multiprocessing Connection. Where the reader falls behind,
events are folded: the text and its order stay, the number of messages does not grow without bound.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeAlias

from modules.engine.base import (
    Delta,
    Event,
    GenerationRequest,
    LoadEngine,
    ModelInfo,
    Prefill,
    Progress,
    Queued,
)
from modules.errors import SnugError
from modules.memory.planner import Plan

log = logging.getLogger(__name__)
MAX_BATCH = 4096
FOLD_ABOVE = 64

Pipe: TypeAlias = "Connection[Any, Any]"
Method = Literal["encode", "decode", "stats"]


@dataclass(frozen=True, slots=True)
class Start:
    """Host → engine, the first message: load this."""

    plan: Plan
    load: LoadEngine


@dataclass(frozen=True, slots=True)
class Submit:
    """Host → engine: run this request."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Host → engine: end this request."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Call:
    """Host → engine: call `method`; its Answer carries the same number."""

    number: int
    method: Method
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Host → engine: free the model and end."""


@dataclass(frozen=True, slots=True)
class Loading:
    """Engine → host: the load goes on."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Loaded:
    """Engine → host: requests may come."""

    info: ModelInfo


@dataclass(frozen=True, slots=True)
class LoadBroke:
    """Engine → host: the load failed; the engine ends now."""

    error: SnugError


@dataclass(frozen=True, slots=True)
class Emitted:
    """Engine → host: one event of one request."""

    request_id: str
    event: Event


@dataclass(frozen=True, slots=True)
class Answer:
    """Engine → host: what a Call returned, or the error that it raised."""

    number: int
    value: Any
    error: SnugError | None = None


Message = Start | Submit | Cancel | Call | Close | Loading | Loaded | LoadBroke | Emitted | Answer


class Writer:
    """Sends what is posted from a thread of its own, in order. `post` never blocks and is safe inside a finalizer."""

    def __init__(self, pipe: Pipe, name: str) -> None:
        self._pipe = pipe
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, message: Message) -> None:
        """Send `message` soon; dropped without a word if the other side is gone (its reader notices that)."""
        self._queue.put(message)

    def finish(self, timeout_s: float) -> None:
        """Send all that was posted, then end; waits `timeout_s` at most."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            batch = [self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get())
            messages = [message for message in batch if message is not None]
            try:
                self._pipe.send(fold_messages(messages) if len(messages) > FOLD_ABOVE else messages)
            except (OSError, ValueError) as error:
                log.debug("The other side of the engine's pipe is gone: %s", error)
                return
            if None in batch:
                return


def fold_messages(messages: Sequence[Message]) -> list[Message]:
    """The same messages with each request's events folded; the order holds within a request, not between requests."""
    events: dict[str, list[Event]] = {}
    folded: list[Message] = []
    for message in messages:
        if isinstance(message, Emitted):
            events.setdefault(message.request_id, []).append(message.event)
        else:
            folded.append(message)
    return folded + [Emitted(key, event) for key, items in events.items() for event in fold(items)]


def fold(events: Iterable[Event]) -> list[Event]:
    """Fewer events that say the same: runs of Delta joined, of runs of Queued or Prefill only the last kept."""
    folded: list[Event] = []
    for kind, group in itertools.groupby(events, type):
        run = list(group)
        if kind is Delta:
            folded.append(_join([event for event in run if isinstance(event, Delta)]))
        elif kind in (Queued, Prefill):
            folded.append(run[-1])
        else:
            folded.extend(run)
    return folded


def _join(deltas: Sequence[Delta]) -> Delta:
    return Delta(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
    )
