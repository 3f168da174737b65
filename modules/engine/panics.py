"""What a library's Rust panics about, as an error of Snug's: pyo3 raises it past every `except Exception`.

A tokenizer's regular expressions come with the model; over some texts they give up, and with them would the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modules.errors import BadValue

_PANIC = "PanicException"  # each library has its own, by the same name


@contextmanager
def no_panics() -> Iterator[None]:
    """Raises BadValue where a panic would pass."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise BadValue(
            "The model's tokenizer gives up over this text.",
            remedy="Shorten it, or leave out long runs of one character. If short texts fail too, use another model.",
        ) from error
