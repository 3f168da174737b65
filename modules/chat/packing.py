"""Text as SQLite keeps it, and as the search compares it. Every Python text has both forms."""

from __future__ import annotations

import re

_UNSEARCHABLE = re.compile("[\x00\ud800-\udfff]")  # FTS5 stops at a NUL, and halves of characters have no UTF-8


def pack(text: str) -> str | bytes:
    """`text` as SQLite takes it. Lone surrogates have no UTF-8, so such a text goes in as bytes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def unpack(value: object) -> str:
    """The text that `pack` was given."""
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else str(value)


def printable(text: str) -> str:
    """`text` as UTF-8 can carry it: halves of characters become the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def fold(text: str) -> str:
    """`text` in the form in which texts are compared: any case and alphabet, always UTF-8.

    What is part of a text is part of its folded form.
    """
    return _UNSEARCHABLE.sub("\ufffd", text).casefold()
