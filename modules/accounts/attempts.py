"""Wrong secrets, counted: who guesses too often waits, and who then knows the secret gets in.

In memory alone; a restart forgets. Which secrets are right is not known here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from modules.errors import TooManyAttempts

WRONG_TRIES = 10
LOCKED_S = 60.0
_MAX_REMEMBERED = 4096


def place_of(address: str) -> str:
    """Where a client sits, as far as an attacker cannot change it at will: of IPv6 the network of 64 bits."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        mapped = found.ipv4_mapped
        return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


class Attempts:
    """Who (an address, a name) has tried what.

    After WRONG_TRIES different wrong secrets one waits LOCKED_S seconds. The same wrong one again teaches nobody
    anything, and is what a tab from before a restart keeps sending: it counts once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._turn = threading.Lock()
        self._wrong: OrderedDict[str, dict[bytes, str]] = OrderedDict()  # of each: a try's hash → at whom it was
        self._locked_until: OrderedDict[str, float] = OrderedDict()

    def check(self, who: Iterable[str], what: str = "Too many wrong secrets came from your address.") -> None:
        """Raise TooManyAttempts if any of `who` has to wait."""
        with self._turn:
            wait_s = max((self._locked_until.get(one, 0.0) for one in who), default=0.0) - self._clock()
        if wait_s > 0:
            raise TooManyAttempts(what, remedy=f"Wait {wait_s:.0f} s.")

    def knows(self, who: str, secret: bytes) -> bool:
        """Whether this secret of theirs was counted as a wrong one of late."""
        with self._turn:
            return hashlib.sha256(secret).digest() in self._wrong.get(who, {})

    def wrong(self, who: Iterable[str], secrets: Sequence[bytes], *, at: str = "") -> None:
        """Count wrong secrets, tried `at` a name where there are names."""
        with self._turn:
            for one in who:
                tries = self._wrong.setdefault(one, {})
                tries.update((hashlib.sha256(secret).digest(), at) for secret in secrets)
                self._wrong.move_to_end(one)
                if len(tries) >= WRONG_TRIES:
                    del self._wrong[one]
                    self._locked_until[one] = self._clock() + LOCKED_S
            for remembered in (self._wrong, self._locked_until):
                while len(remembered) > _MAX_REMEMBERED:
                    remembered.popitem(last=False)

    def right(self, who: Iterable[str], *, at: str = "") -> None:
        """Forget the wrong ones of who then knew it, but those at other names: nobody's guesses at others are undone
        by a password of their own.
        """
        with self._turn:
            for one in who:
                left = {tried: name for tried, name in self._wrong.pop(one, {}).items() if name != at}
                if left:
                    self._wrong[one] = left
