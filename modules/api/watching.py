"""The outermost layer: every request gets a number, is counted, and told to the log. It refuses nothing.

Routes are told as templates, so that nobody can fill counters or logs with paths of their own making.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cached_property

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.api.asking import dialect_of, number_request
from modules.api.errors import CLIENT_CLOSED_REQUEST
from modules.logs import ACCESS_LOG, FIELDS, REQUEST
from modules.meter import Meter

log = logging.getLogger(ACCESS_LOG)

PAGE, UNKNOWN = "(page)", "(unknown)"


def install_watching(app: FastAPI, meter: Meter) -> None:
    """Put this layer around `app` and all layers that it has by now. Call it last."""
    app.add_middleware(Watched, meter=meter, templates=Templates(app))


class Templates:
    """The API's routes by path, for labels: a closed set."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def of(self, path: str) -> str:
        """The template of a path; PAGE for what belongs to the page, UNKNOWN for what does not exist under /v1."""
        known = next((template for matches, template in self._known if matches(path)), None)
        return known or (UNKNOWN if path.startswith("/v1/") else PAGE)

    @cached_property
    def _known(self) -> list[tuple[Callable[[str], object], str]]:
        routes = iter_route_contexts(self._app.routes)
        shown = {
            route.path
            for route in routes
            if route.path and getattr(route.original_route, "include_in_schema", False)
            and route.path.startswith(("/v1/", "/health", "/metrics"))
        }  # fmt: skip
        return [(compile_path(path)[0].match, path) for path in sorted(shown, key=lambda path: ("{" in path, path))]


class Watched:
    """See the module."""

    def __init__(self, app: ASGIApp, *, meter: Meter, templates: Templates) -> None:
        self.app = app
        self._meter = meter
        self._templates = templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number, began = number_request(scope), time.perf_counter()
        status, first_s = CLIENT_CLOSED_REQUEST, 0.0

        async def told(message: Message) -> None:
            nonlocal status, first_s
            if message["type"] == "http.response.start":
                status, first_s = int(message["status"]), time.perf_counter() - began
                message = {**message, "headers": [*message.get("headers", ()), *_numbered(scope, number)]}
            await send(message)

        path, method = str(scope["path"]), str(scope["method"])
        self._meter.request_begins()
        try:
            await self.app(scope, receive, told)
        finally:
            seconds = time.perf_counter() - began
            route = self._templates.of(path)
            self._meter.request_ends(method, route, status, seconds)
            _tell(number, method, route, status, first_s, seconds)


def _numbered(scope: Scope, number: str) -> list[tuple[bytes, bytes]]:
    names = (b"x-request-id", b"request-id") if dialect_of(scope) == "anthropic" else (b"x-request-id",)
    return [(name, number.encode()) for name in names]


def _tell(number: str, method: str, route: str, status: int, first_s: float, seconds: float) -> None:
    fields = {
        "method": method[:10], "route": route, "status": status, "first_byte_s": round(first_s, 4),
        "seconds": round(seconds, 4),
    }  # fmt: skip
    extra = {REQUEST: number, FIELDS: fields}
    log.info("%s %s %d %.3f s", method[:10], route, status, seconds, extra=extra)
