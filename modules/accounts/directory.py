"""Accounts: who may come in, by password, by a browser's session, by a program's key. One SQLite file, users.db.

The terminal's `users` command and a running server may use it at the same time. Where nobody has an account, the
machine is for one person, and this file changes nothing.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from uuid import uuid4

from modules.accounts import passwords
from modules.accounts.attempts import Attempts
from modules.accounts.person import Person
from modules.accounts.schema import LAYOUT
from modules.chat.database import Database
from modules.errors import BadValue, Forbidden, NotFound, StoreFailed, Unauthorized
from modules.files import check_name

FILE = "users.db"
KEY_PREFIX = "snug-"
DAY_S = 86_400.0
SESSION_IDLE_S = 30 * DAY_S
SESSION_LIFE_S = 180 * DAY_S
SEEN_EVERY_S = 3600.0  # how exactly is kept when a session or a key was used last
TIDY_EVERY_S = 60.0
MAX_KEY_NAME = 80
MAX_SESSIONS = 100  # of one person; those that were unused longest end
MAX_KEY_DAYS = 3650
_SESSION_BYTES = 32


@dataclass(frozen=True, slots=True)
class Account:
    """A person as the list of people shows it; `removed_at` (seconds since 1970) for who may not come in any more.

    `kept` is what was kept of the password when this was read.
    """

    id: str
    name: str
    owner: str
    admin: bool
    created_at: float
    removed_at: float | None
    kept: str = field(default="", repr=False, compare=False)

    @property
    def person(self) -> Person:
        """Who they are to page and API."""
        return Person(self.id, self.name, self.owner, self.admin)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as lists show it: `hint` is its end, the rest is known to nobody but who was shown it."""

    id: str
    person: str
    name: str
    hint: str
    admin: bool
    created_at: float
    expires_at: float | None
    used_at: float | None


class Accounts:
    """The file of accounts. Every method may be called from any thread; faults come as StoreFailed."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._file = Database(path, LAYOUT)
        self._now = now
        self._tidied_at = 0.0
        self.endings = 0
        """How many sessions, keys and rights this process has ended: whoever holds a long request open looks again."""
        self.attempts = Attempts()  # at the old password, by who is logged in already

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def tidy(self) -> None:
        """Take who was forgotten, old passwords and keys that ended out of SQLite's log as well, if it is time; what
        cannot be done now has its next time. The terminal leaves that to a running server.
        """
        if not 0 <= self._now() - self._tidied_at < TIDY_EVERY_S:
            self._tidied_at = self._now()
            with suppress(StoreFailed):
                self._file.clear_log()

    def exist(self) -> bool:
        """Whether anybody has an account, so that nobody comes in without."""
        with self._file.read() as file:
            return file.execute("SELECT 1 FROM people LIMIT 1").fetchone() is not None

    # People

    def people(self) -> tuple[Account, ...]:
        """Everybody, by name; those removed last."""
        with self._file.read() as file:
            found = file.execute("SELECT * FROM people ORDER BY removed_at IS NOT NULL, folded").fetchall()
        return tuple(_account(row) for row in found)

    def named(self, name: str) -> Account:
        """The person of a name, removed or not. Raises NotFound."""
        with self._file.read() as file:
            row = file.execute("SELECT * FROM people WHERE folded = ?", (folded(name),)).fetchone()
        if row is None:
            raise NotFound(f"Nobody here is called {name[:60]!r}.", remedy="See server.py users list.", param="name")
        return _account(row)

    def add(self, name: str, password: str, *, admin: bool = False, by: Person | None = None) -> Account:
        """A new person. The first one is an administrator, and has the conversations of the machine for one.

        `by`, here and below, is the administrator who does it; None for the terminal. Raises Forbidden where they are
        none any more as it is done, BadName, BadValue for a name that is taken or a password that is none.
        """
        name = check_name(name.strip())
        passwords.check_new(password, name)
        kept, ident = passwords.hashed(password), uuid4().hex
        with self._write(by) as file:
            taken = file.execute("SELECT removed_at FROM people WHERE folded = ?", (folded(name),)).fetchone()
            if taken is not None:
                remedy = "Choose another name." if taken[0] is None else (
                    f"server.py users restore {name!r} lets that person in again; "
                    f"users forget {name!r} deletes all that is theirs, then the name is free."
                )  # fmt: skip
                raise BadValue(f"Somebody here is called {name!r} already.", remedy=remedy, param="name")
            first = file.execute("SELECT 1 FROM people LIMIT 1").fetchone() is None
            alone = file.execute("SELECT 1 FROM people WHERE removed_at IS NULL LIMIT 1").fetchone() is None
            file.execute(
                "INSERT INTO people VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
                (ident, name, folded(name), "" if first else ident, admin or alone, kept, self._now()),
            )
        return self.named(name)

    def change_password(self, person: Person, old: str, new: str) -> None:
        """One's own; the session that asks goes on, all others end. Raises Unauthorized for a wrong old one."""
        self.attempts.check([person.id], "Too many wrong passwords.")
        try:
            before = self.verify(person.name, old)
        except Unauthorized as error:
            self.attempts.wrong([person.id], [old.encode("utf-8", "replace")])
            raise BadValue("That is not your old password.", remedy="Try again.", param="old") from error
        self.set_password(person.id, new, keep=person.session, before=before)

    def set_password(
        self,
        ident: str,
        password: str,
        *,
        keep: bytes = b"",
        before: Account | None = None,
        by: Person | None = None,
    ) -> None:
        """Another password. Every session of that person ends, but for `keep`.

        In place of the one that `before` had, if given. Raises BadValue where it has another by now.
        """
        passwords.check_new(password, self._one(ident).name)
        kept = passwords.hashed(password)
        with self._write(by) as file:
            if before is not None and not _is_as_it_was(file, before):
                raise BadValue("Your password has changed meanwhile.", remedy="Log in with the new one.", param="old")
            file.execute("UPDATE people SET password = ? WHERE id = ?", (kept, ident))
            file.execute("DELETE FROM sessions WHERE person_id = ? AND hash <> ?", (ident, keep))
        self.endings += 1

    def set_admin(self, ident: str, admin: bool, *, by: Person | None = None) -> None:
        """Give or take the right of an administrator. Raises BadValue for the last one's."""
        self._one(ident)
        with self._write(by) as file:
            file.execute("UPDATE people SET admin = ? WHERE id = ?", (admin, ident))
            _require_an_admin(file)
        self.endings += 1

    def remove(self, ident: str, *, by: Person | None = None) -> None:
        """Let a person in no more: sessions end, keys are gone. What is theirs stays, for `restore`."""
        self._one(ident)
        with self._write(by) as file:
            file.execute("UPDATE people SET removed_at = ? WHERE id = ? AND removed_at IS NULL", (self._now(), ident))
            file.execute("DELETE FROM sessions WHERE person_id = ?", (ident,))
            file.execute("DELETE FROM keys WHERE person_id = ?", (ident,))
            _require_an_admin(file)
        self.endings += 1

    def restore(self, ident: str, *, by: Person | None = None) -> None:
        """Let a removed person in again, with the old password."""
        self._one(ident)
        with self._write(by) as file:
            file.execute("UPDATE people SET removed_at = NULL WHERE id = ?", (ident,))

    def forget(self, ident: str) -> None:
        """Take the row of a removed person away. What the store has of theirs is the caller's to delete first."""
        if self._one(ident).removed_at is None:
            raise BadValue("Only who was removed can be forgotten.", remedy="Remove that person first.")
        with self._file.write() as file:
            file.execute("DELETE FROM people WHERE id = ?", (ident,))

    @contextmanager
    def _write(self, by: Person | None) -> Iterator[sqlite3.Connection]:
        """A transaction, within which `by` still is an administrator: who loses that may have asked just before."""
        with self._file.write() as file:
            if by is not None and not _is_admin(file, by):
                raise Forbidden("This is for administrators.", remedy="Ask who runs this Snug.")
            yield file

    def has(self, person: Person) -> bool:
        """Whether who came in as `person` has an account still, and may use it."""
        with self._file.read() as file:
            asked = "SELECT 1 FROM people WHERE id = ? AND removed_at IS NULL"
            return file.execute(asked, (person.id,)).fetchone() is not None

    def _one(self, ident: str) -> Account:
        with self._file.read() as file:
            row = file.execute("SELECT * FROM people WHERE id = ?", (ident,)).fetchone()
        if row is None:
            raise NotFound("That person has no account here.", remedy="Look at the list again.")
        return _account(row)

    # Passwords and sessions

    def verify(self, name: str, password: str) -> Account:
        """Who has this name and password. Takes a tenth of a second, right or wrong. Raises Unauthorized."""
        with self._file.read() as file:
            row = file.execute(
                "SELECT * FROM people WHERE folded = ? AND removed_at IS NULL", (folded(name),)
            ).fetchone()
        if not passwords.matches(password, None if row is None else row[5]):
            raise wrong_password()
        return _account(row)

    def kept_of(self, name: str) -> str:
        """What is kept of a person's password, another with each new one; "" for who may not come in."""
        with self._file.read() as file:
            row = file.execute(
                "SELECT password FROM people WHERE folded = ? AND removed_at IS NULL", (folded(name),)
            ).fetchone()
        return "" if row is None else str(row[0])

    def begin_session(self, account: Account) -> str:
        """A token for a browser of theirs; only its hash is kept.

        Raises Unauthorized for who has another password by now, or was removed: looking at one takes its time.
        """
        token, now = secrets.token_urlsafe(_SESSION_BYTES), self._now()
        with self._file.write() as file:
            if not _is_as_it_was(file, account):
                raise wrong_password()
            file.execute(
                "DELETE FROM sessions WHERE seen_at < ? OR created_at < ?", (now - SESSION_IDLE_S, now - SESSION_LIFE_S)
            )
            file.execute("INSERT INTO sessions VALUES (?, ?, ?, ?)", (_hash(token), account.id, now, now))
            file.execute(
                "DELETE FROM sessions WHERE person_id = ? AND hash NOT IN "
                "(SELECT hash FROM sessions WHERE person_id = ? ORDER BY seen_at DESC, created_at DESC LIMIT ?)",
                (account.id, account.id, MAX_SESSIONS),
            )
        return token

    def by_session(self, token: str) -> Person | None:
        """Whose session it is; None for one that ended or never was."""
        now, kept = self._now(), _hash(token)
        with self._file.read() as file:
            row = file.execute(
                "SELECT people.*, seen_at FROM sessions JOIN people ON people.id = person_id WHERE hash = ? "
                "AND removed_at IS NULL AND seen_at >= ? AND sessions.created_at >= ?",
                (kept, now - SESSION_IDLE_S, now - SESSION_LIFE_S),
            ).fetchone()
        if row is None:
            return None
        if now - row[-1] > SEEN_EVERY_S:
            self._note("UPDATE sessions SET seen_at = ? WHERE hash = ?", kept)
        return replace(_account(row).person, session=kept)

    def end_session(self, token: str) -> None:
        """Log out."""
        with self._file.write() as file:
            file.execute("DELETE FROM sessions WHERE hash = ?", (_hash(token),))
        self.endings += 1

    # Keys

    def make_key(self, ident: str, name: str, *, admin: bool = False, days: int | None = None) -> tuple[Key, str]:
        """A key for a person's programs, and the secret, which can be seen this once. Raises BadValue."""
        name, account = name.strip(), self._one(ident)
        if not name or len(name) > MAX_KEY_NAME or not name.isprintable():
            raise BadValue("A key needs a short name.", remedy="Name the program that it is for.", param="name")
        if days is not None and not 1 <= days <= MAX_KEY_DAYS:
            raise BadValue(f"A key lasts 1 to {MAX_KEY_DAYS} days, or without end.", param="days")
        if admin and not account.admin:
            raise BadValue(f"{account.name} is no administrator.", remedy="Make a key without that right.")
        if account.removed_at is not None:
            raise BadValue(f"{account.name} was removed.", remedy="Restore that person first.")
        secret, now = KEY_PREFIX + secrets.token_urlsafe(_SESSION_BYTES), self._now()
        expires = None if days is None else now + days * DAY_S
        key = Key(uuid4().hex[:12], account.name, name, secret[-4:], admin, now, expires, None)
        with self._file.write() as file:
            if not _is_as_it_was(file, account):
                raise BadValue("That account has changed meanwhile.", remedy="Try again.")
            file.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (key.id, _hash(secret), ident, name, key.hint, admin, now, expires),
            )
        return key, secret

    def keys(self, ident: str | None = None) -> tuple[Key, ...]:
        """The keys of one person, or of all; the newest first."""
        with self._file.read() as file:
            found = file.execute(
                "SELECT keys.id, people.name, keys.name, hint, keys.admin, keys.created_at, expires_at, used_at "
                "FROM keys JOIN people ON people.id = person_id WHERE ? IS NULL OR person_id = ? "
                "ORDER BY keys.created_at DESC",
                (ident, ident),
            ).fetchall()
        return tuple(Key(row[0], row[1], row[2], row[3], bool(row[4]), *row[5:]) for row in found)

    def revoke_key(self, key_id: str, *, of: str | None = None, by: Person | None = None) -> None:
        """End a key; `of` only if it is that person's. Raises NotFound."""
        with self._write(by) as file:
            gone = file.execute("DELETE FROM keys WHERE id = ? AND (? IS NULL OR person_id = ?)", (key_id, of, of))
            if not gone.rowcount:
                raise NotFound("There is no such key.", remedy="Look at the list again.")
        self.endings += 1

    def by_key(self, secret: str) -> Person | None:
        """Whose key it is, with the rights of the key; None for one that was revoked, ran out or never was."""
        now, kept = self._now(), _hash(secret)
        with self._file.read() as file:
            row = file.execute(
                "SELECT people.*, keys.admin, used_at FROM keys JOIN people ON people.id = person_id WHERE hash = ? "
                "AND removed_at IS NULL AND (expires_at IS NULL OR expires_at > ?)",
                (kept, now),
            ).fetchone()
        if row is None:
            return None
        if row[-1] is None or now - row[-1] > SEEN_EVERY_S:
            self._note("UPDATE keys SET used_at = ? WHERE hash = ?", kept)
        person = _account(row).person
        return Person(person.id, person.name, person.owner, person.admin and bool(row[-2]))

    def _note(self, statement: str, kept: bytes) -> None:
        """Write down that something was used; a full disk keeps nobody out."""
        with suppress(StoreFailed), self._file.write(durable=False) as file:
            file.execute(statement, (self._now(), kept))


def _account(row: tuple[object, ...]) -> Account:
    ident, name, _, owner, admin, kept, created_at, removed_at = row[:8]
    return Account(
        str(ident), str(name), str(owner), bool(admin), created_at, removed_at, str(kept)  # type: ignore[arg-type]
    )  # fmt: skip


def _is_as_it_was(file: sqlite3.Connection, account: Account) -> bool:
    """Whether a person may still come in, with the password that was read."""
    asked = "SELECT 1 FROM people WHERE id = ? AND password = ? AND removed_at IS NULL"
    return file.execute(asked, (account.id, account.kept)).fetchone() is not None


def _is_admin(file: sqlite3.Connection, person: Person) -> bool:
    """Whether a person is one, and is logged in still, if that is how they came."""
    asked = "SELECT 1 FROM people WHERE id = ? AND admin AND removed_at IS NULL"
    if file.execute(asked, (person.id,)).fetchone() is None:
        return False
    kept = person.session
    return not kept or file.execute("SELECT 1 FROM sessions WHERE hash = ?", (kept,)).fetchone() is not None


def wrong_password() -> Unauthorized:
    """The refusal of a login, the same whatever is wrong."""
    return Unauthorized("Name and password do not belong together.", remedy="Try again.")


def folded(name: str) -> str:
    """How a name is looked up and counted: names that look alike to people are the same name."""
    return unicodedata.normalize("NFKC", name.strip()).casefold()


def _hash(secret: str) -> bytes:
    """Of 256 random bits a plain hash tells nothing; the secret is looked up by it, never compared."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()


def _require_an_admin(file: sqlite3.Connection) -> None:
    """Undo, by raising, what leaves people without an administrator."""
    left = file.execute("SELECT count(*), sum(admin) FROM people WHERE removed_at IS NULL").fetchone()
    if left[0] and not left[1]:
        raise BadValue("Somebody has to be an administrator.", remedy="Make another one first.")
