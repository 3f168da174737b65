"""llama.cpp's server inside this process, spoken to through a socket that nobody else can open.

It loads one GGUF file and decodes several rows at once. On Windows, where Python knows no Unix sockets, it listens on
a port of the loopback that the system picks; everywhere it answers only to a key drawn at each load.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modules.engine.process.spinning import spin_as_llamacpp_should
from modules.errors import BadValue, ContextLengthExceeded, GenerationFailed, LoadFailed, OutOfMemory, SnugError
from modules.memory.forecasting.forecast import RunSpec

_UNIX = "unix://"
_DATA = b"data: "


class Stream:
    """The events of one completion. Iterate it in one thread; `close` from any: llama.cpp then drops the row.

    llama.cpp answers when the first part of the prompt is read; until then too, `close` ends it.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        """`connection`: the request is sent, its answer not yet read."""
        self._connection = connection
        self._closed = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            response = self._connection.getresponse()
            if response.status != http.client.OK:
                raise _error_of(json.loads(response.read()))
            for line in response:
                if line.startswith(_DATA) and not line.startswith(b"data: [DONE]"):
                    yield _checked(json.loads(line[len(_DATA) :]))
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            if not self._closed:  # a socket that is shut under a reader fails in many ways
                raise
        finally:
            self._connection.close()

    def close(self) -> None:
        """End it now."""
        self._closed = True
        if (sock := self._connection.sock) is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class LlamaServer:
    """A loaded file. Every method may be called from any thread."""

    def __init__(self, path: Path, run: RunSpec) -> None:
        """Load `path`, whose header is checked. Raises LoadFailed or OutOfMemory. Holds Python's lock meanwhile."""
        spin_as_llamacpp_should()
        import xllamacpp

        from modules.memory.dryruns.llamacpp_params import load_params

        self._key = secrets.token_urlsafe(32)
        params = load_params(path, run)
        params.api_keys = [self._key]
        params.verbosity = 1
        self._folder = Path(tempfile.mkdtemp(prefix="snug-"))  # readable for this user alone
        if hasattr(socket, "AF_UNIX"):
            params.hostnames = [str(self._folder / "llama.sock")]
        try:
            self._server: Any = xllamacpp.Server(params)
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            if isinstance(error, MemoryError):
                raise OutOfMemory("Memory ran out while llama.cpp loaded the file.") from error
            raise LoadFailed(
                f"llama.cpp could not load {path.name}.", remedy="The log has the details; try --loader transformers."
            ) from error
        self._address: str = self._server.listening_address

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer of one endpoint, JSON; POST where there is a `body`."""
        connection = self._connect()
        try:
            self._send(connection, path, body)
            return _checked(json.loads(connection.getresponse().read()))
        finally:
            connection.close()

    def stream(self, body: Mapping[str, Any]) -> Stream:
        """Begin a completion."""
        connection = self._connect()
        self._send(connection, "/completion", {**body, "stream": True})
        return Stream(connection)

    def close(self) -> None:
        """Free the model."""
        self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _send(self, connection: http.client.HTTPConnection, path: str, body: Mapping[str, Any] | None) -> None:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        payload = None if body is None else json.dumps(body).encode("ascii")
        connection.request("GET" if payload is None else "POST", path, payload, headers)

    def _connect(self) -> http.client.HTTPConnection:
        if self._address.startswith(_UNIX):
            return _UnixConnection(self._address.removeprefix(_UNIX))
        return http.client.HTTPConnection(self._address.rpartition("/")[2])


class _UnixConnection(http.client.HTTPConnection):
    """HTTP through a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)


def _checked(message: Any) -> Any:
    """`message`, unless it is an error."""
    if isinstance(message, dict) and isinstance(message.get("error"), dict):
        raise _error_of(message)
    return message


def _error_of(message: Mapping[str, Any]) -> SnugError:
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
