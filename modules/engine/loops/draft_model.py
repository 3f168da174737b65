"""A small model that drafts tokens for a large one of the same vocabulary. It has one cache, of the last conversation,
which serves nobody else's.

Its guesses are its likeliest tokens. How many are worth making follows from what they cost and how often they come
true; where that is seldom, it is asked only now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

from modules.engine.loops.drafting import TOKEN_COST, Odds, best_length
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.rows import CausalRow, common_prefix

# Tokens between two tries while none seems worth it.
PAUSE_TOKENS = 24
# Layers of a small model cost more than their bytes: each is a chain of operations that have to be started.
_LAYER_SHARE = 0.5


class DraftModel:
    """The small model with the cache of what it read last. For one thread."""

    def __init__(self, loaded: LoadedModel, target: LoadedModel) -> None:
        """`target` is what it drafts for."""
        self._loaded = loaded
        self._row: CausalRow | None = None
        self.longest = loaded.info.context_tokens
        own, other = (one.model.config.get_text_config() for one in (loaded, target))
        sizes = [sum(one.info.placement.values()) or 1 for one in (loaded, target)]
        layers = own.num_hidden_layers / other.num_hidden_layers
        self.token_cost = max(sizes[0] / sizes[1], _LAYER_SHARE * layers)
        """Of one drafted token, as a share of a pass of the model that it drafts for."""

    def write(self, ids: Sequence[int], count: int, whose: str = "") -> list[int]:
        """The `count` tokens, or fewer, that it holds for likeliest after `ids`, one after the other."""
        row, self._row = self._row, None  # an error must not leave a row behind that is half read
        known = 0 if row is None or row.whose != whose else common_prefix(row.tokens, ids[:-1])
        if row is None or not known or not row.keep_prefix(known):
            row, known = CausalRow(self._loaded.model, self._loaded.device), 0
            row.whose = whose
        chunk = self._loaded.plan.run.prefill_chunk
        for start in range(known, len(ids), chunk):
            logits = row.read(ids[start : start + chunk])
        made = [int(logits.argmax())]
        most = 1 + row.droppable(count)  # the last guess is never read
        while len(made) < min(count, most):
            made.append(int(row.read(made[-1:]).argmax()))
        self._row = row
        return made


class ModelDrafter:
    """A DraftModel's guesses for one reply. See Drafter."""

    def __init__(self, model: DraftModel, prompt_ids: Sequence[int], whose: str) -> None:
        self._model = model
        self._whose = whose
        self._prompt_ids = list(prompt_ids)
        self._odds = Odds([0.7])
        self._drafted: list[int] = []
        self._since = 0  # tokens of the reply when they were drafted
        self._resume = 0  # and when the next try is due

    def draft(self, reply_ids: Sequence[int], most: int) -> list[int]:
        """See Drafter."""
        for guess, token in zip(self._drafted, reply_ids[self._since :], strict=False):
            self._odds.count(0, came_true=guess == token)
            if guess != token:
                break
        self._drafted, self._since = [], len(reply_ids)
        most = min(most, self._model.longest - len(self._prompt_ids) - len(reply_ids))
        if most < 1 or len(reply_ids) < self._resume:
            return []
        count = best_length(repeat(self._odds.of(0), most), TOKEN_COST + self._model.token_cost)
        if not count:
            self._resume = len(reply_ids) + PAUSE_TOKENS
        self._drafted = self._model.write([*self._prompt_ids, *reply_ids], count or 1, self._whose)
        return self._drafted
