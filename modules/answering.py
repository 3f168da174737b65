"""The other side of killable.py: a process that answers the questions on its stdin, one at a time."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from modules.confined import confine
from modules.errors import SnugError

_STATM = Path("/proc/self/statm")


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


def close_doors(most_bytes: int) -> None:
    """From now on no files but Python's, no core dumps, and `most_bytes` of memory more than now (where Linux says)."""
    no_core_dumps()
    confine()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if _STATM.exists():
            now_bytes = int(_STATM.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now_bytes + most_bytes, now_bytes + most_bytes))


def limit_time(seconds: int) -> None:
    """End the process after `seconds`, should nobody watch the clock any more; 0: never."""
    if sys.platform != "win32":
        signal.alarm(seconds)


def _send(sink: BinaryIO, message: dict[str, Any]) -> None:
    payload = json.dumps(message).encode("ascii")
    sink.write(len(payload).to_bytes(4, "big") + payload)
    sink.flush()
