"""`{{char}}`, `{{user}}`, `<BOT>`, `<USER>` and `{{original}}` in a character's texts. Nothing else is evaluated."""

from __future__ import annotations

import re

from modules.errors import BadCharacter

MAX_FILLED = 8_000_000  # characters; a hostile card of nothing but {{original}} would else fill the memory
_PLACEHOLDER = re.compile(r"\{\{\s*(char|user|original)\s*\}\}|<(bot|char|user)>", re.IGNORECASE)


def fill(text: str, *, char: str, user: str, original: str = "") -> str:
    """`text` with its placeholders replaced, in one pass: what a name says is not looked into again.

    Raises BadCharacter where that would be longer than MAX_FILLED.
    """
    values = {"char": char, "bot": char, "user": user, "original": original}

    def value(match: re.Match[str]) -> str:
        return values[(match.group(1) or match.group(2)).lower()]

    length = len(text) + sum(len(value(match)) - len(match.group()) for match in _PLACEHOLDER.finditer(text))
    if length > max(MAX_FILLED, len(text)):
        raise BadCharacter(
            f"The texts of {char[:60]} would be {length:,} characters long once the names stand in them.",
            remedy=f"Keep them below {MAX_FILLED:,}, or choose another character.",
        )
    return _PLACEHOLDER.sub(value, text)
