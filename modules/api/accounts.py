"""Logging in and out of the page: a form, a session in a cookie, and who somebody is. Whose keys there are is the
page's and the terminal's business.

Wrong guesses are counted by address and by name. Somebody who guesses at a name from elsewhere does not keep its
owner out: an address from which that person logged in before waits for its own guesses only, and so does a browser, by
a mark that it keeps, wherever it is and whatever else comes from its address. Passwords are tried in
places of their own, a few at once, of an address and a name one; a wrong one that is sent again is known, and costs
nothing. So a flood of guesses takes nobody else's place.
"""

from __future__ import annotations

import base64
import hmac
import secrets
from collections import OrderedDict
from functools import partial
from urllib.parse import parse_qsl
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response
from starlette.types import Scope

from modules.accounts import passwords
from modules.accounts.attempts import Attempts
from modules.accounts.directory import Account, Accounts, folded, wrong_password
from modules.accounts.person import person_in
from modules.api.doors import door_page
from modules.api.doors.gate import known_cookie, session_cookie
from modules.api.doors.headers import POLICY_OF
from modules.api.doors.lock import client_of, cookie_name, cookie_values, is_secure
from modules.api.shapes import Json
from modules.errors import BadValue, SnugError, Unauthorized
from modules.services import Services

_MOST_OF_A_NAME = 200  # counts
_FAMILIAR = 4096  # pairs of a name and an address that are remembered
_NUMBER, _SEAL, _MOST_MARKS = 12, 32, 4  # characters of a mark's parts; marks of a browser, one for each person there


class Marks:
    """By which a browser is known again, as one in which somebody has logged in: a number, and its seal, whose key is
    what is kept of that person's password. Nobody else can make one, and a new password ends them all.
    """

    def __init__(self, cookie: str) -> None:
        """`cookie`: what the browser sent."""
        size = _NUMBER + _SEAL
        self._marks = [cookie[start : start + size] for start in range(0, min(len(cookie), _MOST_MARKS * size), size)]

    def number(self, kept: str) -> str:
        """The number of a mark that was made for who has this password; "" without one."""
        sealed = (mark for mark in self._marks if hmac.compare_digest(mark.encode(), _sealed(mark[:_NUMBER], kept)))
        return next((mark[:_NUMBER] for mark in sealed if kept), "")

    def with_one(self, kept: str) -> str:
        """The cookie with a mark for who has this password, and those of others."""
        number = self.number(kept) or secrets.token_urlsafe(_NUMBER)[:_NUMBER]
        mark = _sealed(number, kept).decode()
        return "".join([mark, *(other for other in self._marks if other != mark)][:_MOST_MARKS])


def _sealed(number: str, kept: str) -> bytes:
    seal = hmac.digest(kept.encode(), b"a known browser " + number.encode("utf-8", "replace"), "sha256")
    return number.encode("utf-8", "replace") + base64.urlsafe_b64encode(seal)[:_SEAL]


class Logins:
    """Names and passwords, tried."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self.attempts = Attempts()
        self._familiar: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._places: WeakValueDictionary[tuple[str, str], CapacityLimiter] = WeakValueDictionary()

    def place_of(self, name: str, client: str) -> CapacityLimiter:
        """The one place in which this address, or known browser, tries passwords of this name; called from the event
        loop."""
        whose = client, folded(name[:_MOST_OF_A_NAME])
        found = self._places.get(whose)
        if found is None:
            found = self._places[whose] = CapacityLimiter(1)
        return found

    def browser_of(self, name: str, marks: Marks) -> str:
        """The number of a browser in which that person has logged in before; "" for others."""
        return marks.number(self._accounts.kept_of(name))

    def try_one(self, name: str, password: str, client: str, browser: str = "") -> tuple[Account, str]:
        """Who that is, and the token of a new session. Raises Unauthorized or TooManyAttempts.

        `browser` is the number of a known one, which waits for no guesses but its own.
        """
        called = f"name {folded(name)[:_MOST_OF_A_NAME]}"  # as the account is looked up: in whatever letters
        tried = (called, client)
        who = [client, f"familiar {client} {called}" if tried in self._familiar else called]
        if browser:
            who = [f"browser {browser} {called}"]
        self.attempts.check(who, "Too many wrong passwords.")
        guess = f"{called}\n{self._accounts.kept_of(name)}\n{password}".encode("utf-8", "replace")
        if self.attempts.knows(who[0], guess):  # argon2 would take two cores for as long as somebody sends it
            raise wrong_password()
        try:
            account = self._accounts.verify(name, password)
        except Unauthorized:
            self.attempts.wrong(who, [guess], at=called)
            raise
        self.attempts.right(who, at=called)
        self._familiar[tried] = None
        while len(self._familiar) > _FAMILIAR:
            self._familiar.popitem(last=False)
        return account, self._accounts.begin_session(account)


def account_routes(services: Services) -> APIRouter:
    """GET and POST /login, POST /logout, GET /account."""
    port = services.settings.listen_port
    accounts, cookie, known = services.accounts, session_cookie(port), known_cookie(port)
    logins = Logins(accounts) if accounts else None
    places = CapacityLimiter(passwords.AT_ONCE)
    router = APIRouter(include_in_schema=False)

    @router.get("/login")
    def show(request: Request) -> Response:
        """The form; home, where nobody logs in or somebody has."""
        if accounts is None or not accounts.exist() or _session(accounts, cookie, request.scope):
            return RedirectResponse("/", 303)
        request.scope[POLICY_OF] = door_page.POLICY
        return door_page.login_page(request.headers)

    @router.post("/login")
    async def log_in(request: Request) -> Response:
        """Name and password, from the form."""
        if logins is None or accounts is None or not await to_thread.run_sync(accounts.exist):
            return RedirectResponse("/", 303)
        request.scope[POLICY_OF] = door_page.POLICY
        form = _form((await request.body()).decode("utf-8", "replace"))
        name, password = form.get("name", ""), form.get("password", "")
        try:
            if not name or not password:
                raise BadValue("Both name and password are needed.")
            client, marks = client_of(request.scope), _marks(request.scope, known)
            browser = await to_thread.run_sync(logins.browser_of, name, marks)
            work = partial(logins.try_one, name, password, client, browser)
            async with logins.place_of(name, browser or client):
                account, token = await to_thread.run_sync(work, limiter=places)
        except SnugError as error:
            return door_page.login_page(request.headers, error, name=name)
        for earlier in cookie_values(request.scope, cookie):  # nobody can end it once the browser has another
            await to_thread.run_sync(accounts.end_session, earlier.decode("utf-8", "replace"))
        response = RedirectResponse("/", 303)
        secure = is_secure(request.scope)
        for called, value in ((cookie, token), (known, marks.with_one(account.kept))):
            response.set_cookie(
                cookie_name(called, secure=secure), value,
                httponly=True, samesite="strict", path="/", secure=secure, max_age=180 * 86_400,
            )  # fmt: skip
        return response

    @router.post("/logout")
    def log_out(request: Request) -> Response:
        """End this browser's session."""
        for token in cookie_values(request.scope, cookie):
            if accounts is not None:
                accounts.end_session(token.decode("utf-8", "replace"))
        response = RedirectResponse("/login", 303)
        secure = is_secure(request.scope)
        response.delete_cookie(
            cookie_name(cookie, secure=secure), path="/", httponly=True, samesite="strict", secure=secure
        )
        response.headers["clear-site-data"] = '"cache"'
        return response

    @router.get("/account")
    def account(request: Request) -> Json:
        """Who asks."""
        person = person_in(request.scope)
        return {"name": person.name, "admin": person.admin}

    return router


def _form(body: str) -> dict[str, str]:
    """The fields of a form; none of one that is not the page's."""
    try:
        return dict(parse_qsl(body, max_num_fields=8))
    except ValueError:  # more of them
        return {}


def _marks(scope: Scope, cookie: str) -> Marks:
    """Those that the browser keeps."""
    sent = cookie_values(scope, cookie)
    return Marks(sent[0].decode("ascii", "replace") if len(sent) == 1 else "")


def _session(accounts: Accounts, cookie: str, scope: Scope) -> bool:
    tokens = cookie_values(scope, cookie)
    return len(tokens) == 1 and accounts.by_session(tokens[0].decode("utf-8", "replace")) is not None
