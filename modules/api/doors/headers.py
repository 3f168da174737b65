"""What every response tells the browser: security headers, a content policy, and no word to other sites' pages.

Only an origin that `--cors-origin` names may read what programs are answered, and never with a browser's cookies.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.doors.lock import header_values
from modules.api.errors import error_response, public

API_PATHS = re.compile(r"/(v1|health|metrics|account|openapi\.json)(/|$)")
_ASKED_HEADER = re.compile(r"[a-z0-9-]{1,64}")
_SENT_HEADERS = ("authorization", "content-type", "x-api-key", "anthropic-version")
MOST_ASKED_HEADERS = 32
POLICY_OF = "snug.policy"
"""Under which name a scope holds a stricter content policy than its path's."""

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
SAME_FOR_ALL = re.compile(r"/((assets|static|svelte)/|(theme\.css|favicon\.ico|manifest\.json|robots\.txt)$)")
"""What a cache between people may keep; all else is whose it is, and after logging out nobody's."""
FILE_PATHS = re.compile(r"/gradio_api/file[=/]")
FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""Files that somebody uploaded or an extension made: to be saved or drawn, never to run."""
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


class PlainFace:
    """Outermost: what every response tells the browser, and a plain error in place of a crash.

    Removes what inner apps say about other origins: nobody else's page may read from here.
    """

    def __init__(self, app: ASGIApp, *, origins: Collection[str] = ()) -> None:
        self.app = app
        self.origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def hardened(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*_hardened(message.get("headers", ()), scope), *self._named(scope)]}
            await send(message)

        try:
            await self.app(scope, receive, hardened)
        except Exception as error:  # the edge of one request: a bug in it must not show its insides
            if started:
                raise
            await error_response(public(error))(scope, receive, hardened)

    def _named(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        """What a named origin's page may read."""
        if not self.origins or not API_PATHS.match(scope["path"]):
            return []
        origins = header_values(scope, b"origin")
        if len(origins) != 1 or origins[0].decode("latin-1").lower() not in self.origins:
            return [(b"vary", b"origin")]
        return [
            (b"vary", b"origin"),
            (b"access-control-allow-origin", origins[0]),
            (b"access-control-allow-methods", b"GET, POST, DELETE"),
            (b"access-control-allow-headers", ", ".join(_headers_allowed(scope)).encode()),
            (b"access-control-expose-headers", b"retry-after, x-should-retry, x-request-id, request-id"),
            (b"access-control-max-age", b"600"),
        ]


class HeadsOfAnswers:
    """Innermost: HEAD of one of the API's routes is answered as GET is, without the body; FastAPI's know no HEAD."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or not API_PATHS.match(scope["path"]):
            await self.app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app({**scope, "method": "GET"}, receive, bodiless)


def _headers_allowed(scope: Scope) -> list[str]:
    """What a named origin's page may send: the usual ones, and what it asks for.

    OpenAI's and Anthropic's libraries send a dozen of their own (`x-stainless-…`), new ones with every version.
    """
    given = b",".join(header_values(scope, b"access-control-request-headers")).decode("latin-1").lower()
    asked = [name.strip() for name in given.split(",")[:MOST_ASKED_HEADERS]]
    return list(dict.fromkeys([*_SENT_HEADERS, *filter(_ASKED_HEADER.fullmatch, asked)]))


def _hardened(headers: Iterable[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    headers = list(headers)
    is_api = API_PATHS.match(scope["path"]) is not None
    ours = {
        b"x-content-type-options": b"nosniff",
        b"x-frame-options": b"DENY",
        b"referrer-policy": b"same-origin",
        b"cross-origin-opener-policy": b"same-origin",
        b"cross-origin-resource-policy": b"same-origin",
        b"content-security-policy": _policy(scope, is_api=is_api).encode(),
    }
    if is_api:
        ours[b"cache-control"] = b"no-store"
    elif not SAME_FOR_ALL.match(scope["path"]) and not any(name.lower() == b"cache-control" for name, _ in headers):
        ours[b"cache-control"] = b"private, no-cache"
    if FILE_PATHS.match(scope["path"]):
        ours[b"content-disposition"] = b"attachment"  # what is drawn on the page is drawn all the same
    kept = [
        (name, value)
        for name, value in headers
        if name.lower() not in ours and not name.lower().startswith(b"access-control-")
    ]
    return [*kept, *ours.items()]


def _policy(scope: Scope, *, is_api: bool) -> str:
    """What a browser may do with the answer: a door's own policy, or that of its path."""
    if POLICY_OF in scope:
        return str(scope[POLICY_OF])
    if FILE_PATHS.match(scope["path"]):
        return FILE_POLICY
    return API_POLICY if is_api else PAGE_POLICY
