"""The process that reads one attached file: its name and bytes from stdin, its text to stdout.

Files come from strangers, so it writes none, has no secrets, little memory and little time, and may be killed at any
moment; extracting.py starts it anew for every file. Messages are as in killable.py; a question is two bytes with the
longest side of a picture, two with the length of the name (big endian), the name, and the file. A picture comes back
in base64.
"""

from __future__ import annotations

import base64
import sys
from dataclasses import asdict
from typing import Any

from modules.answering import no_core_dumps, serve_bytes, told
from modules.attachments.reading import read
from modules.confined import confine
from modules.errors import BadAttachment, SnugError
from modules.units import GiB

MOST_BYTES = 1 * GiB
MOST_CPU_S = 60


def answer(question: bytes) -> dict[str, Any]:
    """The fields of Extracted, or an error under "error"."""
    most_side, length = int.from_bytes(question[:2], "big"), int.from_bytes(question[2:4], "big")
    name, data = question[4 : 4 + length].decode("utf-8", "replace"), question[4 + length :]
    try:
        taken = read(data, name, most_side=most_side)
        return asdict(taken) | {"picture": base64.b64encode(taken.picture).decode()}
    except SnugError as error:
        return told(error)
    except MemoryError:
        return told(BadAttachment(f"{name} needs too much memory to read.", remedy="Attach a part of it."))
    except Exception as error:  # the edge of one file: libraries meet things in it that they were not made for
        why = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return told(BadAttachment(f"{name} cannot be read ({why}).", remedy="Save it anew, or as plain text."))


def close_doors() -> None:
    """No files but Python's, no core dumps, no more memory and computing than a file may cost."""
    no_core_dumps()
    confine()
    if sys.platform != "win32":
        import resource

        for limit, value in (
            (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_DATA, MOST_BYTES), (resource.RLIMIT_CPU, MOST_CPU_S),
        ):  # fmt: skip
            resource.setrlimit(limit, (value, value))


if __name__ == "__main__":
    close_doors()
    serve_bytes(sys.stdin.buffer, sys.stdout.buffer, answer)
