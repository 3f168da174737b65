"""The batched loop: the same tokens as model.generate beside others, and what every loop must do."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest

from modules.engine.base import Delta
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.choice import choose_loop, why_not_batched
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import LoopEngine
from modules.engine.loops.paged import CPU_PAGE_TOKENS
from modules.engine.loops.serial import SerialEngine
from modules.sampling import GenerationParams
from tests.loop_behaviour import MIXED, PROMPT, LoopBehaviour
from tests.loop_rig import Ask, generated, greedy, load, pauses
from tests.tiny_models import CAUSAL, tiny_model

BATCHED = ("llama", "gpt2", "opt", "gpt_neox", "mistral", "gemma3", "qwen3", "mixtral", "phi3")


class TestBatched(LoopBehaviour):
    def make_engine(self, loaded: LoadedModel, **options: Any) -> LoopEngine:
        return BatchedEngine(loaded, page_tokens=16, **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize("family", BATCHED)
def test_greedy_tokens_are_those_of_generate_alone_beside_others_and_with_a_shared_prefix(
    family: str, models: Path
) -> None:
    loaded = load(tiny_model(family, models))
    engine = BatchedEngine(loaded)
    try:
        prompt = loaded.tokenizer.encode(PROMPT * 2, add_special_tokens=False)
        first = Ask("fresh", prompt, greedy(40)).run(engine)
        assert first.tokens == generated(loaded, prompt, 40)
        longer = [*prompt, *first.tokens, 65, 66]
        others = [Ask(f"{n}", prompt[n:], params, user=f"u{n}").submit(engine) for n, params in enumerate(MIXED)]
        second = Ask("next turn", longer, greedy(30)).run(engine)
        assert second.tokens == generated(loaded, longer, 30)
        read = len(prompt) + len(first.tokens) - 1  # the last token was never read
        shared = read // CPU_PAGE_TOKENS * CPU_PAGE_TOKENS
        assert second.end.usage.cached_tokens == (0 if family == "gemma3" else shared)
        assert all(ask.wait().end.error is None for ask in others)
    finally:
        engine.close()


def test_a_pool_is_gone_before_a_smaller_one_is_made(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = BatchedEngine(load(tiny_model("llama", models)))
    try:
        paged: Any = engine._paged
        pool, build = weakref.ref(paged._cache.cache_tensor), paged._build
        held: list[bool] = []

        def watched(pool_tokens: int) -> None:
            held.append(pool() is not None)
            build(pool_tokens)

        monkeypatch.setattr(paged, "_build", watched)
        gc.freeze()  # as an engine's process does with all that its load made
        paged.resize(64)
        assert held == [False]
    finally:
        engine.close()


@pytest.mark.parametrize("family", CAUSAL)
def test_the_probe_lets_only_those_run_batched_that_it_computes_right(family: str, models: Path) -> None:
    assert (why_not_batched(load(tiny_model(family, models))) == "") == (family in BATCHED)


@pytest.mark.parametrize(
    ("family", "kind", "words"),
    [("llama", BatchedEngine, "share"), ("bloom", SerialEngine, "something else"), ("t5", SerialEngine, "encoder")],
)
def test_the_choice_says_which_loop_and_why(family: str, kind: type[LoopEngine], words: str, models: Path) -> None:
    engine = choose_loop(load(tiny_model(family, models)))
    engine.close()
    assert isinstance(engine, kind)
    assert words in engine.info.loop_reason
    assert engine.info.loop == ("batched" if kind is BatchedEngine else "serial")


def test_pages_of_ended_rows_make_way_for_new_ones_oldest_first(models: Path) -> None:
    # 512 bytes a token: KV memory for 512 tokens in all.
    loaded = load(tiny_model("llama", models), kv_bytes=512 * 512)
    engine = BatchedEngine(loaded, page_tokens=16)
    try:
        prompts = [[65 + n] * 180 for n in range(4)]
        for n, prompt in enumerate(prompts):
            assert Ask(f"{n}", prompt, greedy(10)).run(engine).tokens == generated(loaded, prompt, 10)
        assert Ask("newest", [*prompts[3], 90], greedy(10)).run(engine).end.usage.cached_tokens >= 160
        assert Ask("oldest", [*prompts[0], 90], greedy(10)).run(engine).end.usage.cached_tokens == 0
        assert engine.stats().kv_tokens_total == 512
    finally:
        engine.close()


def test_more_requests_than_fit_wait_for_their_turn(models: Path) -> None:
    loaded = load(tiny_model("llama", models), kv_bytes=512 * 512)
    engine = BatchedEngine(loaded, page_tokens=16)
    try:
        prompts = [[65 + n] * 100 for n in range(6)]
        asks = [Ask(f"{n}", prompt, greedy(60), user=f"u{n}").submit(engine) for n, prompt in enumerate(prompts)]
        for ask, prompt in zip(asks, prompts, strict=True):
            assert ask.wait().tokens == generated(loaded, prompt, 60)
    finally:
        engine.close()


def test_a_row_beside_others_tells_its_text_in_bunches_and_alone_each_piece(models: Path) -> None:
    loaded = load(tiny_model("llama", models))
    engine = BatchedEngine(loaded)
    try:
        prompt = loaded.tokenizer.encode(PROMPT, add_special_tokens=False)
        alone = Ask("alone", prompt, greedy(60)).run(engine)
        both = [Ask(f"{n}", prompt, greedy(60), user=f"u{n}").submit(engine) for n in range(2)]
        assert [ask.wait().tokens for ask in both] == [alone.tokens] * 2
        assert [ask.text for ask in both] == [alone.text] * 2
        told_alone, *told = (sum(isinstance(event, Delta) for event in ask.events) for ask in (alone, *both))
        assert told_alone > 30
        assert max(told) < told_alone
    finally:
        engine.close()


def test_replies_that_could_fill_the_memory_run_side_by_side_while_they_do_not(models: Path) -> None:
    """KV memory for 1,024 tokens; each of the three may come to hold 512."""
    engine = BatchedEngine(load(tiny_model("llama", models), kv_bytes=1024 * 512), page_tokens=16)
    at_once: list[int] = []
    try:
        asks = [
            Ask(f"{n}", [65 + n] * 20, greedy(492), user=f"u{n}", at_event=lambda _: at_once.append(len(engine._rows)))
            for n in range(3)
        ]
        for ask in asks:
            ask.submit(engine)
        asks[0].wait()
        assert max(at_once) == 3
    finally:
        engine.close()


def test_a_row_gives_way_where_memory_runs_short_and_goes_on_from_its_tokens(models: Path) -> None:
    loaded = load(tiny_model("llama", models), kv_bytes=1024 * 512)
    engine = BatchedEngine(loaded, page_tokens=16)
    try:
        prompts = [[65 + n] * 20 for n in range(3)]
        asks = [Ask(f"{n}", prompt, greedy(480), user=f"u{n}") for n, prompt in enumerate(prompts)]
        drawn = GenerationParams(temperature=0.9, seed=7, max_new_tokens=480)
        seeded = Ask("seeded", prompts[0], drawn, user="u4")
        for ask in (*asks, seeded):
            ask.submit(engine)
        for ask, prompt in zip(asks, prompts, strict=True):
            assert ask.wait().tokens == generated(loaded, prompt, 480)
        seeded.wait()
        paused = [ask for ask in (*asks, seeded) if pauses(ask)]
        assert paused, "four rows of 500 tokens were never in each other's way in 1,024"
        assert all(ask.end.usage.prompt_tokens == 20 for ask in asks)
        assert Ask("alone", prompts[0], drawn).run(engine).tokens == seeded.tokens
    finally:
        engine.close()
