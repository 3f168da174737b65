"""What every reply tells, whatever makes its tokens: its place in the queue, its progress, its text, its times, and
its one end.

Not here: choosing tokens (reply.py), llama.cpp (llamacpp.py). Only `cancel` may come from another thread.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from modules.engine.base import (
    Degraded,
    Delta,
    Emit,
    Event,
    Finished,
    FinishReason,
    GenerationRequest,
    Prefill,
    Queued,
    Timings,
    TokenLogprob,
    Usage,
)
from modules.errors import SnugError

log = logging.getLogger(__name__)


class ShownText(Protocol):
    """The text of a reply as it may be shown: what is left of it, and whether a stop string ended it."""

    @property
    def finished(self) -> bool:
        """True once a stop string was found."""

    @property
    def stopped_by(self) -> str:
        """That stop string, "" before that."""

    def flush(self) -> str:
        """What is left at the end of the reply; may turn `finished` True."""


def with_text(told: Sequence[TokenLogprob], text: str) -> list[TokenLogprob]:
    """Tokens that came together with the `text` that they added: each with its own, or all of it with the last."""
    if "".join(one.text for one in told) == text:
        return [replace(one, adds=one.text) for one in told]
    return [replace(one, adds=text if one is told[-1] else "") for one in told]


def spelt(entries: Sequence[Mapping[str, Any]]) -> tuple[bytes, ...]:
    """The bytes of tokens as another server tells them; none where their texts say the same, or one has none."""
    told = [entry.get("bytes") for entry in entries]
    if not all(isinstance(one, list) and all(type(byte) is int and 0 <= byte < 256 for byte in one) for one in told):
        return ()
    bytes_of = tuple(bytes(one or ()) for one in told)
    return () if bytes_of == tuple(str(entry["token"]).encode() for entry in entries) else bytes_of


class Telling:
    """The outward side of one request, from `submit` to its Finished."""

    def __init__(self, request: GenerationRequest, emit: Emit, text: ShownText, *, held: int, longest: int) -> None:
        """`held`: tokens that its sequence begins with; `longest`: tokens that one sequence may have."""
        self.request = request
        self.tokens: list[int] = list(request.reply_ids)
        self.cancelled = False
        self.finished = False
        self.cached_tokens = 0
        self.drafted_tokens = self.accepted_tokens = 0
        self.limit = min(request.params.max_new_tokens, longest - held)
        self._emit = emit
        self._ending = text
        self._position: int | None = None
        self._pending_ids: list[int] = []
        self._pending_logprobs: list[TokenLogprob] = []
        self._held_text = ""
        self._gather_s = 0.0
        self._shown_at = 0.0
        self._made = 0
        self._submitted = self._waits_since = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None

    @property
    def new_tokens(self) -> int:
        """Tokens made so far, end token and `reply_ids` not counted."""
        return len(self.tokens) - len(self.request.reply_ids)

    @property
    def came_at(self) -> float:
        """When it was sent, by time.perf_counter."""
        return self._submitted

    @property
    def left_s(self) -> float:
        """How much longer it waits for its turn to begin."""
        if not self.request.queue_s or self.begun:
            return math.inf
        return self.request.queue_s - (time.perf_counter() - self._submitted)

    @property
    def waiting_s(self) -> float:
        """How long ago it was sent, or gave way."""
        return time.perf_counter() - self._waits_since

    @property
    def begun(self) -> bool:
        """Whether its turn has come."""
        return self._started is not None

    @property
    def ids(self) -> list[int]:
        """Prompt and reply so far."""
        return [*self.request.prompt_ids, *self.tokens]

    def cancel(self) -> None:
        """End it at the next step."""
        self.cancelled = True

    def wait_at(self, position: int) -> None:
        """Tell the user the place in the queue, if it changed."""
        if position != self._position:
            self._position = position
            self._send(Queued(position))

    def gather(self, seconds: float) -> None:
        """From now on tell text that comes sooner than so long after the last one together with what follows it.

        Each telling costs a millisecond on its way to the reader, on the cores that compute the next token.
        """
        self._gather_s = seconds

    def step_aside(self) -> None:
        """Others have their turn: tell what text there is."""
        self._waits_since = time.perf_counter()
        self._show("", at_end=True)
        self._position = None

    def begin(self) -> None:
        """Its turn has come."""
        self._started = time.perf_counter()

    def prefilled(self, done: int, total: int) -> None:
        """`done` of `total` prompt tokens are read."""
        self._send(Prefill(done, total, min(self.cached_tokens, self.request.held_tokens)))

    def degraded(self, what: str, why: str, extension: str = "") -> None:
        """Tell the user that the engine had to give something up."""
        self._send(Degraded(what, why, extension))

    def finish(self, reason: FinishReason, error: SnugError | None = None) -> None:
        """Send what is left and the one Finished. A second call does nothing."""
        if self.finished:
            return
        self.finished = True
        now = time.perf_counter()
        self._show(self._ending.flush(), at_end=True)
        if reason == "length" and self._ending.finished:
            reason = "stop"
        stopped_by = self._ending.stopped_by if reason == "stop" else ""
        self._send(Finished(reason, self._usage(), self._timings(now), error, stopped_by))

    def _count(self, made: int) -> None:
        """`made` tokens are there now, the end token included."""
        self._made = made
        if self._first is None:
            self._first = time.perf_counter()

    def _send(self, event: Event) -> None:
        """A listener that fails ends its own request, not the loop."""
        try:
            self._emit(event)
        except Exception:
            log.exception("request %s: an event could not be delivered", self.request.id)
            self.cancelled = True

    def _show(self, text: str, *, at_end: bool = False, more: bool = False) -> None:
        """Tell `text`; with what comes next where `more` is there already."""
        self._held_text += text
        if more:
            return
        if self._gather_s and not at_end:
            now = time.perf_counter()
            if now - self._shown_at < self._gather_s:
                return
            self._shown_at = now
        if self._held_text or (at_end and (self._pending_ids or self._pending_logprobs)):
            self._send(Delta(self._held_text, tuple(self._pending_ids), tuple(self._pending_logprobs)))
            self._held_text = ""
            self._pending_ids.clear()
            self._pending_logprobs.clear()

    def _usage(self) -> Usage:
        held = self.request.held_tokens
        return Usage(held, min(self.cached_tokens, held), self.new_tokens)

    def _timings(self, now: float) -> Timings:
        started = now if self._started is None else self._started
        first = now if self._first is None else self._first
        return Timings(
            queue_s=started - self._submitted,
            prefill_s=first - started,
            first_token_s=first - self._submitted,
            decode_s=now - first,
            decoded_tokens=self._made,
            drafted_tokens=self.drafted_tokens,
            accepted_tokens=self.accepted_tokens,
        )
