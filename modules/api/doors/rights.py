"""What each route asks of who comes: nothing, to be somebody, or the right of an administrator.

By the path as the server parsed it. A route that nobody thought of here is the administrators', if it is one of Snug's
own under /v1/internal, and everybody's who is let in otherwise. Rights within a route are the route's.
"""

from __future__ import annotations

import re
from typing import Literal

from modules.accounts.person import Person
from modules.errors import Forbidden

Need = Literal["nobody", "somebody", "admin"]

# The first one that matches counts.
_RULES: tuple[tuple[str, str, Need], ...] = (
    ("GET|HEAD|POST", r"/login", "nobody"),
    ("GET|HEAD", r"/v1/internal/(model/(list|info)|lora/list|health)", "somebody"),
    ("GET|HEAD|POST", r"/v1/internal/token/(info|encode|decode|count)", "somebody"),
    ("POST", r"/v1/internal/(encode|decode|token-count|chat-prompt|logits|plan|stop-generation)", "somebody"),
    ("[A-Z]+", r"/v1/internal(/.*)?", "admin"),
    ("[A-Z]+", r"/metrics(/.*)?", "admin"),
    ("[A-Z]+", r"/.*|", "somebody"),
)
_COMPILED = [(re.compile(methods), re.compile(path, re.DOTALL), need) for methods, path, need in _RULES]


def need_of(method: str, path: str) -> Need:
    """What a request needs."""
    for methods, pattern, need in _COMPILED:
        if methods.fullmatch(method) and pattern.fullmatch(path):
            return need
    return "admin"


def check_right(person: Person, method: str, path: str) -> None:
    """Raise Forbidden where `person` may not call this route."""
    if need_of(method, path) == "admin" and not person.admin:
        raise Forbidden(
            "This route is for administrators, and this key or person is none.",
            remedy="Use the administrator's secret, or a key with that right: server.py users new-key --admin.",
        )
