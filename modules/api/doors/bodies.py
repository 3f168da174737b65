"""How large a request's body may be, by route: refused by what it declares, and by what comes."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.doors.lock import header_values
from modules.api.errors import error_response
from modules.chat.exporting import MOST_OF_ONE
from modules.errors import BadValue, BodyTooLarge
from modules.units import KiB, MiB, format_size

UPLOAD_PATHS = ("/gradio_api/upload", "/attachments")
IMPORT_PATH = "/conversations"
SMALL_PATHS = ("/login", "/logout", "/account")
_PACKINGS = frozenset({"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"})
_LENGTH_DIGITS = 20  # no honest number has more; thousands of noughts are no number to Python


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Most bytes of a request's body, an upload through the page, conversations that are imported, a login."""

    body_bytes: int = 10 * MiB
    upload_bytes: int = 50 * MiB
    import_bytes: int = MOST_OF_ONE
    small_bytes: int = 16 * KiB

    def of(self, path: str) -> int:
        """The limit of a route."""
        if path == IMPORT_PATH:
            return self.import_bytes
        if path in UPLOAD_PATHS:
            return self.upload_bytes
        return self.small_bytes if path in SMALL_PATHS else self.body_bytes


class BodyGuard:
    """Refuses bodies that are packed (400), and too large ones (413): by what they declare, and by what comes."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self.app = app
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if packed := _packing(scope):
            refusal = BadValue(
                f"The body is packed (Content-Encoding: {packed}), and only plain ones are read.",
                remedy="Let the program send bodies without compression.",
            )
            await error_response(refusal)(scope, receive, send)
            return
        limit = self.limits.of(scope["path"])
        too_large = BodyTooLarge(f"The body is larger than {format_size(limit)}.", remedy="Send less.")
        declared = header_values(scope, b"content-length")
        if any(not length.isdigit() or len(length) > _LENGTH_DIGITS or int(length) > limit for length in declared):
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


def _packing(scope: Scope) -> str:
    """How the body is packed, by its headers; "" for one that is plain, or is called something that packs nothing."""
    told = b",".join(header_values(scope, b"content-encoding")).decode("latin-1").lower()
    return ", ".join(name for part in told.split(",") if (name := part.strip()) in _PACKINGS)
