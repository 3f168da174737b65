"""Guesses of what a reply goes on with, for the model to check several tokens in one forward pass.

`Lookup` guesses that what followed the last tokens earlier in the conversation follows again. How many tokens are
worth a guess follows from how often such guesses came true in this reply, which is counted whether or not they were
checked: text that does not repeat costs dictionary look-ups and no arithmetic. Only values; who checks is the loops'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

MOST_DRAFTED = 15
# What a pass that checks drafted tokens costs beside one that reads a single token, as a share of that: a part of its
# own and one for each drafted token. Measured on CPUs (docs/log.md): 0.02 to 0.06 for one, 0.25 to 0.3 for seven, 0.55
# to 0.7 for fifteen. Taken high: a guess that fails must not cost more than was thought. Fixed numbers and no clock:
# the same request drafts the same.
CHECK_COST = 0.08
TOKEN_COST = 0.05

# The latest place is looked up by this many tokens, by more first.
_GRAMS = (3, 2)
# Up to how many matching tokens make one class of guesses, and how often such guesses come true until it is known.
_CLASSES = ((2, 0.25), (3, 0.4), (5, 0.55), (9, 0.7), (17, 0.8), (1 << 30, 0.9))
# The start values count as this many guesses, and the latest guesses count most: older ones fade by this factor.
_PRIOR = 4.0
_FADING = 0.95


class Drafter(Protocol):
    """Guesses for one reply."""

    def draft(self, reply_ids: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow the prompt and all of `reply_ids`; [] where none is worth checking."""


class Odds:
    """How often guesses of each class came true, the latest counting most."""

    def __init__(self, starts: Sequence[float]) -> None:
        """`starts`: what is thought of each class at first."""
        self._counted = [_PRIOR] * len(starts)
        self._true = [_PRIOR * start for start in starts]

    def count(self, index: int, *, came_true: bool) -> None:
        """A guess of class `index` came true, or did not."""
        self._counted[index] = self._counted[index] * _FADING + 1
        self._true[index] = self._true[index] * _FADING + came_true

    def of(self, index: int) -> float:
        """The chance of a guess of class `index`."""
        return self._true[index] / self._counted[index]


class Lookup:
    """Prompt lookup: the latest place where the last two or three tokens stood, and what followed there."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids = list(prompt_ids)
        self._learned = 0  # of the reply
        self._odds = Odds([start for _, start in _CLASSES])
        # n tokens → where the next one stood, the latest.
        self._after = {n: _places(self._ids, n) for n in _GRAMS}
        self._place = -1  # where the next token is guessed to stand; -1: no guess
        self._matching = 0  # so many tokens before it are the last ones
        self._look_up()

    def draft(self, reply_ids: Sequence[int], most: int) -> list[int]:
        """See Drafter."""
        for token in reply_ids[self._learned :]:
            self._learn(token)
        self._learned = len(reply_ids)
        if self._place < 0:
            return []
        chances = (self._odds.of(_class_of(self._matching + n)) for n in range(most))
        return self._read(best_length(chances, TOKEN_COST))

    def _learn(self, token: int) -> None:
        if self._place >= 0:
            came_true = self._ids[self._place] == token
            self._odds.count(_class_of(self._matching), came_true=came_true)
            self._place, self._matching = (self._place + 1, self._matching + 1) if came_true else (-1, 0)
        self._ids.append(token)
        end = len(self._ids)
        for n, after in self._after.items():
            if end > n:
                after[tuple(self._ids[end - n - 1 : -1])] = end - 1
        if self._place < 0:
            self._look_up()

    def _look_up(self) -> None:
        """Find the place of what follows the last tokens, and how many tokens match before it."""
        ids = self._ids
        for n, after in self._after.items():
            place = after.get(tuple(ids[-n:]), -1) if len(ids) >= n else -1
            if place >= 0:
                most = min(place, _CLASSES[-2][0] + 1)
                while n < most and ids[place - n - 1] == ids[-n - 1]:
                    n += 1
                self._place, self._matching = place, n
                return

    def _read(self, count: int) -> list[int]:
        """`count` tokens from the place on; what runs over the end goes on with itself."""
        found = self._ids[self._place : self._place + count]
        period = len(self._ids) - self._place
        return [found[n % period] for n in range(count)]


def _places(ids: Sequence[int], n: int) -> dict[tuple[int, ...], int]:
    """Every n tokens of `ids` that another follows → where the latest such one stands."""
    grams = zip(*(ids[start:] for start in range(n)), strict=False)
    return dict(zip(grams, range(n, len(ids)), strict=False))


def best_length(chances: Iterable[float], token_cost: float, *, check_cost: float = CHECK_COST) -> int:
    """How many tokens to draft so that most tokens come out for the time; 0 where none pays.

    `chances`: of each next token, given that those before it came true. `token_cost`: of drafting and checking one, as
    a share of a pass that reads a single token.
    """
    best, length = 1.0, 0
    expected, all_true = 1.0, 1.0
    for count, chance in enumerate(chances, 1):
        all_true *= chance
        expected += all_true
        rate = expected / (1 + check_cost + count * token_cost)
        if rate > best:
            best, length = rate, count
    return length


def _class_of(matching: int) -> int:
    return next(index for index, (most, _) in enumerate(_CLASSES) if matching <= most)
