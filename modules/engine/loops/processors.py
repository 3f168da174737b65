"""The penalties and truncations that transformers lacks, or that are much faster for one row than its own.

A Penalty works on a whole row of scores and is told every token; a truncation works on Candidates. None of them knows
of requests or chains: engine/loops/sampler.py puts them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from transformers import LogitsProcessor

IsKept = Callable[[int], bool]
XTC_CHECKED = 100
DRY_REPLAYED = 50
LARGEST_PENALTY = 1e9


@dataclass(frozen=True, slots=True)
class Candidates:
    """The tokens still in play: `token_ids` ascending and their `scores`, both (n,), n ≥ 1, no score −inf."""

    token_ids: torch.Tensor
    scores: torch.Tensor

    def keep(self, mask: torch.Tensor) -> Candidates:
        """Those where `mask` (n,) is True."""
        index = mask.nonzero().squeeze(1)
        return Candidates(self.token_ids.index_select(0, index), self.scores.index_select(0, index))


Truncation = Callable[[Candidates], Candidates]


class Penalty(Protocol):
    """Changes the scores of tokens by what came before."""

    def add(self, token_id: int) -> None:
        """One more token of the text."""

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """New scores (vocab,); the given ones stay as they are."""


class OnHistory:
    """A logits processor of transformers that looks at the tokens so far, kept in one growing tensor."""

    def __init__(self, processor: LogitsProcessor, token_ids: Sequence[int], device: torch.device | str) -> None:
        self._processor = processor
        self._length = len(token_ids)
        self._ids = torch.zeros(1, self._length + 1024, dtype=torch.long, device=device)
        self._ids[0, : self._length] = torch.tensor(token_ids, dtype=torch.long)

    def add(self, token_id: int) -> None:
        if self._length == self._ids.shape[1]:
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)], dim=1)
        self._ids[0, self._length] = token_id
        self._length += 1

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        if self._length == 0:
            return scores
        processed: torch.Tensor = self._processor(self._ids[:, : self._length], scores[None])
        return processed[0]


class PresenceFrequency:
    """OpenAI's two penalties: `presence` once for every token of the reply, `frequency` for each time it occurs."""

    def __init__(
        self, presence: float, frequency: float, reply_ids: Sequence[int], vocab_size: int, device: torch.device | str
    ) -> None:
        self._presence = presence
        self._frequency = frequency
        self._seen: set[int] = set()
        self._taken_off = torch.zeros(vocab_size, device=device)
        for token_id in reply_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        if token_id < len(self._taken_off):
            self._taken_off[token_id] += self._frequency + (0 if token_id in self._seen else self._presence)
            self._seen.add(token_id)

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        return scores - self._taken_off[: len(scores)]


class Dry:
    """Don't Repeat Yourself: the longer the repetition that a token would go on with, the larger its penalty.

    multiplier · base^(length − allowed) for runs of at least `allowed` tokens; runs do not cross tokens for which
    `breaks` is True, and those get no penalty. After p-e-w, text-generation-webui pull request 5677. A new token costs
    one vectorised pass: the match that ends at i is one longer than the one that ended at i − 1, or zero.
    """

    def __init__(
        self, multiplier: float, base: float, allowed: int, token_ids: Sequence[int], *, breaks: IsKept
    ) -> None:
        self._multiplier = multiplier
        self._base = base
        self._allowed = allowed
        self._breaks = breaks
        self._length = max(len(token_ids) - DRY_REPLAYED, 0)
        self._ids = np.zeros(len(token_ids) + 1024, dtype=np.int64)
        self._ids[: self._length] = token_ids[: self._length]
        self._run = np.zeros(len(self._ids), dtype=np.int64)  # tokens up to i that equal the last ones of the text
        for token_id in token_ids[self._length :]:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        if self._length == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._run = np.concatenate([self._run, np.zeros_like(self._run)])
        run, earlier = self._run, self._ids[: self._length]
        if self._breaks(token_id):
            run[: self._length] = 0
        else:
            run[1 : self._length] = run[: max(self._length - 1, 0)] + 1
            run[:1] = 1
            run[: self._length] *= earlier == token_id
        run[self._length] = 0
        self._ids[self._length] = token_id
        self._length += 1

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        longest: dict[int, int] = {}
        for position in np.flatnonzero(self._run[: self._length] >= self._allowed).tolist():
            token_id = int(self._ids[position + 1])
            if token_id < len(scores) and not self._breaks(token_id):
                longest[token_id] = max(longest.get(token_id, 0), int(self._run[position]))
        if not longest:
            return scores
        lengths = np.array(list(longest.values()), dtype=np.float64)
        with np.errstate(over="ignore"):
            taken_off = np.minimum(self._multiplier * self._base ** (lengths - self._allowed), LARGEST_PENALTY)
        index = torch.tensor(list(longest), device=scores.device)
        return scores.index_add(0, index, -torch.tensor(taken_off, dtype=scores.dtype, device=scores.device))


class TopP:
    """The tokens that transformers' TopPLogitsWarper keeps, without sorting the whole vocabulary.

    Tokens less likely than (1 − p) / n cannot together reach 1 − p, so all of them go before the sort.
    """

    def __init__(self, top_p: float) -> None:
        self._tail = 1 - top_p

    def __call__(self, candidates: Candidates) -> Candidates:
        probabilities = torch.softmax(candidates.scores, dim=-1)
        likely = probabilities > self._tail / len(probabilities)
        likely[probabilities.argmax()] = True
        kept = candidates.keep(likely)
        ascending, order = torch.sort(probabilities[likely])
        below = (1 - ascending.sum()).clamp(min=0)
        mask = torch.empty_like(likely[: len(order)])
        mask[order] = ascending.cumsum(dim=-1) + below > self._tail
        mask[order[-1]] = True
        return kept.keep(mask)


class Xtc:
    """Exclude Top Choices: with some probability, of all tokens above a threshold only the least likely stays.

    It does not strike where that would drop a token for which `is_kept` is True (line ends, end of the reply). After
    p-e-w, text-generation-webui pull request 6335.
    """

    def __init__(self, threshold: float, probability: float, generator: torch.Generator, *, is_kept: IsKept) -> None:
        self._threshold = threshold
        self._probability = probability
        self._generator = generator
        self._is_kept = is_kept

    def __call__(self, candidates: Candidates) -> Candidates:
        scores = candidates.scores
        if float(torch.rand(1, generator=self._generator, device=scores.device)) >= self._probability:
            return candidates
        probabilities = torch.softmax(scores, dim=-1)
        dropped = probabilities >= self._threshold
        if int(dropped.sum()) < 2:
            return candidates
        dropped[torch.where(dropped, probabilities, torch.inf).argmin()] = False
        likeliest = torch.where(dropped, probabilities, -1).topk(min(XTC_CHECKED, int(dropped.sum()))).indices
        if any(self._is_kept(token_id) for token_id in candidates.token_ids[likeliest].tolist()):
            return candidates
        return candidates.keep(~dropped)


class Mirostat:
    """Mirostat 2.0 (Basu et al., 2021, algorithm 2): drop tokens more surprising than a bound that follows the text."""

    def __init__(self, tau: float, eta: float) -> None:
        self._tau = tau
        self._eta = eta
        self._bound = 2 * tau

    def __call__(self, candidates: Candidates) -> Candidates:
        surprise_bits = -torch.log_softmax(candidates.scores, dim=-1) / np.log(2)
        mask = surprise_bits <= self._bound
        mask[surprise_bits.argmin()] = True
        return candidates.keep(mask)

    def observe(self, probability: float) -> None:
        """The token taken had this probability among those left."""
        self._bound -= self._eta * (-float(np.log2(probability)) - self._tau)
