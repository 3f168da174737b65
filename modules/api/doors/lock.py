"""The secrets of a server that other machines can reach: who presents one, who guesses, and how a browser keeps it.

One is the administrator's, one for guests and programs. Accepted as `Authorization: Bearer`, as `x-api-key`, as
cookie, and once in the address `/?token=…`, which turns into the cookie. Nowhere else: addresses end up in histories
and logs. Where people have accounts, neither opens anything.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

from fastapi.responses import RedirectResponse, Response
from starlette.requests import cookie_parser
from starlette.types import Scope

from modules.accounts.attempts import LOCKED_S, WRONG_TRIES, Attempts, place_of
from modules.errors import TooManyAttempts, Unauthorized

__all__ = [
    "LOCKED_S", "WRONG_TRIES", "Lock", "client_of", "cookie_name", "cookie_values", "header_secrets", "header_values",
    "is_secure",
]  # fmt: skip

_REMEDY = "Open the address that Snug printed when it started, or send its secret as Authorization: Bearer."


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of one header; `name` in lower case."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def cookie_name(name: str, *, secure: bool) -> str:
    """What a cookie is called: over https so that no browser takes it from a sibling host, or over http (RFC 6265bis,
    4.1.3.2)."""
    return f"__Host-{name}" if secure else name


def is_secure(scope: Scope) -> bool:
    """Whether a request came over https, if only to the proxy in front."""
    return scope.get("scheme") == "https"


def cookie_values(scope: Scope, name: str) -> list[bytes]:
    """Every value of one cookie, as `cookie_name` calls it."""
    cookies = [cookie_parser(value.decode("latin-1")) for value in header_values(scope, b"cookie")]
    called = cookie_name(name, secure=is_secure(scope))
    return [found[called].encode() for found in cookies if called in found]


def header_secrets(scope: Scope) -> list[bytes]:
    """What programs send: `Authorization: Bearer …` and `x-api-key: …`, the same rule for both."""
    bearers = [value.split(None, 1) for value in header_values(scope, b"authorization")]
    found = [parts[1].strip() for parts in bearers if len(parts) == 2 and parts[0].lower() == b"bearer"]
    return found + [value.strip() for value in header_values(scope, b"x-api-key")]


def client_of(scope: Scope) -> str:
    """Where a request came from, as wrong tries are counted."""
    return place_of(scope["client"][0]) if scope.get("client") else ""


@dataclass(frozen=True)
class Opened:
    """By which secret: `admin`, or the guests'. `from_address` is that secret where it came in the address, or ""."""

    admin: bool
    from_address: str = field(default="", repr=False)


class Lock:
    """The secrets, and how often an address may guess them: see accounts/attempts.py."""

    def __init__(
        self, token: str, *, guests: str | None = None, cookie: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`token` is the administrator's; None for `guests`: there is no other."""
        self._secrets = {True: token.encode()} | ({} if guests is None else {False: guests.encode()})
        self._cookies = {True: cookie} | ({} if guests is None else {False: f"{cookie}_guest"})
        self._attempts = Attempts(clock)

    def check(self, scope: Scope, *, cookies: bool = True) -> Opened:
        """By which secret the request comes in: of several right ones the administrator's. Without `cookies` a
        browser's count for nothing.

        Takes the address's query away where it holds a secret, so that no log shows it. Raises Unauthorized without
        a right secret, TooManyAttempts after too many wrong ones.
        """
        from_address = _query_secrets(scope)
        if from_address:
            scope["query_string"] = b""
        client = client_of(scope)
        kept = self._cookies.values() if cookies else ()
        ways = {
            client: [*header_secrets(scope), *(one for name in kept for one in cookie_values(scope, name))],
            f"in an address {client}": from_address,  # any site's page can make a browser open some
        }
        given = {way: secrets for way, secrets in ways.items() if secrets}
        if not given:
            raise Unauthorized("This server asks for its secret.", remedy=_REMEDY)
        right: set[bool] = set()
        locked: TooManyAttempts | None = None
        for way, secrets in given.items():
            try:
                right |= self._tried(way, secrets)
            except TooManyAttempts as error:
                locked = error
        if not right:
            raise locked or Unauthorized("That is not this server's secret.", remedy=_REMEDY, param="token")
        admin = max(right)
        return Opened(admin, self._secrets[admin].decode() if from_address else "")

    def _tried(self, way: str, given: Sequence[bytes]) -> set[bool]:
        """Which secrets are among those that came by one way, True for the administrator's; each way is guessed at,
        and waits, by itself. Raises TooManyAttempts.
        """
        self._attempts.check([way])
        right = {admin for admin, ours in self._secrets.items() for one in given if hmac.compare_digest(one, ours)}
        if right:
            self._attempts.right([way])
        else:
            self._attempts.wrong([way], given)
        return right

    def welcome(self, secret: str, *, secure: bool = False) -> Response:
        """To the page, with the cookie that opens it from now on. The guests' has a name of its own: a link that holds
        their secret, in a page of anybody's, takes nothing from an administrator's browser.
        """
        cookie = self._cookies[hmac.compare_digest(secret.encode(), self._secrets[True])]
        response = RedirectResponse("/", 303)
        response.set_cookie(
            cookie_name(cookie, secure=secure), secret, httponly=True, samesite="strict", path="/", secure=secure
        )
        return response


def _query_secrets(scope: Scope) -> list[bytes]:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return []
    query = scope["query_string"].decode("latin-1")  # of bytes parse_qsl takes ASCII only
    return [value.encode() for name, value in parse_qsl(query) if name == "token"]
