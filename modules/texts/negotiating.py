"""Which language a request is answered in: the one chosen on the page, else the first that its browser likes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http.cookies import CookieError, SimpleCookie

ENGLISH = "en"
COOKIE = "snug_language"
_MOST = 1000  # characters of a header that are looked at


def choose_language(headers: Mapping[str, str], known: Collection[str]) -> str:
    """One of `known`, or English; by the cookie first, then by Accept-Language."""
    wanted = chosen(headers)
    if wanted == ENGLISH or wanted in known:
        return wanted
    for wish in _wishes(headers.get("accept-language", "")):
        if found := next((name for name in (wish, wish.partition("-")[0]) if name == ENGLISH or name in known), ""):
            return found
    return ENGLISH


def chosen(headers: Mapping[str, str]) -> str:
    """The language that the cookie names, whether there is one or not; "" without."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")[: 8 * _MOST]).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _wishes(accepted: str) -> list[str]:
    """`de-AT,de;q=0.9,en;q=0.8` → de-AT, de, en: by weight, then in their order."""
    weighed = []
    for part in accepted[:_MOST].split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            quality = float(weight) if weight else 1.0
        except ValueError:
            quality = 0.0
        if name.strip() and quality > 0:
            weighed.append((quality, name.strip()))
    return [name for _, name in sorted(weighed, key=lambda pair: -pair[0])]
