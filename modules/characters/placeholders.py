"""`{{char}}`, `{{user}}`, `<BOT>`, `<USER>` and `{{original}}` in a character's texts. Nothing else is evaluated."""

from __future__ import annotations

import re

_PLACEHOLDER = re.compile(r"\{\{\s*(char|user|original)\s*\}\}|<(bot|char|user)>", re.IGNORECASE)


def fill(text: str, *, char: str, user: str, original: str = "") -> str:
    """`text` with its placeholders replaced, in one pass: what a name says is not looked into again."""
    values = {"char": char, "bot": char, "user": user, "original": original}
    return _PLACEHOLDER.sub(lambda match: values[(match.group(1) or match.group(2)).lower()], text)
