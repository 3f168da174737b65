"""What a server says when it does not do what it is asked → the SnugError that names it. Pure.

Its own words are kept, cut to a length; a key in them is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from modules.errors import (
    BadValue,
    ContextLengthExceeded,
    GenerationFailed,
    ModelNotFound,
    QueueFull,
    ServerRefused,
    SnugError,
)

MAX_WORDS = 300
_TOO_LONG = re.compile(
    r"context[ _](length|size|window)|maximum model length|max_model_len|too many tokens|exceed_context|"
    r"prompt is too long"
)
_UNKNOWN_MODEL = re.compile(r"model.*(not found|does not exist|not exist|is not loaded|unknown)|server is pinned to")
_BUSY = (429, 503)
_BAD_KEY = (401, 403)


def complaint(where: str, status: int, body: str, headers: Mapping[str, str], *, key: str) -> SnugError:
    """Why the server at `where` (host:port) answered with `status`, an error or a redirect."""
    words = words_of(body, key)
    said = f": {words}" if words else "."
    plain = words.lower()
    if 300 <= status < 400:
        target = headers.get("location", "").split("?")[0][:MAX_WORDS]
        return ServerRefused(
            f"The server at {where} sends Snug elsewhere ({target}), and Snug does not follow.",
            remedy="If you trust that address, give it as --engine-url.",
        )
    if status in _BAD_KEY:
        problem = "does not accept the key" if key else "asks for a key"
        return ServerRefused(f"The server at {where} {problem}{said}", remedy="Give it with --engine-key-file FILE.")
    if _UNKNOWN_MODEL.search(plain):
        return ModelNotFound(
            f"The server at {where} does not have this model{said}",
            remedy="Name one that it has with --engine-model, or load the model again on the Model tab.",
            param="model",
        )
    return complaint_of_words(where, words, status=status, headers=headers)


def complaint_of_words(
    where: str, words: str, *, status: int = 500, headers: Mapping[str, str] | None = None
) -> SnugError:
    """The same by its words alone, as an error in the midst of a reply comes."""
    said = f": {words}" if words else "."
    if status == 413 or (status not in _BUSY and _TOO_LONG.search(words.lower())):
        return ContextLengthExceeded(
            f"The text is too long for the model at {where}{said}",
            remedy="Shorten it, ask for a shorter reply, or start that server with a longer context.",
            param="messages",
        )
    if status in _BUSY:
        after = (headers or {}).get("retry-after", "")
        when = f"in {after} s" if after.isdecimal() else "in a moment"
        return QueueFull(f"The server at {where} is busy{said}", remedy=f"Try again {when}.")
    if status in (404, 405):
        return ServerRefused(
            f"The server at {where} has no such route ({status}){said}",
            remedy="Check --engine-url: it ends where the routes of OpenAI's API begin, mostly with /v1.",
        )
    if 400 <= status < 500:
        return BadValue(f"The server at {where} refuses the request{said}", remedy="Change what it names.")
    return GenerationFailed(f"The server at {where} failed{said}", remedy="Try again; its own log says more.")


def words_of(body: str, key: str) -> str:
    """What an error's body says in words, without the key, in one line."""
    try:
        found = error_words(json.loads(body))
    except ValueError:
        found = "" if "<" in body[:200] else body  # a page of a proxy says nothing to people
    return tidy(found, key)


def tidy(words: str, key: str) -> str:
    """In one line, cut to a length, without the key."""
    line = " ".join(words.split())
    return (line.replace(key, "…") if key else line)[:MAX_WORDS]


def error_words(answer: Any) -> str:
    """The message in a JSON error of whatever shape: OpenAI's, FastAPI's, a bare string."""
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list):
        return "; ".join(filter(None, map(error_words, answer[:3])))
    if isinstance(answer, dict):
        for name in ("error", "message", "detail", "msg"):
            if answer.get(name):
                return error_words(answer[name])
    return ""
