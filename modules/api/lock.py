"""The secret of a server that other machines can reach: who presents it, who guesses, and how a browser keeps it.

Accepted as `Authorization: Bearer`, as `x-api-key`, as cookie, and once in the address `/?token=…`, which turns into
the cookie. Nowhere else: addresses end up in histories and logs.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from urllib.parse import parse_qsl

from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import cookie_parser
from starlette.types import Scope

from modules.errors import SnugError, TooManyAttempts, Unauthorized

WRONG_TRIES = 10
LOCKED_S = 60.0
_MAX_CLIENTS = 4096
_REMEDY = "Open the address that Snug printed when it started, or send its secret as Authorization: Bearer."
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Snug</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<body style="font: 1.1rem/1.5 system-ui; max-width: 26rem; margin: 20vh auto; padding: 0 1rem">
<h1>Snug is locked</h1><p>Open the address that Snug printed when it started, or enter its secret here.</p>
<form action="/"><input name="token" type="password" aria-label="Secret" autofocus required> <button>Enter</button>
</form></body></html>"""


def header_values(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of one header; `name` in lower case."""
    return [value for key, value in scope["headers"] if key.lower() == name]


def locked_page(error: SnugError) -> Response:
    """What a browser without the secret sees: where to get it, and a place to put it."""
    return HTMLResponse(_PAGE, error.http_status)


class Lock:
    """A secret, and how often an address may guess it.

    After WRONG_TRIES different wrong secrets an address waits LOCKED_S seconds. The same wrong one again teaches
    nobody anything, and is what a tab from before a restart keeps sending: it counts once.
    """

    def __init__(self, token: str, *, cookie: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._cookie = cookie
        self._clock = clock
        self._wrong: OrderedDict[str, set[bytes]] = OrderedDict()
        self._locked_until: OrderedDict[str, float] = OrderedDict()

    def check(self, scope: Scope) -> bool:
        """Whether the secret came in the address; False if it came otherwise.

        Takes the address's query away where it holds a secret, so that no log shows it. Raises Unauthorized without
        the right secret, TooManyAttempts after too many wrong ones.
        """
        from_address = _query_secrets(scope)
        if from_address:
            scope["query_string"] = b""
        given = [*from_address, *_header_secrets(scope), *self._cookie_secrets(scope)]
        client = scope["client"][0] if scope.get("client") else ""
        if not given:
            raise Unauthorized("This server asks for its secret.", remedy=_REMEDY)
        wait_s = self._locked_until.get(client, 0.0) - self._clock()
        if wait_s > 0:
            raise TooManyAttempts("Too many wrong secrets came from your address.", remedy=f"Wait {wait_s:.0f} s.")
        if not any(hmac.compare_digest(secret, self._token.encode()) for secret in given):
            self._count(given, client)
            raise Unauthorized("That is not this server's secret.", remedy=_REMEDY)
        self._wrong.pop(client, None)
        return bool(from_address)

    def welcome(self) -> Response:
        """To the page, with the cookie that opens it from now on."""
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
        return response

    def _cookie_secrets(self, scope: Scope) -> list[bytes]:
        cookies = [cookie_parser(value.decode("latin-1")) for value in header_values(scope, b"cookie")]
        return [found[self._cookie].encode() for found in cookies if self._cookie in found]

    def _count(self, given: Sequence[bytes], client: str) -> None:
        tries = self._wrong.setdefault(client, set())
        tries.update(hashlib.sha256(secret).digest() for secret in given)
        self._wrong.move_to_end(client)
        if len(tries) >= WRONG_TRIES:
            del self._wrong[client]
            self._locked_until[client] = self._clock() + LOCKED_S
        for remembered in (self._wrong, self._locked_until):
            while len(remembered) > _MAX_CLIENTS:
                remembered.popitem(last=False)


def _query_secrets(scope: Scope) -> list[bytes]:
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return []
    query = scope["query_string"].decode("latin-1")  # of bytes parse_qsl takes ASCII only
    return [value.encode() for name, value in parse_qsl(query) if name == "token"]


def _header_secrets(scope: Scope) -> list[bytes]:
    bearers = [value.split(None, 1) for value in header_values(scope, b"authorization")]
    found = [parts[1].strip() for parts in bearers if len(parts) == 2 and parts[0].lower() == b"bearer"]
    return found + [value.strip() for value in header_values(scope, b"x-api-key")]
