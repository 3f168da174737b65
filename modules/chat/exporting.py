"""Conversations as files: Snug's own JSON, which holds everything, and Markdown, which is for reading."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from modules.chat.trees import Tree

FORMAT = 1  # of the JSON, under the key "snug"
MOST_OF_ONE = 450_000_000
"""Bytes of one conversation, pictures in base64 among them: what browsers can read at once, and what is taken in."""
_ALWAYS = ("parent", "content")
SPEAKERS = {"user": "You", "assistant": "Reply", "system": "System"}


def to_json(trees: Iterable[Tree]) -> str:
    """A file that importing.read_file takes back as it was: versions, statistics, times, folders and all."""
    return "".join((json_begin(), ",\n".join(json_piece(tree) for tree in trees), json_end()))


def json_begin() -> str:
    """What stands before the first conversation of a file."""
    return f'{{"snug": {FORMAT}, "conversations": [\n'


def json_piece(tree: Tree) -> str:
    """One conversation of a file; between two stands a comma."""
    whole: dict[str, Any] = dataclasses.asdict(tree)
    whole["messages"] = [_message(message) for message in whole["messages"]]
    text = json.dumps(whole, ensure_ascii=False)
    if text.isascii():  # hundreds of megabytes are not copied for nothing
        return text
    # A lone surrogate has no UTF-8; written like this it is JSON's own escape for it.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def json_end() -> str:
    """What stands behind the last conversation of a file."""
    return "\n]}\n"


def to_markdown(tree: Tree) -> str:
    """The branch on show, for reading."""
    parts = [f"# {_one_line(tree.title) or 'Conversation'}"]
    if tree.created_at is not None:
        parts.append(f"*{_day(tree.created_at)}*")
    if tree.system_prompt.strip():
        parts.append("\n".join(f"> {line}".rstrip() for line in tree.system_prompt.strip().splitlines()))
    for message in tree.path():
        parts.append(f"## {SPEAKERS[message.role]}")
        if message.attachments:
            parts.append(
                "\n".join(f"*Attached: {_one_line(file.name)} ({file.about})*" for file in message.attachments)
            )
        if message.content.strip():
            parts.append(message.content.strip())
        if message.error:
            parts.append(f"*{_one_line(message.error)}*")
    text = "\n\n".join(parts) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing."""
    found = {name: value for name, value in message.items() if value not in (None, "", ()) or name in _ALWAYS}
    if "attachments" in found:
        found["attachments"] = [_file(file) for file in found["attachments"]]
    return found


def _file(file: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing; a picture in base64."""
    said = {name: value for name, value in file.items() if value}
    return said | ({"picture": base64.b64encode(said["picture"]).decode()} if "picture" in said else {})


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
