"""One generation under way: chooses its tokens and streams their text; telling.py's Telling says the rest.

Both loops drive it. It knows nothing of models, caches or threads; only `cancel` may come from another thread.
"""

from __future__ import annotations

import logging
import os
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch

from modules.engine.base import EXIT_GPU_LOST, Emit, FinishReason, GenerationRequest
from modules.engine.loops.drafting import Drafter
from modules.engine.loops.foreign import ForeignScripts
from modules.engine.loops.held import Held
from modules.engine.loops.loaded import LoadedModel, PieceCodec
from modules.engine.loops.processors import Penalty
from modules.engine.loops.sampler import Sampled, Sampler
from modules.engine.loops.scoring import Scoring
from modules.engine.telling import Telling
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
    r"|could not create a (memory|primitive$)"
)


class Reply(Telling):
    """The state of one request from `submit` to its Finished."""

    def __init__(
        self,
        request: GenerationRequest,
        emit: Emit,
        loaded: LoadedModel,
        codec: PieceCodec,
        *,
        longest: int,
        foreign: ForeignScripts | None = None,
        held: Held | None = None,
    ) -> None:
        """`longest`: tokens that one sequence may have. `foreign` runs what extensions have a say in, `held` holds the
        reply to a form."""
        context = () if loaded.is_encoder_decoder else request.prompt_ids
        shown = codec.showing(request.shows)
        self._text = TextStream(shown, request.params.stop, context_ids=(*context, *request.reply_ids))
        super().__init__(request, emit, self._text, held=len(context) + len(request.reply_ids), longest=longest)
        self.given_up: set[Rung] = set()
        self._loaded = loaded
        self._codec = codec
        self._foreign = foreign
        self._held = held
        self.scoring = (
            Scoring(
                request.prompt_ids,
                alternatives=request.params.logprobs,
                vocab_size=loaded.info.vocab_size,
                decode=codec.decode,
            )
            if request.scored
            else None
        )
        self.drafter: Drafter | None = None  # made where tokens are drafted for it
        self._guesses: deque[int] = deque()
        self._sampler: Sampler | None = None
        self._sampled: Sampled | None = None

    def start(self, *, decoder_start: Sequence[int] = ()) -> None:
        """Its turn has come. `decoder_start`: what an encoder-decoder model's decoder begins with."""
        self.begin()
        prompt = decoder_start if self._loaded.is_encoder_decoder else self.request.prompt_ids
        self._sampler = Sampler(
            self.request.params,
            prompt_ids=prompt,
            reply_ids=self.request.reply_ids,
            eos_ids=sorted(self._loaded.eos_ids),
            vocab_size=self._loaded.info.vocab_size,
            device=self._loaded.device,
            decode=self._codec.decode,
            spell=self._codec.spelled,
            foreign=self._foreign_processors(prompt),
            held=self._held,
        )

    def _foreign_processors(self, prompt: Sequence[int]) -> list[Penalty]:
        if self._foreign is None or not self.request.scripts:
            return []
        ids = [*prompt, *self.request.reply_ids]
        return self._foreign.processors(self.request.scripts, ids, self._blame)

    def _blame(self, extension: str, why: str) -> None:
        self.degraded("The reply goes on without it.", f"Extension {extension}: {why}.", extension)

    def sample(self, logits: torch.Tensor) -> Sampled:
        """The next token from `logits` (vocab,), by the request's own sampler; `take` it before the reply's end."""
        assert self._sampler is not None  # start() comes first
        return self._sampler.next(logits)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token from `logits` (vocab,) for a loop that takes each before it chooses another."""
        self._sampled = self.sample(logits)
        return self._sampled.token_id

    @property
    def scores_prompt(self) -> bool:
        """Whether logits of its whole prompt are wanted."""
        return self.scoring is not None and not self.scoring.done

    def score(self, start: int, logits: torch.Tensor) -> None:
        """Tell how likely the prompt's tokens are after the places from `start` on, by the `logits` (places, vocab)."""
        assert self.scoring is not None  # only such prompts are scored
        self._send(self.scoring.score(start, logits))

    def expect(self, drafted: Sequence[int]) -> None:
        """The next tokens are guessed to be `drafted`: counted as drafted, and as accepted as far as they are.

        A guess that came true is told together with the token after it: one pass over the model gave both.
        """
        self._guesses = deque(drafted)
        self.drafted_tokens += len(drafted)

    def forget_guesses(self) -> None:
        """The pass that should have checked what was guessed has failed."""
        self._guesses.clear()
        if self._held is not None:
            self._held.rewind(self.new_tokens)

    def take(self, token: int, sampled: Sampled | None = None) -> FinishReason | None:
        """Count the token chosen and stream its text. Says why the reply ends with it, None while it goes on.

        `sampled`: as `sample` gave it, where it was not the last that `choose` gave.
        """
        if sampled is not None:
            self._sampled = sampled
        self._count(self._made + 1)
        came_true = bool(self._guesses) and self._guesses.popleft() == token
        if came_true:
            self.accepted_tokens += 1
        else:
            self._guesses.clear()
        if token in self._loaded.eos_ids or token in self.request.params.stop_token_ids:
            shows_end = self.request.params.sampled_logprobs or self.request.scored
            if shows_end and self._sampled is not None and self._sampled.logprob is not None:
                self._pending_logprobs.append(self._sampled.logprob)  # who asks for what was drawn wants to see the end
            return "stop"
        self.tokens.append(token)
        self._pending_ids.append(token)
        ready = self._text.push(token)
        if self._sampled is not None and self._sampled.logprob is not None:
            self._pending_logprobs.append(replace(self._sampled.logprob, adds=self._text.added))
        self._show(ready, more=came_true)
        if self._text.finished:
            return "stop"
        return "length" if self.new_tokens >= self.limit else None

    def fail(self, error: BaseException) -> None:
        """End it with `error` as the user may see it; the traceback goes to the log."""
        self.finish("error", as_snug_error(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in RAM (where torch raises a plain RuntimeError)."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def end_without_gpu(error: BaseException) -> None:
    """End this process if `error` says that its GPU context is lost: every call after that fails.

    The host then tells of it, and loads the model anew for the next message.
    """
    if isinstance(error, torch.AcceleratorError):
        log.critical("the GPU's context is lost: %s", error)
        os._exit(EXIT_GPU_LOST)


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
