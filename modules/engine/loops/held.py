"""Replies held to a form while transformers writes them: a JSON schema, a GBNF grammar, tool calls, by llguidance.

Each step the tokens that may follow are asked for, all others leave the scores. Forms are read and tried in a process
of their own before (form_reading.py); llguidance bounds by itself what a grammar may cost at each token. llama.cpp
holds its own.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import llguidance
import numpy as np
import torch
from numpy.typing import NDArray

from modules.engine.base import GenerationRequest
from modules.engine.form_reading import FormReader, form_of, too_dear
from modules.engine.loops.guidance import marks_in, matcher_of
from modules.engine.loops.loaded import LoadedModel
from modules.errors import GenerationFailed, NotAvailableHere

FORMS_KEPT = 8
# Seconds of the processor that finding what may follow may take: once, and more for each token. Honest forms take
# a thousandth of that; some hostile ones stay below the library's limits, and would keep every row waiting.
FIRST_S = 1.0
EACH_S = 0.02


class Held:
    """Which tokens one reply may go on with. `add` each that it does."""

    def __init__(self, matcher: Any, param: str) -> None:
        self._matcher = matcher
        self._param = param
        self._count = 0
        self._bits: NDArray[np.uint8] | None = None
        self._spent_s = 0.0

    def allow(self, scores: torch.Tensor) -> torch.Tensor:
        """`scores` (vocab,) with -inf for all that may not follow; some token always may. Raises BadGrammar."""
        bits = self._permitted()
        barred = np.unpackbits(bits, bitorder="little", count=len(scores)) == 0
        mask = torch.from_numpy(barred).to(scores.device)
        allowed = scores.masked_fill(mask, -torch.inf)
        if float(allowed.max()) == -torch.inf:  # the model itself rules out all that may follow
            return torch.zeros_like(scores).masked_fill_(mask, -torch.inf)
        return allowed

    def add(self, token_id: int) -> None:
        """The reply goes on with `token_id`."""
        started = time.thread_time()
        self._matcher.consume_token(token_id)
        self._spent_s += time.thread_time() - started
        self._bits = None
        self._count += 1

    def rewind(self, count: int) -> None:
        """Only the first `count` tokens were kept."""
        if self._count > count:
            self._matcher.rollback(self._count - count)
            self._bits = None
            self._count = count

    def begin(self) -> None:
        """Find what the reply may begin with. Raises BadGrammar where that takes too long already."""
        self._permitted()

    def _permitted(self) -> NDArray[np.uint8]:
        """A bit for each token that may follow. Raises BadGrammar where all that took too much of the processor."""
        if self._bits is None:
            started = time.thread_time()
            self._bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
            self._spent_s += time.thread_time() - started
        if self._matcher.is_error() or not self._bits.any():
            raise too_dear(self._param)
        if self._spent_s > FIRST_S + self._count * EACH_S:
            raise too_dear(self._param)
        return self._bits


class Forms:
    """Makes them for one loaded model, of what `reader` reads. Safe from any thread."""

    def __init__(self, loaded: LoadedModel, reader: FormReader) -> None:
        self._loaded = loaded
        self._reader = reader
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._read: OrderedDict[tuple[str, str], Any] = OrderedDict()  # matchers at their beginning, by person, grammar

    def held(self, request: GenerationRequest) -> Held | None:
        """What holds the reply to `request`, None where it is free.

        Raises BadGrammar for a form that cannot be held, NotAvailableHere where the tokenizer is of a kind that
        llguidance does not read, BadValue together with ban_eos_token, GenerationFailed where what the form has seen
        of the reply does not follow it.
        """
        form = form_of(request, "guidance")
        if form is None:
            return None
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _read_tokenizer(self._loaded)
        if form.shape is not None:
            special = self._special()
            form = replace(form, special={mark: special[mark] for mark in marks_in(form.shape, special)})
        matcher = self._matcher(self._reader.read(form, request.whose), form.param, request.whose)
        if request.held_ids and not matcher.consume_tokens(list(request.reply_ids[-request.held_ids :])):
            raise GenerationFailed("What the reply holds so far does not follow its form.", remedy="Ask again.")
        held = Held(matcher, form.param)
        held.begin()
        return held

    def _matcher(self, grammar: str, param: str, whose: str) -> Any:
        """A matcher at its beginning. A person's grammar is read once: several replies to one request have the same."""
        with self._lock:
            known = self._read.get((whose, grammar))
            if known is not None:
                self._read.move_to_end((whose, grammar))
                return known.deep_copy()
        matcher = matcher_of(self._tokenizer, grammar, param)
        with self._lock:
            self._read[whose, grammar] = matcher.deep_copy()
            if len(self._read) > FORMS_KEPT:
                self._read.popitem(last=False)
        return matcher

    def _special(self) -> dict[str, int]:
        added = self._loaded.tokenizer.added_tokens_decoder
        return {token.content: index for index, token in added.items() if token.special and token.content}


def _read_tokenizer(loaded: LoadedModel) -> Any:
    tokenizer = loaded.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    try:
        if backend is None:
            raise ValueError("no fast tokenizer")
        return llguidance.LLTokenizer(backend.to_str(), eos_token=sorted(loaded.eos_ids))
    except Exception as error:  # of a kind that the library does not read
        raise NotAvailableHere(
            f"The tokenizer of {loaded.info.name} is of a kind that replies cannot be held to a form with.",
            remedy="Load another model, or a GGUF file of this one, or leave the field out.",
            param="response_format",
        ) from error
