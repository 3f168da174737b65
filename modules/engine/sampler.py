"""One row's logits → its next token, by the request's own chain of logits processors and its own generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from modules.engine.base import TokenLogprob
from modules.sampling import GenerationParams

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen; `logprob` only where the request asked for logprobs."""

    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """Chooses the tokens of one request. Remembers what it chose; one `next` a step."""

    def __init__(
        self,
        params: GenerationParams,
        *,
        prompt_ids: Sequence[int],
        eos_ids: Sequence[int],
        vocab_size: int,
        reply_ids: Sequence[int] = (),
        device: torch.device | str = "cpu",
        decode: Decode | None = None,
    ) -> None:
        """`seed` can be read afterwards. `prompt_ids`: of an encoder-decoder model the decoder's start tokens."""
        self.seed = params.seed if params.seed >= 0 else int(torch.randint(2**31, (1,)).item())
        self._params = params
        self._eos_ids = tuple(eos_ids)
        self._vocab_size = vocab_size
        self._generator = torch.Generator(device=device).manual_seed(self.seed)

    def next(self, logits: torch.Tensor) -> Sampled:
        """The next token from `logits` (vocab,) of any floating dtype; `logits` is not changed."""
        scores = logits[: self._vocab_size].float()
        if self._params.greedy:
            return Sampled(int(scores.argmax()))
        probabilities = torch.softmax(scores / self._params.temperature, dim=-1)
        return Sampled(int(torch.multinomial(probabilities, 1, generator=self._generator)))
