"""What people's forms cost llama.cpp beside others' replies: in whose name the matcher follows hundreds of ways."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# Tokens tried on ways, of which llama.cpp does some 100 millions a second: what each token of a form's reply may cost
# beside others' replies, what a person's forms may cost beyond that at once, and what is made up for in each second.
EACH_TRIES = 10_000_000
MORE_TRIES = 500_000_000
TRIES_A_SECOND = 5_000_000


class FormCosts:
    """What people's forms cost llama.cpp, and with it everybody: it writes all replies' tokens in one thread.

    Safe from any thread.
    """

    def __init__(self, vocab_size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._vocab_size = vocab_size
        self._clock = clock
        self._spent: dict[str, tuple[float, float]] = {}  # tries that have not been made up for, and when
        self._lock = threading.Lock()

    def add(self, whose: str, ways: int, tokens: float) -> None:
        """For so many tokens, or parts of one, a form of that person's was followed in so many ways."""
        now = self._clock()
        with self._lock:
            self._spent = {one: last for one, last in self._spent.items() if _left(last, now)}
            before = _left(self._spent.get(whose, (0, now)), now)
            self._spent[whose] = max(0, before + ways * self._vocab_size - tokens * EACH_TRIES), now

    def is_too_much(self, whose: str) -> bool:
        """Whether that person's forms have cost more than others are to wait for."""
        now = self._clock()
        with self._lock:
            return _left(self._spent.get(whose, (0, now)), now) > MORE_TRIES


def _left(spent: tuple[float, float], now: float) -> float:
    tries, when = spent
    return max(0, tries - (now - when) * TRIES_A_SECOND)
