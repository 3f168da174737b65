"""The penalties and truncations that transformers lacks, or that are much faster for one row than its own.

A Penalty works on a whole row of scores and is told every token; a truncation works on Candidates. None of them knows
of requests or chains: engine/loops/sampler.py puts them in order.
"""

from __future__ import annotations

import math
from collections import Counter, deque
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
SMOOTHED_BELOW = 1e4


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
    """A logits processor of transformers that looks at the tokens so far, or the `last` of them (0: all), kept in one
    growing tensor.
    """

    def __init__(
        self, processor: LogitsProcessor, token_ids: Sequence[int], device: torch.device | str, *, last: int = 0
    ) -> None:
        self._processor = processor
        self._last = last
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
        begin = max(self._length - self._last, 0) if self._last else 0
        processed: torch.Tensor = self._processor(self._ids[:, begin : self._length], scores[None])
        return processed[0]


class OnPrompt:
    """A logits processor of transformers that holds the tokens it looks at itself."""

    def __init__(self, processor: LogitsProcessor) -> None:
        self._processor = processor

    def add(self, token_id: int) -> None:
        """What the reply holds changes nothing."""

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        processed: torch.Tensor = self._processor(None, scores[None])
        return processed[0]


class PresenceFrequency:
    """OpenAI's two penalties: `presence` once for every token of the reply, `frequency` for each time it occurs; of
    the `last` tokens only, 0 for all.
    """

    def __init__(
        self,
        presence: float,
        frequency: float,
        reply_ids: Sequence[int],
        vocab_size: int,
        device: torch.device | str,
        *,
        last: int = 0,
    ) -> None:
        self._presence = presence
        self._frequency = frequency
        self._last = last
        self._recent: deque[int] = deque()
        self._counts: Counter[int] = Counter()
        self._taken_off = torch.zeros(vocab_size, device=device)
        for token_id in reply_ids:
            self.add(token_id)

    def add(self, token_id: int) -> None:
        self._count(token_id, 1)
        if self._last:
            self._recent.append(token_id)
            if len(self._recent) > self._last:
                self._count(self._recent.popleft(), -1)

    def _count(self, token_id: int, step: int) -> None:
        if token_id >= len(self._taken_off):
            return
        self._counts[token_id] += step
        count = self._counts[token_id]
        self._taken_off[token_id] = self._frequency * count + (self._presence if count else 0)

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


class TopNSigma:
    """Tokens whose score is within `sigmas` standard deviations of the best (Tang et al., 2024)."""

    def __init__(self, sigmas: float) -> None:
        self._sigmas = sigmas

    def __call__(self, candidates: Candidates) -> Candidates:
        scores = candidates.scores
        spread = scores[scores > -torch.inf].std(correction=0)
        return candidates.keep(scores >= scores.max() - self._sigmas * spread)


class TopA:
    """Tokens at least as likely as `share` times the square of the likeliest one's probability."""

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, candidates: Candidates) -> Candidates:
        probabilities = torch.softmax(candidates.scores, dim=-1)
        return candidates.keep(probabilities >= self._share * probabilities.max() ** 2)


class TailFree:
    """Tail-free sampling: the tokens before the point where the curve of sorted probabilities has bent by `share` of
    all its bending (its second differences). As text-generation-webui's TailFreeLogitsWarper.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, candidates: Candidates) -> Candidates:
        probabilities, order = torch.sort(torch.softmax(candidates.scores, dim=-1), descending=True)
        bends = probabilities.diff().diff().abs()
        total = bends.sum()
        if len(probabilities) < 3 or not float(total):
            return candidates
        mask = torch.zeros_like(probabilities, dtype=torch.bool)
        mask[order[0]] = True
        mask[order[1:-1]] = (bends / total).cumsum(dim=-1) <= self._share
        return candidates.keep(mask)


def dynamic_temperature(scores: torch.Tensor, temperature: float, reach: float, exponent: float) -> float:
    """The temperature for one row: `temperature` ± `reach`, by the entropy of `scores` (n,) over the most it could be.

    Low where the model is sure. As llama.cpp's and text-generation-webui's dynamic temperature.
    """
    possible = int((scores > -torch.inf).sum())
    if possible < 2:
        return temperature
    logprobs = torch.log_softmax(scores.double(), dim=-1)
    entropy = -float((logprobs.exp() * logprobs.clamp(min=-1e9)).sum())
    low = max(0.0, temperature - reach)
    return low + (temperature + reach - low) * math.pow(min(1.0, max(0.0, entropy / math.log(possible))), exponent)


class Smoothing:
    """Quadratic sampling: a score d below the best becomes −k·factor·d² − s·factor·d³ below it, with
    k = (3 − curve) / 2 and s = (curve − 1) / 2. As text-generation-webui's `smoothing_factor` and `smoothing_curve`.
    """

    def __init__(self, factor: float, curve: float) -> None:
        self._quadratic = factor * (3 - curve) / 2
        self._cubic = factor * (curve - 1) / 2

    def __call__(self, candidates: Candidates) -> Candidates:
        below = (candidates.scores - candidates.scores.max()).clamp(min=-SMOOTHED_BELOW)
        smoothed = -self._quadratic * below**2 + self._cubic * below**3
        smoothed[candidates.scores == -torch.inf] = -torch.inf
        return Candidates(candidates.token_ids, smoothed)


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
