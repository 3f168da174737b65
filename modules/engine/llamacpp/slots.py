"""Which of llama.cpp's slots holds whose text, so that what one person wrote shortens nobody else's prompt.

Left to itself llama.cpp gives a request the slot, or the idle conversation, whose text begins most alike; how much of
it was known it tells, and its time tells it too. So it chooses only while one person alone has asked. From the second
person on each request is sent to a slot by number, and where that slot was another's it begins anew. Idle conversations
that llama.cpp moves out of its cache are not found again then: it looks for them only when it chooses itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

ALIKE = 0.1  # the share of a prompt that a slot must hold for it to be worth taking: llama.cpp's own


@dataclass(slots=True)
class _Slot:
    whose: str | None = None
    ids: Sequence[int] = ()
    busy: bool = False
    used: int = 0

    def alike(self, ids: Sequence[int]) -> int:
        """How many tokens both begin with."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids, strict=False)))


@dataclass(slots=True)
class Place:
    """Where a request is to run: `fields` of its body. `held` is what its slot holds in the end, `slot` which it was,
    where llama.cpp chose."""

    fields: dict[str, Any]
    held: Sequence[int] = ()
    slot: int | None = None
    _chosen: _Slot | None = field(default=None, repr=False)


class Slots:
    """The slots of one server. Every method may be called from any thread."""

    def __init__(self, count: int) -> None:
        self._slots = [_Slot() for _ in range(count)]
        self._askers: set[str] = set()
        self._uses = 0
        self._strangers = 0  # requests under way that take a slot of llama.cpp's own choosing
        self._lock = threading.Lock()

    @contextmanager
    def place(self, whose: str, ids: Sequence[int]) -> Iterator[Place]:
        """A place for a prompt of `whose`, for as long as it takes; its `held` and `slot` are to be set before."""
        with self._lock:
            place = self._choose(whose, ids)
        try:
            yield place
        finally:
            with self._lock:
                self._leave(place, whose)

    @contextmanager
    def stranger(self, whose: str) -> Iterator[None]:
        """Something else of `whose` runs in one of the slots, nobody knows which: none counts as anybody's after it."""
        with self._lock:
            self._meet(whose)
            self._strangers += 1
            self._forget()
        try:
            yield
        finally:
            with self._lock:
                self._strangers -= 1
                self._forget()

    def _choose(self, whose: str, ids: Sequence[int]) -> Place:
        self._meet(whose)
        if len(self._askers) == 1:
            return Place({"cache_prompt": True})
        free = [slot for slot in self._slots if not slot.busy] or self._slots
        theirs = [slot for slot in free if slot.whose == whose]
        chosen = max(theirs, key=lambda slot: slot.alike(ids), default=None)
        if chosen is None or chosen.alike(ids) <= ALIKE * len(ids):
            chosen = min(free, key=lambda slot: slot.used)
        own = chosen.whose == whose and not self._strangers
        chosen.busy, chosen.whose, chosen.ids = True, None, ()  # until it is known to hold nothing of another's
        return Place({"id_slot": self._slots.index(chosen), "cache_prompt": own}, _chosen=chosen)

    def _meet(self, whose: str) -> None:
        if not self._askers:
            for slot in self._slots:
                slot.whose = whose
        self._askers.add(whose)

    def _leave(self, place: Place, whose: str) -> None:
        chosen = place._chosen
        if chosen is None:
            if len(self._askers) > 1 or place.slot is None or not 0 <= place.slot < len(self._slots):
                return
            chosen = self._slots[place.slot]
        self._uses += 1
        chosen.busy, chosen.used = False, self._uses
        # Where nothing came of it llama.cpp may never have begun, and what was there before may be there still.
        if place.slot is not None and not self._strangers:
            chosen.whose, chosen.ids = whose, place.held

    def _forget(self) -> None:
        for slot in self._slots:
            slot.whose, slot.ids = None, ()
