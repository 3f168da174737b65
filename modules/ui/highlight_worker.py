"""The process that tells the parts of code apart for their colours: Pygments, some of whose expressions never end.

Models and people write the code, so it may be killed at any moment; highlighting.py starts it and watches the clock.
Messages are as in killable.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name

from modules.answering import close_doors, limit_time, serve
from modules.units import MiB

MOST_BYTES = 256 * MiB  # more than code can need
_LONGEST_S = 10
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True)


def answer(question: Mapping[str, Any]) -> dict[str, Any]:
    """The `code` of a `language` as HTML under "html": spans of Pygments' short class names. None where it cannot."""
    limit_time(_LONGEST_S)
    try:
        lexer = get_lexer_by_name(question["language"], stripnl=False, ensurenl=False)
        return {"html": str(highlight(question["code"], lexer, _FORMATTER))}
    except Exception:  # an unknown language, or a lexer that was not made for this code
        return {"html": None}
    finally:
        limit_time(0)


if __name__ == "__main__":
    close_doors(MOST_BYTES)
    serve(sys.stdin.buffer, sys.stdout.buffer, answer)
