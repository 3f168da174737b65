"""Passwords: what one must be, and argon2id of it. A guess costs the same whether the name exists or not."""

from __future__ import annotations

import threading
import unicodedata
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from modules.errors import BadValue

MIN_CHARACTERS = 8
MAX_CHARACTERS = 1000
AT_ONCE = 2  # each takes 64 MiB and a core for a moment
_places = threading.BoundedSemaphore(AT_ONCE)
_hasher = PasswordHasher()  # RFC 9106's second choice: 3 passes over 64 MiB


def check_new(password: str, name: str) -> None:
    """Raise BadValue for a password that nobody should have."""
    problem = ""
    if len(password) < MIN_CHARACTERS:
        problem = f"has fewer than {MIN_CHARACTERS} characters"
    elif len(password) > MAX_CHARACTERS:
        problem = f"has more than {MAX_CHARACTERS} characters"
    elif len(set(password)) < 4:
        problem = "repeats very few characters"
    elif password.casefold() == name.casefold():
        problem = "is the name"
    if problem:
        raise BadValue(f"The password {problem}.", remedy="Take a few words that nobody guesses.", param="password")


def hashed(password: str) -> str:
    """What is kept of a password."""
    with _places:
        return _hasher.hash(_bytes(password))


def matches(password: str, kept: str | None) -> bool:
    """Whether `password` is the one of which `kept` was made; for None it takes as long, and is not."""
    try:
        with _places:
            _hasher.verify(_nobodys() if kept is None else kept, _bytes(password))
    except (VerificationError, InvalidHashError):
        return False
    return kept is not None


@cache
def _nobodys() -> str:
    return _hasher.hash("nobody")


def _bytes(password: str) -> bytes:
    """The same password typed on another keyboard is the same bytes; halves of characters are none's."""
    return unicodedata.normalize("NFKC", password[: MAX_CHARACTERS + 1]).encode("utf-8", "replace")
