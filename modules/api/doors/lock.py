"""The secret of a server that other machines can reach: who presents it, who guesses, and how a browser keeps it.

Accepted as `Authorization: Bearer`, as `x-api-key`, as cookie, and once in the address `/?token=…`, which turns into
the cookie. Nowhere else: addresses end up in histories and logs. Where people have accounts, it opens nothing.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qsl

from fastapi.responses import RedirectResponse, Response
from starlette.requests import cookie_parser
from starlette.types import Scope

from modules.accounts.attempts import LOCKED_S, WRONG_TRIES, Attempts, place_of
from modules.errors import Unauthorized

__all__ = ["LOCKED_S", "WRONG_TRIES", "Lock", "client_of", "cookie_values", "header_secrets", "header_values"]

_REMEDY = "Open the address that Snug printed when it started, or send its secret as Authorization: Bearer."


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of one header; `name` in lower case."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def cookie_values(scope: Scope, name: str) -> list[bytes]:
    """Every value of one cookie."""
    cookies = [cookie_parser(value.decode("latin-1")) for value in header_values(scope, b"cookie")]
    return [found[name].encode() for found in cookies if name in found]


def header_secrets(scope: Scope) -> list[bytes]:
    """What programs send: `Authorization: Bearer …` and `x-api-key: …`, the same rule for both."""
    bearers = [value.split(None, 1) for value in header_values(scope, b"authorization")]
    found = [parts[1].strip() for parts in bearers if len(parts) == 2 and parts[0].lower() == b"bearer"]
    return found + [value.strip() for value in header_values(scope, b"x-api-key")]


def client_of(scope: Scope) -> str:
    """Where a request came from, as wrong tries are counted."""
    return place_of(scope["client"][0]) if scope.get("client") else ""


class Lock:
    """A secret, and how often an address may guess it: see accounts/attempts.py."""

    def __init__(self, token: str, *, cookie: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._cookie = cookie
        self._attempts = Attempts(clock)

    def check(self, scope: Scope) -> bool:
        """Whether the secret came in the address; False if it came otherwise.

        Takes the address's query away where it holds a secret, so that no log shows it. Raises Unauthorized without
        the right secret, TooManyAttempts after too many wrong ones.
        """
        from_address = _query_secrets(scope)
        if from_address:
            scope["query_string"] = b""
        given = [*from_address, *header_secrets(scope), *cookie_values(scope, self._cookie)]
        client = client_of(scope)
        if not given:
            raise Unauthorized("This server asks for its secret.", remedy=_REMEDY)
        self._attempts.check([client])
        if not any(hmac.compare_digest(secret, self._token.encode()) for secret in given):
            self._attempts.wrong([client], given)
            raise Unauthorized("That is not this server's secret.", remedy=_REMEDY, param="token")
        self._attempts.right([client])
        return bool(from_address)

    def welcome(self, *, secure: bool = False) -> Response:
        """To the page, with the cookie that opens it from now on."""
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/", secure=secure)
        return response


def _query_secrets(scope: Scope) -> list[bytes]:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return []
    query = scope["query_string"].decode("latin-1")  # of bytes parse_qsl takes ASCII only
    return [value.encode() for name, value in parse_qsl(query) if name == "token"]
