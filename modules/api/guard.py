"""The doors in front of page and API: who may ask (Host, Origin, secret), how much, and what browsers are told.

Pure ASGI, around everything that the app serves, Gradio's routes included. Decisions are made on the path as the
server parsed it and on headers alone. Users and rights are not here: whoever is inside may do everything.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.errors import error_response, public
from modules.api.lock import Lock, header_values, locked_page
from modules.errors import BodyTooLarge, Forbidden, SnugError, Unauthorized, WrongHost
from modules.units import MiB, format_size

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
UPLOAD_PATH = "/gradio_api/upload"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")
_API_PATHS = re.compile(r"/(v1|health|openapi\.json)(/|$)")

PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        # Gradio starts from inline scripts and compiles its event code; model text is sanitised before it gets here.
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-src 'self'",
        "frame-ancestors 'none'",
    )
)
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Most bytes of a request's body, and of an upload through the page."""

    body_bytes: int = 10 * MiB
    upload_bytes: int = 50 * MiB


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
    app: FastAPI, *, host: str, port: int, access_token: str | None, limits: BodyLimits = BodyLimits()
) -> None:  # fmt: skip
    """Put the doors around `app`, which is to listen on `host` and `port`. Call once, before the app starts.

    Raises ValueError where other machines could connect and there is no `access_token`.
    """
    if access_token is None and not is_loopback(host):
        raise ValueError(f"listening on {host} needs an access token")
    lock = None if access_token is None else Lock(access_token, cookie=f"snug_{port}")
    # The last one added is the first one asked.
    app.add_middleware(BodyGuard, limits=limits)
    app.add_middleware(Doors, hosts=KnownHosts(host), lock=lock)
    app.add_middleware(PlainFace)


class PlainFace:
    """Outermost: what every response tells the browser, and a plain error in place of a crash.

    Removes what inner apps say about other origins: nobody else's page may read from here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def hardened(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": _hardened(message.get("headers", ()), scope["path"])}
            await send(message)

        try:
            await self.app(scope, receive, hardened)
        except Exception as error:  # the edge of one request: a bug in it must not show its insides
            if started:
                raise
            await error_response(public(error))(scope, receive, hardened)


def _hardened(headers: Iterable[tuple[bytes, bytes]], path: str) -> list[tuple[bytes, bytes]]:
    is_api = _API_PATHS.match(path) is not None
    ours = {
        b"x-content-type-options": b"nosniff",
        b"x-frame-options": b"DENY",
        b"referrer-policy": b"same-origin",
        b"cross-origin-opener-policy": b"same-origin",
        b"cross-origin-resource-policy": b"same-origin",
        b"content-security-policy": (API_POLICY if is_api else PAGE_POLICY).encode(),
    }
    if is_api:
        ours[b"cache-control"] = b"no-store"
    kept = [
        (name, value)
        for name, value in headers
        if name.lower() not in ours and not name.lower().startswith(b"access-control-")
    ]
    return [*kept, *ours.items()]


@dataclass(frozen=True)
class KnownHosts:
    """The names under which a server bound to `bound` may be asked for.

    Anything else may be a name that a hostile page has pointed here (DNS rebinding). Ports are free: a tunnel or a
    container may have changed them.
    """

    bound: str
    machine: str = field(default_factory=socket.gethostname)

    def accepts(self, name: str, server_address: str) -> bool:
        """Whether `name` (lower case, without port) is one; `server_address` is where this connection arrived."""
        if name in LOOPBACK_NAMES or name == _bracketed(self.bound):
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
    """Refuses foreign hosts (421) and origins (403), and where there is a lock, whoever has not its secret (401)."""

    def __init__(self, app: ASGIApp, *, hosts: KnownHosts, lock: Lock | None) -> None:
        self.app = app
        self.hosts = hosts
        self.lock = lock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            _check_origin(scope, self._host(scope))
            entering = self.lock is not None and self.lock.check(scope)
        except SnugError as error:
            await _refuse(error, scope, receive, send)
            return
        if self.lock is not None and entering:
            await self.lock.welcome()(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _host(self, scope: Scope) -> str:
        """The Host header, if it is one of ours."""
        given = header_values(scope, b"host")
        host = given[0].decode("latin-1").lower() if len(given) == 1 else ""
        match = _HOST.fullmatch(host)
        server_address = (scope.get("server") or ("",))[0]
        if match is None or not self.hosts.accepts(match.group(1), server_address):
            raise WrongHost(
                "This server does not answer to that name.",
                remedy="Open the address that Snug printed when it started.",
            )
        return host


def _check_origin(scope: Scope, host: str) -> None:
    """Raise Forbidden if another site's page sent this: by its Origin, or by what the browser says of the request.

    Following a link from elsewhere to here is allowed; being loaded, framed or posted to from elsewhere is not.
    """
    origins = [origin.decode("latin-1").lower() for origin in header_values(scope, b"origin")]
    foreign = bool(origins) and origins not in ([f"http://{host}"], [f"https://{host}"])
    if header_values(scope, b"sec-fetch-site") in ([b"cross-site"], [b"same-site"]):
        followed = (
            scope.get("method") in ("GET", "HEAD")
            and header_values(scope, b"sec-fetch-mode") == [b"navigate"]
            and header_values(scope, b"sec-fetch-dest") == [b"document"]
        )
        foreign = foreign or not followed
    if foreign:
        raise Forbidden("Another site's page may not do this.", remedy="Use Snug's own page, or a program.")


async def _refuse(error: SnugError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    wants_page = scope["method"] == "GET" and any(b"text/html" in value for value in header_values(scope, b"accept"))
    for_people = isinstance(error, Unauthorized) and wants_page and _API_PATHS.match(scope["path"]) is None
    await (locked_page(error) if for_people else error_response(error))(scope, receive, send)


class BodyGuard:
    """Refuses bodies that are too large (413): by what they declare, and by what comes."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self.limits.upload_bytes if scope["path"] == UPLOAD_PATH else self.limits.body_bytes
        too_large = BodyTooLarge(f"The body is larger than {format_size(limit)}.", remedy="Send less.")
        declared = header_values(scope, b"content-length")
        if any(not length.isdigit() or int(length) > limit for length in declared):
            await error_response(too_large)(scope, receive, send)
            return
        arrived, started, refused = 0, False, False

        async def counted() -> Message:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                raise too_large
            return message

        async def watched(message: Message) -> None:
            """Whatever the app makes of the exception above, the client hears of the size."""
            nonlocal started, refused
            if arrived > limit and not started:
                refused = True
            started = started or message["type"] == "http.response.start"
            if not refused:
                await send(message)

        try:
            await self.app(scope, counted, watched)
        except BodyTooLarge:
            refused = refused or not started
        if refused:
            await error_response(too_large)(scope, receive, send)
