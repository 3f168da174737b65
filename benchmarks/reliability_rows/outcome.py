"""What one measurement of reliability gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """A goal and what was measured of it. `passed` None: not measured here, and `measured` says why.

    `whole` False: with smaller counts than were asked for.
    """

    asked: str
    measured: str
    passed: bool | None
    whole: bool = True
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """In a word or three."""
        if self.passed is None:
            return "not measured"
        return ("pass" if self.passed else "FAIL") + ("" if self.whole else ", fewer than asked")


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured: few minutes for every day, or the whole counts; the soak has minutes of its own."""

    quick: bool
    soak_min: float

    def of(self, whole: int, quick: int) -> int:
        """A count."""
        return quick if self.quick else whole


Measure = Callable[[Scale], Outcome]
