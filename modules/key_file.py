"""Secrets that a flag names a file for: read where they are used, kept nowhere else, shown never."""

from __future__ import annotations

from pathlib import Path

from modules.errors import BadFlag

MAX_KEY_BYTES = 8192


def read_key_file(path: Path, flag: str) -> str:
    """The key in `path`, which the flag `flag` names. Raises BadFlag, which never shows it."""
    try:
        with path.open("rb") as file:
            key = file.read(MAX_KEY_BYTES + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it holds more than plain characters"
        raise _bad(path, flag, str(problem)) from error
    if not key or len(key) > MAX_KEY_BYTES or not key.isprintable() or " " in key:
        raise _bad(path, flag, "it must hold the key alone, on one line")
    return key


def _bad(path: Path, flag: str, problem: str) -> BadFlag:
    return BadFlag(
        f"{flag} {path}: {problem}.",
        remedy="Write the key into a text file that only you can read, and name that.",
        param=flag.removeprefix("--").replace("-", "_"),
    )
