"""One generation under way: chooses its tokens, streams their text, keeps its times, ends exactly once.

Both loops drive it. It knows nothing of models, caches or threads; only `cancel` may come from another thread.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from typing import Literal

import torch

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
from modules.engine.loaded import LoadedModel, PieceCodec
from modules.engine.sampler import Sampled, Sampler
from modules.engine.text import TextStream
from modules.errors import GenerationFailed, OutOfMemory, SnugError

log = logging.getLogger(__name__)

# What an engine can give up where memory runs out: KV caches of idle conversations, then the size of what is read at
# a time. Beyond that the model has to be loaded in another way, which is not the engine's to do.
Rung = Literal["caches", "chunk"]
SMALLEST_CHUNK_TOKENS = 32
# What torch's allocators, oneDNN and the system say where RAM runs out; CUDA and Python have types of their own.
_NO_MEMORY = re.compile(
    r"(?i)out of memory|(can't|cannot|could not|unable to) (allocate|mmap)|not enough memory|bad_alloc|ENOMEM"
    r"|could not create a memory"
)


class Reply:
    """The state of one request from `submit` to its Finished."""

    def __init__(
        self, request: GenerationRequest, emit: Emit, loaded: LoadedModel, codec: PieceCodec, *, longest: int
    ) -> None:
        """`longest`: tokens that one sequence may have."""
        self.request = request
        self.tokens: list[int] = list(request.reply_ids)
        self.cancelled = False
        self.given_up: set[Rung] = set()
        self.cached_tokens = 0
        held = len(request.reply_ids) + (0 if loaded.is_encoder_decoder else len(request.prompt_ids))
        self.limit = min(request.params.max_new_tokens, longest - held)
        self._emit = emit
        self._loaded = loaded
        self._codec = codec
        self._position: int | None = None
        self._sampler: Sampler | None = None
        self._text = self._text_stream()
        self._pending_ids: list[int] = []
        self._pending_logprobs: list[TokenLogprob] = []
        self._sampled: Sampled | None = None
        self._made = 0
        self._submitted = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None
        self.finished = False

    @property
    def new_tokens(self) -> int:
        """Tokens made so far, end token and `reply_ids` not counted."""
        return len(self.tokens) - len(self.request.reply_ids)

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

    def start(self, *, decoder_start: Sequence[int] = ()) -> None:
        """Its turn has come. `decoder_start`: what an encoder-decoder model's decoder begins with."""
        self._started = time.perf_counter()
        prompt = decoder_start if self._loaded.is_encoder_decoder else self.request.prompt_ids
        self._sampler = Sampler(
            self.request.params,
            prompt_ids=prompt,
            reply_ids=self.request.reply_ids,
            eos_ids=sorted(self._loaded.eos_ids),
            vocab_size=self._loaded.info.vocab_size,
            device=self._loaded.device,
            decode=self._codec.decode,
        )

    def prefilled(self, done: int, total: int) -> None:
        """`done` of `total` prompt tokens are read."""
        self._send(Prefill(done, total))

    def degraded(self, what: str, why: str) -> None:
        """Tell the user that the engine had to give something up."""
        self._send(Degraded(what, why))

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from `logits` (vocab,), by the request's own sampler."""
        assert self._sampler is not None  # start() comes first
        self._sampled = self._sampler.next(logits)
        return self._sampled.token_id

    def take(self, token: int) -> FinishReason | None:
        """Count the token chosen and stream its text. Says why the reply ends with it, None while it goes on."""
        self._made += 1
        if self._first is None:
            self._first = time.perf_counter()
        if token in self._loaded.eos_ids:
            return "stop"
        self.tokens.append(token)
        self._pending_ids.append(token)
        if self._sampled is not None and self._sampled.logprob is not None:
            self._pending_logprobs.append(self._sampled.logprob)
        self._show(self._text.push(token))
        if self._text.finished:
            return "stop"
        return "length" if self.new_tokens >= self.limit else None

    def finish(self, reason: FinishReason, error: SnugError | None = None) -> None:
        """Send what is left and the one Finished. A second call does nothing."""
        if self.finished:
            return
        self.finished = True
        now = time.perf_counter()
        self._show(self._text.flush(), at_end=True)
        if reason == "length" and self._text.finished:
            reason = "stop"
        self._send(Finished(reason, self._usage(), self._timings(now), error))

    def fail(self, error: BaseException) -> None:
        """End it with `error` as the user may see it; the traceback goes to the log."""
        self.finish("error", as_snug_error(error))

    def _send(self, event: Event) -> None:
        """A listener that fails ends its own request, not the loop."""
        try:
            self._emit(event)
        except Exception:
            log.exception("request %s: an event could not be delivered", self.request.id)
            self.cancelled = True

    def _show(self, text: str, *, at_end: bool = False) -> None:
        if text or (at_end and self._pending_ids):
            self._send(Delta(text, tuple(self._pending_ids), tuple(self._pending_logprobs)))
            self._pending_ids.clear()
            self._pending_logprobs.clear()

    def _text_stream(self) -> TextStream:
        encoder_decoder = self._loaded.is_encoder_decoder
        prompt = () if encoder_decoder else self.request.prompt_ids
        context = (*prompt, *self.request.reply_ids)
        return TextStream(self._codec.shown, self.request.params.stop, context_ids=context)

    def _usage(self) -> Usage:
        return Usage(
            len(self.request.prompt_ids), min(self.cached_tokens, len(self.request.prompt_ids)), self.new_tokens
        )

    def _timings(self, now: float) -> Timings:
        started = now if self._started is None else self._started
        first = now if self._first is None else self._first
        return Timings(
            queue_s=started - self._submitted,
            prefill_s=first - started,
            first_token_s=first - self._submitted,
            decode_s=now - first,
            decoded_tokens=self._made,
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in RAM (where torch raises a plain RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def smaller_chunk(tokens: int) -> int:
    """How much to read at a time where `tokens` were too many: an eighth, which takes about an eighth of the memory."""
    return max(SMALLEST_CHUNK_TOKENS, tokens // 8)


def as_snug_error(error: BaseException) -> SnugError:
    """`error` as a user may see it: no paths, addresses or stack lines; those are logged here."""
    if isinstance(error, SnugError):
        return error
    if is_out_of_memory(error):
        log.error("out of memory: %s", error)
        return OutOfMemory(
            "Memory ran out while the model was generating; the text so far is kept.",
            remedy="Use a shorter context (--ctx-size), 8-bit or 4-bit loading, or close other programs.",
        )
    log.error("generation failed", exc_info=error)
    return GenerationFailed(
        f"The model failed while generating ({type(error).__name__}).",
        remedy="Try again; the log has the details.",
    )
