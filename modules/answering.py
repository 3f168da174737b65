"""The other side of killable.py: a process that answers the questions on its stdin, one at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from modules.errors import SnugError


def serve(source: BinaryIO, sink: BinaryIO, answer: Callable[[Mapping[str, Any]], dict[str, Any]]) -> None:
    """Answer requests, JSON, until `source` ends."""
    serve_bytes(source, sink, lambda question: answer(json.loads(question)))


def serve_bytes(source: BinaryIO, sink: BinaryIO, answer: Callable[[bytes], dict[str, Any]]) -> None:
    """Likewise, requests being any bytes. The first message sent says that the worker is ready."""
    _send(sink, {"ready": True})
    while header := source.read(4):
        _send(sink, answer(source.read(int.from_bytes(header, "big"))))


def told(error: SnugError) -> dict[str, Any]:
    """The answer that is an error."""
    return {"error": {"code": error.code, "message": error.message, "remedy": error.remedy, "param": error.param}}


def no_core_dumps() -> None:
    """A crash on a hostile file leaves nothing behind."""
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _send(sink: BinaryIO, message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode("ascii")
    sink.write(len(payload).to_bytes(4, "big") + payload)
    sink.flush()
