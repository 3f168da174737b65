"""The languages that this program speaks, and the one that a request is to be answered in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from modules.texts.catalogue import Catalogue, Texts
from modules.texts.negotiating import choose_language

CATALOGUE = Catalogue()


def texts_of(headers: Mapping[str, str]) -> Texts:
    """The language of a request with these headers."""
    return _texts(headers.get("cookie", ""), headers.get("accept-language", ""))


@lru_cache(maxsize=256)
def _texts(cookie: str, accepted: str) -> Texts:
    return CATALOGUE.texts(choose_language({"cookie": cookie, "accept-language": accepted}, CATALOGUE.codes))
