"""Who holds how much of the KV memory, who gives way where it runs short, and whose turn is over.

A row is promised a little more than it holds, and more as it grows: what a reply may come to hold (`max_tokens`) it
seldom does. Where everything is promised the newest row of who holds most gives way, and goes on later from its tokens.
Pure bookkeeping: no model, no threads.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from modules.engine.telling import Telling

# Tokens that a row is promised beyond what it holds.
AHEAD_TOKENS = 256
# For so long a reply goes on whoever waits; where its text took long to read, for so many times as long, since it may
# have to be read again later.
LEAST_TURN_S = 10.0
READINGS_A_TURN = 2
# So long others may pass somebody for whom there is no room.
PATIENCE_S = 10.0

Taken = TypeVar("Taken", bound=Telling)


def turn_s(reading_s: float) -> float:
    """How long a reply goes on whose text took so long to read, in seconds."""
    return max(LEAST_TURN_S, READINGS_A_TURN * reading_s)


@dataclass(slots=True)
class _Share:
    user: str
    most: int
    promised: int
    began: float
    stays: bool
    turn_ends: float | None = None  # once its text is read
    leaves: bool = False

    @property
    def movable(self) -> bool:
        """Whether it can be asked to give way."""
        return not (self.stays or self.leaves)


class Shares:
    """The rows of one model. Units of KV memory are the caller's, amounts of text are tokens, times seconds."""

    def __init__(self, units: Callable[[int], int], clock: Callable[[], float] = time.monotonic) -> None:
        """`units(tokens)`: what a row of so many tokens takes."""
        self._units = units
        self._clock = clock
        self._shares: dict[str, _Share] = {}  # the newest last

    @property
    def reserved(self) -> int:
        """Units that all rows are promised."""
        return sum(self._taken().values())

    @property
    def lasting(self) -> int:
        """Units that the rows are promised which have not been asked to give way."""
        return sum(self._staying().values())

    def __len__(self) -> int:
        return len(self._shares)

    def needs(self, held: int, most: int, *, stays: bool = False) -> int:
        """Units that a new row is promised which begins with `held` tokens and may come to hold `most`.

        One that `stays`, since it could not go on later, is promised all of them.
        """
        return self._units(_promise(held, most, stays))

    def __contains__(self, row_id: str) -> bool:
        return row_id in self._shares

    def has_rows(self, user: str) -> bool:
        """Whether a row of `user` runs."""
        return any(share.user == user for share in self._shares.values())

    def put(self, row_id: str, user: str, held: int, most: int, *, stays: bool = False) -> None:
        """A new row of `user`. See `needs`."""
        self._shares[row_id] = _Share(user, most, _promise(held, most, stays), self._clock(), stays)

    def remove(self, row_id: str) -> None:
        """The row is gone."""
        self._shares.pop(row_id, None)

    def clear(self) -> None:
        """All rows are gone."""
        self._shares.clear()

    def leave(self, row_id: str) -> None:
        """It is asked to give way; what it holds is free once it is removed."""
        self._shares[row_id].leaves = True

    def reads(self, row_id: str) -> bool:
        """Whether its text is still read."""
        return self._shares[row_id].turn_ends is None

    def writes(self, row_id: str) -> None:
        """Its text is read: its turn has begun."""
        share = self._shares[row_id]
        if share.turn_ends is None:
            now = self._clock()
            share.turn_ends = now + turn_s(now - share.began)

    def grow(self, row_id: str, needed: int) -> bool:
        """Promise the row at least `needed` tokens. Whether that is more than it was promised before."""
        share = self._shares[row_id]
        if min(needed, share.most) <= share.promised:
            return False
        share.promised = min(share.most, needed + AHEAD_TOKENS)
        return True

    def is_over(self, row_id: str) -> bool:
        """Whether its turn is, so that it gives way to who waits."""
        share = self._shares[row_id]
        return share.movable and share.turn_ends is not None and share.turn_ends <= self._clock()

    def gives_way(self) -> str:
        """The row that gives way to the others: the newest one of the user who is promised most."""
        row = _next_to_go(self._shares, self._taken(), self._movable())
        assert row is not None  # those that stay outgrow no promise
        return row

    def over(self, user: str, needed: int, capacity: int, most_rows: int) -> list[str]:
        """The rows that give way to one of `user` that needs so many units; none where that would not be room enough,
        or where `user` has a row already.

        Of the others only those whose turn is over, of who is promised most first. Rows that leave already count as
        gone.
        """
        if self.has_rows(user):
            return []
        left, going = self._staying(), list[str]()
        over = [row for row in self._shares if self.is_over(row)]
        while sum(left.values()) + needed > capacity or len(left) >= most_rows:
            row = _next_to_go(self._shares, left, over)
            if row is None:
                return []
            del left[row]
            over.remove(row)
            going.append(row)
        return going

    def _movable(self) -> list[str]:
        return [row for row, share in self._shares.items() if share.movable]

    def _staying(self) -> dict[str, int]:
        return {row: units for row, units in self._taken().items() if not self._shares[row].leaves}

    def _taken(self) -> dict[str, int]:
        return {row: self._units(share.promised) for row, share in self._shares.items()}


def _promise(held: int, most: int, stays: bool) -> int:
    return most if stays else min(most, held + AHEAD_TOKENS)


def _next_to_go(shares: Mapping[str, _Share], taken: Mapping[str, int], among: Collection[str]) -> str | None:
    """Of the rows `among`, the newest one of the user who has taken most; None where there are none."""
    totals = Counter[str]()
    for row, units in taken.items():
        totals[shares[row].user] += units
    order = list(shares)
    return max(among, key=lambda row: (totals[shares[row].user], order.index(row)), default=None)


def following(
    heads: Iterable[Taken],
    shares: Shares,
    has_room: Callable[[Taken], bool],
    way_for: Callable[[Taken], Sequence[str]],
) -> tuple[Taken, Sequence[str]] | None:
    """Who comes in now of the queue's `heads`, each user's first, and the rows that give way to them; None for nobody.

    Who does not fit lets others pass, but not for long if they have no row.
    """
    for one in heads:
        if has_room(one):
            return one, ()
        if shares.has_rows(one.request.user):
            continue
        if rows := way_for(one):
            return one, rows
        if one.waiting_s >= PATIENCE_S:
            return None
    return None
