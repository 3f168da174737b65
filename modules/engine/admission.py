"""Who is next: a fair queue, one turn a user, so that nobody's ten requests hold up another's one.

Pure bookkeeping: no threads, no clocks, no model. The loops ask it what to run and tell the waiting where they stand.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

from modules.errors import QueueFull

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Waiting items, served one user after the other; each user's own items stay in the order they came."""

    def __init__(self, limit: int) -> None:
        """At most `limit` items wait, and of users who come to a full line their share of as many."""
        self._limit = limit
        self._users: OrderedDict[str, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(items) for items in self._users.values())

    def push(self, user: str, item: Item) -> None:
        """Put `item` at the end of its user's line. Raises QueueFull at the limit, for who has their share already: to
        fill the line is to fill it for oneself.
        """
        own, others = len(self._users.get(user, ())), len(self._users.keys() - {user})
        if len(self) >= self._limit and own >= self._limit // (others + 1):
            raise QueueFull(
                f"{self._limit} requests are waiting already.", remedy="Try again when some of them are done."
            )
        self._users.setdefault(user, deque()).append(item)

    def peek(self) -> Item | None:
        """The item that is next, None where nobody waits."""
        return next(iter(self._users.values()))[0] if self._users else None

    def heads(self) -> list[Item]:
        """The first item of each user, the one that is next first."""
        return [items[0] for items in self._users.values()]

    def put_first(self, user: str) -> None:
        """Let `user`, who waits, go before all others."""
        self._users.move_to_end(user, last=False)

    def put_back(self, user: str, item: Item, came: Callable[[Item], float]) -> None:
        """Put an `item` that had its turn where it stood among its user's, and the user behind all others. `came` is
        when an item came, in any unit.
        """
        own = self._users.setdefault(user, deque())
        own.insert(sum(came(other) < came(item) for other in own), item)
        self._users.move_to_end(user)

    def pop(self) -> Item | None:
        """Take the next item; its user's further items wait until every other user had a turn."""
        if not self._users:
            return None
        user, items = next(iter(self._users.items()))
        item = items.popleft()
        if items:
            self._users.move_to_end(user)
        else:
            del self._users[user]
        return item

    def remove(self, item: Item) -> None:
        """Take `item` out of the line, if it is there."""
        for user, items in list(self._users.items()):
            if item in items:
                items.remove(item)
                if not items:
                    del self._users[user]

    def order(self) -> list[Item]:
        """All items in the order in which they would be served if no more came: index 0 is next."""
        lines = [list(items) for items in self._users.values()]
        rounds = max(map(len, lines), default=0)
        return [line[turn] for turn in range(rounds) for line in lines if turn < len(line)]
