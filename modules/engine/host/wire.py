"""What a host and its engine process say to each other, and a writer that never makes the speaker wait.

Messages are frozen values, sent in batches (lists) over a multiprocessing Connection. Where the reader falls behind,
events are folded: the text and its order stay, the number of messages does not grow without bound.
"""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import queue
import select
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
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
from modules.memory.planning.planner import Plan

log = logging.getLogger(__name__)
MAX_BATCH = 4096
SMALL_BYTES = 2048
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
    """Host → engine: call `method`; its Answer carries the same number. Past the moment `until` (time.monotonic, one
    clock for all processes of a machine) nobody waits for it any more. `whose` it is, as on_behalf.py has it.
    """

    number: int
    method: Method
    arguments: tuple[Any, ...]
    until: float = math.inf
    whose: str = ""


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
    """Sends what is posted, in order. `post` never blocks and is safe inside a finalizer.

    A small message that the pipe has room for goes out at once, in the thread that posts it, which spares the engine's
    loop the waking of another for each token. All else is sent by a thread of the writer's own.
    """

    def __init__(self, pipe: Pipe, name: str) -> None:
        self._pipe = pipe
        self._has_room = _room_for_writing(pipe)
        self._turn = threading.Lock()  # who holds it sends
        self._unsent: deque[Message | None] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._gone = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def post(self, message: Message) -> None:
        """Send `message` soon; dropped without a word if the other side is gone (its reader notices that)."""
        if self._turn.acquire(blocking=False):
            try:
                if not self._unsent and self._send_at_once(message):
                    return
            finally:
                self._turn.release()
        self._unsent.append(message)
        self._bell.put(None)

    def finish(self, timeout_s: float) -> None:
        """Send all that was posted, then end; waits `timeout_s` at most."""
        self._unsent.append(None)
        self._bell.put(None)
        self._thread.join(timeout_s)

    def _send_at_once(self, message: Message) -> bool:
        """Whether `message` is dealt with, the turn taken."""
        if self._gone:
            return True
        if not self._has_room():
            return False
        try:
            data = pickle.dumps([message], pickle.HIGHEST_PROTOCOL)
        except Exception:
            return False  # `_send` tells of it
        if len(data) > SMALL_BYTES:
            return False
        self._try(partial(self._pipe.send_bytes, data))
        return True

    def _run(self) -> None:
        while True:
            self._bell.get()
            with self._turn:
                # By number: others append meanwhile, which an iterator over a deque does not survive.
                batch = [self._unsent[number] for number in range(min(len(self._unsent), MAX_BATCH))]
                messages = [message for message in batch if message is not None]
                if messages:
                    self._try(partial(self._send, fold_messages(messages) if len(messages) > FOLD_ABOVE else messages))
                for _ in batch:
                    self._unsent.popleft()
            if None in batch:
                return

    def _send(self, messages: Sequence[Message]) -> None:
        """Send what can be sent: one message that cannot takes none of the others with it."""
        try:
            data = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
        except Exception:
            if len(messages) == 1:
                log.exception("A message to the other process cannot be sent: %s", type(messages[0]).__name__)
                return
            for message in messages:
                self._send([message])
            return
        self._pipe.send_bytes(data)

    def _try(self, send: Callable[[], None]) -> None:
        try:
            if not self._gone:
                send()
        except (OSError, ValueError) as error:
            log.debug("The other side of the engine's pipe is gone: %s", error)
            self._gone = True


def _room_for_writing(pipe: Pipe) -> Callable[[], bool]:
    """Tells whether a small message can be written to `pipe` without waiting; never where the system does not say."""
    if not hasattr(select, "poll"):
        return lambda: False
    watch = select.poll()
    watch.register(pipe.fileno(), select.POLLOUT)
    return lambda: bool(watch.poll(0))


def wait_for_reading(pipe: Pipe) -> Callable[[float], bool]:
    """`pipe.poll` where the system allows without the selector that it makes for every call."""
    if not hasattr(select, "poll"):
        return pipe.poll
    watch = select.poll()
    watch.register(pipe.fileno(), select.POLLIN)
    return lambda timeout_s: bool(watch.poll(timeout_s * 1000))


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
