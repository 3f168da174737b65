"""Who is let in: on a machine for one everybody, or who knows a secret of the server; else people with an account.

A program shows its key in a header, a browser its session in a cookie. Where both come, the header alone counts.
"""

from __future__ import annotations

from starlette.types import Scope

from modules.accounts.attempts import Attempts
from modules.accounts.directory import Accounts
from modules.accounts.person import GUEST, THE_ONE, Person
from modules.api.doors.lock import Lock, client_of, cookie_values, header_secrets
from modules.errors import Unauthorized

LOG_IN = "Log in on the page, or send a key as Authorization: Bearer or x-api-key."


def session_cookie(port: int) -> str:
    """The name of the cookie that holds a session; servers on other ports of a machine have their own."""
    return f"snug_session_{port}"


def known_cookie(port: int) -> str:
    """The name of the cookie by which the page to log in knows a browser again; it lets nobody in."""
    return f"snug_known_{port}"


class Gate:
    """Decides it for every request."""

    def __init__(self, *, lock: Lock | None, accounts: Accounts | None, cookie: str) -> None:
        self.lock = lock
        self._accounts = accounts
        self._cookie = cookie
        self._attempts = Attempts()

    @property
    def has_accounts(self) -> bool:
        """Whether people log in here; asked anew each time, for the terminal may have added the first one."""
        return self._accounts is not None and self._accounts.exist()

    def enter(self, scope: Scope, *, cookies: bool = True) -> tuple[Person, str]:
        """Who asks, and the secret if it came in the address. Without `cookies` a browser's count for nothing.

        Raises Unauthorized or TooManyAttempts.
        """
        if self._accounts is not None and self._accounts.exist():
            return self._with_account(scope, self._accounts, cookies), ""
        if self.lock is None:
            return THE_ONE, ""
        opened = self.lock.check(scope, cookies=cookies)
        return THE_ONE if opened.admin else GUEST, opened.from_address

    @property
    def endings(self) -> int:
        """How many sessions, keys and rights were ended by this process."""
        return 0 if self._accounts is None else self._accounts.endings

    def admits(self, scope: Scope, person: Person, *, cookies: bool, rights: bool = False) -> bool:
        """Whether `person`, who was let in with this request, would be again. No attempt is counted.

        With `rights`: as an administrator, too, who was one. Who has no account, until somebody has one.
        """
        if self._accounts is None:
            return True
        if not person.id:
            return not self._accounts.exist()
        keys = header_secrets(scope)
        if keys:
            found = self._accounts.by_key(_text(keys[0]))
        else:
            sessions = cookie_values(scope, self._cookie) if cookies else []
            found = self._accounts.by_session(_text(sessions[0])) if sessions else None
        return found is not None and found.id == person.id and (not rights or found.admin >= person.admin)

    def _with_account(self, scope: Scope, accounts: Accounts, cookies: bool) -> Person:
        keys = set(header_secrets(scope))
        if keys:
            found = accounts.by_key(_text(keys.pop())) if len(keys) == 1 else None
            if found is None:  # nobody guesses one of 256 random bits: wrong ones keep no right one waiting
                client = client_of(scope)
                self._attempts.check([client], "Too many wrong keys came from your address.")
                self._attempts.wrong([client], header_secrets(scope))
                raise Unauthorized("That key opens nothing here.", remedy=LOG_IN)
            return found
        sessions = set(cookie_values(scope, self._cookie)) if cookies else set()
        person = accounts.by_session(_text(sessions.pop())) if len(sessions) == 1 else None
        if person is None:
            raise Unauthorized("This Snug wants to know who you are.", remedy=LOG_IN)
        return person


def _text(secret: bytes) -> str:
    return secret.decode("utf-8", "replace")
