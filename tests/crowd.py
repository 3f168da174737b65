"""Many clients at once, on plain sockets: streams, bursts, connections that only wait, senders that never end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psutil

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


@contextlib.contextmanager
def busy_programs(count: int) -> Iterator[None]:
    """So many programs that do nothing but compute, each on a core where there are enough."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for one in spinning:
            one.kill()
            one.wait()


@dataclass(slots=True)
class Streamed:
    """One stream as its client saw it: seconds to the first text, between pieces of text, and how it ended."""

    status: int = 0
    first_s: float = 0.0
    gaps_s: list[float] = field(default_factory=list)
    characters: int = 0
    done: bool = False
    error: str = ""

    @property
    def sound(self) -> bool:
        """Whether it came to its end without an error."""
        return self.status == 200 and self.done and not self.error


def head(port: int, path: str, body: bytes, method: str = "POST") -> bytes:
    """A request as it goes over the wire."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Content-Type: application/json",
             f"Content-Length: {len(body)}", "Connection: close"]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


async def stream(port: int, *, timeout_s: float = 120, **changes: Any) -> Streamed:
    """Ask for a streamed reply and read it to its end."""
    seen = Streamed()
    try:
        async with asyncio.timeout(timeout_s):
            await _stream(port, seen, changes)
    except (OSError, TimeoutError) as error:
        seen.error = f"{type(error).__name__} {error}"
    return seen


async def _stream(port: int, seen: Streamed, changes: dict[str, Any]) -> None:
    started = last = time.monotonic()
    async with connected(port) as (reader, writer):
        writer.write(head(port, CHAT, json.dumps({**QUESTION, "stream": True, **changes}).encode()))
        async for line in reader:
            now = time.monotonic()
            if line.startswith(b"HTTP/1.1 "):
                seen.status = int(line.split()[1])
            elif line.startswith(b"data: [DONE]"):
                seen.done = True
            elif line.startswith(b"data: {"):
                event = json.loads(line[6:])
                seen.error = seen.error or str(event.get("error", ""))
                if text := "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ())):
                    seen.first_s = seen.first_s or now - started
                    seen.gaps_s += [now - last] if seen.characters else []
                    seen.characters += len(text)
                    last = now


@contextlib.asynccontextmanager
async def connected(
    port: int, *, limit: int = 2**20
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection, closed at the end whatever the other side does; about `limit` bytes are read ahead."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(port: int, path: str = CHAT, *, method: str = "POST", timeout_s: float = 60, **changes: Any) -> int:
    """The status of one whole request; 0 where the connection broke instead."""
    asked = {**QUESTION, **changes} if path == CHAT else changes
    body = json.dumps(asked).encode() if method == "POST" else b""
    try:
        async with asyncio.timeout(timeout_s), connected(port) as (reader, writer):
            writer.write(head(port, path, body, method))
            answer = await reader.read()
    except (OSError, TimeoutError):
        return 0
    return int(answer.split(maxsplit=2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


async def slow_sender(port: int, stop: asyncio.Event, every_s: float = 1.0) -> None:
    """A request whose head comes byte by byte, as long as the server bears it."""
    with contextlib.suppress(OSError):
        async with connected(port) as (_, writer):
            for byte in head(port, CHAT, b"{}") * 100:
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), every_s)
                if stop.is_set():
                    return


async def frozen_reader(port: int, stop: asyncio.Event) -> None:
    """A stream of which nothing is ever read."""
    with contextlib.suppress(OSError):
        async with connected(port, limit=1024) as (_, writer):
            body = {**QUESTION, "stream": True, "max_tokens": 200_000, "logprobs": True, "top_logprobs": 5}
            writer.write(head(port, CHAT, json.dumps(body).encode()))
            await stop.wait()


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a process and its children hold; descriptors and threads are its own."""

    rss_bytes: int
    own_rss_bytes: int
    descriptors: int
    threads: int
    children: int


def holdings(pid: int) -> Holdings:
    """Of the process with this id."""
    process = psutil.Process(pid)
    children = process.children(recursive=True)
    own = process.memory_info().rss
    return Holdings(own + sum(map(_rss, children)), own, process.num_fds(), process.num_threads(), len(children))


def _rss(process: psutil.Process) -> int:
    """0 for one that has ended meanwhile."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of all lie at or below; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
