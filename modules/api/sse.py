"""Server-sent events out, and an eye on the client: who leaves, or stops reading, ends the work done for them.

Knows nothing of what the events say, but how each dialect frames them. Nothing here drives an engine: a producer hears
of a departure as a cancellation, at its next await, and cleans up in its own `finally`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
from fastapi.responses import Response
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from modules.api.asking import request_id_of
from modules.api.errors import anthropic_error, error_object, public
from modules.errors import SnugError

T = TypeVar("T")
Write = Callable[[bytes], Awaitable[None]]
Produce = Callable[[Write], Awaitable[None]]

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 10.0
SEND_TIMEOUT_S = 30.0
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream` server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
"""What the OpenAPI text says of a route that can stream, besides its JSON."""


def event(data: Mapping[str, Any], name: str = "") -> bytes:
    """One event, with its `name` if it has one: `data: {…}` in UTF-8 on one line, and the empty line that ends it."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + _encode(data).encode() + b"\n\n"


@dataclass(frozen=True, slots=True)
class Framing:
    """What a dialect sends to keep a stream awake, and as its last event where an error ends it (with the number of
    the request).
    """

    keep_alive: bytes
    failure: Callable[[SnugError, str], bytes]


OPENAI = Framing(KEEP_ALIVE, lambda error, _: event(error_object(error)))
ANTHROPIC = Framing(
    event({"type": "ping"}, "ping"), lambda error, request_id: event(anthropic_error(error, request_id), "error")
)


async def unless_disconnected(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, which is cancelled as soon as the client leaves; then raises ClientDisconnect.

    Takes over `request.receive`: the body must have been read, and nobody else may wait for the disconnect.
    """
    results: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:
        group.start_soon(_cancel_when_gone, request.receive, group.cancel_scope)
        try:
            results.append(await work())
        except Exception as error:  # carried out of the task group, which would wrap it
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not results:
        raise ClientDisconnect
    return results[0]


class EventStream(Response):
    """A stream of events that `produce` writes. The status 200 goes out with the first byte, not before.

    An error before that is raised, and becomes an ordinary error response; after it, the stream ends with the error
    event of its `framing`. A sign of life every `keep_alive_s` of silence keeps proxies awake. A client that takes
    longer than `send_timeout_s` to accept one event, or leaves, gets nothing more, and `produce` is cancelled.
    """

    def __init__(
        self,
        produce: Produce,
        *,
        framing: Framing = OPENAI,
        keep_alive_s: float = KEEP_ALIVE_S,
        send_timeout_s: float = SEND_TIMEOUT_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = list(_HEADERS)
        self._produce = produce
        self._framing = framing
        self._keep_alive_s = keep_alive_s
        self._send_timeout_s = send_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        early: list[Exception] = []
        async with anyio.create_task_group() as group:
            wire = _Wire(send, self.raw_headers)
            group.start_soon(_cancel_when_gone, receive, group.cancel_scope)
            alive = self._framing.keep_alive
            group.start_soon(_watch, wire, alive, self._keep_alive_s, self._send_timeout_s, group.cancel_scope)
            try:
                await self._produce(wire.write)
                await wire.end()
            except Exception as error:  # the edge of one request: whatever it is, this stream ends with it
                if wire.started:
                    await wire.write(self._framing.failure(public(error), request_id_of(scope)))
                    await wire.end()
                else:
                    early.append(error)
            group.cancel_scope.cancel()
        if early:
            raise early[0]


class _Wire:
    """One response on its way out; writers take turns.

    `wrote_at` and `sending_since` are the event loop's times: the watch over slow readers costs nothing an event.
    """

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = False
        self.wrote_at = anyio.current_time()
        self.sending_since: float | None = None
        self._send = send
        self._headers = headers
        self._turn = asyncio.Lock()

    async def write(self, data: bytes) -> None:
        await self._message(data, more=True)

    async def end(self) -> None:
        await self._message(b"", more=False)

    async def _message(self, data: bytes, *, more: bool) -> None:
        async with self._turn:
            self.wrote_at = self.sending_since = anyio.current_time()
            try:
                if not self.started:
                    self.started = True
                    await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
            finally:
                self.sending_since = None


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def _watch(
    wire: _Wire, keep_alive: bytes, keep_alive_s: float, send_timeout_s: float, scope: anyio.CancelScope
) -> None:
    """Break a long silence with a sign of life, and cancel `scope` where the client accepts nothing any more."""
    while True:
        now = anyio.current_time()
        if wire.sending_since is not None:
            left_s = wire.sending_since + send_timeout_s - now
            if left_s <= 0:
                scope.cancel()
                return
        else:
            left_s = wire.wrote_at + keep_alive_s - now
            if left_s <= 0:
                with anyio.move_on_after(send_timeout_s) as deadline:
                    await wire.write(keep_alive)
                if deadline.cancelled_caught:
                    scope.cancel()
                continue
        await anyio.sleep(min(left_s, send_timeout_s))
