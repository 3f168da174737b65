"""Who sent a request, which number it has, and whose dialect it speaks: read from the request itself, nothing else.

The number is the client's own X-Request-Id where that is short and plain, else a new one. watching.py puts it into the
scope; without that layer in front a request has none.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from fastapi import Request
from starlette.types import Scope

from modules.accounts.person import person_in

Dialect = Literal["openai", "anthropic"]

REQUEST_ID = "snug.request_id"
CURRENT_REQUEST: ContextVar[str] = ContextVar("request", default="")
"""The number of the request that this task works for."""
_PLAIN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_BOTH_SPEAK = re.compile(r"/v1/models(/|$)")


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose turn it is in the engine's queue: each person's, and where nobody has an account each address's, guests
    there by themselves; and to whose conversations the request belongs."""

    turn: str
    owner: str


def asker(request: Request, salt: str = "") -> Asker:
    """Who sent it; a program that asks for several people tells them apart by a `salt`."""
    person = person_in(request.scope)
    owner = f"{person.owner} {salt}" if salt else person.owner
    if person.id:
        return Asker(f"api {person.id}", owner)
    address = request.client.host if request.client else ""
    return Asker(f"api {address}" if person.admin else f"api guest {address}", owner)  # neither stops the other's


def dialect_of(scope: Scope) -> Dialect:
    """How the client expects answers: Anthropic's under /v1/messages, and where both have the route by its header."""
    path = scope.get("path", "")
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    names = {name.lower() for name, _ in scope.get("headers", ())}
    return "anthropic" if b"anthropic-version" in names and _BOTH_SPEAK.match(path) else "openai"


def request_id_of(scope: Scope) -> str:
    """The number of a request, "" for none."""
    return str(scope.get(REQUEST_ID, ""))


def number_request(scope: Scope) -> str:
    """Give the request its number, and return it."""
    given = [value.strip() for name, value in scope["headers"] if name.lower() == b"x-request-id"]
    known = len(given) == 1 and _PLAIN_ID.fullmatch(given[0])
    scope[REQUEST_ID] = given[0].decode("ascii") if known else f"req_{uuid.uuid4().hex}"
    CURRENT_REQUEST.set(request_id_of(scope))
    return request_id_of(scope)
