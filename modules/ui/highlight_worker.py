"""The process that tells the parts of code apart for their colours: Pygments, some of whose expressions never end.

Models and people write the code, so it may be killed at any moment; highlighting.py starts it and watches the clock.
Messages are as in killable.py.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from modules.answering import no_core_dumps, serve
from modules.confined import confine
from modules.units import MiB

MOST_BYTES = 256 * MiB
_LONGEST_S = 10
_STATM = Path("/proc/self/statm")
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """The `code` of a `language` as HTML under "html": spans of Pygments' short class names. None where it cannot."""
    _limit_time(_LONGEST_S)
    try:
        lexer = get_lexer_by_name(question["language"], stripnl=False, ensurenl=False)
        return {"html": str(highlight(question["code"], lexer, _FORMATTER))}
    except Exception:  # an unknown language, or a lexer that was not made for this code
        return {"html": None}
    finally:
        _limit_time(0)


def close_doors() -> None:
    """No files but Python's, no core dumps, and no more memory than code can need."""
    no_core_dumps()
    confine()
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        if _STATM.exists():
            now_bytes = int(_STATM.read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MOST_BYTES, now_bytes + MOST_BYTES))


def _limit_time(seconds: int) -> None:
    """End the process after `seconds`, should nobody watch the clock any more."""
    if sys.platform != "win32":
        signal.alarm(seconds)


if __name__ == "__main__":
    close_doors()
    serve(sys.stdin.buffer, sys.stdout.buffer, answer)
