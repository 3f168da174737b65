"""The web process's side of one request: its events, read once, from a thread or from an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from types import TracebackType

from modules.engine.base import Delta, Event, Finished, FinishReason, GenerationRequest, Prefill, Timings, Usage
from modules.engine.host.wire import fold
from modules.errors import SnugError, TimedOut

FOLD_EVENTS_ABOVE = 256


class Generation:
    """One request's events, the last of them always Finished. Safe to use from any thread.

    The events can be read once: by a `for`, an `async for` (any event loop; no thread waits for it) or `result()`; a
    second reader gets RuntimeError. A reader that falls behind gets longer deltas, not more of them. Whoever stops
    reading early calls `close()` or uses `with`; a Generation that nobody holds any more is cancelled.
    """

    def __init__(
        self,
        request: GenerationRequest,
        cancel: Callable[[], None],
        waited_for: set[Generation] | None = None,
        listen: Callable[[Event], None] | None = None,
    ) -> None:
        """`listen` hears of every event as it comes, whoever reads them, and must be quick."""
        self.id = request.id
        self._listen = listen
        self._request = request
        self._tell_engine = cancel
        self._waited_for = set() if waited_for is None else waited_for
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._ended = False
        self._claimed = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self._clock = _Clock(time.monotonic())
        self._made: list[int] = []
        self._made_before = 0  # by engines that ran out of memory or died
        self.reloads = 0  # how often the model was loaded in another way for this reply
        self.cancelled_at: float | None = None

    @property
    def user(self) -> str:
        """Whose request it is."""
        return self._request.user

    @property
    def ended(self) -> bool:
        """Whether Finished has come; it may still wait to be read."""
        return self._ended

    def __iter__(self) -> Iterator[Event]:
        """Every event as it comes."""
        self._claim()
        return self._walk(None)

    def __aiter__(self) -> AsyncIterator[Event]:
        """Every event as it comes, awaited in the running loop."""
        self._claim()
        return _AsyncEvents(self)

    def result(self, timeout_s: float | None = None) -> tuple[str, Finished]:
        """All text and the last event. Past `timeout_s` the request is cancelled and TimedOut raised."""
        self._claim()
        parts: list[str] = []
        for event in self._walk(timeout_s):
            if isinstance(event, Delta):
                parts.append(event.text)
            if isinstance(event, Finished):
                return "".join(parts), event
        raise RuntimeError(f"generation {self.id} was closed before its end")

    def cancel(self) -> None:
        """Ask for an early end; Finished("cancelled") follows unless the reply ends by itself first."""
        with self._changed:
            if self._ended or self.cancelled_at is not None:
                return
            self.cancelled_at = time.monotonic()
        self._tell_engine()

    def close(self) -> None:
        """Cancel, and let go of all that was not read."""
        self.cancel()
        with self._changed:
            self._ended = True
            self._claimed = True
            self._events.clear()
            self._wake()

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tokens(self) -> int:
        """How many tokens prompt and reply have so far."""
        return self._request.held_tokens + len(self._made)

    def park(self) -> None:
        """No engine has it now: a cancel ends it at once."""
        with self._changed:
            self._tell_engine = partial(self.finish, "cancelled")

    def move(self, cancel: Callable[[], None], waited_for: set[Generation]) -> GenerationRequest | None:
        """Let another engine go on: the request for the rest, None if there is none or nobody wants it.

        `cancel` and `waited_for` are the new host's. What came so far is part of the new request's `reply_ids`.
        """
        with self._changed:
            left = self._request.params.max_new_tokens - len(self._made)
            if self._ended or self.cancelled_at is not None or left <= 0:
                return None
            if self in self._waited_for:
                waited_for.add(self)
            self._tell_engine, self._waited_for = cancel, waited_for
            self._made_before = len(self._made)
            lengths = {"max_new_tokens": left, "min_tokens": max(0, self._request.params.min_tokens - len(self._made))}
            return replace(
                self._request,
                reply_ids=(*self._request.reply_ids, *self._made),
                held_ids=self._request.held_ids + len(self._made),
                params=self._request.params.model_copy(update=lengths),
                queue_s=0.0,  # its turn has come already
            )

    def push(self, event: Event) -> None:
        """Take one event from the engine; ignored after Finished."""
        with self._changed:
            if self._ended:
                return
            if isinstance(event, Delta):
                self._made += event.token_ids
            if isinstance(event, Finished) and self._made_before:
                usage = event.usage.moved(self._made_before)
                event = replace(event, usage=usage, timings=self._clock.timings())
            self._clock.count(event)
            if self._listen is not None:
                self._listen(event)
            self._events.append(event)
            self._ended = isinstance(event, Finished)
            if len(self._events) > FOLD_EVENTS_ABOVE:
                self._events = deque(fold(self._events))
            self._wake()

    def finish(self, reason: FinishReason, error: SnugError | None = None) -> None:
        """End here and now with what the host knows, where the engine will not or cannot say it."""
        before = self._made_before
        usage = Usage(self._request.held_tokens + before, 0, self._clock.tokens - before)
        self.push(Finished(reason, usage, self._clock.timings(), error))

    def _claim(self) -> None:
        with self._changed:
            if self._claimed:
                raise RuntimeError(f"generation {self.id} is read already, or closed")
            self._claimed = True

    def _walk(self, timeout_s: float | None) -> Iterator[Event]:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self._changed:
                left = None if deadline is None else max(deadline - time.monotonic(), 0)
                if not self._changed.wait_for(lambda: self._events or self._ended, left):
                    break
                if not self._events:
                    return
                event = self._events.popleft()
            yield event
        self.cancel()
        raise TimedOut(f"The reply was not complete after {timeout_s:.1f} s.", remedy="Ask for a shorter one.")

    def _wake(self) -> None:
        """Wake the readers; the lock is held."""
        self._changed.notify_all()
        if self._waiter is None:
            return
        loop, future = self._waiter
        self._waiter = None
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, future)

    async def next_event(self) -> Event | None:
        """The next event; None after the last."""
        while True:
            with self._changed:
                if self._events:
                    return self._events.popleft()
                if self._ended:
                    return None
                loop = asyncio.get_running_loop()
                future: asyncio.Future[None] = loop.create_future()
                self._waiter = (loop, future)
            # Loops hold their tasks weakly and hosts their generations: without this a waiting pair could vanish.
            self._waited_for.add(self)
            try:
                await future
            finally:
                self._waited_for.discard(self)


class _AsyncEvents:
    """A plain object, not an async generator: abandoned ones need no loop to clean up after them."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self._generation.next_event()
        if event is None:
            raise StopAsyncIteration
        return event


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Clock:
    """Tokens and times as they look from outside the engine."""

    def __init__(self, submitted: float) -> None:
        self.submitted = submitted
        self.started: float | None = None
        self.first: float | None = None
        self.last = submitted
        self.tokens = 0

    def count(self, event: Event) -> None:
        if isinstance(event, (Prefill, Delta)) and self.started is None:
            self.started = time.monotonic()
        if isinstance(event, Delta):
            self.last = time.monotonic()
            self.first = self.last if self.first is None else self.first
            self.tokens += len(event.token_ids)

    def timings(self) -> Timings:
        now = time.monotonic()
        started = now if self.started is None else self.started
        first = now if self.first is None else self.first
        return Timings(
            queue_s=started - self.submitted,
            prefill_s=first - started,
            first_token_s=first - self.submitted if self.first is not None else 0.0,
            decode_s=self.last - first if self.first is not None else 0.0,
            decoded_tokens=self.tokens,
        )
