"""What the log looks like: lines for people, or one JSON object a line for programs.

For programs a line holds the time, what happened and the number of its request; of an exception its kind and where it
was, never its text: that may hold what somebody wrote. No prompts, secrets or folders either way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from modules.files import without_folders

LogFormat = Literal["text", "json"]
ACCESS_LOG = "snug.requests"
"""The logger that tells of every request that was answered."""
FIELDS = "snug_fields"
"""Under which name a record carries values of its own, as a dict."""
REQUEST = "snug_request"
"""Under which name it carries the number of its request."""
_MOST_FRAMES = 12
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PARTING = re.compile("timeout graceful shutdown exceeded")


def configure_logging(form: LogFormat, *, verbose: bool) -> None:
    """Set up this process's log, once, at its start. In JSON every answered request is told, else with `verbose`."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextLines("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if form == "json" else text)
    handler.addFilter(is_no_parting)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    if form == "json":
        logging.getLogger(ACCESS_LOG).setLevel(logging.INFO)


def is_no_parting(record: logging.LogRecord) -> bool:
    """False for what uvicorn tells of connections that were open as the server ended: a page is always waiting."""
    parting = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not parting and not _PARTING.search(record.getMessage())


class TextLines(logging.Formatter):
    """A record as text for a terminal, which gets no orders from what it holds: a model's files, an error of theirs."""

    def format(self, record: logging.LogRecord) -> str:
        """The text; control characters but tabs and line breaks are written out."""
        return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", super().format(record))


class JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = getattr(record, FIELDS, {})
        said = record.getMessage()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": said if fields else without_folders(said),  # what has fields is of our own making
        }
        if number := getattr(record, REQUEST, ""):
            line["request_id"] = number
        line |= fields
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])[-_MOST_FRAMES:]
            line["where"] = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        return json.dumps(line, ensure_ascii=False, default=str)
