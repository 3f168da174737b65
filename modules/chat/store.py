"""Conversations on the disk: a tree of messages each, one row a message, one transaction a change.

Every method takes the owner ("" on a machine for one) and sees that owner's rows only. What a method returned is on the
disk, but for incognito conversations, which are in memory alone. It keeps text exactly as it was given, lone surrogates
and NUL included. It knows no model and makes no reply. The lists of conversations are shelf.py's.
"""

# ruff: noqa: S608 - only column lists of rows.py are put into SQL text, never a value

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

from modules.chat import trash
from modules.chat.attached import Attached, give, of_message, with_attachments
from modules.chat.database import Database
from modules.chat.incognito import INCOGNITO, Databases, is_incognito
from modules.chat.indexing import Indexing
from modules.chat.notebooks import Notebooks
from modules.chat.packing import pack, unpack
from modules.chat.rows import (
    CHANGED,
    CONVERSATION,
    characters_of,
    find_conversation,
    find_message,
    find_op,
    ids_to,
    messages_of,
    newest_leaf,
    pack_setup,
    path_to,
    picture_bytes_of,
    require_place,
    show,
    to_conversation,
    with_siblings,
)
from modules.chat.shelf import Shelf
from modules.chat.trees import MOST_PICTURE_BYTES, check_system_prompt, too_many_pictures
from modules.errors import NotFound, StaleView
from modules.messages import USUAL, Conversation, Excerpt, Message, MessageStatus, Mode, ReplyStats, Role, Setup

TITLE_CHARACTERS = 60
INCOGNITO_TITLE = "Incognito chat"  # browsers remember titles
Messages = list[Message]  # inside the class, `list` is a method


class Store:
    """The conversations of all owners in one file. Safe to use from any thread."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Open or make the file. Replies that a crash cut off become "interrupted", their text kept.

        Raises StoreFailed, with the file untouched, if it is damaged or of a newer Snug.
        """
        self._now = now
        self._database = Database(path)
        self._databases = Databases(self._database)
        self.attached = Attached(self._databases, now=now)
        self.shelf = Shelf(self._databases, self.attached, now=now)
        self.notebooks = Notebooks(self._database)
        with self._database.write() as connection:
            connection.execute("UPDATE messages SET status = 'interrupted' WHERE status = 'streaming'")
        self.shelf.sweep()
        self.indexing = Indexing(self._database)
        self.indexing.start()

    def close(self) -> None:
        """Close the file; later calls raise StoreFailed. Incognito conversations are gone."""
        self.indexing.close()
        self.attached.close()
        self._databases.close()

    def backup_if_due(self) -> None:
        """Make today's copy of the file, if there is none yet."""
        self._database.backup_if_due()

    # Conversations

    def create(
        self,
        owner: str,
        mode: Mode = "chat",
        title: str = "",
        system_prompt: str = "",
        setup: Setup = USUAL,
        greetings: Sequence[str] = (),
        *,
        incognito: bool = False,
    ) -> Conversation:
        """A new conversation, empty but for `greetings`: versions of a first reply, of which the first is on show.

        Without a title, the first user message will give one. An incognito one has a fixed title, is in memory alone
        and in no list, and ends with Snug at the latest. Raises BadValue for a system prompt that is too long.
        """
        check_system_prompt(system_prompt)
        now = self._now()
        prefix = INCOGNITO if incognito else ""
        ids = [prefix + uuid4().hex for _ in greetings]
        conversation_id = prefix + uuid4().hex
        title = INCOGNITO_TITLE if incognito else title
        row = (conversation_id, pack(owner), pack(title), mode, pack(system_prompt), ids[0] if ids else None, now, now)
        self._databases.check_share(conversation_id, owner)
        with self._databases.of(conversation_id).write() as connection:
            connection.execute(
                "INSERT INTO conversations"
                " (id, owner, title, mode, system_prompt, head_id, created_at, updated_at, setup, renamed, touched)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, (SELECT ifnull(max(touched), 0) + 1 FROM conversations))",
                (*row, pack_setup(setup), bool(title)),
            )
            connection.executemany(
                "INSERT INTO messages (id, conversation_id, owner, role, content, created_at, status)"
                " VALUES (?, ?, ?, 'assistant', ?, ?, 'complete')",
                [(i, conversation_id, pack(owner), pack(text), now) for i, text in zip(ids, greetings, strict=True)],
            )
        self.shelf.see(conversation_id)
        return self.get(owner, conversation_id)

    def list(self, owner: str, query: str = "", limit: int = 200) -> list[Conversation]:
        """The owner's conversations as the shelf lists them, without their system prompts; with `query` those that hold
        its words."""
        return [found.conversation for found in self.shelf.list(owner, query, limit)]

    def get(self, owner: str, conversation_id: str) -> Conversation:
        """One conversation. Raises NotFound."""
        with self._databases.of(conversation_id).read() as connection:
            return find_conversation(connection, owner, conversation_id)

    def characters(self, owner: str, conversation_id: str) -> int:
        """How many characters a conversation's messages and files hold, all versions together; 0 for another's."""
        with self._databases.of(conversation_id).read() as connection:
            return characters_of(connection, owner, conversation_id)

    def rename(self, owner: str, conversation_id: str, title: str) -> Conversation:
        """Give it a title that stays. An empty one goes back to that of the first user message."""
        with self._databases.of(conversation_id).write() as connection:
            find_conversation(connection, owner, conversation_id)
            if not title.strip():
                first = connection.execute(
                    "SELECT content FROM messages"
                    " WHERE conversation_id = ? AND role = 'user' ORDER BY sequence LIMIT 1",
                    (conversation_id,),
                ).fetchone()
                renamed, title = False, title_of(unpack(first[0])) if first else ""
            else:
                renamed = True
            connection.execute(
                "UPDATE conversations SET title = ?, renamed = ? WHERE id = ?", (pack(title), renamed, conversation_id)
            )
            return find_conversation(connection, owner, conversation_id)

    def delete(self, owner: str, conversation_id: str) -> None:
        """Delete a conversation with its messages; `shelf.restore` brings it back for a day. Raises NotFound.

        An incognito one is gone for good.
        """
        with self._databases.of(conversation_id).write() as connection:
            conversation = find_conversation(connection, owner, conversation_id)
            if not is_incognito(conversation_id):
                trash.put_conversation(connection, conversation, self._now())
        if is_incognito(conversation_id):
            self._databases.forget(conversation_id)

    def set_system_prompt(self, owner: str, conversation_id: str, text: str) -> Conversation:
        """Change what the model is told first. Raises NotFound, BadValue for one that is too long."""
        check_system_prompt(text)
        self._databases.check_share(conversation_id, owner)
        with self._databases.of(conversation_id).write() as connection:
            find_conversation(connection, owner, conversation_id)
            connection.execute("UPDATE conversations SET system_prompt = ? WHERE id = ?", (pack(text), conversation_id))
            return find_conversation(connection, owner, conversation_id)

    def set_setup(self, owner: str, conversation_id: str, setup: Setup) -> Conversation:
        """Change how the model is asked."""
        with self._databases.of(conversation_id).write() as connection:
            find_conversation(connection, owner, conversation_id)
            connection.execute("UPDATE conversations SET setup = ? WHERE id = ?", (pack_setup(setup), conversation_id))
            return find_conversation(connection, owner, conversation_id)

    def set_head(self, owner: str, conversation_id: str, message_id: str) -> Conversation:
        """Show the branch that holds a message: its newest continuation becomes the head."""
        with self._databases.of(conversation_id).write() as connection:
            find_conversation(connection, owner, conversation_id)
            message = find_message(connection, owner, message_id)
            if message.conversation_id != conversation_id:
                raise NotFound("That message belongs to another conversation.", remedy=CHANGED)
            show(connection, conversation_id, newest_leaf(connection, message_id))
            return find_conversation(connection, owner, conversation_id)

    # Messages

    def append(
        self,
        owner: str,
        conversation_id: str,
        parent_id: str | None,
        role: Role,
        content: str,
        *,
        op_id: str,
        status: MessageStatus = "complete",
        attachments: Sequence[str] = (),
    ) -> Message:
        """Add a message below `parent_id` (None: at the root) and show it. `attachments` are ids of files that wait.

        The same `op_id` again returns the same message and changes nothing. Raises StaleView if the conversation or
        the parent is gone, NotFound if a file is, BadValue for too many pictures in one conversation.
        """
        if role == "user":
            self._databases.check_share(conversation_id, owner)
        with self._databases.of(conversation_id).write() as connection:
            if earlier := find_op(connection, owner, conversation_id, op_id):
                return earlier
            require_place(connection, owner, conversation_id, parent_id)
            message_id = (INCOGNITO if is_incognito(conversation_id) else "") + uuid4().hex
            connection.execute(
                "INSERT INTO messages (id, conversation_id, owner, parent_id, role, content, created_at, status, op_id)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (message_id, conversation_id, pack(owner), parent_id, role, pack(content), self._now(), status,
                 pack(op_id)),
            )  # fmt: skip
            give(connection, owner, message_id, attachments)
            if attachments and picture_bytes_of(connection, owner, conversation_id) > MOST_PICTURE_BYTES:
                raise too_many_pictures()
            show(connection, conversation_id, message_id)
            self._touch(connection, conversation_id)
            message = of_message(connection, owner, message_id)
            if role == "user":
                title = title_of(content) or next((title_of(item.name) for item in message.attachments), "")
                connection.execute(
                    "UPDATE conversations SET title = ? WHERE id = ? AND title = '' AND NOT renamed",
                    (pack(title), conversation_id),
                )
            return message

    def find_op(self, owner: str, conversation_id: str, op_id: str) -> Message | None:
        """The message that an operation made, None if it has not run yet."""
        with self._databases.of(conversation_id).read() as connection:
            return find_op(connection, owner, conversation_id, op_id)

    def message(self, owner: str, message_id: str) -> Message:
        """One message with its siblings. Raises NotFound."""
        with self._databases.of(message_id).read() as connection:
            return with_siblings(connection, [of_message(connection, owner, message_id)])[0]

    def journal(self, message_id: str, content: str) -> None:
        """Keep what a streaming reply holds so far, its whole text; it outlives a crash of Snug, not a power cut.

        Raises StaleView if the message is gone or no longer streaming.
        """
        with self._databases.of(message_id).write(durable=False) as connection:
            done = connection.execute(
                "UPDATE messages SET content = ? WHERE id = ? AND status = 'streaming'", (pack(content), message_id)
            )
            if done.rowcount == 0:
                raise StaleView("The reply was deleted while it was being written.", remedy=CHANGED)

    def finish(
        self,
        message_id: str,
        content: str,
        status: MessageStatus,
        stats: ReplyStats | None,
        error: str = "",
        modified: str | None = None,
    ) -> Conversation:
        """End a streaming reply with its whole text. The conversation as that leaves it.

        Raises StaleView if the message is gone.
        """
        packed_stats = json.dumps(dataclasses.asdict(stats)) if stats else None
        with self._databases.of(message_id).write() as connection:
            row = connection.execute(
                "UPDATE messages SET content = ?, status = ?, stats = ?, error = ?, modified = ? WHERE id = ?"
                " RETURNING conversation_id",
                (pack(content), status, packed_stats, pack(error), _packed(modified), message_id),
            ).fetchone()
            if row is None:
                raise StaleView("The reply was deleted while it was being written.", remedy=CHANGED)
            return self._touch(connection, row[0])

    def reopen(self, owner: str, message_id: str) -> Message:
        """Make a finished message "streaming" again, so that it can be continued. Raises NotFound."""
        with self._databases.of(message_id).write() as connection:
            message = find_message(connection, owner, message_id)
            connection.execute(
                "UPDATE messages SET status = 'streaming', error = '', modified = NULL WHERE id = ?", (message_id,)
            )
            return dataclasses.replace(message, status="streaming", error="", modified=None)

    def edit(self, owner: str, message_id: str, content: str) -> Message:
        """Replace a message's text; it then counts as complete. Raises NotFound, StoreFailed."""
        self._databases.check_share(message_id, owner)
        with self._databases.of(message_id).write() as connection:
            message = find_message(connection, owner, message_id)
            connection.execute(
                "UPDATE messages SET content = ?, status = 'complete', error = '', modified = NULL WHERE id = ?",
                (pack(content), message_id),
            )
            self._touch(connection, message.conversation_id)
            return find_message(connection, owner, message_id)

    def set_modified(self, owner: str, message_id: str, content: str, modified: str) -> Message:
        """What a message reads on the page, and what the model reads of it. Raises NotFound."""
        with self._databases.of(message_id).write() as connection:
            message = find_message(connection, owner, message_id)
            connection.execute(
                "UPDATE messages SET content = ?, modified = ? WHERE id = ?",
                (pack(content), pack(modified), message_id),
            )
            self._touch(connection, message.conversation_id)
            return find_message(connection, owner, message_id)

    def delete_message(self, owner: str, message_id: str) -> Conversation:
        """Delete a message and all that follows it. The head moves to another version of it, else to its parent.

        `shelf.restore` brings them back for a day.
        """
        with self._databases.of(message_id).write() as connection:
            message = find_message(connection, owner, message_id)
            conversation = find_conversation(connection, owner, message.conversation_id)
            below = trash.put_messages(connection, conversation, message, self._now())
            if conversation.head_id in below:
                sibling = connection.execute(
                    "SELECT id FROM messages"
                    " WHERE conversation_id = ? AND parent_id IS ? ORDER BY sequence DESC LIMIT 1",
                    (message.conversation_id, message.parent_id),
                ).fetchone()
                head = newest_leaf(connection, sibling[0]) if sibling else message.parent_id
                show(connection, message.conversation_id, head)
            self._touch(connection, message.conversation_id)
            return find_conversation(connection, owner, message.conversation_id)

    def path(self, owner: str, conversation_id: str) -> Messages:
        """The messages on show, from the root to the head. Raises NotFound."""
        with self._databases.of(conversation_id).read() as connection:
            head_id = find_conversation(connection, owner, conversation_id).head_id
            path = with_attachments(connection, path_to(connection, owner, head_id)) if head_id else []
            return with_siblings(connection, path) if path else []

    def excerpt(
        self,
        owner: str,
        conversation_id: str,
        *,
        least: int,
        top: str | None = None,
        above: int = 0,
        bottom: str | None = None,
        below: int = 0,
    ) -> Excerpt:
        """Some of what is on show, its messages as `path` gives them. What stands above and below is not read.

        It ends `below` messages under message `bottom`, or with the last one where that is not on show; it has
        `least` messages, and reaches up to message `top`, if that is on show, and `above` beyond it. Raises NotFound.
        """
        with self._databases.of(conversation_id).read() as connection:
            head_id = find_conversation(connection, owner, conversation_id).head_id
            ids = ids_to(connection, owner, head_id) if head_id else []
            end = min(len(ids), ids.index(bottom) + 1 + below) if bottom in ids else len(ids)
            start = max(0, end - least)
            if top in ids:
                start = max(0, min(start, ids.index(top) - above))
            shown = with_attachments(connection, messages_of(connection, ids[start:end]))
            return Excerpt(start, with_siblings(connection, shown) if shown else [], len(ids) - end)

    def shows(self, owner: str, conversation_id: str, message_id: str) -> bool:
        """Whether a message is on the branch that is on show. Raises NotFound."""
        with self._databases.of(conversation_id).read() as connection:
            head_id = find_conversation(connection, owner, conversation_id).head_id
            return head_id is not None and message_id in ids_to(connection, owner, head_id)

    def path_to(self, owner: str, message_id: str) -> Messages:
        """The messages from the root to this one, without siblings. Raises NotFound."""
        with self._databases.of(message_id).read() as connection:
            find_message(connection, owner, message_id)
            return with_attachments(connection, path_to(connection, owner, message_id))

    def _touch(self, connection: sqlite3.Connection, conversation_id: str) -> Conversation:
        row = connection.execute(
            "UPDATE conversations SET updated_at = ?, touched = (SELECT max(touched) + 1 FROM conversations)"
            f" WHERE id = ? RETURNING {CONVERSATION}",
            (self._now(), conversation_id),
        ).fetchone()
        return to_conversation(row)


def title_of(text: str) -> str:
    """A title made of a message's first line."""
    lines = text.strip().splitlines()
    line = " ".join(lines[0].split()) if lines else ""
    return line if len(line) <= TITLE_CHARACTERS else line[: TITLE_CHARACTERS - 1].rstrip() + "…"


def _packed(text: str | None) -> str | bytes | None:
    return None if text is None else pack(text)
