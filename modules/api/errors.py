"""Errors as each dialect's clients expect them: one object, one status, one code of the list in modules/errors.py.

Knows nothing of the routes; asking.py says whose dialect a request speaks. A bug becomes `internal_error` without a
word of what went wrong inside; the log has it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from modules.api.asking import Dialect, dialect_of, request_id_of
from modules.api.lost import no_route
from modules.errors import (
    BadValue,
    Busy,
    ContextLengthExceeded,
    DiskFull,
    EngineDied,
    LoadFailed,
    MethodNotAllowed,
    NoModelLoaded,
    OutOfMemory,
    QueueFull,
    SnugError,
    StaleView,
    TimedOut,
    TooManyAttempts,
)
from modules.few import MOST_FIELDS
from modules.files import without_folders

log = logging.getLogger(__name__)

_UNION_TAG = re.compile(r"[A-Z]\w*|[a-z-]+\[.*\]")
"""How pydantic names the branches of a union among the fields of a place: `NamedTool`, `literal['none','auto']`."""

CLIENT_CLOSED_REQUEST = 499
"""The status of a response that nobody is there to read (nginx's number; no standard has one)."""

ALLOWED = "snug.allowed"
"""Under which name a scope holds the methods of a route that was called by another."""

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error", 504: "timeout_error",
}  # fmt: skip
_RETRY_AFTER_S: dict[type[SnugError], int] = {Busy: 5, QueueFull: 2, EngineDied: 5, TooManyAttempts: 60}
_IN_VAIN = (NoModelLoaded, OutOfMemory, DiskFull, LoadFailed, TimedOut, StaleView, TooManyAttempts)
"""What the same request meets again. OpenAI's and Anthropic's libraries send a request that ends with 409, 429 or 5xx
two more times, unless they are told otherwise."""
_TOO_LONG: dict[Dialect, str] = {
    "openai": "The input exceeds the context window; this model's maximum context length is less than that.",
    "anthropic": "prompt is too long:",
}
"""What the message begins with where a text does not fit. Agents shorten the conversation and ask again where they read
these words: many see no code, since OpenAI's library for JavaScript puts the message alone into its errors."""

_DETAILS: dict[str | None, dict[str, str]] = {"thread": {"error_code": "thread_unsupported_request"}}
"""What Anthropic's libraries read off a refusal of that field: their tool runners ask for a thread by themselves, and
send the whole conversation where they find this."""


def problem(error: SnugError, tell: Callable[[str], str]) -> dict[str, Any]:
    """What went wrong, for the page, in the language that `tell` speaks."""
    return {"problem": {"code": error.code, "message": tell(error.message), "remedy": tell(error.remedy)}}


def error_object(error: SnugError, dialect: Dialect = "openai") -> dict[str, dict[str, str | None]]:
    """`{"error": {"message", "type", "param", "code"}}`; the message ends with the remedy, folders left out."""
    message = without_folders(str(error))
    if isinstance(error, ContextLengthExceeded):
        message = f"{_TOO_LONG[dialect]} {message}"
    kind = _TYPES.get(error.http_status, "invalid_request_error" if error.http_status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": error.param, "code": error.code}}


def anthropic_error(error: SnugError, request_id: str = "") -> dict[str, Any]:
    """`{"type": "error", "error": {"type", "message", "param", "code"}, "request_id"}`; param and code are ours. Some
    have `details`.
    """
    again = type(error) in _RETRY_AFTER_S
    kind = "invalid_request_error" if error.http_status < 500 else "overloaded_error" if again else "api_error"
    told: dict[str, Any] = {**error_object(error, "anthropic")["error"]}
    told["type"] = _ANTHROPIC_TYPES.get(error.http_status, kind)
    if details := _DETAILS.get(error.param):
        told["details"] = details
    return {"type": "error", "error": told, "request_id": request_id or None}


def error_body(error: SnugError, dialect: Dialect, request_id: str = "") -> dict[str, Any]:
    """The error object in that dialect's shape."""
    return anthropic_error(error, request_id) if dialect == "anthropic" else error_object(error)


class ErrorResponse(Response):
    """The whole response to a request that `error` ended, in the dialect of whoever it is sent to."""

    def __init__(self, error: SnugError) -> None:
        wait_s = _RETRY_AFTER_S.get(type(error))
        self.error = error
        headers = {"X-Should-Retry": "false"} if isinstance(error, _IN_VAIN) else {}
        headers |= {} if wait_s is None else {"Retry-After": str(wait_s)}
        headers |= {"WWW-Authenticate": 'Bearer realm="Snug"'} if error.http_status == 401 else {}  # RFC 9110, 15.5.2
        super().__init__(status_code=error.http_status, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        body = error_body(self.error, dialect_of(scope), request_id_of(scope))
        extra = {name: value for name, value in self.headers.items() if name != "content-length"}
        if self.status_code == 405 and ALLOWED in scope:
            extra["Allow"] = scope[ALLOWED]
        await JSONResponse(body, self.status_code, extra)(scope, receive, send)


def error_response(error: SnugError) -> Response:
    """The whole response to a request that `error` ended; `Retry-After` (seconds) where trying again makes sense."""
    return ErrorResponse(error)


def public(error: Exception) -> SnugError:
    """What the client may know of `error`: a SnugError as it is, of anything else only that it happened (logged)."""
    if isinstance(error, SnugError):
        return error
    log.error("a request failed", exc_info=error)
    return SnugError("Snug made a mistake and could not answer.", remedy="The server's log says more.")


def parameter_name(location: Sequence[str | int]) -> str:
    """pydantic's `("body", "messages", 0, "content")` → `messages[0].content`."""
    name = ""
    places = [part for part in location if not _is_tag(part)]
    for part in places[1:] if places[:1] == ["body"] else places:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    return name


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and _UNION_TAG.fullmatch(part) is not None


def _most_telling(problems: Sequence[Any]) -> Any:
    """The first of pydantic's records; of a field with several forms that of the form it came nearest."""
    place = problems[0]["loc"]
    tags = [number for number, part in enumerate(place) if _is_tag(part)]
    forms = [each for each in problems if tags and each["loc"][: tags[0]] == place[: tags[0]]]
    return max(forms or problems[:1], key=lambda each: len(each["loc"]))


def from_validation(problems: Sequence[Any]) -> BadValue:
    """The first of pydantic's error records in one sentence, without the value (it may be long, or private)."""
    first = _most_telling(problems)
    if first["type"] == "json_invalid":
        return BadValue(f"The body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}.")
    name = parameter_name(first["loc"])
    if first["type"] == "too_many_fields":
        return BadValue(f"{name or 'The body'} has more than {MOST_FIELDS} fields.", remedy="No request needs as many.")
    if not name:
        return BadValue("The body must be a JSON object.", remedy="Send it with Content-Type: application/json.")
    text = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    return BadValue(f"{name}: {text[:1].lower() + text[1:]}.", param=name)


def from_http(error: HTTPException, request: Request) -> SnugError:
    """What Starlette and FastAPI refuse by themselves: unknown routes, wrong methods, unreadable bodies."""
    place = f"{request.method} {request.scope['path'][:200]}"
    if error.status_code == 404:
        return no_route(request.method, request.scope["path"])
    if error.status_code == 405:
        return MethodNotAllowed(f"{place} is not a way to call this route.", remedy="docs/api.md lists every route.")
    return BadValue("The body cannot be read.", remedy="Send JSON in UTF-8 with Content-Type: application/json.")


def install_error_handlers(app: FastAPI) -> None:
    """Every error that a route raises leaves the app as one error object. Bugs pass on to the guard."""

    def on_snug_error(_: Request, error: Exception) -> Response:
        return error_response(public(error))

    def on_invalid(_: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        return error_response(from_validation(problems))

    def on_http(request: Request, error: Exception) -> Response:
        return error_response(from_http(error, request) if isinstance(error, HTTPException) else public(error))

    def on_client_gone(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(SnugError, on_snug_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientDisconnect, on_client_gone)
