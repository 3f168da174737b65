"""A text in which some stretches are known token by token, and what a change does to it. Values only.

Positions are in characters. Tokens lie in runs: what the model wrote in one go.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

Alternative = tuple[int, str, float]
"""A token's id (-1: not known), its text by itself, its natural-log probability."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a run. `adds` is its part of the text, `text` what it is by itself; an id of -1 is not known.

    `logprob` is None where nobody told it.
    """

    id: int
    adds: str
    text: str = ""
    logprob: float | None = None
    top: tuple[Alternative, ...] = ()


Tokens = tuple[Token, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """What the model wrote in one go, by the model of that name and vocabulary.

    It was `inserted` before a text that stayed behind it, which the model knew if it `filled` the gap. The first
    `chosen` tokens are a person's choice.
    """

    tokens: Tokens
    model: str
    vocab_size: int
    inserted: bool = False
    filled: bool = False
    chosen: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """`length` characters from `start` on are the tokens from `first` to before `last` of a run."""

    start: int
    length: int
    run: int
    first: int
    last: int

    @property
    def end(self) -> int:
        """Where it ends."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Splice:
    """At a position `removed` gives way to `added`."""

    at: int
    removed: str
    added: str

    def apply(self, text: str) -> str:
        """The text after it."""
        return text[: self.at] + self.added + text[self.at + len(self.removed) :]

    def take_back(self, text: str, *, added: str | None = None) -> str:
        """The text before it; `added` where it has not added all of it yet."""
        length = len(self.added if added is None else added)
        return text[: self.at] + self.removed + text[self.at + length :]


def splice_between(old: str, new: str) -> Splice:
    """The smallest single change that makes `new` of `old`."""
    shorter = min(len(old), len(new))
    head = _longest(shorter, lambda n: old[:n] == new[:n])
    tail = _longest(shorter - head, lambda n: old[len(old) - n :] == new[len(new) - n :])
    return Splice(head, old[head : len(old) - tail], new[head : len(new) - tail])


def _longest(most: int, holds: Callable[[int], bool]) -> int:
    """The largest n up to `most` for which `holds`, which holds for all smaller ones too."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def moved(spans: Sequence[Span], splice: Splice, tokens_of: Mapping[int, Tokens]) -> tuple[Span, ...]:
    """The spans after a change: tokens that it touches are text again, the others stay."""
    return tuple(part for span in spans for part in _moved(span, splice, tokens_of))


def _moved(span: Span, splice: Splice, tokens_of: Mapping[int, Tokens]) -> Iterator[Span]:
    end, shift = splice.at + len(splice.removed), len(splice.added) - len(splice.removed)
    if span.end <= splice.at:
        yield span
    elif span.start >= end:
        yield Span(span.start + shift, span.length, span.run, span.first, span.last)
    else:
        ends = ends_of(tokens_of[span.run][span.first : span.last], span.start)
        starts = [span.start, *ends[:-1]]
        # A token without text belongs to what follows: it may be the first half of a character.
        left = sum(1 for start, stop in zip(starts, ends, strict=True) if stop <= splice.at and start < splice.at)
        right = sum(1 for start in starts if start >= end)
        if left:
            yield Span(span.start, ends[left - 1] - span.start, span.run, span.first, span.first + left)
        if right:
            start = starts[-right]
            yield Span(start + shift, span.end - start, span.run, span.last - right, span.last)


def ends_of(tokens: Sequence[Token], start: int = 0) -> list[int]:
    """Where each token ends, the first of them beginning at `start`."""
    return list(accumulate((len(token.adds) for token in tokens), initial=start))[1:]


def pack_tokens(tokens: Sequence[Token]) -> bytes:
    """Tokens as the store keeps them."""
    rows = [
        [
            token.id,
            token.adds,
            token.text,
            _rounded(token.logprob),
            [[i, text, _rounded(p)] for i, text, p in token.top],
        ]
        for token in tokens
    ]
    return zlib.compress(json.dumps(rows, separators=(",", ":")).encode(), 6)


def unpack_tokens(packed: bytes) -> Tokens:
    """What `pack_tokens` was given, probabilities to four places."""
    rows = json.loads(zlib.decompress(packed))
    return tuple(
        Token(ident, adds, text, logprob, tuple((i, alone, p) for i, alone, p in top))
        for ident, adds, text, logprob, top in rows
    )


def _rounded(logprob: float | None) -> float | None:
    """JSON knows no infinity."""
    return None if logprob is None else round(max(logprob, -9999.0), 4)


def pack_spans(spans: Sequence[Span]) -> str:
    """Spans as the store keeps them."""
    return json.dumps([[span.start, span.length, span.run, span.first, span.last] for span in spans])


def unpack_spans(packed: str) -> tuple[Span, ...]:
    """What `pack_spans` was given."""
    return tuple(Span(*row) for row in json.loads(packed))
