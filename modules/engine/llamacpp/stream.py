"""One completion of llama.cpp's server, read from its socket in bunches.

A small model makes a token in less time than Python takes to carry one to the page, on the cores that compute the next.
So after the first token whatever comes within GATHER_S is read at once; a stream's end is never waited for.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import h11

from modules.errors import BadValue, ContextLengthExceeded, GenerationFailed, SnugError

GATHER_S = 0.04
LOOK_S = 0.25  # so often a reader to whom nothing comes sees whether it was closed
LET_GO_S = 60.0
_MOST_BYTES = 1 << 16
_DATA, _DONE = b"data: ", b"data: [DONE]"

Event: TypeAlias = dict[str, Any]


class Stream:
    """The events of one completion, in bunches. Iterate it in one thread, which calls `let_go` in the end; `close` from
    any: the row is dropped then.

    llama.cpp answers when the first part of the prompt is read; until then too, `close` ends it.
    """

    def __init__(
        self, connected: socket.socket, path: str, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        """Send the request over a socket that is this stream's from now on."""
        self._socket = connected
        self._http = h11.Connection(h11.CLIENT)
        self._closed = False
        self._status = 200
        payload = json.dumps(body).encode("ascii")
        lines = {**headers, "Host": "localhost", "Connection": "close", "Content-Length": str(len(payload))}
        request = h11.Request(method="POST", target=path, headers=list(lines.items()))
        for part in (request, h11.Data(data=payload), h11.EndOfMessage()):
            connected.sendall(self._http.send(part) or b"")
        connected.settimeout(LOOK_S)

    def __iter__(self) -> Iterator[list[Event]]:
        try:
            yield from self._bunches()
        except (OSError, ValueError, h11.ProtocolError):
            if not self._closed:  # a socket that is shut under a reader fails in many ways
                raise

    def close(self) -> None:
        """End it now."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def let_go(self) -> None:
        """Close it and wait until llama.cpp has dropped the row: a token's time, or a piece of the prompt and a second.

        Its tokens lie in the cache until then. Where another prompt comes before, and there is no room for both,
        llama.cpp ends all rows with an error.
        """
        self.close()
        with contextlib.suppress(OSError), self._socket:
            until = time.monotonic() + LET_GO_S
            self._socket.settimeout(LET_GO_S)
            # It ends the connection when the row is to be dropped.
            while self._socket.recv(_MOST_BYTES) and time.monotonic() < until:
                pass

    def _bunches(self) -> Iterator[list[Event]]:
        rest, gathers, ended = b"", False, False
        while not (ended or self._closed):
            text, ended = self._read()
            *lines, rest = (rest + text).split(b"\n")
            if self._status != 200:
                rest += b"".join(lines)
                continue
            events = [checked(json.loads(line[len(_DATA) :])) for line in lines if _is_event(line)]
            if events:
                yield events
            if not gathers and any("prompt_progress" not in event for event in events):
                gathers = True
                _gather_from(self._socket)
        if self._status != 200 and not self._closed:
            raise error_of(json.loads(rest))

    def _read(self) -> tuple[bytes, bool]:
        """The next bytes of the answer, and whether it ends with them."""
        try:
            self._http.receive_data(self._socket.recv(_MOST_BYTES))
        except (BlockingIOError, TimeoutError):  # nothing came
            return b"", False
        parts = []
        while (event := self._http.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Response):
                self._status = event.status_code
            elif isinstance(event, h11.Data):
                parts.append(bytes(event.data))
            elif isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                return b"".join(parts), True
        return b"".join(parts), False


def _is_event(line: bytes) -> bool:
    return line.startswith(_DATA) and not line.startswith(_DONE)


def _gather_from(connected: socket.socket) -> None:
    """Let `recv` return what came within GATHER_S, or at the end: Linux waits inside the call, without waking Python.

    unix(7), socket(7): SO_RCVLOWAT with SO_RCVTIMEO. Elsewhere `recv` returns what is there.
    """
    if sys.platform == "linux":
        connected.settimeout(None)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, int(GATHER_S * 1e6)))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, _MOST_BYTES)


def checked(message: Any) -> Any:
    """`message`, unless it is an error: then that is raised."""
    if isinstance(message, dict) and isinstance(message.get("error"), dict):
        raise error_of(message)
    return message


def error_of(message: Mapping[str, Any]) -> SnugError:
    """llama.cpp's error as the user may see it."""
    error = message.get("error", {})
    text, kind = str(error.get("message", ""))[:300], error.get("type", "")
    if kind == "exceed_context_size_error" or "context size" in text.lower():
        return ContextLengthExceeded(
            "The context is full.", remedy="Shorten the text, or load the model with a larger --ctx-size."
        )
    if kind == "invalid_request_error":
        return BadValue(f"llama.cpp refuses the request: {text}", remedy="Change the parameter that it names.")
    return GenerationFailed(f"llama.cpp failed: {text}", remedy="Try again; the log has the details.")
