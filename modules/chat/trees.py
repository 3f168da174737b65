"""A conversation as one value, as files hold it: read from the tables, written into them, copied up to a message.

Functions take a connection inside a transaction.
"""

# ruff: noqa: S608 - only column lists are put into SQL text, never a value

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from modules.chat.attached import copy_attachments, row_of
from modules.chat.incognito import INCOGNITO, is_incognito
from modules.chat.packing import pack, unpack
from modules.chat.rows import (
    MESSAGE,
    add_row,
    add_rows,
    find_conversation,
    ids_to,
    pack_setup,
    to_message,
    whole_rows,
)
from modules.errors import BadValue
from modules.messages import (
    USUAL,
    Attachment,
    Conversation,
    FileKind,
    Message,
    MessageStatus,
    Mode,
    PictureType,
    ReplyStats,
    Role,
    Setup,
)
from modules.units import MiB, format_size

MOST_CHARACTERS = 16 * 1024**2
"""Of one conversation, versions and files too: it is stored, copied and deleted in seconds, in which nobody writes."""


MOST_OF_A_SYSTEM_PROMPT = 1024**2
"""Characters: more than any model's context holds. Every look at a conversation reads it."""


def check_system_prompt(text: str) -> None:
    """Raise BadValue for one that is too long to keep."""
    if len(text) > MOST_OF_A_SYSTEM_PROMPT:
        raise BadValue(
            f"The system prompt has {len(text):,} characters; Snug keeps up to {MOST_OF_A_SYSTEM_PROMPT:,}.",
            remedy="Shorten it, or attach the text as a file.",
            param="system_prompt",
        )


MOST_PICTURE_BYTES = 320 * MiB
"""Of the pictures in one conversation, versions too: as much as an export of it may hold (exporting.py)."""


def too_many_pictures() -> BadValue:
    """What is told where a conversation would hold more."""
    return BadValue(
        f"A conversation holds {format_size(MOST_PICTURE_BYTES)} of pictures.",
        remedy="Go on in a new one.",
        param="attachments",
    )


def too_long() -> BadValue:
    """What is told where a conversation would hold more."""
    return BadValue(
        f"A conversation holds {MOST_CHARACTERS:,} characters, its files among them.",
        remedy="Go on in a new one.",
        param="text",
    )


@dataclass(frozen=True, slots=True)
class TreeFile:
    """A file that came with a message."""

    name: str
    kind: FileKind
    size_bytes: int
    about: str
    text: str = ""
    cut: str = ""
    width: int = 0
    height: int = 0
    media_type: PictureType | Literal[""] = ""
    picture: bytes = b""


@dataclass(frozen=True, slots=True)
class TreeMessage:
    """One message. `parent` is the place of what it answers in the tree's list, None at the root; parents come first.

    `created_at` None: unknown.
    """

    parent: int | None
    role: Role
    content: str
    created_at: float | None = None
    status: MessageStatus = "complete"
    stats: ReplyStats | None = None
    error: str = ""
    attachments: tuple[TreeFile, ...] = ()
    modified: str | None = None


@dataclass(frozen=True, slots=True)
class Tree:
    """A whole conversation. `head` is the place of the newest message on show; `folder` a name, "" for none."""

    title: str
    messages: tuple[TreeMessage, ...]
    head: int | None = None
    renamed: bool = False
    mode: Mode = "chat"
    system_prompt: str = ""
    created_at: float | None = None
    updated_at: float | None = None
    pinned: bool = False
    folder: str = ""
    setup: Setup = USUAL

    @property
    def characters(self) -> int:
        """Of all messages, with what came with them."""
        return sum(
            len(message.content) + len(message.modified or "") + len(message.error)
            + sum(len(file.text) for file in message.attachments)
            for message in self.messages
        )  # fmt: skip

    def path(self) -> list[TreeMessage]:
        """The messages on show, from the root to the head."""
        found, at = [], self.head
        while at is not None:
            found.append(self.messages[at])
            at = self.messages[at].parent
        return found[::-1]


def read_tree(connection: sqlite3.Connection, owner: str, conversation_id: str) -> Tree:
    """A conversation with all its versions. Raises NotFound."""
    conversation = find_conversation(connection, owner, conversation_id)
    (row,) = whole_rows(connection, "conversations", "id = ?", [conversation_id])
    folder = connection.execute("SELECT name FROM folders WHERE id = ?", (conversation.folder_id,)).fetchone()
    rows = connection.execute(
        f"SELECT {MESSAGE} FROM messages WHERE conversation_id = ? ORDER BY sequence", (conversation_id,)
    )
    messages = [to_message(found) for found in rows]
    files = _files(connection, conversation_id)
    places = {message.id: place for place, message in enumerate(messages)}
    return Tree(
        title=conversation.title,
        messages=tuple(_leaf(message, places, files.get(message.id, ())) for message in messages),
        head=places[conversation.head_id] if conversation.head_id else None,
        renamed=bool(row["renamed"]),
        mode=conversation.mode,
        system_prompt=conversation.system_prompt,
        created_at=conversation.created_at,
        updated_at=conversation.updated_at,
        pinned=conversation.pinned,
        folder=unpack(folder[0]) if folder else "",
        setup=conversation.setup,
    )


def _files(connection: sqlite3.Connection, conversation_id: str) -> dict[str, list[TreeFile]]:
    """The files of a conversation by message."""
    found: dict[str, list[TreeFile]] = {}
    for message_id, name, kind, size_bytes, about, cut, text, width, height, media_type, picture in connection.execute(
        "SELECT message_id, name, kind, size_bytes, about, cut, text, width, height, media_type, picture"
        " FROM attachments WHERE message_id IN"
        " (SELECT id FROM messages WHERE conversation_id = ?) ORDER BY place, number",
        (conversation_id,),
    ):
        found.setdefault(message_id, []).append(
            TreeFile(name, kind, size_bytes, about, unpack(text), cut, width, height, media_type, picture or b"")
        )
    return found


def _leaf(message: Message, places: dict[str, int], files: Sequence[TreeFile]) -> TreeMessage:
    return TreeMessage(
        parent=places[message.parent_id] if message.parent_id else None,
        role=message.role,
        content=message.content,
        created_at=message.created_at,
        status=message.status,
        stats=message.stats,
        error=message.error,
        attachments=tuple(files),
        modified=message.modified,
    )


def write_tree(
    connection: sqlite3.Connection, owner: str, tree: Tree, folder_id: str | None, now: float
) -> Conversation:
    """A new conversation of a tree. In the list it stands where its time says; what has none is of `now`."""
    conversation_id, ids = uuid4().hex, [uuid4().hex for _ in tree.messages]
    updated_at = min(now if tree.updated_at is None else tree.updated_at, now)
    created_at = updated_at if tree.created_at is None else min(tree.created_at, updated_at)
    earlier = connection.execute(
        "SELECT touched FROM conversations WHERE owner = ? AND updated_at <= ?"
        " ORDER BY updated_at DESC, touched DESC LIMIT 1",
        (pack(owner), updated_at),
    ).fetchone()
    add_row(connection, "conversations", {
        "id": conversation_id, "owner": pack(owner), "title": pack(tree.title), "renamed": tree.renamed,
        "mode": tree.mode, "system_prompt": pack(tree.system_prompt),
        "head_id": None if tree.head is None else ids[tree.head], "created_at": created_at, "updated_at": updated_at,
        "touched": earlier[0] if earlier else 0, "pinned": tree.pinned, "folder_id": folder_id,
        "setup": pack_setup(tree.setup),
    })  # fmt: skip
    for ident, message in zip(ids, tree.messages, strict=True):
        add_row(connection, "messages", {
            "id": ident, "conversation_id": conversation_id, "owner": pack(owner),
            "parent_id": None if message.parent is None else ids[message.parent], "role": message.role,
            "content": pack(message.content),
            "created_at": updated_at if message.created_at is None else message.created_at,
            "status": "interrupted" if message.status == "streaming" else message.status,
            "stats": json.dumps(dataclasses.asdict(message.stats)) if message.stats else None,
            "error": pack(message.error),
            "modified": None if message.modified is None else pack(message.modified),
        })  # fmt: skip
        for place, file in enumerate(message.attachments):
            kept = Attachment(
                uuid4().hex, file.name, file.kind, file.size_bytes, len(file.text), file.about, file.cut,
                file.width, file.height,
            )  # fmt: skip
            row = row_of(kept, owner, file.text, now)
            row |= {"picture": file.picture, "media_type": file.media_type} if file.picture else {}
            add_row(connection, "attachments", row | {"message_id": ident, "place": place})
    return find_conversation(connection, owner, conversation_id)


def copy_path(connection: sqlite3.Connection, owner: str, message: Message, now: float) -> Conversation:
    """A new conversation that holds copies of a message and of those before it, shown as the last used one."""
    (row,) = whole_rows(connection, "conversations", "id = ?", [message.conversation_id])
    prefix = INCOGNITO if is_incognito(message.conversation_id) else ""
    copies = {old_id: prefix + uuid4().hex for old_id in ids_to(connection, owner, message.id)}
    title = find_conversation(connection, owner, message.conversation_id).title
    conversation_id = prefix + uuid4().hex
    touched = connection.execute("SELECT max(touched) + 1 FROM conversations").fetchone()[0]
    add_row(connection, "conversations", row | {
        "id": conversation_id, "title": pack(f"{title} (branch)"), "renamed": True, "head_id": copies[message.id],
        "created_at": now, "updated_at": now, "touched": touched, "pinned": False,
    })  # fmt: skip
    among = "(SELECT value FROM json_each(?))", [json.dumps([*copies])]
    rows = whole_rows(connection, "messages", f"id IN {among[0]} ORDER BY sequence", among[1])
    add_rows(connection, "messages", [
        {name: value for name, value in row.items() if name != "sequence"} | {
            "id": copies[row["id"]], "conversation_id": conversation_id, "op_id": None,
            "parent_id": copies[row["parent_id"]] if row["parent_id"] else None,
        }
        for row in rows
    ])  # fmt: skip
    holders = f"SELECT DISTINCT message_id FROM attachments WHERE message_id IN {among[0]}"
    for (old_id,) in connection.execute(holders, among[1]).fetchall():
        copy_attachments(connection, old_id, copies[old_id], now)
    return find_conversation(connection, owner, conversation_id)
