"""One row's logits → its next token, by the request's own chain of processors and its own random generator.

The chain's order is documented at GenerationParams. Tokens that a truncation drops leave the row, so that what follows
works on the few that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import (
    EncoderRepetitionPenaltyLogitsProcessor,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TypicalLogitsWarper,
)

from modules.engine.base import TokenLogprob
from modules.engine.loops.held import Held
from modules.engine.loops.processors import (
    Candidates,
    Dry,
    Mirostat,
    OnHistory,
    OnPrompt,
    Penalty,
    PresenceFrequency,
    Smoothing,
    TailFree,
    TopA,
    TopNSigma,
    TopP,
    Truncation,
    Xtc,
    dynamic_temperature,
)
from modules.engine.text import Decode, Spell
from modules.errors import GenerationFailed
from modules.sampling import GenerationParams

DRY_BREAKERS = frozenset('\n:"*')
# Beyond these, fp32 would overflow; the choice is as sharp as it gets long before.
LARGEST_LOGIT = 1e30
SMALLEST_DIVISOR = 1e-6


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen; `logprob` only where the request asked for logprobs."""

    token_id: int
    logprob: TokenLogprob | None = None


class Sampler:
    """Chooses the tokens of one request and remembers them: call `next` once a step.

    `seed` is the one in use, drawn where the request gives none. Some token always comes out, whatever the parameters.
    """

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
        spell: Spell | None = None,
        foreign: Sequence[Penalty] = (),
        held: Held | None = None,
    ) -> None:
        """`prompt_ids`: of an encoder-decoder model, the decoder's start tokens. `decode` finds line ends and names
        tokens for logprobs, whose bytes `spell` tells; without it DRY knows no breakers and XTC spares end tokens only.
        `foreign` are an extension's, after all others that look at what came before. `held` rules out what a form does
        not permit.
        """
        self.seed = params.seed if params.seed >= 0 else int(torch.randint(2**31, (1,)).item())
        self._params = params
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(token_id for token_id in eos_ids if 0 <= token_id < vocab_size)
        self._stop_ids = frozenset(token_id for token_id in params.stop_token_ids if token_id < vocab_size)
        self._made = 0
        self._generator = torch.Generator(device=device).manual_seed(self.seed)
        self._texts: dict[int, str] = {}
        self._spelt: dict[int, bytes] = {}
        self._spell = spell
        self._decode = decode
        self._held = held
        self._bias = _bias(params, vocab_size, device)
        self._mirostat = Mirostat(params.mirostat_tau, params.mirostat_eta) if params.mirostat_mode else None
        self._penalties = [*self._build_penalties(prompt_ids, reply_ids, device), *foreign]
        self._may_ban_all = bool(params.no_repeat_ngram_size or foreign or held)
        self._left: tuple[torch.Tensor, torch.Tensor] | None = None  # ids and log-probabilities that were drawn from
        self._all_ids = torch.arange(vocab_size, device=device)
        self._truncations = [] if params.greedy else self._build_truncations()

    def next(self, logits: torch.Tensor) -> Sampled:
        """The next token from `logits` (vocab,) of any floating dtype; `logits` is not changed.

        Raises GenerationFailed where a logit is not a number.
        """
        raw = _cleaned(logits[: self._vocab_size])
        biased = raw if self._bias is None else raw.index_add(0, *self._bias)
        scores = self._penalized(biased if self._held is None else self._held.allow(biased))
        token_id = self._take_best(scores) if self._params.greedy else self._draw(scores)
        self._made += 1
        for penalty in self._penalties:
            penalty.add(token_id)
        if self._held is not None:
            self._held.add(token_id)
        return Sampled(token_id, self._logprob(raw, token_id) if self._params.logprobs else None)

    def _build_penalties(
        self, prompt_ids: Sequence[int], reply_ids: Sequence[int], device: torch.device | str
    ) -> list[Penalty]:
        p, ids = self._params, [*prompt_ids, *reply_ids]
        penalties: list[Penalty] = []
        if p.repetition_penalty != 1:
            processor = RepetitionPenaltyLogitsProcessor(max(p.repetition_penalty, SMALLEST_DIVISOR))
            penalties.append(OnHistory(processor, ids, device, last=p.repetition_penalty_range))
        if p.encoder_repetition_penalty != 1 and (known := [i for i in prompt_ids if i < self._vocab_size]):
            prompt = cast(torch.LongTensor, torch.tensor([known], device=device))
            strength = max(p.encoder_repetition_penalty, SMALLEST_DIVISOR)
            penalties.append(OnPrompt(EncoderRepetitionPenaltyLogitsProcessor(strength, prompt)))
        if p.presence_penalty or p.frequency_penalty:
            penalties.append(
                PresenceFrequency(
                    p.presence_penalty,
                    p.frequency_penalty,
                    reply_ids,
                    self._vocab_size,
                    device,
                    last=p.repetition_penalty_range,
                )
            )
        if p.no_repeat_ngram_size:
            penalties.append(OnHistory(NoRepeatNGramLogitsProcessor(p.no_repeat_ngram_size), ids, device))
        if p.dry_multiplier:
            penalties.append(
                Dry(p.dry_multiplier, p.dry_base, p.dry_allowed_length, ids, breaks=self._breaks_repetition)
            )
        return penalties

    def _build_truncations(self) -> list[Truncation]:
        p = self._params
        chain: list[Truncation] = [self._mirostat] if self._mirostat else self._build_plain_truncations()
        heat: list[Truncation] = [self._heat] if p.temperature != 1 or p.dynatemp_range else []
        if p.smoothing_factor:
            heat.append(Smoothing(p.smoothing_factor, p.smoothing_curve))
        first: list[Truncation] = [TopNSigma(p.top_n_sigma)] if p.top_n_sigma and not self._mirostat else []
        return [*first, *chain, *heat] if p.temperature_last else [*first, *heat, *chain]

    def _build_plain_truncations(self) -> list[Truncation]:
        p = self._params
        chain: list[Truncation] = []
        if p.top_k:
            chain.append(_warp(TopKLogitsWarper(p.top_k)))
        if p.top_p < 1:
            chain.append(TopP(p.top_p))
        if p.min_p:
            chain.append(_warp(MinPLogitsWarper(p.min_p)))
        if p.typical_p < 1:
            chain.append(_warp(TypicalLogitsWarper(p.typical_p)))
        if p.tfs < 1:
            chain.append(TailFree(p.tfs))
        if p.top_a:
            chain.append(TopA(p.top_a))
        if p.epsilon_cutoff:
            chain.append(_warp(EpsilonLogitsWarper(p.epsilon_cutoff)))
        if p.eta_cutoff:
            chain.append(_warp(EtaLogitsWarper(p.eta_cutoff, device=str(self._generator.device))))
        if p.xtc_probability:
            chain.append(Xtc(p.xtc_threshold, p.xtc_probability, self._generator, is_kept=self._ends_line))
        return chain

    def _heat(self, candidates: Candidates) -> Candidates:
        p, temperature = self._params, self._params.temperature
        if p.dynatemp_range:
            temperature = dynamic_temperature(candidates.scores, temperature, p.dynatemp_range, p.dynatemp_exponent)
        scores = (candidates.scores - candidates.scores.max()) / max(temperature, SMALLEST_DIVISOR)
        return Candidates(candidates.token_ids, scores)

    def _penalized(self, raw: torch.Tensor) -> torch.Tensor:
        """Scores after ban and penalties; where they would leave nothing, those that leave something."""
        banned = self._banned(len(raw))
        scores = allowed = raw.index_fill(0, torch.tensor(banned, device=raw.device), -torch.inf) if banned else raw
        for penalty in self._penalties:
            scores = penalty(scores)
        if not banned and not self._may_ban_all:
            return scores
        for choice in (scores, allowed):
            if float(choice.max()) > -torch.inf:
                return choice
        return torch.zeros_like(raw).index_fill(
            0, torch.tensor(banned, device=raw.device, dtype=torch.long), -torch.inf
        )

    def _banned(self, tokens: int) -> list[int]:
        """The ends that may not come now; none where nothing else of so many `tokens` were left."""
        young = self._made < self._params.min_tokens
        ends = self._eos_ids if young or self._params.ban_eos_token else frozenset()
        banned = ends | self._stop_ids if young else ends
        return list(banned) if len(banned) < tokens else []

    def _draw(self, scores: torch.Tensor) -> int:
        candidates = Candidates(self._all_ids[: len(scores)], scores)
        for truncation in self._truncations:
            candidates = truncation(candidates)
        probabilities = torch.softmax(candidates.scores, dim=-1, dtype=torch.float64)
        cumulative = probabilities.cumsum(dim=-1)
        point = torch.rand(1, generator=self._generator, dtype=torch.float64, device=scores.device) * cumulative[-1]
        # The first token past the point: one of probability 0 never is.
        index = int(torch.searchsorted(cumulative, point, right=True))
        if self._mirostat:
            self._mirostat.observe(float(probabilities[index]))
        if self._params.sampled_logprobs:
            self._left = candidates.token_ids, probabilities.log()
        return int(candidates.token_ids[index])

    def _take_best(self, scores: torch.Tensor) -> int:
        token_id = int(scores.argmax())
        if self._params.sampled_logprobs:
            self._left = torch.tensor([token_id]), torch.zeros(1)
        return token_id

    def _logprob(self, raw: torch.Tensor, token_id: int) -> TokenLogprob:
        """As the model computed them, or as the samplers left them."""
        ids, logprobs = self._left or (self._all_ids[: len(raw)], torch.log_softmax(raw, dim=-1))
        values, places = logprobs.topk(min(self._params.logprobs, len(logprobs)))
        tokens = ids[places].tolist()
        top = tuple((token, self._text(token), value) for token, value in zip(tokens, values.tolist(), strict=True))
        own = float(logprobs[token_id] if self._left is None else logprobs[ids == token_id][0])
        return TokenLogprob(token_id, self._text(token_id), own, top, spelt=self._bytes_of([token_id, *tokens]))

    def _bytes_of(self, token_ids: Sequence[int]) -> tuple[bytes, ...]:
        """The bytes of these tokens; none where their texts say the same."""
        for token_id in token_ids:
            if token_id not in self._spelt:
                spelt = self._spell(token_id) if self._spell else None
                self._spelt[token_id] = self._text(token_id).encode() if spelt is None else spelt
        bytes_of = tuple(self._spelt[token_id] for token_id in token_ids)
        return () if all(self._text(i).encode() == s for i, s in zip(token_ids, bytes_of, strict=True)) else bytes_of

    def _breaks_repetition(self, token_id: int) -> bool:
        return not DRY_BREAKERS.isdisjoint(self._text(token_id))

    def _ends_line(self, token_id: int) -> bool:
        return token_id in self._eos_ids or "\n" in self._text(token_id)

    def _text(self, token_id: int) -> str:
        if token_id not in self._texts:
            self._texts[token_id] = self._decode([token_id]) if self._decode else ""
        return self._texts[token_id]


def _bias(
    params: GenerationParams, vocab_size: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which tokens' scores are changed, and by how much; None for none."""
    known = {token: bias for token, bias in params.logit_bias if 0 <= token < vocab_size}
    if not known:
        return None
    return torch.tensor(list(known), device=device), torch.tensor(list(known.values()), device=device)


def _cleaned(logits: torch.Tensor) -> torch.Tensor:
    """fp32 scores without +inf and with at least one that is finite."""
    scores = logits.float()
    peak = float(scores.max())
    if peak != peak:
        raise GenerationFailed(
            "The model's output is not a number.", remedy="Load it with --dtype bf16 or fp32; its files may be damaged."
        )
    if peak == -torch.inf:
        return torch.zeros_like(scores)
    return scores.clamp(max=LARGEST_LOGIT) if peak > LARGEST_LOGIT else scores


def _warp(processor: LogitsProcessor) -> Truncation:
    """A truncation of transformers that does not look at the tokens before."""

    def truncate(candidates: Candidates) -> Candidates:
        scores = processor(None, candidates.scores[None])[0]
        return candidates.keep(scores > -torch.inf)

    return truncate
