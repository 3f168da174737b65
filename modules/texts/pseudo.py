"""A language that nobody speaks: English with accents, longer, in brackets. What stays plain on the page was forgotten.

For developers: `?language=en-XA` in the page's address, `?language=ar-XB` for the same written from right to left.
"""

from __future__ import annotations

import re

ACCENTED, MIRRORED = "en-XA", "ar-XB"
_LETTERS = str.maketrans("aceinouyACEINOUYsSzZ", "åçéîñöûýÅÇÉÎÑÖÛÝšŠžŽ")
_KEPT = re.compile(r"(\{\w+\}|<[^>]*>|`[^`]*`)")
_LONGER = 0.3
_PADDING = "·"


def pseudo(text: str) -> str:
    """`[Šåvé···]`: placeholders in braces, tags and code in backticks stay as they are."""
    parts = [part if _KEPT.fullmatch(part) else part.translate(_LETTERS) for part in _KEPT.split(text)]
    words = round(len(_KEPT.sub("", text)) * _LONGER)
    return f"[{''.join(parts)}{_PADDING * max(1, words)}]" if text.strip() else text
