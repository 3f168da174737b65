"""How far two replies agree: equal tokens, or equal words where two models cut texts in different ways. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Unit = Literal["tokens", "words"]
_WORDS = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the first `common` units, as many as the shorter of two replies has, `equal` are the same at the same place.

    `first` is the number, from 0, of the first unit that differs: one that the other lacks counts as different where
    it has ended before. None: no difference so far.
    """

    unit: Unit
    equal: int
    common: int
    first: int | None

    @property
    def share(self) -> float:
        """Equal ones of the common length, 0 to 1; 1 where there is nothing to compare yet."""
        return self.equal / self.common if self.common else 1.0


def agreement(
    mine: Sequence[int] | str, others: Sequence[int] | str, *, mine_ended: bool, others_ended: bool
) -> Agreement:
    """Of two replies as token ids of one vocabulary, or as texts, whose words are compared.

    `ended`: that reply ended by itself, so nothing follows where it is the shorter one.
    """
    unit: Unit = "words" if isinstance(mine, str) or isinstance(others, str) else "tokens"
    one, two = _units(mine), _units(others)
    common = min(len(one), len(two))
    same = [a == b for a, b in zip(one, two, strict=False)]
    first = same.index(False) if False in same else None
    if first is None and ((len(one) < len(two) and mine_ended) or (len(two) < len(one) and others_ended)):
        first = common
    return Agreement(unit, sum(same), common, first)


def _units(reply: Sequence[int] | str) -> Sequence[int] | list[str]:
    return _WORDS.findall(reply) if isinstance(reply, str) else reply


def parting(mine: str, others: str) -> int | None:
    """Where in `mine` the word begins in which the texts part; None where one text begins with all of the other."""
    at = next(
        (n for n, pair in enumerate(zip(mine, others, strict=False)) if pair[0] != pair[1]), min(len(mine), len(others))
    )
    if at == len(mine) or at == len(others):
        return None
    while at and not mine[at - 1].isspace():
        at -= 1
    return at
