"""What an extension does wrong, in words: errors in a line, its own lines of a traceback, results of a wrong kind."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_TEXT = 10_000_000
MAX_TRACE = 1500

Check = Callable[[Any], str]


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong with an extension: `hook` "" where it did not start; `trace` its own lines of the traceback."""

    extension: str
    reason: str
    hook: str = ""
    trace: str = ""

    @property
    def sentence(self) -> str:
        """For people."""
        what = f"{self.hook} {self.reason}" if self.hook else self.reason
        return f"Extension {self.extension}: {what}; it was passed over."


def is_text(value: object) -> str:
    """A Check: text of a size that a page can hold."""
    if not isinstance(value, str):
        return f"returned {type(value).__name__}, not text"
    return "returned too long a text" if len(value) > MAX_TEXT else ""


def are_two_texts(value: object) -> str:
    """A Check: (text, visible text)."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return f"returned {type(value).__name__}, not two texts"
    return is_text(value[0]) or is_text(value[1])


def is_dict(value: object) -> str:
    """A Check: a dict."""
    return "" if isinstance(value, dict) else f"returned {type(value).__name__}, not a dict"


def brief(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".: ")


def fault_of(value: object, check: Check) -> str:
    try:
        return check(value)
    except Exception as error:  # a value of a kind that looks like another
        return f"returned what cannot be read: {brief(error)}"


def trace_of(error: BaseException, path: Path) -> str:
    """The lines of the traceback that lie in the extension's own files."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(path.parent))
    ]
    lines = [f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}\n    {frame.line}" for frame in frames]
    if isinstance(error, SyntaxError) and error.lineno:
        lines.append(f"{Path(error.filename or '').name}, line {error.lineno}\n    {(error.text or '').rstrip()}")
    return "\n".join(lines)[-MAX_TRACE:]
