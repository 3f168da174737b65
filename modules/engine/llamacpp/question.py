"""One request to llama.cpp's server whose answer comes in one piece."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

from modules.engine.llamacpp.stream import checked


class Question:
    """`answer` it in one thread; `close` from any: what llama.cpp still does for it is dropped then."""

    def __init__(
        self, connected: socket.socket, path: str, headers: Mapping[str, str], body: Mapping[str, Any] | None
    ) -> None:
        """Send the request, POST where there is a `body`, over a socket that is this question's from now on."""
        self._socket = connected
        self._http = http.client.HTTPConnection("localhost")
        self._http.sock = connected
        payload = None if body is None else json.dumps(body).encode("ascii")
        self._http.request("GET" if payload is None else "POST", path, payload, dict(headers))

    def answer(self) -> Any:
        """What it says, JSON. Raises SnugError for an error of llama.cpp's; OSError, HTTPException or ValueError where
        the connection ends before.
        """
        with contextlib.closing(self._http):
            return checked(json.loads(self._http.getresponse().read()))

    def close(self) -> None:
        """End it now."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
