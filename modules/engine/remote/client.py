"""HTTP to one server, in an event loop of its own: answers as JSON, replies as events, every failure a SnugError.

Certificates are checked, redirects and the environment's proxies are not followed, the key goes into one header and
nowhere else. Every wait ends. It knows nothing of models.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from modules.engine.remote.complaints import complaint, complaint_of_words, error_words, tidy
from modules.errors import GenerationFailed, ServerLost, SnugError
from modules.units import format_duration

MAX_ANSWER_BYTES = 16 * 2**20
MAX_LINE_BYTES = 4 * 2**20
MAX_ERROR_BYTES = 64 * 1024
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  # of a character that UTF-16 writes in two

Result = TypeVar("Result")
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, in seconds: for a connection, for an answer to a question, for the next sign of a reply (a long
    prompt is read in silence), and for a server that is gone to come back before a request is given up.
    """

    connect_s: float = 10.0
    answer_s: float = 30.0
    silence_s: float = 600.0
    return_s: float = 15.0


PATIENCE = Patience()
DONE: Json = {"done": True}
"""The last event of a stream that ends as it should."""


class Unreached(Exception):
    """The server did not take the request: nothing of a reply can have been made. `error` is for people."""

    def __init__(self, error: ServerLost) -> None:
        super().__init__(error.message)
        self.error = error


class RemoteClient:
    """One server. `spawn` and `ask_now` may be called from any thread, the coroutines run in its own loop."""

    def __init__(self, url: str, key: str, *, patience: Patience = PATIENCE) -> None:
        """`url` up to and with /v1; `key` may be ""."""
        self.url = url
        self.where = httpx2.URL(url).netloc.decode("ascii")
        self.patience = patience
        self._key = key
        self._root = url.removesuffix("/v1")
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._http = httpx2.AsyncClient(
            headers=headers,
            follow_redirects=False,
            trust_env=False,
            timeout=httpx2.Timeout(patience.answer_s, connect=patience.connect_s),
            transport=httpx2.AsyncHTTPTransport(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=3.0),
                trust_env=False,
                socket_options=_keep_alive(),
            ),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote engine", daemon=True)
        self._thread.start()

    def spawn(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run `work` in the client's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def ask_now(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """`ask` for other threads."""
        work = self.spawn(self.ask(path, body))
        most_s = self.patience.connect_s + 2 * self.patience.answer_s
        try:
            return work.result(most_s)
        except TimeoutError as error:  # an answer that goes on and on
            work.cancel()
            raise self._silent(most_s) from error

    def call_soon(self, call: Any) -> None:
        """Have `call` called in the loop; nothing happens once it is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call)

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that a route answers with; POST where there is a `body`. Raises SnugError.

        `path` begins with a slash: below /v1, or with two below the server's root.
        """
        try:
            return _read(await self._asked(path, body))
        except Unreached as error:
            raise error.error from error
        except (ValueError, RecursionError) as error:
            raise self._nonsense("no JSON") from error

    async def _asked(self, path: str, body: Mapping[str, Any] | None, *, again: bool = True) -> bytes:
        """The whole answer of a route; once more where the connection had gone stale."""
        try:
            async with self._sent(path, body, self.patience.answer_s) as response:
                return await self._whole(response, MAX_ANSWER_BYTES)
        except Unreached:
            if not again:
                raise
        return await self._asked(path, body, again=False)

    @asynccontextmanager
    async def stream(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[AsyncIterator[Json]]:
        """The events of a reply. Raises Unreached where the server took no request, else SnugError."""
        async with self._sent(path, body, self.patience.silence_s) as response:
            kind = response.headers.get("content-type", "")
            if "text/event-stream" not in kind:
                raise self._nonsense(f"no stream of events ({tidy(kind, self._key)[:60] or 'of no type'})")
            yield self._events(response)

    def close(self) -> None:
        """Close every connection and end the loop."""
        try:
            self.spawn(self._http.aclose()).result(5)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            if not self._thread.is_alive():
                self._loop.close()

    @asynccontextmanager
    async def _sent(
        self, path: str, body: Mapping[str, Any] | None, silence_s: float
    ) -> AsyncIterator[httpx2.Response]:
        url = self._root + path[1:] if path.startswith("//") else self.url + path
        timeout = httpx2.Timeout(self.patience.answer_s, read=silence_s, connect=self.patience.connect_s)
        request = self._http.build_request("GET" if body is None else "POST", url, json=body, timeout=timeout)
        try:
            response = await self._http.send(request, stream=True)
        except httpx2.ReadTimeout as error:
            raise self._silent(silence_s) from error
        except httpx2.TransportError as error:
            raise Unreached(self._unreachable(error)) from error
        try:
            if response.status_code != httpx2.codes.OK:
                said = (await self._whole(response, MAX_ERROR_BYTES, cut=True)).decode("utf-8", "replace")
                raise complaint(self.where, response.status_code, said, response.headers, key=self._key)
            yield response
        except httpx2.ReadTimeout as error:
            raise self._silent(silence_s) from error
        except httpx2.TransportError as error:
            raise self._lost() from error
        finally:
            await response.aclose()

    async def _whole(self, response: httpx2.Response, most: int, *, cut: bool = False) -> bytes:
        """The body, of at most `most` bytes."""
        body = bytearray()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > most:
                if cut:
                    break
                raise self._nonsense("an endless answer")
        return bytes(body[:most])

    async def _events(self, response: httpx2.Response) -> AsyncIterator[Json]:
        """Every `data:` line as JSON, until [DONE] or the end. Raises what an error event says."""
        buffer = bytearray()
        async for part in response.aiter_bytes():
            buffer += part
            if b"\n" not in part:
                if len(buffer) > MAX_LINE_BYTES:
                    raise self._nonsense("a line without end")
                continue
            *lines, rest = bytes(buffer).split(b"\n")
            buffer = bytearray(rest)
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    yield DONE
                    return
                yield self._event(data)

    def _event(self, data: bytes) -> Json:
        try:
            event = _read(data)
        except (ValueError, RecursionError) as error:
            raise self._nonsense("an event that is no JSON") from error
        if not isinstance(event, dict):
            raise self._nonsense("an event that is no object")
        if event.get("error"):
            raise complaint_of_words(self.where, tidy(error_words(event), self._key), status=_status_of(event))
        return event

    def _nonsense(self, what: str) -> SnugError:
        return GenerationFailed(
            f"The server at {self.where} answered with {what}.",
            remedy="Check --engine-url: it must be an OpenAI-compatible server's, mostly ending in /v1.",
        )

    def _unreachable(self, error: Exception) -> ServerLost:
        brief = tidy(str(error), self._key)[:120] or type(error).__name__
        return ServerLost(
            f"The server at {self.where} does not answer ({brief}).",
            remedy="Check that it runs and that --engine-url is its address; then try again.",
        )

    def _silent(self, after_s: float) -> ServerLost:
        return ServerLost(
            f"The server at {self.where} said nothing for {format_duration(after_s)}.",
            remedy="It may be overloaded: try again, or look at its log.",
        )

    def _lost(self) -> ServerLost:
        return ServerLost(
            f"The connection to the server at {self.where} was lost; what was written is kept.",
            remedy="Continue the reply when the server is there again.",
        )


def _read(data: bytes) -> Any:
    """JSON, with "�" for each half of a character that stands alone: servers that cut UTF-16 send those, and neither
    files nor answers can hold one. Raises ValueError, RecursionError.
    """
    value = json.loads(data)
    if not _HALF.search(data):
        return value
    whole = json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return json.loads(whole)


def _status_of(event: Json) -> int:
    """The HTTP status that an error event speaks of, 500 if of none."""
    error = event["error"]
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _keep_alive() -> list[tuple[int, int, int]]:
    """Socket options by which a peer that vanished is noticed within a minute, in the midst of a long prompt too."""
    options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            options.append((socket.IPPROTO_TCP, getattr(socket, name), value))
    return options
