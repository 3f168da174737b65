"""The doors in front of page and API: who may ask (Host, Origin, secret or account, right), and in what order.

Pure ASGI, around everything that the app serves, Gradio's routes included. Decisions are made on the path as the
server parsed it and on headers alone. Who it is (accounts/person.py) is put into the request's state; nothing behind
the doors looks at secrets.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from fastapi import FastAPI
from fastapi.responses import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from modules.accounts.directory import Accounts
from modules.accounts.person import STATE
from modules.api.doors import door_page
from modules.api.doors.bodies import BodyGuard, BodyLimits
from modules.api.doors.gate import Gate, session_cookie
from modules.api.doors.headers import API_PATHS, POLICY_OF, HeadsOfAnswers, PlainFace
from modules.api.doors.lock import Lock, cookie_values, header_values, is_secure
from modules.api.doors.places import Places
from modules.api.doors.rights import check_right, need_of
from modules.api.doors.staying import Staying
from modules.api.errors import error_response
from modules.errors import Forbidden, SnugError, TooManyAttempts, Unauthorized, WrongHost

__all__ = ["BodyLimits", "KnownHosts", "install_guard", "is_loopback", "new_access_token"]

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_OWN_COOKIE = re.compile(rb"(?:__Host-)?snug_[a-z0-9_]{1,40}=[A-Za-z0-9_-]{0,200}")
_PROXYS = re.compile(rb"x-forwarded-.*|forwarded|x-real-ip|remote-user|x-remote-user|x-auth-request-.*")


def new_access_token() -> str:
    """A secret of 192 random bits, as text that needs no escaping in an address."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether an address to bind can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def install_guard(
    app: FastAPI,
    *,
    host: str,
    port: int,
    access_token: str | None,
    guest_token: str | None = None,
    limits: BodyLimits = BodyLimits(),  # noqa: B008 - frozen
    accounts: Accounts | None = None,
    allowed_hosts: Sequence[str] = (),
    cors_origins: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Put the doors around `app`, which is to listen on `host` and `port`. Call once, before the app starts.

    While nobody has an account, `access_token` lets in as an administrator, `guest_token` without that right.
    Raises ValueError where others could come (from the network, or by a name that this machine has elsewhere) and
    there is no `access_token` for the time when nobody has an account.
    """
    if access_token is None and may_be_reached(host, allowed_hosts):
        raise ValueError(f"listening on {host} needs an access token")
    lock = None if access_token is None else Lock(access_token, guests=guest_token, cookie=f"snug_{port}")
    gate = Gate(lock=lock, accounts=accounts, cookie=session_cookie(port))
    hosts = KnownHosts(host, more=frozenset(name.lower() for name in allowed_hosts))
    # The last one added is the first one asked.
    app.add_middleware(HeadsOfAnswers)
    app.add_middleware(BodyGuard, limits=limits)
    app.add_middleware(Places)
    app.add_middleware(Doors, hosts=hosts, gate=gate, session=session_cookie(port), origins=frozenset(cors_origins))
    app.add_middleware(PlainFace, origins=frozenset(cors_origins))
    app.add_middleware(NoHearsay)
    if trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=list(trusted_proxies))


def may_be_reached(host: str, allowed_hosts: Sequence[str] = ()) -> bool:
    """Whether others than this machine's own people may come: over the network, or through a proxy under a name."""
    return not is_loopback(host) or bool(allowed_hosts)


class NoHearsay:
    """Takes away what only a proxy may say of a request (a trusted one has been heard before), and cookies that are not
    Snug's, or hold what Snug's never do: Python's reader of cookies takes nine seconds for 60 KB of backslashes
    (CVE-2024-7592), and reads them before anybody knows who sent them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            heard = [pair for pair in scope["headers"] if not _PROXYS.fullmatch(pair[0].lower())]
            scope["headers"] = [
                (name, _own_cookies(value) if name.lower() == b"cookie" else value) for name, value in heard
            ]
        await self.app(scope, receive, send)


def _own_cookies(header: bytes) -> bytes:
    """Those of a Cookie header that Snug may have set."""
    return b"; ".join(part.strip() for part in header.split(b";") if _OWN_COOKIE.fullmatch(part.strip()))


@dataclass(frozen=True)
class KnownHosts:
    """The names under which a server bound to `bound` may be asked for.

    Anything else may be a name that a hostile page has pointed here (DNS rebinding). Ports are free: a tunnel or a
    container may have changed them.
    """

    bound: str
    machine: str = field(default_factory=socket.gethostname)
    more: frozenset[str] = frozenset()

    def accepts(self, name: str, server_address: str) -> bool:
        """Whether `name` (lower case, without port) is one; `server_address` is where this connection arrived."""
        if name in LOOPBACK_NAMES or name == _bracketed(self.bound) or name in self.more:
            return True
        if is_loopback(self.bound):
            return False
        own = self.machine.lower()
        return name in (own, f"{own}.local") or (_is_address(server_address) and name == _bracketed(server_address))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _bracketed(host: str) -> str:
    """An IPv6 address as it stands in a Host header."""
    plain = host.split("%")[0].lower()
    return f"[{plain}]" if ":" in plain else plain


class Doors:
    """Refuses foreign hosts (421) and origins (403), who is not known (401), and who has not the right (403)."""

    def __init__(
        self, app: ASGIApp, *, hosts: KnownHosts, gate: Gate, session: str, origins: Collection[str] = ()
    ) -> None:
        self.app = app
        self.hosts = hosts
        self.gate = gate
        self.session = session
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            named = _check_origin(scope, self._host(scope), self.origins)
            entering = self._let_in(scope, cookies=not named)
        except SnugError as error:
            await self._refuse(error, scope, receive, send)
            return
        if entering and self.gate.lock is not None:
            await self.gate.lock.welcome(entering, secure=is_secure(scope))(scope, receive, send)
        elif named and scope.get("method") == "OPTIONS":
            await PREFLIGHT(scope, receive, send)
        else:
            await self._serve(scope, receive, send, cookies=not named)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, *, cookies: bool) -> None:
        """Let the body in and the answer out, only as long as who asks may come in."""
        person = scope["state"].get(STATE)
        if person is None or scope["type"] != "http" or scope["path"] == "/logout":
            await self.app(scope, receive, send)
            return
        gate, came = self.gate, dict(scope)  # what is behind changes what Gradio is to see
        staying = Staying(
            scope,
            receive,
            send,
            admitted=lambda: gate.admits(came, person, cookies=cookies),
            entitled=lambda: gate.admits(came, person, cookies=cookies, rights=True),
            endings=lambda: gate.endings,
        )
        await self.app(scope, staying.receive, staying.send)
        await staying.end()

    def _let_in(self, scope: Scope, *, cookies: bool) -> str:
        """Put who asks into the request's state; the secret, if it came in the address. Raises a SnugError."""
        method, path = scope.get("method", "GET"), scope["path"]
        state = scope.setdefault("state", {})
        state.pop(STATE, None)
        if method == "OPTIONS" and not cookies:  # a browser asks whether it may ask, and sends nothing of anybody's
            return ""
        if self.gate.has_accounts and need_of(method, path) == "nobody":
            return ""
        person, entering = self.gate.enter(scope, cookies=cookies)
        check_right(person, method, path)
        state[STATE] = person
        return entering

    def _host(self, scope: Scope) -> str:
        """The Host header, if it is one of ours."""
        given = header_values(scope, b"host")
        host = given[0].decode("latin-1").lower() if len(given) == 1 else ""
        match = _HOST.fullmatch(host)
        server_address = (scope.get("server") or ("",))[0]
        if match is None or not self.hosts.accepts(match.group(1), server_address):
            raise WrongHost(
                "This server does not answer to that name.",
                remedy="Open the address that Snug printed when it started, or name this one with --allowed-host.",
            )
        return host

    async def _refuse(self, error: SnugError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        answer: Response = error_response(error)
        wants_page = scope["method"] == "GET" and any(
            b"text/html" in value for value in header_values(scope, b"accept")
        )
        if isinstance(error, Unauthorized | TooManyAttempts) and wants_page and not API_PATHS.match(scope["path"]):
            scope[POLICY_OF] = door_page.POLICY
            headers = Headers(scope=scope)
            if not self.gate.has_accounts:
                wrong = isinstance(error, TooManyAttempts) or error.param == "token"
                answer = door_page.locked_page(headers, error, wrong=wrong)
            elif _followed_a_link(scope) and not cookie_values(scope, self.session):
                answer = door_page.once_more()
            else:
                answer = door_page.login_page(headers, status=error.http_status)
        await answer(scope, receive, send)


PREFLIGHT = Response(status_code=204)
"""The answer to a browser that asks whether a named origin may ask; headers.py says to what."""


def _check_origin(scope: Scope, host: str, named: Collection[str]) -> bool:
    """Raise Forbidden if another site's page sent this: by its Origin, or by what the browser says of the request.

    Following a link from elsewhere to here is allowed; being loaded, framed or posted to from elsewhere is not. True
    for a page of an origin that was `named`, which may use what is for programs.
    """
    origins = [origin.decode("latin-1").lower() for origin in header_values(scope, b"origin")]
    if len(origins) == 1 and origins[0] in named and API_PATHS.match(scope["path"]):
        return True
    foreign = bool(origins) and origins not in ([f"http://{host}"], [f"https://{host}"])
    if header_values(scope, b"sec-fetch-site") in ([b"cross-site"], [b"same-site"]):
        foreign = foreign or not _followed_a_link(scope)
    if foreign:
        raise Forbidden(
            "Another site's page may not do this.",
            remedy="Use Snug's own page, or a program; or name that page's origin with --cors-origin.",
        )
    return False


def _followed_a_link(scope: Scope) -> bool:
    """Whether a person came here from another site's page, as the browser says."""
    return (
        scope.get("method") in ("GET", "HEAD")
        and header_values(scope, b"sec-fetch-site") in ([b"cross-site"], [b"same-site"])
        and header_values(scope, b"sec-fetch-mode") == [b"navigate"]
        and header_values(scope, b"sec-fetch-dest") == [b"document"]
    )
