"""Speculative decoding: the same tokens as without it, whatever the sampler, and everything around them too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.engine.base import Delta, Event
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import LoopEngine
from modules.engine.loops.packed_cache import cache_maker
from modules.engine.loops.rows import CausalRow
from modules.engine.loops.sampler import Sampler
from modules.engine.loops.serial import SerialEngine
from modules.sampling import GenerationParams
from tests.loop_behaviour import LoopBehaviour
from tests.loop_rig import Ask, greedy, load
from tests.test_batched import BATCHED
from tests.tiny_models import CAUSAL, tiny_model

# Random models fall into loops of their own making: then much of what is looked up comes true.
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
    """All that a client is told of a reply, times and how the text was cut into deltas aside."""
    end = ask.end
    logprobs = [one for event in ask.events if isinstance(event, Delta) for one in event.logprobs]
    told = [(one.token_id, one.text, [top[0] for top in one.top]) for one in logprobs]
    return ask.tokens, ask.text, end.reason, end.usage, end.error, told


class TestSerial(LoopBehaviour):
    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        return SerialEngine(drafting(loaded), **options)


class TestBatched(LoopBehaviour):
    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        return BatchedEngine(drafting(loaded), page_tokens=16, **options)


def two_turns(engine: LoopEngine, prompt: list[int], params: GenerationParams) -> list[Ask]:
    """A reply, then a next turn that begins with all of it."""
    first = Ask("first", prompt, params).run(engine)
    longer = [*prompt, *first.tokens, *prompt[:9]]
    return [first, Ask("second", longer, params).run(engine)]


@pytest.mark.parametrize(
    ("kind", "family"),
    [(SerialEngine, family) for family in CAUSAL] + [(BatchedEngine, family) for family in BATCHED],
)
def test_every_family_writes_what_it_writes_without(kind: type[LoopEngine], family: str, models: Path) -> None:
    loaded = load(tiny_model(family, models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    told = []
    for one in (loaded, drafting(loaded)):
        engine = engine_of(kind, one)
        try:
            asks = [ask for params in (greedy(90), SAMPLERS[0]) for ask in two_turns(engine, prompt, params)]
        finally:
            engine.close()
        told.append([outcome(ask) for ask in asks])
        drafted = sum(ask.end.timings.drafted_tokens for ask in asks)
        # A state cannot forget, nor can a window once it is full, which 32 tokens are at once.
        assert (drafted > 0) == (one is not loaded and family not in ("gemma3", "mamba2"))
    assert told[0] == told[1]


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
@pytest.mark.parametrize("params", SAMPLERS)
def test_every_sampler_draws_what_it_draws_without(
    kind: type[LoopEngine], params: GenerationParams, models: Path
) -> None:
    loaded = load(tiny_model("llama", models))
    prompt = loaded.tokenizer.encode(TEXT, add_special_tokens=False)
    told = []
    for one in (loaded, drafting(loaded)):
        engine = engine_of(kind, one)
        try:
            asks = two_turns(engine, prompt, params)
        finally:
            engine.close()
        told.append([outcome(ask) for ask in asks])
    assert told[0] == told[1]
    assert sum(ask.end.timings.drafted_tokens for ask in asks) > 0
