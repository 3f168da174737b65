"""Where a conversation lies: in the file, or, if it is incognito, in this process's memory alone.

The ids of incognito conversations and of their messages begin with INCOGNITO, so every id tells where it belongs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from modules.chat.database import Database, MemoryDatabase
from modules.chat.packing import pack
from modules.errors import StoreFailed

INCOGNITO = "incognito-"
_HELD = """  -- in bytes or characters; texts lie in the search index too
    SELECT ifnull((SELECT 2 * sum(length(content)) FROM messages WHERE owner = ?1), 0)
    + ifnull((SELECT sum(2 * length(text) + ifnull(length(picture), 0)) FROM attachments WHERE owner = ?1), 0)
    + ifnull((SELECT sum(length(system_prompt) + length(setup)) FROM conversations WHERE owner = ?1), 0)
    + ifnull((SELECT sum(length(row)) FROM deleted_rows JOIN deletions ON id = deletion_id WHERE owner = ?1), 0)
"""
UNSEEN_S = 12 * 3600.0  # without a page that looks; then it is gone. Pages in the background do not look.


def is_incognito(ident: str) -> bool:
    """Whether a conversation or message of this id is in memory alone."""
    return ident.startswith(INCOGNITO)


class Databases:
    """The file and the memory. Safe to use from any thread."""

    def __init__(self, disk: Database, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.disk = disk
        self._clock = clock
        self._lock = threading.Lock()
        self._memory: MemoryDatabase | None = None
        self._seen: dict[str, float] = {}

    def of(self, ident: str) -> Database:
        """The database of a conversation or message."""
        if not is_incognito(ident):
            return self.disk
        with self._lock:
            if self._memory is None:
                self._memory = MemoryDatabase()
            return self._memory

    def open(self) -> tuple[Database, ...]:
        """The file, and the memory if anything was ever put there."""
        with self._lock:
            return (self.disk, self._memory) if self._memory else (self.disk,)

    def check_share(self, ident: str, owner: str) -> None:
        """Raise StoreFailed where `owner` holds more of the memory than is left for everybody; never for the file's."""
        if not is_incognito(ident):
            return
        with self.of(ident).read() as connection:
            most, taken, free, size = (
                int(connection.execute(f"PRAGMA {name}").fetchone()[0])
                for name in ("max_page_count", "page_count", "freelist_count", "page_size")
            )
            left = most - taken + free
            if left < most // 2 and connection.execute(_HELD, (pack(owner),)).fetchone()[0] > left * size:
                raise StoreFailed(
                    "Not saved: your incognito conversations hold more than is left for everybody's.",
                    remedy="End one that is not needed any more, or write in an ordinary one.",
                )

    def see(self, conversation_id: str) -> None:
        """A page looks at this conversation: it stays."""
        if is_incognito(conversation_id):
            self._seen[conversation_id] = self._clock()

    def forget(self, conversation_id: str) -> None:
        """End an incognito conversation; one that ended already is left alone."""
        self._seen.pop(conversation_id, None)
        with self.of(conversation_id).write() as connection:
            connection.execute("DELETE FROM deletions WHERE conversation_id = ?", (conversation_id,))
            connection.execute("DELETE FROM messages WHERE conversation_id = ?", (conversation_id,))
            connection.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))

    def forget_unseen(self) -> None:
        """End the incognito conversations that no page has looked at for UNSEEN_S."""
        limit = self._clock() - UNSEEN_S
        for conversation_id in [ident for ident, at in tuple(self._seen.items()) if at < limit]:
            self.forget(conversation_id)

    def close(self) -> None:
        """Close both; what is incognito is gone."""
        self.disk.close()
        with self._lock:
            if self._memory:
                self._memory.close()
