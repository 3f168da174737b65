"""Words of the page in the language of whoever asks for them: `t` for our own, `told` for those of other rooms.

The language is that of the request under way; where there is none, as while the page is built, it is English. Sizes,
durations and rates are written as that language writes figures.
"""

from __future__ import annotations

from gradio.context import LocalContext

from modules import units
from modules.texts.catalogue import Texts
from modules.texts.negotiating import ENGLISH
from modules.texts.spoken import CATALOGUE, texts_of


def t(text: str, /, **values: object) -> str:
    """`text`, a key of the catalogue, with `values` in the places of its {names}."""
    return texts().get(text, values)


def tn(one: str, many: str, count: int, /, **values: object) -> str:
    """The form for `count`, which is {count}."""
    return texts().plural(one, many, count, values)


def told(sentence: str) -> str:
    """A complete sentence of another room, an error's for instance."""
    return texts().tell(sentence)


def number(value: float, digits: int = 0) -> str:
    """With separators."""
    return texts().amount(f"{value:,.{digits}f}")


def format_size(size_bytes: int | float, *, up: bool = False) -> str:
    """As units.format_size."""
    return texts().amount(units.format_size(size_bytes, up=up))


def format_rate(rate: float) -> str:
    """As units.format_rate."""
    return texts().amount(units.format_rate(rate))


def format_duration(seconds: float) -> str:
    """As units.format_duration."""
    return texts().amount(units.format_duration(seconds))


def texts() -> Texts:
    """The language of the request under way."""
    request = LocalContext.request.get(None)
    headers = getattr(request, "headers", None)
    if headers is None:
        return CATALOGUE.texts(ENGLISH)
    return texts_of(headers)
