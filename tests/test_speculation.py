"""Speculative decoding: the same tokens as without it, whatever the sampler, and everything around them too."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modules.engine.base import Delta, Event, GenerationRequest
from modules.engine.loading.draft import check_same_vocabulary, draft_plan
from modules.engine.loops import draft_model
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.draft_model import DraftModel
from modules.engine.loops.drafting import MOST_DRAFTED, TOKEN_COST, Drafter, Lookup, best_length
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import LoopEngine
from modules.engine.loops.reply import Reply
from modules.engine.loops.rows import CausalRow
from modules.engine.loops.serial import SerialEngine
from modules.engine.loops.speculation import Speculation
from modules.errors import BadValue
from modules.sampling import GenerationParams
from tests.loop_behaviour import LoopBehaviour
from tests.loop_rig import Ask, greedy, load
from tests.test_batched import BATCHED
from tests.tiny_models import CAUSAL, tiny_model

TEXT = "one two three one two three four one two three four five one two three " * 2
SAMPLERS = (
    GenerationParams(temperature=0.2, top_p=1, seed=3, max_new_tokens=90),
    GenerationParams(temperature=0.7, top_k=8, top_p=0.9, repetition_penalty=1.05, seed=5, max_new_tokens=70),
    GenerationParams(temperature=0.4, min_p=0.1, dry_multiplier=0.4, dry_allowed_length=4, seed=6, max_new_tokens=70),
    GenerationParams(temperature=0.5, mirostat_mode=2, mirostat_tau=2, presence_penalty=0.1, seed=7, max_new_tokens=70),
    GenerationParams(temperature=0.4, xtc_probability=0.3, xtc_threshold=0.05, seed=8, max_new_tokens=70, logprobs=2),
    GenerationParams(temperature=0, frequency_penalty=0.01, no_repeat_ngram_size=12, max_new_tokens=70, logprobs=1),
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def drafting(loaded: LoadedModel) -> LoadedModel:
    """The same, with look-up switched on."""
    return replace(loaded, plan=replace(loaded.plan, speculate="ngram"))


def engine_of(kind: type[LoopEngine], loaded: LoadedModel) -> LoopEngine:
    return BatchedEngine(loaded, page_tokens=16) if kind is BatchedEngine else SerialEngine(loaded)


def outcome(ask: Ask) -> tuple[Any, ...]:
    """All that a client is told of a reply: not times, how the text was cut into deltas, and cached tokens, of which
    there may be one more: a guess that ends a reply has been read.
    """
    end = ask.end
    logprobs = [one for event in ask.events if isinstance(event, Delta) for one in event.logprobs]
    told = [(one.token_id, one.text, [top[0] for top in one.top]) for one in logprobs]
    return ask.tokens, ask.text, end.reason, replace(end.usage, cached_tokens=0), end.error, told


class TestSerial(LoopBehaviour):
    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        return SerialEngine(drafting(loaded), **options)


class TestBatched(LoopBehaviour):
    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        return BatchedEngine(drafting(loaded), page_tokens=16, **options)


class Foreseen(Speculation):
    """Guesses what replies are known to say, by request, every ninth token wrong: random models repeat nothing."""

    def __init__(self, loaded: LoadedModel, known: Mapping[str, Sequence[int]]) -> None:
        super().__init__(loaded)
        self._known = known

    def new_drafter(self, reply: Reply) -> Drafter:
        return _Foresight(self._known[reply.request.id])


class _Foresight:
    def __init__(self, known: Sequence[int]) -> None:
        self._known = known

    def draft(self, reply_ids: Sequence[int], most: int) -> list[int]:
        start = len(reply_ids)
        guesses = [token if place % 9 else token + 1 for place, token in enumerate(self._known)]
        return guesses[start : start + min(most, 1 + start % 13)]


def two_turns(engine: LoopEngine, prompt: list[int], params: GenerationParams, name: str = "") -> list[Ask]:
    """A reply, then a next turn that begins with all of it."""
    first = Ask(f"first {name}", prompt, params).run(engine)
    longer = [*prompt, *first.tokens, *prompt[:9]]
    return [first, Ask(f"second {name}", longer, params).run(engine)]


def with_and_without(
    kind: type[LoopEngine], loaded: LoadedModel, ask_all: Callable[[LoopEngine], list[Ask]]
) -> tuple[list[Ask], list[Ask]]:
    """What an engine without guesses gives, and one that guesses what that gave."""
    engine = engine_of(kind, loaded)
    try:
        want = ask_all(engine)
    finally:
        engine.close()
    fast: Any = engine_of(kind, drafting(loaded))
    fast._speculation = Foreseen(drafting(loaded), {ask.id: [*ask.reply_ids, *ask.tokens] for ask in want})
    try:
        return want, ask_all(fast)
    finally:
        fast.close()


@pytest.mark.parametrize(
    ("kind", "family"),
    [(SerialEngine, family) for family in CAUSAL] + [(BatchedEngine, family) for family in BATCHED],
)
def test_every_family_writes_what_it_writes_without(kind: type[LoopEngine], family: str, models: Path) -> None:
    loaded = load(tiny_model(family, models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)[:60]

    def ask_all(engine: LoopEngine) -> list[Ask]:
        return [
            ask
            for name, params in (("greedy", greedy(60)), ("drawn", SAMPLERS[0]))
            for ask in two_turns(engine, prompt, params, name)
        ]

    want, found = with_and_without(kind, loaded, ask_all)
    assert [outcome(ask) for ask in found] == [outcome(ask) for ask in want]
    for ask in found:
        # A state cannot forget, nor can a window once it is full, which 32 tokens are at once.
        assert (ask.end.timings.accepted_tokens > 30) == (family not in ("gemma3", "mamba2"))
        assert ask.end.timings.drafted_tokens >= ask.end.timings.accepted_tokens


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
def test_every_sampler_draws_what_it_draws_without(kind: type[LoopEngine], models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)

    def ask_all(engine: LoopEngine) -> list[Ask]:
        return [ask for n, params in enumerate(SAMPLERS) for ask in two_turns(engine, prompt, params, f"{n}")]

    want, found = with_and_without(kind, loaded, ask_all)
    assert [outcome(ask) for ask in found] == [outcome(ask) for ask in want]
    assert all(ask.end.timings.accepted_tokens > 30 for ask in found)


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
def test_a_reply_ends_inside_what_was_guessed_just_as_it_would(kind: type[LoopEngine], models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    engine = engine_of(kind, loaded)
    whole = Ask("whole", prompt, greedy(70)).run(engine)
    engine.close()
    ends = [greedy(count) for count in (1, 2, 3, 37, 38, 39, 40)]
    ends += [greedy(70, stop=(whole.text[place : place + 3],)) for place in (30, 41, 46)]

    def ask_all(engine: LoopEngine) -> list[Ask]:
        # A client that goes on after a stop: nothing of what was guessed beyond it may count as read.
        asks = [ask for n, params in enumerate(ends) for ask in two_turns(engine, prompt, params, f"{n}")]
        return [*asks, Ask("goes on", prompt, greedy(40), reply_ids=whole.tokens[:27]).run(engine)]

    # What is foreseen goes on beyond each end.
    engine = engine_of(kind, loaded)
    want = ask_all(engine)
    engine.close()
    known = {ask.id: [*ask.reply_ids, *ask.tokens, *whole.tokens] for ask in want}
    known |= {ask.id: whole.tokens for ask in want if ask.id.startswith(("first", "goes"))}
    fast: Any = engine_of(kind, drafting(loaded))
    fast._speculation = Foreseen(drafting(loaded), known)
    found = ask_all(fast)
    fast.close()
    assert [outcome(ask) for ask in found] == [outcome(ask) for ask in want]
    cached = [
        (one.end.usage.cached_tokens, other.end.usage.cached_tokens) for one, other in zip(found, want, strict=True)
    ]
    assert all(more - less in (0, 1) for more, less in cached)
    assert sum(ask.end.reason == "stop" for ask in found) >= 3
    assert sum(ask.end.timings.accepted_tokens for ask in found) > 200


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
def test_the_end_token_ends_it_inside_what_was_guessed(kind: type[LoopEngine], models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    engine = engine_of(kind, loaded)
    whole = Ask("1", prompt, greedy(60)).run(engine).tokens
    engine.close()
    last = next(n for n in range(30, 60) if whole[n] not in whole[:n])
    fast: Any = engine_of(kind, drafting(replace(loaded, eos_ids=frozenset({whole[last]}))))
    fast._speculation = Foreseen(drafting(loaded), {"2": whole, "3": whole})
    try:
        ask = Ask("2", prompt, greedy(60)).run(fast)
        assert (ask.tokens, ask.end.reason) == (whole[:last], "stop")
        assert ask.end.timings.accepted_tokens > 15
        banned = Ask("3", prompt, greedy(60, ban_eos_token=True)).run(fast)
        assert (len(banned.tokens), banned.end.reason) == (60, "length")
        assert whole[last] not in banned.tokens
    finally:
        fast.close()


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
def test_cancel_ends_it_in_the_middle_of_what_was_guessed(kind: type[LoopEngine], models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    engine: Any = engine_of(kind, loaded)
    whole = Ask("1", prompt, greedy(100)).run(engine).tokens
    engine.close()
    engine = engine_of(kind, drafting(loaded))
    engine._speculation = Foreseen(drafting(loaded), {"x": whole, "next": whole})
    seen = 0

    def cancel(event: Event) -> None:
        nonlocal seen
        seen += len(event.token_ids) if isinstance(event, Delta) else 0
        if seen >= 40:
            engine.cancel("x")

    try:
        ask = Ask("x", prompt, greedy(100), at_event=cancel).run(engine)
        assert ask.end.reason == "cancelled"
        # What the same pass gave as well may still be told.
        assert 40 <= len(ask.tokens) <= 40 + MOST_DRAFTED
        assert ask.tokens == whole[: len(ask.tokens)]
        assert ask.end.timings.accepted_tokens > 20
        assert Ask("next", prompt, greedy(100)).run(engine).tokens == whole
        assert engine.stats().active == 0
    finally:
        engine.close()


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
def test_what_one_pass_gave_is_told_at_once_and_each_token_with_its_own_logprob(
    kind: type[LoopEngine], models: Path
) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    params = greedy(80, logprobs=1)
    want, found = with_and_without(kind, loaded, lambda engine: [Ask("x", prompt, params).run(engine)])
    alone, fast = ([event for event in ask.events if isinstance(event, Delta)] for ask in (want[0], found[0]))
    timings = found[0].end.timings
    assert timings.accepted_tokens > 40
    # One telling a pass at most; none is told for a token that only begins a character.
    assert len(fast) <= 80 - timings.accepted_tokens + 1 < len(alone) - 20
    assert max(len(event.token_ids) for event in fast) > 4
    for event in (*alone, *fast):
        assert [one.token_id for one in event.logprobs] == list(event.token_ids)
    assert outcome(found[0]) == outcome(want[0])
    assert (timings.decoded_tokens, found[0].end.usage.completion_tokens) == (80, 80)


@pytest.mark.parametrize("kv_cache", ["int8", "int4"])
def test_nothing_is_guessed_over_packed_caches_where_the_least_rounding_would_show(kv_cache: Any, models: Path) -> None:
    loaded = drafting(load(tiny_model("llama", models)))
    loaded = replace(loaded, plan=replace(loaded.plan, run=replace(loaded.plan.run, kv_cache=kv_cache)))
    engine = SerialEngine(loaded)
    try:
        assert Ask("1", [65, 66, 67] * 9, greedy(9)).run(engine).end.timings.drafted_tokens == 0
    finally:
        engine.close()


def test_many_rows_beside_each_other_are_not_guessed_for_and_write_the_same(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    engine = BatchedEngine(loaded, page_tokens=16)
    want = [Ask(f"{n}", prompt[n:], greedy(60)).run(engine).tokens for n in range(3)]
    engine.close()
    engine = BatchedEngine(drafting(loaded), page_tokens=16)
    try:
        asks = [Ask(f"{n}", prompt[n:], greedy(60), user=f"u{n}").submit(engine) for n in range(3)]
        assert [ask.wait().tokens for ask in asks] == want
    finally:
        engine.close()


class TestLookup:
    def test_what_followed_before_is_guessed_again_the_latest_first(self) -> None:
        assert Lookup([1, 2, 3, 4, 9, 1, 2, 3, 5, 6, 1, 2, 3]).draft([], 4)[:2] == [5, 6]

    def test_nothing_is_guessed_where_nothing_was_before(self) -> None:
        assert Lookup(list(range(50))).draft([100, 101], 9) == []
        assert Lookup([]).draft([], 9) == []
        assert Lookup([7]).draft([7], 9) == []

    def test_a_loop_is_guessed_on_beyond_its_end(self) -> None:
        lookup = Lookup([5, 6, 7] * 9)
        guessed = lookup.draft([], MOST_DRAFTED)
        assert len(guessed) > 9
        assert guessed == ([5, 6, 7] * 9)[: len(guessed)]

    def test_guesses_that_fail_become_few_and_cost_nothing_to_try_again(self) -> None:
        ids = [number // 2 % 40 for number in range(400)]
        lookup = Lookup(ids)
        reply: list[int] = []
        drafted = 0
        for step in range(200):  # after each pair that was seen comes what never came
            reply += [step % 40, step % 40, 1000 + step]
            drafted += len(lookup.draft(reply[:-1], MOST_DRAFTED))
            drafted += len(lookup.draft(reply, MOST_DRAFTED))
        assert drafted < 40
        copied = ids[:60]
        made = 0
        for length in range(1, 60):
            made = max(made, len(lookup.draft([*reply, *copied[:length]], MOST_DRAFTED)))
        assert made >= 5

    def test_it_reads_its_own_reply_too(self) -> None:
        lookup = Lookup([1, 2])
        assert lookup.draft([10, 11, 12, 13, 14, 10, 11, 12], 2)[:1] == [13]


def test_drafts_are_as_long_as_they_pay() -> None:
    assert best_length([0.1] * 9, TOKEN_COST) == 0
    assert best_length([0.95] * 15, TOKEN_COST) > best_length([0.6] * 15, TOKEN_COST) > 0
    assert best_length([0.9, 0.0, 0.9], TOKEN_COST) == 1
    assert best_length([0.9] * 9, 1.0) == 0
    assert best_length([], TOKEN_COST) == 0


def with_draft(loaded: LoadedModel, draft: LoadedModel) -> LoadedModel:
    return replace(loaded, draft=draft, plan=replace(loaded.plan, speculate="draft"))


def idle_layers(loaded: LoadedModel, times: int) -> LoadedModel:
    """The same model with `times` as many layers, of which all but the first ones change nothing."""
    config = copy.deepcopy(loaded.model.config)
    config.num_hidden_layers *= times
    config.layer_types = None
    model = type(loaded.model)(config).eval()
    model.load_state_dict(loaded.model.state_dict(), strict=False)
    for layer in model.model.layers[loaded.model.config.num_hidden_layers :]:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    model.generation_config = loaded.model.generation_config
    info = replace(loaded.info, placement={"cpu": 1000 * times})
    return replace(loaded, model=model, info=info)


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
@pytest.mark.parametrize(
    "params", [greedy(80), SAMPLERS[0], *(pytest.param(params, marks=pytest.mark.slow) for params in SAMPLERS[1:4])]
)
def test_a_draft_model_that_is_the_model_is_always_right_and_another_changes_nothing(
    kind: type[LoopEngine], params: GenerationParams, models: Path
) -> None:
    small = load(tiny_model("llama", models))
    small = replace(small, info=replace(small.info, placement={"cpu": 1000}))
    other = load(tiny_model("qwen3", models))
    other = replace(other, info=replace(other.info, placement={"cpu": 1000}))
    large = idle_layers(small, 8)
    prompt = small.tokenizer.encode("Nothing here was said before.", add_special_tokens=False)
    told, timings = [], []
    for one in (large, with_draft(large, small), with_draft(large, other)):
        engine = engine_of(kind, replace(one, model=copy.deepcopy(large.model)))
        try:
            asks = two_turns(engine, prompt, params)
        finally:
            engine.close()
        told.append([outcome(ask) for ask in asks])
        timings.append(asks[0].end.timings)
    assert told[0] == told[1] == told[2]
    assert timings[0].drafted_tokens == 0
    assert timings[1].drafted_tokens > 20
    assert timings[2].drafted_tokens > 0
    if params.greedy:
        # The last guesses may lie beyond the end of the reply.
        assert timings[1].accepted_tokens >= timings[1].drafted_tokens - MOST_DRAFTED
        assert timings[2].accepted_tokens < timings[2].drafted_tokens


def test_a_draft_model_reads_for_each_person_what_it_has_read_for_another(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, read = load(tiny_model("llama", models)), []

    class Counted(CausalRow):
        def read(self, ids: Sequence[int]) -> torch.Tensor:
            read.append(len(ids))
            return super().read(ids)

    monkeypatch.setattr(draft_model, "CausalRow", Counted)
    speculation, ids = Speculation(with_draft(small, small)), list(range(65, 95))
    taken = []
    for whose in ("Ana", "Ana", "Ben", "Ben"):
        read.clear()
        reply = SimpleNamespace(request=GenerationRequest("r", "u", tuple(ids), GenerationParams(), whose=whose))
        speculation.new_drafter(reply).draft([100], 1)  # type: ignore[arg-type]
        taken.append(sum(read))
    assert taken == [31, 1, 31, 1]


def test_a_draft_model_reads_only_what_is_new_and_stops_at_its_own_context(models: Path) -> None:
    small = load(tiny_model("llama", models), context_tokens=60)
    draft = DraftModel(small, small)
    first = draft.write([65, 66, 67, 68], 3)
    assert draft.write([65, 66, 67, 68, *first[:1], 90, 91], 4) == DraftModel(small, small).write(
        [65, 66, 67, 68, *first[:1], 90, 91], 4
    )
    large = idle_layers(replace(small, info=replace(small.info, context_tokens=200)), 8)
    engine = SerialEngine(with_draft(large, replace(small, info=replace(small.info, placement={"cpu": 9}))))
    try:
        ask = Ask("long", [65 + n for n in range(20)], greedy(150)).run(engine)
    finally:
        engine.close()
    assert len(ask.tokens) == 150
    assert 0 < ask.end.timings.drafted_tokens < 60


def test_a_draft_model_with_another_vocabulary_is_refused_with_a_remedy(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    other = load(tiny_model("sentencepiece", models))
    plan = replace(loaded.plan, draft=other.plan.spec, speculate="draft")
    check_same_vocabulary(plan, loaded.tokenizer, load(tiny_model("qwen3", models)).tokenizer)
    with pytest.raises(BadValue, match="vocabulary is not that of llama") as caught:
        check_same_vocabulary(plan, loaded.tokenizer, other.tokenizer)
    assert caught.value.remedy and caught.value.param == "draft_model"
    beside = draft_plan(plan)
    assert beside is not None and beside.placement == {"": "cpu"} and beside.spec is other.plan.spec
    assert draft_plan(loaded.plan) is None
