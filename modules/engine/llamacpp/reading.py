"""Whose prompts are being read, and how long the next one of theirs waits, so that others' replies go on meanwhile.

llama.cpp writes one token of every reply for each piece of the prompts that it reads: 2 s on a CPU. Whoever sends one
long prompt after the other would leave everybody else a token in that time, for as long as they go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

MOST_PAUSE_S = 10.0
# After a prompt that its sender gives up: llama.cpp still reads the piece that it has begun, unseen.
GIVEN_UP_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True)
class _Prompt:
    whose: str
    tokens: int
    began: float


class Reading:
    """The prompts of one server. Not safe from several threads by itself."""

    def __init__(self, together: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`together`: tokens of one person's prompts that are read at once; a longer one is read alone of theirs."""
        self._together = together
        self._clock = clock
        self._prompts: dict[str, _Prompt] = {}
        self._paused: dict[str, float] = {}  # until when, by person

    def begin(self, request_id: str, whose: str, tokens: int) -> None:
        """A prompt of so many tokens is read from now on."""
        self._prompts[request_id] = _Prompt(whose, tokens, self._clock())

    def end(self, request_id: str, *, given_up: bool = False) -> bool:
        """It is read, or given up: whether it was not before."""
        prompt = self._prompts.pop(request_id, None)
        if prompt is None:
            return False
        now = self._clock()
        self._paused = {whose: until for whose, until in self._paused.items() if until > now}
        pause_s = min(max(now - prompt.began, GIVEN_UP_PAUSE_S if given_up else 0), MOST_PAUSE_S)
        self._paused[prompt.whose] = max(self._paused.get(prompt.whose, 0), now + pause_s)
        return True

    def wait_s(self, whose: str, tokens: int, *, beside_others: bool) -> float:
        """How long a prompt of so many tokens waits, in seconds; without end until another one of theirs is read.

        As long as their last one took, at most MOST_PAUSE_S, where others' replies are being written.
        """
        read = [prompt.tokens for prompt in self._prompts.values() if prompt.whose == whose]
        if read and sum(read) + tokens > self._together:
            return math.inf
        return max(self._paused.get(whose, 0) - self._clock(), 0) if beside_others else 0
