"""One connection of the server: how long a client may take to ask and to read, and how much its headers may be.

uvicorn's own protocol with deadlines. Without them a socket that sends a byte a minute, or reads nothing of a stream,
is held for ever. Where more are open than half of the files that this process may have, those that asked for nothing
for seconds give way, the oldest first: whoever has something to ask says so at once. Bodies' sizes are bodies.py's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
from contextlib import suppress
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from modules.units import KiB

HEADERS_S = 20.0
HURRY_S = 3.0  # the same where too many connections are open, and the grace of bodies there
MAX_HEADER_BYTES = 64 * KiB
MAX_HEADERS = 100
BODY_GRACE_S = 20.0
BODY_BYTES_PER_S = 8 * KiB  # at least, after the grace
READING_S = 30.0
"""Seconds in which a client must take in what lies ready for it, some tens of KiB."""
IDLE_S = 120
"""Seconds in which a connection may wait for its next request: longer than clients keep theirs (Go's 90 are the most of
the usual ones), since one that this side closes while a request is on its way fails that request."""


def _most_open() -> int:
    """How many connections may be open before idle ones are closed."""
    if sys.platform == "win32":
        return 4096
    import resource

    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 8192 if files == resource.RLIM_INFINITY else max(16, min(8192, files // 2))


def plain_host(host: str) -> str:
    """An IPv4 address as it stands in Host headers and in --trusted-proxy: a socket for both IPv6 and IPv4 (`::`) says
    ::ffff:192.0.2.1."""
    mapped = ipaddress.IPv6Address(host).ipv4_mapped if host.startswith("::ffff:") else None
    return host if mapped is None else str(mapped)


class _TooMuch(Exception):
    """The headers are too large or too many."""


class _PlainParser:
    """httptools' parser, to which a wish for another protocol (Upgrade) says nothing, as servers may have it.

    By itself it takes such a request for whole with its headers, and reads its body as the next request: behind a proxy
    that keeps connections, somebody's body would have the beginning of somebody else's request. Java's client wishes
    for HTTP/2 with every first request.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self._connection)
        with suppress(AttributeError):  # as uvicorn has it
            self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    @property
    def wished(self) -> bool:
        """Whether this request has such a wish, and comes once more without it."""
        return bool(self._parser.should_upgrade())

    def should_upgrade(self) -> bool:
        """For uvicorn: never."""
        return False

    def should_keep_alive(self) -> bool:
        """Whether another request may follow."""
        return bool(self._parser.should_keep_alive())

    def get_method(self) -> bytes:
        """As it was sent."""
        return bytes(self._parser.get_method())

    def get_http_version(self) -> str:
        """As it was sent, "1.1"."""
        return str(self._parser.get_http_version())

    def feed_data(self, data: bytes) -> None:
        """Read on. Raises HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as wish:
                if self.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("no tunnels") from wish
                data = self._plain_head() + data[wish.args[0] :]
                self._begin()

    def _plain_head(self) -> bytes:
        """The head that was read, without its wish."""
        kept = [b"%b: %b\r\n" % pair for pair in self._connection.headers if pair[0] != b"upgrade"]
        line = self.get_method(), self._connection.url, self.get_http_version().encode()
        return b"%b %b HTTP/%b\r\n" % line + b"".join(kept) + b"\r\n"


class _Parting:
    """The transport as the one who answers has it: with it closed, the rest of the body is still read."""

    def __init__(self, connection: Connection) -> None:
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing
        self.close = connection.part


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which ends in time."""

    headers_s = HEADERS_S
    hurry_s = HURRY_S
    body_grace_s = BODY_GRACE_S
    reading_s = READING_S
    idle_s = IDLE_S
    most_open = _most_open()
    _asking_nothing: ClassVar[dict[Connection, None]] = {}  # the longest first

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there: its headers are due."""
        self._due: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._header_bytes = self._body_bytes = self._bytes_beside = 0
        self._body_since = 0.0
        self._body_within = self.body_grace_s
        self._reads_headers = True
        self._reads_body = self._parts = False
        self._answer = b""
        self._plain = _PlainParser(self)
        self.parser = self._plain  # type: ignore[assignment]
        self.timeout_keep_alive = self.idle_s  # uvicorn's own 5 s are what httpx waits too
        super().connection_made(transport)
        if self.server and self.client:
            self.server = plain_host(self.server[0]), self.server[1]
            self.client = plain_host(self.client[0]), self.client[1]
        self._headers_within = self.hurry_s if self._is_crowded else self.headers_s
        self._wait(self._headers_within, self._headers_late)
        if self._is_crowded:
            self._make_room()
        self._begin_to_idle()

    @property
    def _is_crowded(self) -> bool:
        return len(self.connections) > self.most_open

    def _begin_to_idle(self) -> None:
        self._idle_since = self.loop.time()
        self._asking_nothing[self] = None

    def _make_room(self) -> None:
        """Close the connection that has asked for nothing the longest, if that is long."""
        oldest = next(iter(self._asking_nothing), None)
        if oldest is not None and oldest._idle_since + self.hurry_s < self.loop.time():
            del self._asking_nothing[oldest]
            oldest.transport.abort()

    def on_response_complete(self) -> None:
        """It has its answer, and may ask something else."""
        super().on_response_complete()
        if self._is_idle and not self.transport.is_closing():
            self._begin_to_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """It left."""
        self._asking_nothing.pop(self, None)
        for handle in (self._due, self._unread):
            if handle is not None:
                handle.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        if self._reads_headers:
            self._header_bytes += len(data)
        else:
            self._bytes_beside += len(data)
        super().data_received(data)
        if self._has_too_much and not self.transport.is_closing():
            self._refuse(b"431 Request Header Fields Too Large")
        elif self._due is None and self.timeout_keep_alive_task is None and self._is_idle:
            self._wait(self._headers_within, self._headers_late)  # an empty line between requests begins none

    @property
    def _has_too_much(self) -> bool:
        """Of headers, or beside a body's pieces: trailers and extensions of chunks, of which the parser keeps the
        field that is not whole yet, and copies it at every read."""
        return (self._header_bytes if self._reads_headers else self._bytes_beside) > MAX_HEADER_BYTES

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        """A request begins, perhaps the second one of this connection."""
        super().on_message_begin()
        self._reads_headers = True
        self._wait(self._headers_within, self._headers_late)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Trailers, fields behind a body, say nothing: who stands in front has checked none of them."""
        if not self._reads_headers:
            return
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS or sum(len(a) + len(b) for a, b in self.headers) > MAX_HEADER_BYTES:
            self._answer = b"431 Request Header Fields Too Large"
            raise _TooMuch

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to what is no HTTP; and to our refusal in the midst of it."""
        if self._answer or self._parts:
            self._refuse(self._answer)
        else:
            super().send_400_response(msg)

    def on_headers_complete(self) -> None:
        """The body is due."""
        if self._plain.wished:
            return
        self._asking_nothing.pop(self, None)
        self._reads_headers, self._reads_body = False, True
        self._header_bytes = self._body_bytes = self._bytes_beside = 0
        self._body_since = self.loop.time()
        self._body_within = min(self.hurry_s, self.body_grace_s) if self._is_crowded else self.body_grace_s
        self._wait(self._body_within, self._body_late)
        super().on_headers_complete()
        self.cycle.transport = _Parting(self)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        """A piece of it."""
        self._body_bytes += len(body)
        self._bytes_beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole: from here the server is at work."""
        if self._plain.wished:
            return
        self._bytes_beside = 0
        self._reads_body = False
        self._settle()
        super().on_message_complete()
        if self._parts:
            self.transport.close()

    def part(self) -> None:
        """Close behind an answer. The rest of a body that was refused is read first, within its limits: a close with
        bytes unread resets the connection, and who is still sending sees that in place of the answer.
        """
        waits_for_leave = self.expect_100_continue and not self._body_bytes
        if not self._reads_body or waits_for_leave or not self.cycle.response_complete:
            self.transport.close()
            return
        self._parts = True
        with suppress(OSError):  # it left
            self.transport.write_eof()

    def pause_writing(self) -> None:
        """More lies ready than the client has read."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self.reading_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
        super().resume_writing()

    def _wait(self, seconds: float, late: Any) -> None:
        self._settle()
        self._due = self.loop.call_later(seconds, late)

    def _settle(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _headers_late(self) -> None:
        self._refuse(b"408 Request Timeout")

    def _body_late(self) -> None:
        """Time is up, unless it is the server that reads slowly, or the body comes fast enough."""
        now = self.loop.time()
        enough_until = self._body_since + self._body_within + self._body_bytes / BODY_BYTES_PER_S
        if self.flow.read_paused:
            self._body_since += self._body_within
            self._wait(self._body_within, self._body_late)
        elif now < enough_until:
            self._wait(enough_until - now, self._body_late)
        elif self.cycle is not None and not self.cycle.response_started:
            self._refuse(b"408 Request Timeout")
        else:
            self.transport.abort()

    def _refuse(self, status: bytes) -> None:
        """A word, and the end of the connection; whoever works for it hears of a client that left."""
        # A word would stand in the midst of an answer, or behind it.
        if self._parts or (not self._is_idle and self.cycle.response_started):
            self.transport.abort()
            return
        self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
        self.loop.call_later(1.0, self.transport.abort)  # where not even that is read
