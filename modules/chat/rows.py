"""Rows of the chat store ↔ values: what store.py's transactions are put together from.

Functions take a connection inside a transaction; none begins or ends one.
"""

# ruff: noqa: S608 - only column lists and names of tables are put into SQL text, never a value

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from modules.chat.packing import pack, unpack
from modules.errors import NotFound, StaleView
from modules.messages import Conversation, Message, ReplyStats, Setup

Row = dict[str, Any]  # column → value

CHANGED = "Reload the conversation: it was changed elsewhere."
CONVERSATION = "id, owner, title, mode, system_prompt, head_id, created_at, updated_at, setup, pinned, folder_id"
LISTED = CONVERSATION.replace("system_prompt", "''")
"""The columns CONVERSATION for lists of thousands: each system prompt may be megabytes, and none is shown there."""
MESSAGE = "id, conversation_id, parent_id, sequence, role, content, created_at, status, stats, error, modified"
SUBTREE = """  -- a message and all that follows it: (message id, owner)
    WITH RECURSIVE below (id) AS (
        SELECT id FROM messages WHERE id = ? AND owner = ?
        UNION ALL SELECT messages.id FROM messages JOIN below ON messages.parent_id = below.id
    )
"""


def find_conversation(connection: sqlite3.Connection, owner: str, conversation_id: str) -> Conversation:
    """Raises NotFound."""
    row = connection.execute(
        f"SELECT {CONVERSATION} FROM conversations WHERE id = ? AND owner = ?", (pack(conversation_id), pack(owner))
    ).fetchone()
    if row is None:
        raise NotFound("There is no such conversation.", remedy="It may have been deleted in another tab; reload.")
    return to_conversation(row)


def characters_of(connection: sqlite3.Connection, owner: str, conversation_id: str) -> int:
    """How many characters a conversation's messages and files hold, all versions together; 0 for another's."""
    row = connection.execute(
        "SELECT (SELECT sum(length(content) + ifnull(length(modified), 0)) FROM messages"
        " WHERE conversation_id = ?1 AND owner = ?2), (SELECT sum(characters) FROM attachments"
        " JOIN messages ON messages.id = message_id WHERE conversation_id = ?1 AND messages.owner = ?2)",
        (pack(conversation_id), pack(owner)),
    ).fetchone()
    return sum(part or 0 for part in row)


def picture_bytes_of(connection: sqlite3.Connection, owner: str, conversation_id: str) -> int:
    """Bytes of a conversation's pictures, all versions together; 0 for another's."""
    (size,) = connection.execute(
        "SELECT sum(length(picture)) FROM attachments JOIN messages ON messages.id = message_id"
        " WHERE conversation_id = ? AND messages.owner = ?",
        (pack(conversation_id), pack(owner)),
    ).fetchone()
    return size or 0


def find_message(connection: sqlite3.Connection, owner: str, message_id: str) -> Message:
    """Raises NotFound. The message comes without siblings."""
    row = connection.execute(
        f"SELECT {MESSAGE} FROM messages WHERE id = ? AND owner = ?", (pack(message_id), pack(owner))
    ).fetchone()
    if row is None:
        raise NotFound("There is no such message.", remedy="It may have been deleted in another tab; reload.")
    return to_message(row)


def find_op(connection: sqlite3.Connection, owner: str, conversation_id: str, op_id: str) -> Message | None:
    """The message that an operation made, None if it did not run."""
    row = connection.execute(
        f"SELECT {MESSAGE} FROM messages WHERE conversation_id = ? AND owner = ? AND op_id = ?",
        (pack(conversation_id), pack(owner), pack(op_id)),
    ).fetchone()
    return to_message(row) if row else None


def require_place(connection: sqlite3.Connection, owner: str, conversation_id: str, parent_id: str | None) -> None:
    """Raise StaleView unless the conversation is there, and the parent in it."""
    try:
        find_conversation(connection, owner, conversation_id)
        if parent_id is not None and find_message(connection, owner, parent_id).conversation_id != conversation_id:
            raise NotFound("The message to answer is in another conversation.")
    except NotFound as error:
        raise StaleView("What this message answers was deleted in the meantime.", remedy=CHANGED) from error


def show(connection: sqlite3.Connection, conversation_id: str, head_id: str | None) -> None:
    """Make a message the head."""
    connection.execute("UPDATE conversations SET head_id = ? WHERE id = ?", (head_id, conversation_id))


def newest_leaf(connection: sqlite3.Connection, message_id: str) -> str:
    """Follow the newest child from `message_id` down to where nothing follows."""
    while row := connection.execute(
        "SELECT id FROM messages WHERE parent_id = ? ORDER BY sequence DESC LIMIT 1", (message_id,)
    ).fetchone():
        message_id = str(row[0])
    return message_id


def path_to(connection: sqlite3.Connection, owner: str, message_id: str) -> list[Message]:
    """From the root down. A parent is always older than its children, so `sequence` orders a path."""
    rows = connection.execute(
        f"""
        WITH RECURSIVE above (id, parent_id) AS (
            SELECT id, parent_id FROM messages WHERE id = ? AND owner = ?
            UNION ALL SELECT m.id, m.parent_id FROM messages AS m JOIN above ON m.id = above.parent_id
        )
        SELECT {MESSAGE} FROM messages WHERE id IN (SELECT id FROM above) ORDER BY sequence
        """,
        (message_id, pack(owner)),
    ).fetchall()
    return [to_message(row) for row in rows]


def ids_to(connection: sqlite3.Connection, owner: str, message_id: str) -> list[str]:
    """The ids of `path_to`, without its texts."""
    rows = connection.execute(
        """
        WITH RECURSIVE above (id, parent_id, sequence) AS (
            SELECT id, parent_id, sequence FROM messages WHERE id = ? AND owner = ?
            UNION ALL SELECT m.id, m.parent_id, m.sequence FROM messages AS m JOIN above ON m.id = above.parent_id
        )
        SELECT id FROM above ORDER BY sequence
        """,
        (message_id, pack(owner)),
    )
    return [str(row[0]) for row in rows]


def messages_of(connection: sqlite3.Connection, ids: Sequence[str]) -> list[Message]:
    """The messages with these ids, oldest first."""
    rows = connection.execute(
        f"SELECT {MESSAGE} FROM messages WHERE id IN (SELECT value FROM json_each(?)) ORDER BY sequence",
        (json.dumps(ids),),
    )
    return [to_message(row) for row in rows]


def with_siblings(connection: sqlite3.Connection, messages: list[Message]) -> list[Message]:
    """The same messages of one conversation, each with the ids of all versions at its place."""
    versions: defaultdict[str | None, list[str]] = defaultdict(list)
    for message_id, parent_id in connection.execute(
        "SELECT id, parent_id FROM messages WHERE conversation_id = ? ORDER BY sequence",
        (messages[0].conversation_id,),
    ):
        versions[parent_id].append(message_id)
    return [dataclasses.replace(message, siblings=tuple(versions[message.parent_id])) for message in messages]


def to_conversation(row: tuple[Any, ...]) -> Conversation:
    """From a row of the columns CONVERSATION."""
    ident, owner, title, mode, system_prompt, head_id, created_at, updated_at, setup, pinned, folder_id = row
    return Conversation(
        ident, unpack(owner), unpack(title), mode, unpack(system_prompt), head_id, created_at, updated_at,
        Setup(**json.loads(unpack(setup))), bool(pinned), folder_id,
    )  # fmt: skip


def pack_setup(setup: Setup) -> str:
    """What differs from the usual way, as JSON; `to_conversation` reads it."""
    usual = dataclasses.asdict(Setup())
    return json.dumps({name: value for name, value in dataclasses.asdict(setup).items() if value != usual[name]})


def to_message(row: tuple[Any, ...]) -> Message:
    """From a row of the columns MESSAGE."""
    ident, conversation_id, parent_id, sequence, role, content, created_at, status, packed_stats, error, modified = row
    stats = to_stats(json.loads(packed_stats)) if packed_stats else None
    return Message(
        ident, conversation_id, parent_id, sequence, role, unpack(content), created_at, status, stats, unpack(error),
        modified=None if modified is None else unpack(modified),
    )  # fmt: skip


def to_stats(values: dict[str, Any]) -> ReplyStats:
    """From what was JSON."""
    return ReplyStats(**values | {"told": tuple(values.get("told", ()))})


def whole_rows(connection: sqlite3.Connection, table: str, condition: str, values: Sequence[object]) -> list[Row]:
    """Rows of a table with all their columns, whatever version of Snug added them."""
    return list(each_row(connection, table, condition, values))


def each_row(connection: sqlite3.Connection, table: str, condition: str, values: Sequence[object]) -> Iterator[Row]:
    """`whole_rows`, one in memory at a time."""
    cursor = connection.execute(f"SELECT * FROM {table} WHERE {condition}", values)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def add_row(connection: sqlite3.Connection, table: str, row: Row) -> None:
    """Put a row into a table; columns that it does not name get their defaults."""
    marks = ", ".join("?" * len(row))
    connection.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", [*row.values()])


def add_rows(connection: sqlite3.Connection, table: str, rows: Sequence[Row]) -> None:
    """Likewise many at once, which name the same columns."""
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        values = [[*row.values()] for row in rows]
        connection.executemany(f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES ({marks})", values)
