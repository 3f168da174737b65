"""An OpenAI-compatible server on loopback that says what a test tells it to, with the faults that a network has."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]
Play = Callable[["Line"], None]
CARD: Json = {"id": "parrot", "object": "model", "owned_by": "somebody", "max_model_len": 2048}


def chat_chunk(text: str = "", finish: str | None = None, **delta: str) -> Json:
    """One chunk of a chat's stream."""
    return {"choices": [{"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}]}


@dataclass
class Line:
    """One request for a reply, and the way to answer it."""

    handler: Any
    path: str
    body: Json
    headers: dict[str, str]
    gone: threading.Event = field(default_factory=threading.Event)

    def begin(self, kind: str = "text/event-stream") -> None:
        """Status 200, and a stream to follow."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def send(self, raw: bytes) -> None:
        """Bytes of the stream."""
        self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        self.handler.wfile.flush()

    def event(self, event: Json) -> None:
        """One event."""
        self.send(b"data: " + json.dumps(event).encode() + b"\n\n")

    def end(self, *, done: bool = True) -> None:
        """The end of the stream as it should be."""
        if done:
            self.send(b"data: [DONE]\n\n")
        self.handler.wfile.write(b"0\r\n\r\n")

    def cut(self) -> None:
        """The connection breaks."""
        self.handler.close_connection = True
        self.handler.connection.shutdown(socket.SHUT_RDWR)

    def refuse(self, status: int, answer: Json | str, **headers: str) -> None:
        """An error in place of a reply."""
        raw = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.handler.send_response(status)
        for name, value in headers.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.send_header("Content-Length", str(len(raw)))
        self.handler.end_headers()
        self.handler.wfile.write(raw)

    def wait_until_gone(self, timeout_s: float = 20) -> bool:
        """Whether the client closes its connection in time."""
        self.handler.connection.settimeout(timeout_s)
        try:
            return not self.handler.connection.recv(1)
        except OSError:
            return False


def say(*texts: str, finish: str = "stop", usage: Json | None = None) -> Play:
    """A reply of these pieces."""

    def play(line: Line) -> None:
        line.begin()
        for text in texts:
            line.event(chat_chunk(text) if "messages" in line.body else {"choices": [{"text": text}]})
        line.event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if usage:
            line.event({"choices": [], "usage": usage})
        line.end()

    return play


@dataclass
class FakeServer:
    """What it answers with, and what it was asked."""

    port: int = 0
    play: Play = field(default_factory=lambda: say("Hel", "lo"))
    routes: dict[str, Any] = field(default_factory=dict)
    key: str = ""
    asked: list[Line] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        """What --engine-url is to be."""
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_for(self, count: int, timeout_s: float = 20) -> list[Line]:
        """The requests for replies, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= count, timeout_s)
            return list(self.asked)


@contextmanager
def fake_server(*cards: Json, play: Play | None = None, key: str = "", port: int = 0) -> Iterator[FakeServer]:
    """A server with these models, one plain one by default."""
    fake = FakeServer(key=key)
    fake.routes["/v1/models"] = {"object": "list", "data": list(cards) or [CARD]}
    if play is not None:
        fake.play = play

    open_connections: list[socket.socket] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def setup(self) -> None:
            super().setup()
            open_connections.append(self.connection)

        def allowed(self) -> bool:
            if fake.key and self.headers.get("Authorization") != f"Bearer {fake.key}":
                said = f"Incorrect API key provided: {self.headers.get('Authorization', '')}"
                Line(self, self.path, {}, {}).refuse(401, {"error": {"message": said}})
                return False
            return True

        def do_GET(self) -> None:
            if self.allowed():
                found = fake.routes.get(self.path)
                Line(self, self.path, {}, {}).refuse(
                    200 if found is not None else 404, found or {"detail": "Not Found"}
                )

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.allowed():
                return
            line = Line(self, self.path, body, dict(self.headers))
            if self.path in fake.routes:
                line.refuse(200, fake.routes[self.path](body))
                return
            if not self.path.endswith("/completions"):
                line.refuse(404, {"detail": "Not Found"})
                return
            with fake.changed:
                fake.asked.append(line)
                fake.changed.notify_all()
            try:
                fake.play(line)
            except OSError:
                self.close_connection = True
            line.gone.set()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:
            """Clients may go as they like."""

    with Server(("127.0.0.1", port), Handler) as server:
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield fake
        server.shutdown()
        for connection in open_connections:  # a server that is gone answers on old connections no more
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(10)
