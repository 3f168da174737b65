"""Log-probabilities of a prompt's own tokens, as evaluations ask for them: how likely is this text, word for word.

The prompt is read in stretches so short that their logits take LOGITS_BYTES at the most, in 32 bits: they are never all
there at once, however long the prompt is. What computing with them takes besides is about twice as much again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from modules.engine.base import Scored, TokenLogprob
from modules.engine.text import Decode, Detokenizer
from modules.errors import GenerationFailed

LOGITS_BYTES = 32 * 1024**2


def stretch_tokens(vocab_size: int) -> int:
    """How many tokens to read at a time."""
    return max(1, LOGITS_BYTES // (4 * max(1, vocab_size)))


class Scoring:
    """The tokens of one prompt, and how likely each is after those before it."""

    def __init__(self, ids: Sequence[int], *, alternatives: int, vocab_size: int, decode: Decode) -> None:
        """`decode` shows control tokens too."""
        self.ids = tuple(ids)
        self.stretch_tokens = stretch_tokens(vocab_size)
        self._alternatives = alternatives
        self._vocab_size = vocab_size
        self._decode = decode
        self._texts: dict[int, str] = {}
        self._detokenizer = Detokenizer(decode)
        self._told = 0  # tokens, of which the detokenizer has seen as many

    @property
    def done(self) -> bool:
        """Whether all tokens were told of."""
        return self._told >= len(self.ids)

    def known_after(self, start: int, end: int) -> int:
        """Of the places from `start` to `end`, how many have a token of the prompt after them."""
        return max(0, min(end, len(self.ids) - 1) - start)

    def score(self, start: int, logits: torch.Tensor) -> Scored:
        """What the prompt's tokens after the places from `start` on are worth, by the `logits` (places, vocab) there.

        A call with 0 begins anew, and tells of the prompt's first token too, which follows nothing. Raises
        GenerationFailed where a logit is not a number.
        """
        first: list[TokenLogprob] = []
        if start == 0:
            self._detokenizer, self._told = Detokenizer(self._decode), 0
            first = [self._token(self.ids[0], math.nan, ())]
        targets = self.ids[start + 1 : start + 1 + len(logits)]
        told = first + self._scored(targets, logits[: len(targets), : self._vocab_size].float()) if targets else first
        self._told += len(told)
        return Scored(self._told - len(told), tuple(told))

    def _scored(self, targets: Sequence[int], raw: torch.Tensor) -> list[TokenLogprob]:
        totals = raw.logsumexp(dim=-1, keepdim=True)
        if bool(totals.isnan().any()):
            raise GenerationFailed(
                "The model's output is not a number.",
                remedy="Load it with --dtype bf16 or fp32; its files may be damaged.",
            )
        own = (raw.gather(1, torch.tensor(targets, device=raw.device)[:, None]) - totals)[:, 0].tolist()
        best, places = raw.topk(min(self._alternatives, raw.shape[1]), dim=-1)
        values, tokens = (best - totals).tolist(), places.tolist()
        return [
            self._token(target, own[n], [(i, self._text(i), v) for i, v in zip(tokens[n], values[n], strict=True)])
            for n, target in enumerate(targets)
        ]

    def _token(self, token: int, logprob: float, top: Sequence[tuple[int, str, float]]) -> TokenLogprob:
        return TokenLogprob(token, self._text(token), logprob, tuple(top), adds=self._detokenizer.push(token))

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._decode([token])
        return self._texts[token]
