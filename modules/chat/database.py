"""One SQLite file: opened with care, never written over when damaged, backed up once a day.

It knows connections, transactions, versions and faults, not what the tables hold.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from modules.chat.packing import fold, unpack
from modules.chat.schema import APPLICATION_ID, MIGRATIONS
from modules.engine.turns import Turns
from modules.errors import StoreFailed
from modules.files import only_for_owner
from modules.on_behalf import ASKED_FOR
from modules.units import MiB, format_size

log = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
BESIDE = ("wal", "shm", "journal")  # ends of the names of files that SQLite keeps beside a database
BACKUPS_KEPT = 7
MOST_MEMORY_BYTES = 512 * MiB  # of incognito conversations, everybody's together
_IN_MEMORY = Path("incognito conversations")
_MAX_CHECKED_BYTES = 512 * 1024**2  # beyond it a full check at start takes longer than people wait


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file holds: its mark, its tables as steps from version to version, and how it is spoken of."""

    application_id: int
    migrations: tuple[str, ...]
    label: str
    noun: str


CONVERSATIONS = Layout(APPLICATION_ID, MIGRATIONS, "snug", "conversations")


class Database:
    """One writer, several readers; people write by turns. Every method may be called from any thread.

    Faults come as StoreFailed.
    """

    def __init__(self, path: Path, layout: Layout = CONVERSATIONS) -> None:
        """Open `path`, making or migrating it. Raises StoreFailed, the file untouched, if it is not sound."""
        self.path = path
        self.layout = layout
        self.backup_folder = path.parent / "backups"
        self._writing = Turns(sys.maxsize)  # nothing that is to be saved is turned away
        self._idle_readers: list[sqlite3.Connection] = []
        self._readers_lock = threading.Lock()
        self._closed = False
        self._backed_up = ""
        with self._named_faults("opened"):
            version = self._check()
            self._keep_private()
            self._writer = _connect(path, synchronous="FULL")
            try:
                if 0 < version < len(self.layout.migrations):
                    self._back_up(f"version-{version}")
                self._migrate(version)
                self.backup_if_due()
            except BaseException:
                self._writer.close()
                raise

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction, committed at the end, undone on any exception.

        A durable one is on the disk when this returns. One that is not outlives the process, not a power cut.
        """
        with self._writing.turn(ASKED_FOR.get()), self._named_faults("saved"):
            self._require_open()
            self._writer.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one moment of the store; writers do not wait for it."""
        with self._named_faults("read"):
            with self._readers_lock:
                self._require_open()
                connection = self._idle_readers.pop() if self._idle_readers else None
            connection = connection or _connect(self.path, read_only=True)
            try:
                connection.execute("BEGIN")
                yield connection
            except BaseException:
                connection.close()
                raise
            connection.execute("COMMIT")
            with self._readers_lock:
                if not self._closed:
                    self._idle_readers.append(connection)
                    return
            connection.close()

    def clear_log(self) -> bool:
        """Take what was deleted out of SQLite's log (the -wal file) as well, which keeps old pages until new ones take
        their places. Whether it is done; not while somebody reads, for whom nobody is to wait.
        """
        log_file = self.path.with_name(f"{self.path.name}-wal")
        with self._writing.turn(ASKED_FOR.get()), self._named_faults("saved"):
            self._require_open()
            if not log_file.exists() or not log_file.stat().st_size:
                return True
            self._writer.execute("PRAGMA busy_timeout = 0")
            try:
                return not self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                self._writer.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_S * 1000:.0f}")

    def backup_if_due(self) -> None:
        """Copy the store to backups/, at most once a day, the last seven kept. A failure is logged, not raised."""
        today = date.today().isoformat()
        if self._backed_up == today:
            return
        self._backed_up = today
        try:
            self._back_up(today)
            for old in self._old_backups():
                old.unlink(missing_ok=True)
        except (StoreFailed, sqlite3.Error, OSError) as error:
            log.warning("No backup of the %s was made: %s", self.layout.noun, error)

    def close(self) -> None:
        """Close every connection; later calls raise StoreFailed. Closing twice is fine."""
        with self._writing.turn(ASKED_FOR.get()), self._readers_lock:
            if self._closed:
                return
            self._closed = True
            for connection in (*self._idle_readers, self._writer):
                connection.close()
            self._idle_readers.clear()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreFailed(f"The {self.layout.noun} are closed: Snug is shutting down.", remedy="Start it again.")

    def _check(self) -> int:
        """The file's version; 0 where there is none yet. Reads only, so that a damaged file stays as it is."""
        _take_back_what_was_cut_off(self.path)
        if not self.path.exists() or self.path.stat().st_size == 0:
            if self.path.exists() and self._backups():
                raise self._damaged("is empty")
            return 0
        with self.path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\x00":
                raise self._damaged("is no database")
        try:
            with closing(_connect(self.path, read_only=True)) as connection:
                version = int(connection.execute("PRAGMA user_version").fetchone()[0])
                owner = int(connection.execute("PRAGMA application_id").fetchone()[0])
                sound = self.path.stat().st_size > _MAX_CHECKED_BYTES or (
                    connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
                )
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError) and "malformed" not in str(error):
                raise  # locked, or not readable: no sign of damage
            raise self._damaged(f"is damaged ({error})") from error
        if not sound:
            raise self._damaged("is damaged")
        if version and owner != self.layout.application_id:
            raise self._damaged("is a database of another program")
        if version > len(self.layout.migrations):
            raise StoreFailed(
                f"{self.path.name} was written by a newer Snug (version {version} of the file, "
                f"this Snug knows {len(self.layout.migrations)}).",
                remedy="Update Snug, or start it with another --user-data-dir.",
            )
        return version

    def _damaged(self, what: str) -> StoreFailed:
        """What to do about it. What lies beside the file has to go with it: SQLite would write that into a backup."""
        backups = self._backups()
        offer = (
            f"The last backup is {backups[-1]}: copy it to {self.path.name}, or look at it with --read-only"
            if backups
            else "There is no backup: start with another --user-data-dir"
        )
        beside = [path.name for path in self._beside() if path.exists()]
        them = f"Move it away, and {' and '.join(beside)} with it." if beside else "Move it away."
        return StoreFailed(
            f"The file of {self.layout.noun}, {self.path}, {what}. Snug left it as it is.", remedy=f"{them} {offer}."
        )

    def _beside(self) -> tuple[Path, ...]:
        """The files that SQLite keeps beside this one, there or not."""
        return tuple(self.path.with_name(f"{self.path.name}-{kind}") for kind in BESIDE)

    def _migrate(self, version: int) -> None:
        if 0 < version < len(self.layout.migrations):
            latest = len(self.layout.migrations)
            log.info("The file of %s is of version %d: bringing it to %d", self.layout.noun, version, latest)
        for number, script in enumerate(self.layout.migrations[version:], start=version + 1):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                for statement in _statements(script):
                    self._writer.execute(statement)
                self._writer.execute(f"PRAGMA application_id = {self.layout.application_id}")
                self._writer.execute(f"PRAGMA user_version = {number}")
                self._writer.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                raise

    def _keep_private(self) -> None:
        """Let nobody else of this machine's people read it: not the file, nor what older versions left beside it."""
        only_for_owner(self.path)  # first: SQLite gives the files that it makes beside it the same rights
        for path in (*self._beside(), *self.backup_folder.glob(f"{self.layout.label}-*.db")):
            if path.exists():
                only_for_owner(path)

    def _back_up(self, label: str) -> None:
        target = self.backup_folder / f"{self.layout.label}-{label}.db"
        if target.exists():
            return
        self.backup_folder.mkdir(mode=0o700, exist_ok=True)
        self._drop_unfinished()
        needed = self.path.stat().st_size
        if shutil.disk_usage(self.backup_folder).free < needed:
            raise StoreFailed(f"{format_size(needed)} are not free on the disk.", remedy="Free some space.")
        unfinished = target.with_suffix(".part")
        only_for_owner(unfinished)
        try:
            with self.read() as source, closing(sqlite3.connect(unfinished)) as copy:
                source.backup(copy)
            unfinished.replace(target)
        except BaseException:
            self._drop_unfinished()
            raise

    def _drop_unfinished(self) -> None:
        """Delete what came of backups that failed or were killed: it may have taken the room of people's messages."""
        for path in self.backup_folder.glob(f"{self.layout.label}-*.part*"):
            path.unlink(missing_ok=True)

    def _backups(self) -> list[Path]:
        """Daily backups, oldest first."""
        return sorted(self.backup_folder.glob(f"{self.layout.label}-[0-9]*.db"))

    def _old_backups(self) -> list[Path]:
        """What the last seven take the place of: earlier days, a copy from before an update, one that was cut off."""
        daily, label = self._backups(), self.layout.label
        cut_off = [part for part in self.backup_folder.glob(f"{label}-*.part") if self._backed_up not in part.name]
        old = [*daily[:-BACKUPS_KEPT], *cut_off]
        if len(daily) < BACKUPS_KEPT:
            return old
        since = daily[-BACKUPS_KEPT].stat().st_mtime
        return old + [copy for copy in self.backup_folder.glob(f"{label}-version-*.db") if copy.stat().st_mtime < since]

    @contextmanager
    def _named_faults(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, MemoryError, OverflowError) as error:
            raise _fault(error, self.path, what) from error


class MemoryDatabase(Database):
    """Likewise, in this process's memory alone: nothing of it reaches a disk, and it ends with the process."""

    def __init__(self) -> None:
        """An empty one."""
        self.path = _IN_MEMORY
        self.layout = CONVERSATIONS
        self._writing = Turns(sys.maxsize)  # nothing that is to be saved is turned away
        self._readers_lock = threading.Lock()
        self._idle_readers = []
        self._closed = False
        self._writer = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._writer.execute("PRAGMA temp_store = MEMORY")
        page_bytes = self._writer.execute("PRAGMA page_size").fetchone()[0]
        self._writer.execute(f"PRAGMA max_page_count = {MOST_MEMORY_BYTES // page_bytes}")
        _prepare(self._writer)
        self._migrate(0)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """The one connection: readers and writers take turns."""
        with self.write(durable=False) as connection:
            yield connection


def _statements(script: str) -> Iterator[str]:
    """The statements of an SQL script; those of a trigger's body stay together."""
    statement = ""
    for piece in script.split(";"):
        statement += f"{piece};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _connect(path: Path, *, read_only: bool = False, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection without Python's own transactions, usable from any thread (callers take turns)."""
    uri = path.resolve().as_uri() + ("?mode=ro" if read_only else "")
    connection = sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
    _prepare(connection)
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
    return connection


def _take_back_what_was_cut_off(path: Path) -> None:
    """Undo a change in the midst of which a process was killed before the file was in WAL mode: its journal is there.

    A connection that only reads must not, and without it the file is no whole database.
    """
    if path.with_name(f"{path.name}-journal").exists():
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path, timeout=LOCK_WAIT_S)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _prepare(connection: sqlite3.Connection) -> None:
    """What every connection needs. Deleted text is overwritten, not only let go."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA secure_delete = ON")
    connection.create_function("fold", 1, lambda text: fold(unpack(text)), deterministic=True)


def _fault(error: Exception, path: Path, what: str) -> StoreFailed:
    """The error in words: locked, full, too large or other."""
    text = str(error)
    if "locked" in text or "busy" in text:
        return StoreFailed(
            f"Not {what}: another program has locked {path.name} for more than {LOCK_WAIT_S:.0f} s.",
            remedy="Close the other program and try again.",
        )
    if "full" in text and path == _IN_MEMORY:
        return StoreFailed(
            f"Not {what}: incognito conversations hold {format_size(MOST_MEMORY_BYTES)} already, everybody's together.",
            remedy="End one that is not needed any more, or write in an ordinary one.",
        )
    if "full" in text or "No space left" in text:
        return StoreFailed(f"Not {what}: the disk that holds {path.parent} is full.", remedy="Free some space.")
    if "too big" in text or isinstance(error, (OverflowError, MemoryError)):
        return StoreFailed(f"Not {what}: the text is too long to keep.", remedy="Split it.")
    return StoreFailed(
        f"Not {what}: {path.name} cannot be used ({text or type(error).__name__}).",
        remedy=f"Check the disk and the rights on {path.parent}.",
    )
