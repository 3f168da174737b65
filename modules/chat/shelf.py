"""The conversations as a list: searched, in folders, pinned, deleted and brought back, read and written as a whole.

Every method takes the owner and sees that owner's only. Incognito conversations are in no list.
"""

# ruff: noqa: S608 - only column lists of rows.py are put into SQL text, never a value

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

from modules.chat import trash
from modules.chat.attached import Attached
from modules.chat.incognito import Databases, is_incognito
from modules.chat.packing import pack, unpack
from modules.chat.rows import LISTED, find_conversation, find_message, to_conversation
from modules.chat.searching import Found, find, forget, words_of
from modules.chat.trees import Tree, copy_path, read_tree, write_tree
from modules.errors import BadValue, Busy, NotFound, StoreFailed, Unauthorized
from modules.messages import Conversation
from modules.on_behalf import OwnPlaces
from modules.units import MiB

Outline = tuple[int, str, str]
ByOutline = dict[Outline, list[str]]
MAX_FOLDERS = 500
SWEEP_EVERY_S = 300.0
OUTLINE_CHARACTERS = 200
LARGE_BYTES = 4 * MiB  # of a conversation
LARGE_S = 60.0  # to wait for another such of the same person
_AT_ONCE = 10_000  # messages of files that are written in one go: half a second
_BYTES_OF_ONE = 20_000  # of pictures, written in the time of a message
_CHARACTERS_OF_ONE = 1_000  # likewise
_BREATH_S = 0.02
PURGE_S, PURGE_AGAIN_S = 0.5, 5.0  # of each sweep, for old deletions; until the next one where it left some
FORGET_S = 0.1  # of each sweep, for deleted text in the search index


@dataclass(frozen=True, slots=True)
class Folder:
    """A named place for conversations, and how many it holds."""

    id: str
    name: str
    conversations: int


class Shelf:
    """The lists of all owners. Safe to use from any thread; Store makes it."""

    def __init__(self, databases: Databases, attached: Attached, *, now: Callable[[], float]) -> None:
        self._databases = databases
        self._attached = attached
        self._now = now
        self._swept_at = 0.0
        self.comparing = OwnPlaces(1)
        """Where a person's conversations are held against a file's: each may be of hundreds of megabytes as JSON."""
        self._large = OwnPlaces(1)
        self._forgets: Literal["begin", "on", "done"] = "on"  # what the last start left undone

    def list(self, owner: str, query: str = "", limit: int = 200, folder_id: str | None = None) -> list[Found]:
        """Pinned conversations, then the others, last used first; with a query what holds all its words.

        They come without their system prompts.
        """
        with self._databases.disk.read() as connection:
            if words_of(query):
                return find(connection, owner, query, limit, folder_id)
            where, values = ("folder_id = ? AND owner = ?", [folder_id]) if folder_id else ("owner = ?", [])
            rows = connection.execute(
                f"SELECT {LISTED} FROM conversations WHERE {where} AND mode <> 'notebook'"
                " ORDER BY pinned DESC, touched DESC, updated_at DESC LIMIT ?",
                [*values, pack(owner), limit],
            ).fetchall()
        return [Found(to_conversation(row)) for row in rows]

    def last_used(self, owner: str) -> dict[str, float]:
        """Characters by when somebody last wrote in a conversation with them, in seconds since 1970."""
        with self._databases.disk.read() as connection:
            rows = connection.execute(
                "SELECT json_extract(setup, '$.character'), max(updated_at) FROM conversations"
                " WHERE owner = ? AND setup LIKE '%\"character\"%' GROUP BY 1",
                (pack(owner),),
            ).fetchall()
        return {unpack(ident): used_at for ident, used_at in rows if ident}

    def revision(self, owner: str) -> int:
        """Another number after every change of the owner's lists."""
        if time.monotonic() - self._swept_at > SWEEP_EVERY_S:
            self.sweep()
        with self._databases.disk.read() as connection:
            row = connection.execute("SELECT number FROM revisions WHERE owner = ?", (pack(owner),)).fetchone()
        return int(row[0]) if row else 0

    def sweep(self) -> None:
        """Make old deletions final, also in the search index; end what is incognito and unseen; forget unsent files."""
        self._swept_at = time.monotonic()
        self._databases.forget_unseen()
        unsent = self._attached.forget_waiting()
        due = self._purge(self._now() - trash.KEPT_S)
        if due or unsent:
            self._forgets = "begin"
        with suppress(StoreFailed):  # a full disk, say: nothing that people wait for, and the next sweep goes on
            self._forget_texts()
            if not self._databases.disk.clear_log():
                self._sweep_again()

    def _purge(self, before: float) -> bool:
        """Make deletions final that are older than `before`, for PURGE_S or so; what is left soon. Whether any was.

        Each may be of a hundred megabytes, which take half a second: others write between two.
        """
        with self._databases.disk.read() as connection:
            due = connection.execute("SELECT 1 FROM deletions WHERE deleted_at < ? LIMIT 1", (before,)).fetchone()
        more, ends_at = bool(due), time.monotonic() + PURGE_S
        while more:
            with self._databases.disk.write() as connection:
                more = trash.purge_one(connection, before)
            if time.monotonic() > ends_at:
                break
        if more:
            self._sweep_again()
        return bool(due)

    def _sweep_again(self) -> None:
        """Before long: something is left."""
        self._swept_at = min(self._swept_at, time.monotonic() - SWEEP_EVERY_S + PURGE_AGAIN_S)

    def _forget_texts(self) -> None:
        """Take what was deleted out of the search index, for FORGET_S at most."""
        ends_at = time.monotonic() + FORGET_S
        while self._forgets != "done" and time.monotonic() < ends_at:
            with self._databases.disk.write(durable=False) as connection:
                more = forget(connection, begin=self._forgets == "begin")
            self._forgets = "on" if more else "done"

    def see(self, conversation_id: str) -> None:
        """A page looks at a conversation: an incognito one lives on."""
        self._databases.see(conversation_id)

    def pin(self, owner: str, conversation_id: str, pinned: bool) -> Conversation:
        """Put a conversation above the others, or back among them. Raises NotFound."""
        return self._set(owner, conversation_id, "pinned", pinned)

    # Folders

    def folders(self, owner: str) -> tuple[Folder, ...]:
        """By name."""
        with self._databases.disk.read() as connection:
            rows = connection.execute(
                "SELECT id, name, (SELECT count(*) FROM conversations WHERE folder_id = folders.id)"
                " FROM folders WHERE owner = ?",
                (pack(owner),),
            ).fetchall()
        found = [Folder(ident, unpack(name), count) for ident, name, count in rows]
        return tuple(sorted(found, key=lambda folder: (folder.name.casefold(), folder.id)))

    def make_folder(self, owner: str, name: str) -> Folder:
        """A new, empty folder. Raises BadValue for a name that is empty or taken."""
        folder = Folder(uuid4().hex, self._folder_name(owner, name), 0)
        with self._databases.disk.write() as connection:
            connection.execute(
                "INSERT INTO folders (id, owner, name, created_at) VALUES (?, ?, ?, ?)",
                (folder.id, pack(owner), pack(folder.name), self._now()),
            )
        return folder

    def rename_folder(self, owner: str, folder_id: str, name: str) -> None:
        """Raises NotFound, BadValue."""
        name = self._folder_name(owner, name, besides=folder_id)
        with self._databases.disk.write() as connection:
            done = connection.execute(
                "UPDATE folders SET name = ? WHERE id = ? AND owner = ?", (pack(name), pack(folder_id), pack(owner))
            )
            _require(done.rowcount)

    def remove_folder(self, owner: str, folder_id: str) -> None:
        """Remove a folder; what it held stays, outside of any. Raises NotFound."""
        with self._databases.disk.write() as connection:
            done = connection.execute("DELETE FROM folders WHERE id = ? AND owner = ?", (pack(folder_id), pack(owner)))
            _require(done.rowcount)

    def move(self, owner: str, conversation_id: str, folder_id: str | None) -> Conversation:
        """Put a conversation into a folder, None: out of any. Raises NotFound."""
        if folder_id is not None:
            _require(any(folder.id == folder_id for folder in self.folders(owner)))
        return self._set(owner, conversation_id, "folder_id", folder_id)

    def _set(self, owner: str, conversation_id: str, column: str, value: object) -> Conversation:
        if is_incognito(conversation_id):
            raise BadValue("An incognito conversation is in no list.", remedy="It is gone when you end it.")
        with self._databases.disk.write() as connection:
            find_conversation(connection, owner, conversation_id)
            connection.execute(f"UPDATE conversations SET {column} = ? WHERE id = ?", (value, conversation_id))
            return find_conversation(connection, owner, conversation_id)

    def _folder_name(self, owner: str, name: str, besides: str = "") -> str:
        name = " ".join(name.split())
        others = [folder for folder in self.folders(owner) if folder.id != besides]
        if not name:
            raise BadValue("A folder needs a name.", remedy="Write one.", param="name")
        if any(folder.name.casefold() == name.casefold() for folder in others):
            raise BadValue(f"There is a folder “{name}” already.", remedy="Choose another name.", param="name")
        if len(others) >= MAX_FOLDERS:
            raise BadValue(f"There are {MAX_FOLDERS} folders already.", remedy="Remove one first.", param="name")
        return name

    # What was deleted

    def deleted(self, owner: str) -> tuple[trash.Deletion, ...]:
        """The owner's deleted conversations that can be had back, the last one first."""
        with self._databases.disk.read() as connection:
            return tuple(trash.deleted_conversations(connection, owner))

    def restore(self, owner: str, deletion_id: str) -> Conversation:
        """Bring a deleted conversation back, or a deleted message with what followed it; the id is theirs.

        Raises NotFound, and StaleView if what a message followed is gone too.
        """
        with self._databases.of(deletion_id).write() as connection:
            return trash.bring_back(connection, owner, deletion_id)

    def erase(self, owner: str, conversation_id: str) -> None:
        """Make the deletion of a conversation final. Raises NotFound."""
        with self._databases.disk.write() as connection:
            trash.erase(connection, owner, conversation_id)
        self._forgets = "begin"
        self._sweep_again()

    # Whole conversations

    def size(self, owner: str, conversation_id: str) -> int:
        """Bytes of all that was said in a conversation, without reading it into memory."""
        with self._databases.of(conversation_id).read() as connection:
            (size,) = connection.execute(
                "SELECT sum(length(CAST(content AS BLOB))) FROM messages WHERE conversation_id = ? AND owner = ?",
                (pack(conversation_id), pack(owner)),
            ).fetchone()
        return size or 0

    @contextmanager
    def alone_if_large(self, owner: str, conversation_id: str) -> Iterator[None]:
        """A person's large conversations are looked at one at a time: each is some ten times its size meanwhile.

        Raises Busy where another takes more than LARGE_S.
        """
        if self.size(owner, conversation_id) <= LARGE_BYTES:
            yield
            return
        mine = self._large.of(owner)
        if not mine.acquire(timeout=LARGE_S):
            raise Busy("Another large conversation of yours is on its way.", remedy="Try again when it is on show.")
        try:
            yield
        finally:
            mine.release()

    def tree(self, owner: str, conversation_id: str) -> Tree:
        """A conversation as one value, all versions in it. Raises NotFound."""
        with self._databases.of(conversation_id).read() as connection:
            return read_tree(connection, owner, conversation_id)

    def ids(self, owner: str) -> tuple[str, ...]:
        """Of all conversations, the newest first."""
        with self._databases.disk.read() as connection:
            rows = connection.execute(
                "SELECT id FROM conversations WHERE owner = ? ORDER BY touched DESC, updated_at DESC", (pack(owner),)
            )
            return tuple(row[0] for row in rows)

    def alike(self, owner: str) -> ByOutline:
        """The ids of all conversations by their `outline`."""
        with self._databases.disk.read() as connection:
            rows = connection.execute(
                "SELECT ends.conversation_id, ends.amount, first.content, last.content FROM (SELECT conversation_id,"
                " count(*) AS amount, min(sequence) AS head, max(sequence) AS tail FROM messages GROUP BY"
                " conversation_id) AS ends JOIN messages AS first ON first.sequence = ends.head"
                " JOIN messages AS last ON last.sequence = ends.tail WHERE first.owner = ?",
                (pack(owner),),
            )
            found: ByOutline = {}
            for ident, amount, first, last in rows:
                found.setdefault(self.outline(amount, unpack(first), unpack(last)), []).append(ident)
        return found

    @staticmethod
    def outline(amount: int, first: str, last: str) -> Outline:
        """What is quickly known of a conversation: how many messages, how the first and the last one begin."""
        return amount, first[:OUTLINE_CHARACTERS], last[:OUTLINE_CHARACTERS]

    def add(
        self, owner: str, trees: Iterable[Tree], *, may: Callable[[], bool] = lambda: True
    ) -> tuple[Conversation, ...]:
        """Keep conversations that come from files, all or none; folders are found by name, or made.

        Others write between two stretches of them. A power cut or a kill in between leaves what was written.
        `may` says, as each is written, whether the owner still comes in: what is kept of one who was forgotten is
        nobody's to delete. Raises Unauthorized if not.
        """
        trees = tuple(trees)
        _check_stays(may)
        folders = {folder.name.casefold(): folder.id for folder in self.folders(owner)}
        for name in {tree.folder for tree in trees if tree.folder.strip()}:
            key = " ".join(name.split()).casefold()
            if key not in folders:
                folders[key] = self.make_folder(owner, name).id
        added: list[Conversation] = []
        try:
            for stretch in _stretches(trees):
                with self._databases.disk.write() as connection:
                    _check_stays(may)
                    added += [
                        write_tree(
                            connection, owner, tree, folders.get(" ".join(tree.folder.split()).casefold()), self._now()
                        )
                        for tree in stretch
                    ]
                if len(stretch) < len(trees):
                    time.sleep(_BREATH_S)  # a lock that is taken again at once is taken before whoever waits
        except BaseException:
            self._take_back(added)
            raise
        return tuple(added)

    def _take_back(self, added: Sequence[Conversation]) -> None:
        if not added:
            return
        with suppress(StoreFailed), self._databases.disk.write() as connection:
            for conversation in added:
                connection.execute("DELETE FROM messages WHERE conversation_id = ?", (conversation.id,))
                connection.execute("DELETE FROM conversations WHERE id = ?", (conversation.id,))

    def branch(self, owner: str, message_id: str) -> Conversation:
        """A new conversation that begins with copies of the messages down to this one. Raises NotFound."""
        self._databases.check_share(message_id, owner)
        with self._databases.of(message_id).write() as connection:
            copy = copy_path(connection, owner, find_message(connection, owner, message_id), self._now())
        self.see(copy.id)
        return copy


def _check_stays(may: Callable[[], bool]) -> None:
    if not may():
        raise Unauthorized("This session has ended.", remedy="Log in again.")


def _stretches(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """The trees in order, in lists of _AT_ONCE messages or a conversation."""
    stretch: list[Tree] = []
    left = _AT_ONCE
    for tree in trees:
        pictures = sum(len(file.picture) for message in tree.messages for file in message.attachments)
        cost = 1 + len(tree.messages) + pictures // _BYTES_OF_ONE + tree.characters // _CHARACTERS_OF_ONE
        if stretch and cost > left:
            yield stretch
            stretch, left = [], _AT_ONCE
        stretch.append(tree)
        left -= cost
    if stretch:
        yield stretch


def _require(found: object) -> None:
    if not found:
        raise NotFound("There is no such folder.", remedy="It may have been removed in another tab; reload.")
