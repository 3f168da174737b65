"""Files that came with messages, and those that wait for their message to be sent.

The functions take a connection inside a transaction; the class is what the page, the prompts and Store ask. Reading
files is modules/attachments' business, telling a model of them attaching.py's.
"""

# ruff: noqa: S608 - only column lists and question marks are put into SQL text, never a value

from __future__ import annotations

import dataclasses
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import uuid4

from modules.attachments.extracted import MAX_FILES, Extracted
from modules.chat.incognito import INCOGNITO, Databases, is_incognito
from modules.chat.packing import pack, unpack
from modules.chat.rows import add_row, find_message, whole_rows
from modules.errors import BadValue, NotFound, StoreFailed
from modules.messages import Attachment, Message, Picture

WAITING_S = 24 * 3600.0  # a file whose message was never sent is forgotten then
SECRET_WAITING_S = 900.0  # one for an incognito chat, unless a page has asked after it since; pages ask each minute
_ATTACHMENT = "id, name, kind, size_bytes, characters, about, cut, width, height"


class Attached:
    """The attachments of all owners. Safe to use from any thread; Store makes it."""

    def __init__(self, databases: Databases, *, now: Callable[[], float]) -> None:
        self._databases = databases
        self._now = now
        self._discarded = False
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        self._closed = False

    def keep(self, owner: str, name: str, size_bytes: int, taken: Extracted, *, incognito: bool = False) -> Attachment:
        """Keep a file until its message is sent, for WAITING_S at most; an incognito one in memory alone.

        That one is forgotten SECRET_WAITING_S after the last page that asked after it (`waiting`).
        """
        ident = (INCOGNITO if incognito else "") + uuid4().hex
        kept = Attachment(
            ident, name, taken.kind, size_bytes, len(taken.text), taken.about, taken.cut, taken.width, taken.height
        )
        row = row_of(kept, owner, taken.text, self._now())
        if taken.picture:
            row |= {"picture": taken.picture, "media_type": taken.media_type}
        self._databases.check_share(ident, owner)
        with self._databases.of(ident).write() as connection:
            add_row(connection, "attachments", row)
        if incognito:
            self._look_later()
        return kept

    def waiting(self, owner: str, ids: Sequence[str]) -> tuple[Attachment, ...]:
        """Those of `ids` that still wait for their message, in that order; incognito ones go on waiting."""
        found: list[Attachment] = []
        for ident in ids:
            mine = "id = ? AND owner = ? AND message_id IS NULL", [pack(ident), pack(owner)]
            with self._databases.of(ident).read() as connection:
                found += _rows(connection, *mine)
            if is_incognito(ident):
                with self._databases.of(ident).write() as connection:
                    connection.execute(
                        f"UPDATE attachments SET created_at = ? WHERE {mine[0]}", [self._now(), *mine[1]]
                    )
        return tuple(found)

    def discard(self, owner: str, ident: str) -> None:
        """Forget a file that waits; one that is gone, or has been sent, is left alone."""
        with self._databases.of(ident).write() as connection:
            connection.execute(
                "DELETE FROM attachments WHERE id = ? AND owner = ? AND message_id IS NULL", (pack(ident), pack(owner))
            )
        self._discarded = True

    def again(self, owner: str, message: Message) -> tuple[Attachment, ...]:
        """Copies of a message's files that wait for another message. Raises NotFound."""
        copies = []
        with self._databases.of(message.id).write() as connection:
            for row in whole_rows(connection, "attachments", _OF_MESSAGE, [message.id]):
                if row["owner"] == pack(owner):
                    copies.append(_copy(connection, row, None, self._now()))
            if copies and is_incognito(message.id):
                self._look_later()
            return tuple(of_id(connection, ident) for ident in copies)

    def text(self, owner: str, ident: str) -> tuple[Attachment, str]:
        """A file and its text. Raises NotFound."""
        with self._databases.of(ident).read() as connection:
            row = connection.execute(
                "SELECT text FROM attachments WHERE id = ? AND owner = ?", (pack(ident), pack(owner))
            ).fetchone()
            if row is None:
                raise _gone()
            return of_id(connection, ident), unpack(row[0])

    def texts(self, owner: str, attachments: Sequence[Attachment]) -> dict[str, str]:
        """The texts by id; of what is gone meanwhile there is none."""
        found: dict[str, str] = {}
        for database in {self._databases.of(item.id) for item in attachments}:
            with database.read() as connection:
                marks = ", ".join("?" * len(attachments))
                rows = connection.execute(
                    f"SELECT id, text FROM attachments WHERE owner = ? AND id IN ({marks})",
                    [pack(owner), *(item.id for item in attachments)],
                )
                found |= {ident: unpack(text) for ident, text in rows}
        return found

    def filled(self, owner: str, pictures: Sequence[Picture]) -> tuple[Picture, ...]:
        """The same pictures with their bytes. Raises NotFound if one is gone."""
        return tuple(self.picture(owner, one.source) if one.source else one for one in pictures)

    def picture(self, owner: str, ident: str) -> Picture:
        """One picture. Raises NotFound."""
        with self._databases.of(ident).read() as connection:
            row = connection.execute(
                "SELECT width, height, media_type, picture, id FROM attachments"
                " WHERE id = ? AND owner = ? AND picture IS NOT NULL",
                (pack(ident), pack(owner)),
            ).fetchone()
        if row is None:
            raise _gone()
        return Picture(*row)

    def forget_waiting(self) -> bool:
        """Delete the files that have waited for too long. Whether any left the disk, now or by `discard`."""
        for database in reversed(self._databases.open()):  # the memory first: a full disk may refuse
            secret = database is not self._databases.disk
            before = self._now() - (SECRET_WAITING_S if secret else WAITING_S)
            with database.write() as connection:
                gone = connection.execute(
                    "DELETE FROM attachments WHERE message_id IS NULL AND created_at < ?", (before,)
                )
                self._discarded = self._discarded or (gone.rowcount > 0 and not secret)
        discarded, self._discarded = self._discarded, False
        return discarded

    def close(self) -> None:
        """Look after nothing any more."""
        with self._lock:
            self._closed = True
            if self._timer:
                self._timer.cancel()

    def _look_later(self) -> None:
        """Forget what is secret though no page looks on any more, whose look would do it."""
        with self._lock:
            if self._closed or self._timer:
                return
            self._timer = threading.Timer(SECRET_WAITING_S / 4, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
        with suppress(StoreFailed):  # closed meanwhile, or the disk is full: the memory has gone or comes next
            self.forget_waiting()
        if self._any_secret():
            self._look_later()

    def _any_secret(self) -> bool:
        for database in self._databases.open():
            if database is not self._databases.disk:
                with suppress(StoreFailed), database.read() as connection:
                    return bool(_rows(connection, "message_id IS NULL LIMIT 1", []))
        return False


def pictures_of(attachments: Sequence[Attachment]) -> tuple[Picture, ...]:
    """The pictures among files, in order, without their bytes; one that was not in an imported file is left out."""
    return tuple(
        Picture(item.width, item.height, source=item.id)
        for item in attachments
        if item.kind == "picture" and item.width and item.height
    )


_OF_MESSAGE = "message_id = ? ORDER BY place, number"


def check_count(ids: Sequence[str]) -> None:
    """Raise BadValue for more files than a message takes."""
    if len(ids) > MAX_FILES:
        raise BadValue(f"{len(ids)} files are too many.", remedy=f"Attach up to {MAX_FILES}.", param="attachments")


def give(connection: sqlite3.Connection, owner: str, message_id: str, ids: Sequence[str]) -> None:
    """Let files that wait come with a message, in that order. Raises NotFound unless all of them wait, BadValue."""
    check_count(ids)
    for place, ident in enumerate(ids):
        given = connection.execute(
            "UPDATE attachments SET message_id = ?, place = ? WHERE id = ? AND owner = ? AND message_id IS NULL",
            (message_id, place, pack(ident), pack(owner)),
        )
        if not given.rowcount or is_incognito(ident) != is_incognito(message_id):
            raise _gone()


def of_message(connection: sqlite3.Connection, owner: str, message_id: str) -> Message:
    """One message with its files. Raises NotFound."""
    return with_attachments(connection, [find_message(connection, owner, message_id)])[0]


def with_attachments(connection: sqlite3.Connection, messages: Sequence[Message]) -> list[Message]:
    """The same messages of one conversation, each with its files."""
    if not messages:
        return []
    found: defaultdict[str, list[Attachment]] = defaultdict(list)
    rows = connection.execute(
        f"SELECT message_id, {', '.join(f'attachments.{name}' for name in _ATTACHMENT.split(', '))} FROM attachments"
        " JOIN messages ON messages.id = message_id WHERE conversation_id = ? ORDER BY place, number",
        (messages[0].conversation_id,),
    )
    for message_id, *values in rows:
        found[message_id].append(Attachment(*values))
    return [
        dataclasses.replace(message, attachments=tuple(found[message.id])) if message.id in found else message
        for message in messages
    ]


def copy_attachments(connection: sqlite3.Connection, old_id: str, new_id: str, now: float) -> None:
    """Let copies of a message's files come with another message."""
    for row in whole_rows(connection, "attachments", _OF_MESSAGE, [old_id]):  # of MAX_FILES at most
        _copy(connection, row, new_id, now)


def row_of(kept: Attachment, owner: str, text: str, now: float) -> dict[str, object]:
    """The row of a file that has no message yet."""
    return dataclasses.asdict(kept) | {"owner": pack(owner), "text": pack(text), "created_at": now}


def of_id(connection: sqlite3.Connection, ident: str) -> Attachment:
    """One file. Raises NotFound."""
    found = _rows(connection, "id = ?", [pack(ident)])
    if not found:
        raise _gone()
    return found[0]


def _rows(connection: sqlite3.Connection, condition: str, values: Sequence[object]) -> list[Attachment]:
    rows = connection.execute(f"SELECT {_ATTACHMENT} FROM attachments WHERE {condition}", values)
    return [Attachment(*row) for row in rows]


def _copy(connection: sqlite3.Connection, row: dict[str, object], message_id: str | None, now: float) -> str:
    ident = (INCOGNITO if is_incognito(str(row["id"])) else "") + uuid4().hex
    values = {name: value for name, value in row.items() if name != "number"}
    add_row(connection, "attachments", values | {"id": ident, "message_id": message_id, "created_at": now})
    return ident


def _gone() -> NotFound:
    return NotFound(
        "An attached file is not there any more.",
        remedy="It was removed or sent in another tab, or waited for longer than a day; attach it again.",
    )
