"""What was deleted of late: whole rows, kept aside so that a deletion can be undone.

A deletion has the id of what was deleted, a conversation or a message with all that followed it. Functions take a
connection inside a transaction.
"""

# ruff: noqa: S608 - only SQL of rows.py is put into SQL text, never a value

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from modules.chat.packing import pack, unpack
from modules.chat.rows import (
    CHANGED,
    SUBTREE,
    Row,
    add_row,
    characters_of,
    each_row,
    find_conversation,
    picture_bytes_of,
    show,
)
from modules.chat.trees import MOST_CHARACTERS, MOST_PICTURE_BYTES, too_long, too_many_pictures
from modules.errors import NotFound, StaleView
from modules.messages import Conversation, Message

_OF_THESE = "message_id IN (SELECT id FROM messages WHERE"
KEPT_S = 24 * 3600.0  # then a deletion is final


@dataclass(frozen=True, slots=True)
class Deletion:
    """A deleted conversation that can still be had back."""

    conversation_id: str
    title: str
    deleted_at: float


def put_conversation(connection: sqlite3.Connection, conversation: Conversation, now: float) -> None:
    """Move a conversation with its messages aside."""
    _begin(connection, conversation.id, conversation, now)
    _keep(connection, conversation.id, "conversations", "id = ?", [conversation.id])
    _keep(connection, conversation.id, "messages", "conversation_id = ? ORDER BY sequence", [conversation.id])
    _keep(connection, conversation.id, "attachments", f"{_OF_THESE} conversation_id = ?)", [conversation.id])
    connection.execute("DELETE FROM messages WHERE conversation_id = ?", (conversation.id,))
    connection.execute("DELETE FROM conversations WHERE id = ?", (conversation.id,))


def put_messages(connection: sqlite3.Connection, conversation: Conversation, message: Message, now: float) -> set[str]:
    """Move a message and all that follows it aside. Their ids."""
    asked = [message.id, pack(conversation.owner)]
    below = {row[0] for row in connection.execute(f"{SUBTREE} SELECT id FROM below", asked)}
    _begin(connection, message.id, conversation, now)
    _keep(connection, message.id, "messages", f"id IN ({SUBTREE} SELECT id FROM below) ORDER BY sequence", asked)
    _keep(connection, message.id, "attachments", f"message_id IN ({SUBTREE} SELECT id FROM below)", asked)
    connection.execute(f"DELETE FROM messages WHERE id IN ({SUBTREE} SELECT id FROM below)", asked)
    return below


def bring_back(connection: sqlite3.Connection, owner: str, deletion_id: str) -> Conversation:
    """Undo a deletion: every row is as it was, and what was on show then is on show again.

    Raises NotFound if there is nothing to undo (any more), StaleView if what the messages followed is gone too,
    BadValue if the conversation has no room for them any more.
    """
    deletion = connection.execute(
        "SELECT conversation_id, head_id FROM deletions WHERE id = ? AND owner = ?", (pack(deletion_id), pack(owner))
    ).fetchone()
    if deletion is None:
        raise NotFound(
            "This can no longer be brought back.", remedy="It was brought back already, or deleted too long ago."
        )
    conversation_id, head_id = deletion
    held = characters_of(connection, owner, conversation_id)
    shown = picture_bytes_of(connection, owner, conversation_id)
    rows = connection.execute(
        "SELECT place, row FROM deleted_rows WHERE deletion_id = ? ORDER BY rowid", (deletion_id,)
    )
    for place, packed in rows:
        row = json.loads(packed, object_hook=_thaw)
        if place == "messages" and deletion_id != conversation_id:  # else all that they followed comes with them
            _require_place(connection, row)
        elif place == "conversations":
            _fit(connection, row)
        add_row(connection, place, row)
    connection.execute("DELETE FROM deletions WHERE id = ?", (deletion_id,))
    if deletion_id != conversation_id and held <= MOST_CHARACTERS < characters_of(connection, owner, conversation_id):
        raise too_long()
    if deletion_id != conversation_id and shown <= MOST_PICTURE_BYTES < picture_bytes_of(
        connection, owner, conversation_id
    ):
        raise too_many_pictures()
    if connection.execute("SELECT 1 FROM messages WHERE id = ?", (head_id,)).fetchone():
        show(connection, conversation_id, head_id)
    return find_conversation(connection, owner, conversation_id)


def deleted_conversations(connection: sqlite3.Connection, owner: str) -> list[Deletion]:
    """The owner's deleted conversations, the last one first."""
    rows = connection.execute(
        "SELECT id, title, deleted_at FROM deletions WHERE owner = ? AND id = conversation_id ORDER BY deleted_at DESC",
        (pack(owner),),
    ).fetchall()
    return [Deletion(ident, unpack(title), deleted_at) for ident, title, deleted_at in rows]


def erase(connection: sqlite3.Connection, owner: str, conversation_id: str) -> None:
    """Make the deletion of a conversation final, and those in it. Raises NotFound."""
    gone = connection.execute(
        "DELETE FROM deletions WHERE conversation_id = ?1 AND owner = ?2"
        " AND EXISTS (SELECT 1 FROM deletions WHERE id = ?1)",
        (pack(conversation_id), pack(owner)),
    )
    if not gone.rowcount:
        raise NotFound("There is no such deleted conversation.", remedy="It is gone already.")


def purge_one(connection: sqlite3.Connection, before: float) -> bool:
    """Make the oldest deletion final that is older than the moment `before`. Whether there was one."""
    gone = connection.execute(
        "DELETE FROM deletions WHERE id = (SELECT id FROM deletions WHERE deleted_at < ? ORDER BY deleted_at LIMIT 1)",
        (before,),
    )
    return bool(gone.rowcount)


def _begin(connection: sqlite3.Connection, deletion_id: str, conversation: Conversation, now: float) -> None:
    connection.execute(
        "INSERT INTO deletions (id, owner, conversation_id, title, head_id, deleted_at) VALUES (?, ?, ?, ?, ?, ?)",
        (deletion_id, pack(conversation.owner), conversation.id, pack(conversation.title), conversation.head_id, now),
    )


def _keep(
    connection: sqlite3.Connection, deletion_id: str, table: str, condition: str, values: Sequence[object]
) -> None:
    """One row after the other: pictures are of megabytes, and many."""
    connection.executemany(
        "INSERT INTO deleted_rows (deletion_id, place, row) VALUES (?, ?, ?)",
        (
            (deletion_id, table, json.dumps(row, default=_freeze))
            for row in each_row(connection, table, condition, values)
        ),
    )


def _require_place(connection: sqlite3.Connection, row: Row) -> None:
    """Raise StaleView if the message's place is gone; let go of an operation's name that was used again."""
    place = connection.execute(
        "SELECT 1 FROM conversations WHERE id = ?1"
        " AND (?2 IS NULL OR EXISTS (SELECT 1 FROM messages WHERE id = ?2 AND conversation_id = ?1))",
        (row["conversation_id"], row["parent_id"]),
    ).fetchone()
    if place is None:
        raise StaleView("What these messages followed was deleted as well.", remedy=CHANGED)
    taken = "SELECT 1 FROM messages WHERE conversation_id = ? AND op_id = ?"
    if connection.execute(taken, (row["conversation_id"], row["op_id"])).fetchone():
        row["op_id"] = None


def _fit(connection: sqlite3.Connection, row: Row) -> None:
    """A conversation comes back outside of a folder that is gone."""
    if not connection.execute("SELECT 1 FROM folders WHERE id = ?", (row["folder_id"],)).fetchone():
        row["folder_id"] = None


def _freeze(value: bytes) -> dict[str, str]:
    """Texts with lone surrogates lie in the tables as bytes."""
    return {"bytes": base64.b64encode(value).decode()}


def _thaw(value: dict[str, str]) -> dict[str, str] | bytes:
    return base64.b64decode(value["bytes"]) if value.keys() == {"bytes"} else value
