"""All that the store has of one owner, deleted for good. The last seven daily backups keep it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from modules.chat.database import Database
from modules.chat.packing import pack
from modules.chat.searching import forget

_STATEMENTS = (
    "UPDATE notebook_steps SET parent_id = NULL WHERE owner = ?",  # a chain of cascades may be too long for SQLite
    "DELETE FROM notebook_steps WHERE owner = ?",
    "DELETE FROM notebook_runs WHERE owner = ?",
    "DELETE FROM notebooks WHERE owner = ?",
    "DELETE FROM conversations WHERE owner = ?",
    "DELETE FROM messages WHERE owner = ?",
    "DELETE FROM attachments WHERE owner = ?",
    "DELETE FROM deletions WHERE owner = ?",
    "DELETE FROM folders WHERE owner = ?",
    "DELETE FROM revisions WHERE owner = ?",
)


def forget_owner(path: Path, owner: str) -> None:
    """Delete it from the store at `path`, which a running server may use; nothing happens where there is none."""
    if not path.exists():
        return
    with closing(Database(path)) as database:
        with database.write() as connection:
            for statement in _STATEMENTS:
                connection.execute(statement, (pack(owner),))
        more, begin = True, True
        while more:  # a running server writes between two pieces
            with database.write(durable=False) as connection:
                more, begin = forget(connection, begin=begin), False
        database.clear_log()
