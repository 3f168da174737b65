"""The search index of a store that is older than searching: built beside the work, newest messages first.

What is written from now on is indexed by triggers (schema.py). How far this is lies in the file, so that a start goes
on where the last one ended.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from modules.chat.database import Database
from modules.errors import StoreFailed

log = logging.getLogger(__name__)

AT_ONCE_S = 0.5  # of a start: what takes no longer is done before the page is there
STEP_MESSAGES, STEP_CHARACTERS = 200, 200_000  # of one transaction, for which writers wait
PAUSE_S = 0.01  # between two, so that they get their turn
AGAIN_S = 30.0  # after a full disk, say


@dataclass(frozen=True, slots=True)
class IndexProgress:
    """How far it is: a share of 1, and the time before which messages are not found yet."""

    share: float
    before: float


class Indexing:
    """Builds the index of one file, as far as it lacks. Safe to use from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._done = False

    def start(self) -> None:
        """Do what is soon done; the rest in a thread."""
        ends_at = time.monotonic() + AT_ONCE_S
        with suppress(StoreFailed):  # a full disk, say: the thread waits, and nobody's start has to
            while time.monotonic() < ends_at:
                if not self._step():
                    return
        log.info("The search index of older conversations is being built.")
        self._thread = threading.Thread(target=self._run, name="search index", daemon=True)
        self._thread.start()

    def progress(self) -> IndexProgress | None:
        """How far it is; None where nothing lacks."""
        if self._done:
            return None
        with self._database.read() as connection:
            row = connection.execute("SELECT whole, remaining FROM index_debts").fetchone()
            if row is None:
                return None
            whole, left = row
            newest = connection.execute(
                "SELECT created_at FROM messages WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1", (left,)
            ).fetchone()
        return IndexProgress(1 - left / max(1, whole), newest[0] if newest else 0.0)

    def close(self) -> None:
        """End within one step; a later start goes on."""
        self._closing.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(PAUSE_S):
            try:
                if not self._step():
                    log.info("The search index is complete.")
                    return
            except StoreFailed as error:
                log.warning("The search index waits: %s", error)
                self._closing.wait(AGAIN_S)

    def _step(self) -> bool:
        """Index the newest messages that lack; whether more do."""
        with self._database.write(durable=False) as connection:
            debt = connection.execute("SELECT remaining FROM index_debts").fetchone()
            if debt is None:
                self._done = True
                return False
            first, characters = debt[0] + 1, 0
            for sequence, length in connection.execute(
                "SELECT sequence, length(content) FROM messages WHERE sequence <= ? ORDER BY sequence DESC LIMIT ?",
                (debt[0], STEP_MESSAGES),
            ).fetchall():
                first, characters = sequence, characters + length
                if characters > STEP_CHARACTERS:
                    break
            if first > debt[0]:
                connection.execute("DELETE FROM index_debts")
                return True
            connection.execute(
                "INSERT INTO message_texts (rowid, text) SELECT sequence, fold(content) FROM messages"
                " WHERE sequence BETWEEN ?1 AND ?2 AND status <> 'streaming'"
                " AND sequence NOT IN (SELECT rowid FROM message_texts WHERE rowid BETWEEN ?1 AND ?2)",
                (first, debt[0]),
            )
            connection.execute("UPDATE index_debts SET remaining = ?", (first - 1,))
            return True
