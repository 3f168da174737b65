"""Every sampler does what its documentation says, beside transformers' own and against the expected distributions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modules.engine.loops.processors import Candidates, Dry, TopP, dynamic_temperature
from modules.engine.loops.sampler import Sampler
from modules.errors import GenerationFailed
from modules.sampling import GenerationParams

DRAWS = 20_000
EOS = 0
NEWLINE = 1
TEXTS = {EOS: "</s>", NEWLINE: "\n", 2: ":", 3: '"', 4: " *"}


def decode(token_ids: Sequence[int]) -> str:
    return "".join(TEXTS.get(token_id, f"t{token_id}") for token_id in token_ids)


def params(**changes: object) -> GenerationParams:
    """Plain sampling at temperature 1, with `changes`."""
    return GenerationParams.model_validate({"temperature": 1.0, "top_p": 1.0, "seed": 7, **changes})


def sampler(
    chosen: GenerationParams, *, prompt: Sequence[int] = (), reply: Sequence[int] = (), vocab: int = 16
) -> Sampler:
    return Sampler(chosen, prompt_ids=prompt, reply_ids=reply, eos_ids=[EOS], vocab_size=vocab, decode=decode)


def probabilities_seen(made: Sampler, logits: torch.Tensor, draws: int = DRAWS) -> np.ndarray:
    counts = Counter(made.next(logits).token_id for _ in range(draws))
    return np.array([counts[token_id] / draws for token_id in range(len(logits))])


def assert_drawn_from(expected: np.ndarray, seen: np.ndarray, draws: int = DRAWS) -> None:
    """Chi-square at 5 standard deviations; what is impossible was never drawn."""
    possible = expected > 0
    assert seen[~possible].sum() == 0
    statistic = float(draws * ((seen[possible] - expected[possible]) ** 2 / expected[possible]).sum())
    freedom = max(int(possible.sum()) - 1, 1)
    assert statistic < freedom + 5 * math.sqrt(2 * freedom), statistic


LOGITS = torch.tensor([0.5, 1.0, -1.0, 2.0, 0.0, 1.9, -3.0, 2.5, 0.1, -0.5, 1.2, 0.9, -2.0, 0.3, 1.5, -1.5])


def truncated(*warpers: object) -> np.ndarray:
    scores = LogitsProcessorList(warpers)(torch.LongTensor([[0]]), LOGITS[None])[0]
    return np.asarray(torch.softmax(scores.double(), dim=-1).numpy())


@pytest.mark.parametrize(
    ("changes", "warpers"),
    [
        ({}, []),
        ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
        ({"top_k": 3}, [TopKLogitsWarper(3)]),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        (
            {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.3},
            [TemperatureLogitsWarper(1.5), TopKLogitsWarper(9), TopPLogitsWarper(0.8), MinPLogitsWarper(0.3)],
        ),
        (
            {"temperature": 1.5, "top_p": 0.8, "temperature_last": True},
            [TopPLogitsWarper(0.8), TemperatureLogitsWarper(1.5)],
        ),
    ],
)
def test_draws_follow_the_truncated_distribution(changes: dict[str, object], warpers: list[object]) -> None:
    assert_drawn_from(truncated(*warpers), probabilities_seen(sampler(params(**changes)), LOGITS))


@given(st.integers(0, 2**32), st.floats(0.001, 0.9999), st.floats(0.1, 20))
@settings(max_examples=200, deadline=None)
def test_top_p_keeps_what_transformers_keeps(seed: int, top_p: float, spread: float) -> None:
    scores = torch.randn(3000, generator=torch.Generator().manual_seed(seed)) * spread
    theirs = (TopPLogitsWarper(top_p)(None, scores[None])[0] > -torch.inf).nonzero().flatten().tolist()
    ours = TopP(top_p)(Candidates(torch.arange(3000), scores)).token_ids.tolist()
    # The running sums round differently: at most the tokens on the border may differ.
    probabilities = torch.softmax(scores.double(), dim=-1)
    assert float(probabilities[list(set(ours) ^ set(theirs))].sum()) < 1e-5


def test_xtc_leaves_only_the_least_likely_of_the_top_choices_as_often_as_asked() -> None:
    logits = torch.log(torch.tensor([0.01, 0.01, 0.03, 0.05, 0.1, 0.2, 0.25, 0.35]))
    struck = np.array([0.01, 0.01, 0.03, 0.05, 0.1, 0.2, 0.0, 0.0])
    expected = 0.4 * struck / struck.sum() + 0.6 * np.exp(logits.double().numpy())
    seen = probabilities_seen(sampler(params(xtc_threshold=0.15, xtc_probability=0.4), vocab=8), logits)
    assert_drawn_from(expected / expected.sum(), seen)


@pytest.mark.parametrize("spared", [EOS, NEWLINE])
def test_xtc_does_not_strike_where_it_would_drop_the_end_or_a_line_end(spared: int) -> None:
    chances = np.full(8, 0.05)
    chances[[spared, 5]] = 0.4, 0.3
    chances /= chances.sum()
    logits = torch.log(torch.tensor(chances))
    seen = probabilities_seen(sampler(params(xtc_threshold=0.2, xtc_probability=1), vocab=8), logits)
    assert_drawn_from(np.exp(np.log(chances)), seen)


def kept(chosen: GenerationParams, logits: torch.Tensor) -> set[int]:
    """The tokens that `chosen` leaves, each of which is drawn within 4,000 draws of rows like these."""
    made = sampler(chosen, vocab=len(logits))
    return {made.next(logits).token_id for _ in range(4000)}


SCORES = torch.tensor([2.0, 1.5, 1.0, 0.2, -0.5, -1.0, -3.0, -3.1])


def test_top_n_sigma_keeps_what_is_near_the_best_whatever_the_temperature() -> None:
    expected = set(np.flatnonzero(SCORES.numpy() >= 2.0 - SCORES.numpy().std()).tolist())
    assert kept(params(top_n_sigma=1.0), SCORES) == expected == {0, 1, 2, 3}
    assert kept(params(top_n_sigma=1.0, temperature=3.0), SCORES) == expected


def test_top_a_cuts_by_the_square_of_the_likeliest_probability() -> None:
    probabilities = torch.softmax(SCORES, dim=-1).numpy()
    expected = set(np.flatnonzero(probabilities >= 0.5 * probabilities.max() ** 2).tolist())
    assert kept(params(top_a=0.5), SCORES) == expected
    assert 0 < len(expected) < 8


def test_tail_free_cuts_where_the_second_differences_have_added_up() -> None:
    probabilities = np.sort(torch.softmax(SCORES, dim=-1).numpy())[::-1]
    bends = np.abs(np.diff(np.diff(probabilities)))
    passed = np.cumsum(bends / bends.sum()) <= 0.9
    expected = {0, *(index + 1 for index in np.flatnonzero(passed).tolist())}
    assert kept(params(tfs=0.9), SCORES) == expected
    assert 1 < len(expected) < 8
    assert kept(params(tfs=0.5), torch.zeros(8)) == set(range(8)), "where nothing bends nothing is cut"


def test_a_dynamic_temperature_is_low_where_the_model_is_sure_and_high_where_it_is_not() -> None:
    assert dynamic_temperature(torch.zeros(8), 1.0, 0.5, 1.0) == pytest.approx(1.5)
    assert dynamic_temperature(torch.tensor([50.0] + [0.0] * 7), 1.0, 0.5, 1.0) == pytest.approx(0.5)
    halves = torch.tensor([0.0, 0.0, -1e30, -1e30])  # the entropy is half of what it could be
    assert dynamic_temperature(halves, 1.0, 0.5, 1.0) == pytest.approx(1.0)
    assert dynamic_temperature(halves, 1.0, 0.5, 2.0) == pytest.approx(0.75)
    assert dynamic_temperature(halves, 0.2, 0.5, 1.0) == pytest.approx(0.35), "never below 0"
    seen = probabilities_seen(sampler(params(dynatemp_range=0.5), vocab=8), SCORES)
    hot = dynamic_temperature(SCORES, 1.0, 0.5, 1.0)
    assert_drawn_from(torch.softmax(SCORES.double() / hot, dim=-1).numpy(), seen)


def test_smoothing_draws_from_the_quadratic_distribution() -> None:
    factor, curve = 0.4, 2.0
    below = SCORES.double() - SCORES.max()
    smoothed = -(3 - curve) / 2 * factor * below**2 + (curve - 1) / 2 * factor * below**3
    seen = probabilities_seen(sampler(params(smoothing_factor=factor, smoothing_curve=curve), vocab=8), SCORES)
    assert_drawn_from(torch.softmax(smoothed, dim=-1).numpy(), seen)


def test_penalties_look_no_further_back_than_their_range() -> None:
    logits = torch.tensor([0.0, 0.0, 1.0, 0.9, 0.8, 0.7])
    chosen = params(temperature=0, repetition_penalty=2.0, repetition_penalty_range=2)
    assert sampler(chosen, prompt=[2, 3, 4], vocab=6).next(logits).token_id == 2
    assert sampler(chosen, prompt=[3, 2, 3], vocab=6).next(logits).token_id == 4
    chosen = params(temperature=0, presence_penalty=0.5, frequency_penalty=0.1, repetition_penalty_range=2)
    made = sampler(chosen, reply=[2, 2, 3, 4], vocab=6)
    assert [made.next(logits).token_id for _ in range(4)] == [2, 3, 4, 2]


def test_staying_with_the_prompt_makes_its_tokens_likelier_and_no_others() -> None:
    logits = torch.tensor([0.0, 0.0, 1.0, 0.9])
    chosen = params(temperature=0, encoder_repetition_penalty=1.5)
    assert sampler(chosen, prompt=[3], vocab=4).next(logits).token_id == 3
    assert sampler(chosen, prompt=[99], reply=[3], vocab=4).next(logits).token_id == 2


@pytest.mark.parametrize("tau", [2.0, 4.0, 6.0])
def test_mirostat_holds_the_average_surprise_near_its_target(tau: float) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(3)) * 2
    made = sampler(params(mirostat_mode=2, mirostat_tau=tau, top_k=1, seed=5), vocab=5000)
    tokens = [made.next(logits).token_id for _ in range(4000)][500:]
    seen = np.array(list(Counter(tokens).values())) / len(tokens)
    entropy_bits = -float((seen * np.log2(seen)).sum())
    assert abs(entropy_bits - tau) < 0.35


def test_a_seed_gives_the_same_tokens_again_and_minus_one_draws_a_new_seed() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1))

    def tokens(seed: int) -> tuple[list[int], int]:
        made = sampler(params(seed=seed, xtc_probability=0.5, xtc_threshold=0.001), vocab=1000)
        return [made.next(logits).token_id for _ in range(50)], made.seed

    assert tokens(11) == tokens(11)
    assert tokens(11)[0] != tokens(12)[0]
    first, drawn = tokens(-1)
    assert drawn >= 0
    assert tokens(drawn)[0] == first
    assert tokens(-1)[1] != drawn


def test_one_requests_draws_do_not_depend_on_anothers() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    alone = sampler(params(), vocab=1000)
    beside, other = sampler(params(), vocab=1000), sampler(params(seed=99), vocab=1000)
    expected = [alone.next(logits).token_id for _ in range(20)]
    seen = []
    for _ in range(20):
        other.next(logits)
        torch.rand(3)
        seen.append(beside.next(logits).token_id)
    assert seen == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_likeliest_token_and_leaves_the_logits_alone(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    before = logits.clone()
    made = sampler(params(temperature=0, top_k=1, xtc_probability=1, presence_penalty=0.5, ban_eos_token=True))
    assert [made.next(logits).token_id for _ in range(2)] == [7, 3]
    assert torch.equal(logits, before)


@pytest.mark.parametrize(
    "changes",
    [
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram_size": 2},
        {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    ],
)
def test_greedy_with_penalties_gives_the_tokens_of_generate(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=None,
    )
    model: Any = LlamaForCausalLM(config)
    prompt = [5, 6, 7, 5, 6]
    expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24, pad_token_id=0, **changes)
    made = sampler(params(temperature=0, **changes), prompt=prompt, vocab=40)
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(24):
            ids.append(made.next(model(torch.tensor([ids])).logits[0, -1]).token_id)
    assert ids == expected[0].tolist()


def test_presence_and_frequency_count_the_reply_and_not_the_prompt() -> None:
    logits = torch.zeros(16)
    made = sampler(
        params(presence_penalty=0.5, frequency_penalty=0.25, logprobs=1, temperature=0), prompt=[9, 9], reply=[3, 3, 4]
    )
    assert made._penalized(logits)[[9, 3, 4, 5]].tolist() == [0, -1.0, -0.75, 0]
    chosen = made.next(logits).token_id
    assert made._penalized(logits)[chosen] == -0.75


def reference_dry(ids: list[int], allowed: int, breakers: set[int]) -> dict[int, int]:
    """Longest run that each next token would go on with: the published quadratic definition."""
    lengths: dict[int, int] = {}
    if not ids or ids[-1] in breakers:
        return lengths
    for i in range(len(ids) - 1):
        if ids[i] != ids[-1] or ids[i + 1] in breakers:
            continue
        length = 1
        while i - length >= 0 and ids[i - length] == ids[-1 - length] and ids[i - length] not in breakers:
            length += 1
        if length >= allowed:
            lengths[ids[i + 1]] = max(lengths.get(ids[i + 1], 0), length)
    return lengths


@given(
    prompt=st.lists(st.integers(0, 4), max_size=40),
    reply=st.lists(st.integers(0, 4), max_size=20),
    allowed=st.integers(1, 4),
)
@settings(deadline=None)
def test_dry_penalizes_what_its_quadratic_definition_penalizes(
    prompt: list[int], reply: list[int], allowed: int
) -> None:
    dry = Dry(0.8, 1.75, allowed, prompt, breaks=lambda token_id: token_id == 2)
    for token_id in reply:
        dry.add(token_id)
    expected = torch.zeros(5)
    for token_id, length in reference_dry(prompt + reply, allowed, {2}).items():
        expected[token_id] = -0.8 * 1.75 ** (length - allowed)
    torch.testing.assert_close(dry(torch.zeros(5)), expected)


def test_dry_grows_with_a_long_text() -> None:
    ids = list(range(100, 1400)) * 2
    dry = Dry(1.0, 2.0, 2, ids, breaks=lambda token_id: token_id < 0)
    scores = dry(torch.zeros(2000))
    assert scores.argmin() == 100
    assert scores.isfinite().all()
    for token_id in ids:
        dry.add(token_id)
    assert dry(torch.zeros(2000)).isfinite().all()


@pytest.mark.parametrize("breaker", [NEWLINE, 2, 3, 4])
def test_dry_runs_end_at_line_ends_colons_quotes_and_asterisks(breaker: int) -> None:
    logits = torch.zeros(16)
    chosen = params(temperature=0, dry_multiplier=1.0, dry_allowed_length=2)
    assert sampler(chosen, prompt=[5, 6, 7, 8, 5, 6])._penalized(logits)[7] == -1
    assert sampler(chosen, prompt=[5, breaker, 6, 7, 8, 5, breaker, 6])._penalized(logits)[7] == 0


def test_a_banned_end_token_never_comes() -> None:
    logits = torch.full((16,), -5.0)
    logits[EOS] = 50
    made = sampler(params(ban_eos_token=True))
    assert EOS not in {made.next(logits).token_id for _ in range(500)}


def test_logprobs_are_those_that_were_drawn_from_where_that_is_asked() -> None:
    made = sampler(params(temperature=0.5, top_k=2, logprobs=5, sampled_logprobs=True), vocab=8)
    logits = torch.tensor([0.0, 1, 0, 2, 0, 0, 0, 3])
    told = made.next(logits).logprob
    assert told is not None
    expected = torch.softmax(torch.tensor([3.0, 2]) / 0.5, dim=-1)
    assert [entry[0] for entry in told.top] == [7, 3], "the two that top-k leaves"
    assert [math.exp(entry[2]) for entry in told.top] == pytest.approx(expected.tolist())
    assert math.exp(told.logprob) in [pytest.approx(value) for value in expected.tolist()]
    best = sampler(params(temperature=0, logprobs=5, sampled_logprobs=True), vocab=8).next(logits).logprob
    assert best is not None
    assert [(entry[0], entry[2]) for entry in best.top] == [(7, 0.0)]


def test_logprobs_are_those_of_the_model_before_any_parameter() -> None:
    made = sampler(params(temperature=0.3, top_k=2, logprobs=3, repetition_penalty=2.0), prompt=[7])
    expected = torch.log_softmax(LOGITS, dim=-1)
    sampled = made.next(LOGITS)
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(float(expected[sampled.token_id]))
    assert [entry[0] for entry in sampled.logprob.top] == [7, 3, 5]
    assert [entry[1] for entry in sampled.logprob.top] == ["t7", '"', "t5"]
    assert [entry[2] for entry in sampled.logprob.top] == pytest.approx(expected[[7, 3, 5]].tolist())


def test_logits_beyond_the_vocabulary_are_never_taken() -> None:
    logits = torch.zeros(32)
    logits[16:] = 100
    assert sampler(params(temperature=0)).next(logits).token_id < 16
    assert all(sampler(params(seed=seed)).next(logits).token_id < 16 for seed in range(50))


def test_output_that_is_not_a_number_is_an_error_with_a_remedy() -> None:
    logits = torch.zeros(16)
    logits[3] = torch.nan
    with pytest.raises(GenerationFailed, match="not a number") as caught:
        sampler(params()).next(logits)
    assert "bf16" in caught.value.remedy


ANY_PARAMS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 1e-300, 1e-3, 0.7, 1.0, 100.0]),
        "top_p": st.sampled_from([1e-300, 1e-6, 0.5, 0.999999, 1.0]),
        "top_k": st.sampled_from([0, 1, 3, 10**6]),
        "min_p": st.sampled_from([0.0, 1e-9, 0.5, 1.0]),
        "typical_p": st.sampled_from([1e-9, 0.5, 0.999999, 1.0]),
        "epsilon_cutoff": st.sampled_from([0.0, 1e-12, 0.5, 0.999]),
        "eta_cutoff": st.sampled_from([0.0, 1e-12, 0.5, 0.999]),
        "top_n_sigma": st.sampled_from([0.0, 1e-9, 1.0, 100.0]),
        "tfs": st.sampled_from([1e-9, 0.5, 0.999999, 1.0]),
        "top_a": st.sampled_from([0.0, 1e-9, 1.0]),
        "dynatemp_range": st.sampled_from([0.0, 1e-300, 0.7, 100.0]),
        "dynatemp_exponent": st.sampled_from([1e-300, 1.0, 100.0]),
        "smoothing_factor": st.sampled_from([0.0, 1e-300, 0.3, 100.0]),
        "smoothing_curve": st.sampled_from([1.0, 4.0, 100.0]),
        "repetition_penalty_range": st.sampled_from([0, 1, 3, 10**6]),
        "encoder_repetition_penalty": st.sampled_from([1e-300, 0.5, 1.0, 10.0]),
        "xtc_threshold": st.sampled_from([0.0, 0.01, 0.5, 1.0]),
        "xtc_probability": st.sampled_from([0.0, 0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1e-300, 0.5, 1.0, 10.0]),
        "presence_penalty": st.sampled_from([-10.0, 0.0, 10.0]),
        "frequency_penalty": st.sampled_from([-10.0, 0.0, 10.0]),
        "no_repeat_ngram_size": st.sampled_from([0, 1, 2, 1000]),
        "dry_multiplier": st.sampled_from([0.0, 1.0, 100.0]),
        "dry_base": st.sampled_from([1.0, 100.0]),
        "dry_allowed_length": st.sampled_from([1, 2, 1000]),
        "mirostat_mode": st.sampled_from([0, 2]),
        "mirostat_tau": st.sampled_from([0.0, 5.0, 100.0]),
        "mirostat_eta": st.sampled_from([0.0, 0.1, 1.0]),
        "temperature_last": st.booleans(),
        "ban_eos_token": st.booleans(),
        "logprobs": st.sampled_from([0, 20]),
    },
)
EXTREME_ROWS = [
    torch.full((12,), -torch.inf),
    torch.full((12,), torch.inf),
    torch.tensor([-torch.inf] * 11 + [0.0]),
    torch.tensor([0.0] + [-torch.inf] * 11),
    torch.tensor([1e4, -1e4] * 6),
    torch.tensor([3e38, -3e38] * 6),
    torch.full((12,), 1e4),
    torch.zeros(12),
    torch.tensor([65504.0] * 6 + [torch.inf] * 6).half(),
    torch.linspace(-80, 80, 12),
]


@given(changes=ANY_PARAMS, rows=st.lists(st.sampled_from(EXTREME_ROWS), min_size=1, max_size=14))
@settings(max_examples=600, deadline=None)
def test_a_legal_token_always_comes_out(changes: dict[str, object], rows: list[torch.Tensor]) -> None:
    made = sampler(params(**changes), prompt=[5, 6, 5], reply=[6], vocab=12)
    for logits in rows:
        sampled = made.next(logits)
        assert 0 <= sampled.token_id < 12
        assert not (changes.get("ban_eos_token") and sampled.token_id == EOS)
        if sampled.logprob is not None:
            assert not math.isnan(sampled.logprob.logprob)


@pytest.mark.gpu
def test_a_sampler_on_the_gpu_keeps_the_same_tokens_as_on_the_cpu() -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(2)) * 3
    chosen = params(top_k=40, top_p=0.8, min_p=0.05, typical_p=0.9, repetition_penalty=1.3, dry_multiplier=1.0)
    on_cpu = sampler(chosen, prompt=[1, 2, 3], vocab=5000)
    on_gpu = Sampler(chosen, prompt_ids=[1, 2, 3], eos_ids=[EOS], vocab_size=5000, device="cuda", decode=decode)
    possible = {on_cpu.next(logits).token_id for _ in range(3000)}
    assert {on_gpu.next(logits.cuda()).token_id for _ in range(100)} <= possible
    greedy = GenerationParams(temperature=0)
    made = Sampler(greedy, prompt_ids=[], eos_ids=[EOS], vocab_size=5000, device="cuda")
    assert made.next(logits.cuda()).token_id == int(logits.argmax())
