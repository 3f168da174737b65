"""Several tokens in one forward pass: guessed first, then checked by the model, with the reply that it gives anyway.

Every token is the choice of the request's own sampler on the model's logits at that place, made in order, one call a
token; a drafted token only decides whether the next place's logits are known already. So penalties, DRY, mirostat,
seeds, stops and logprobs are as they are without. What differs is how a pass over several tokens rounds: in fp32 by
about 1e-6 of a logit, in bf16 by as much as a batch of rows does, which can turn a near-tie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modules.engine.loops.draft_model import DraftModel, ModelDrafter
from modules.engine.loops.drafting import Drafter, Lookup
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.paged_drafts import NOT_CHOSEN
from modules.engine.loops.reply import Reply
from modules.engine.loops.sampler import Sampled


class Speculation:
    """What one engine drafts for its replies, as its plan says."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._model = None if loaded.draft is None else DraftModel(loaded.draft, loaded)
        # Packed caches turn the least difference of rounding into one of a whole code, now and then.
        plain = loaded.plan.run.kv_cache == "plain" and not loaded.is_encoder_decoder
        self._on = plain and loaded.plan.speculate != "off"

    def draft(self, reply: Reply, most: int) -> list[int]:
        """Tokens that may follow those of `reply`, of which the last is not read yet; at most `most`, often none."""
        # All of them and the one after must still be part of the reply: no row is longer than was planned.
        most = min(most, reply.limit - reply.new_tokens - 1)
        if not self._on or most < 1 or not reply.new_tokens:
            return []
        if reply.drafter is None:
            reply.drafter = self.new_drafter(reply)
        drafted = reply.drafter.draft(reply.tokens, most)
        reply.expect(drafted)
        return drafted

    def new_drafter(self, reply: Reply) -> Drafter:
        """What guesses for `reply`."""
        ids, whose = reply.request.prompt_ids, reply.request.whose
        return Lookup(ids) if self._model is None else ModelDrafter(self._model, ids, whose)


class Chosen:
    """What a row's sampler chose in one step: `tokens` in order, and its `error` if it failed after them."""

    def __init__(self, drafted: Sequence[int]) -> None:
        self.tokens: list[Sampled] = []
        self.error: Exception | None = None
        self._drafted = drafted

    def choose(self, reply: Reply, logits: torch.Tensor) -> int:
        """The token of the next place, or NOT_CHOSEN where one before it was not as drafted (its logits mean nothing).

        A row whose sampler fails at once gets a 0, which nobody sees.
        """
        count = len(self.tokens)
        if self.error is None and (not count or self.tokens[-1].token_id == self._drafted[count - 1]):
            try:
                self.tokens.append(reply.sample(logits))
                return self.tokens[-1].token_id
            except Exception as error:
                self.error = error
        return NOT_CHOSEN if count else 0
