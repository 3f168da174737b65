"""A compiled step on a KV cache of fixed size: the tokens of the plain step, whoever asked before, and why not if not.

Here it is compiled for the CPU, where no plan has it: the way through the code is the GPU's but for the CUDA graph,
which tests/gpu has.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch._dynamo.utils import counters

from modules.engine.loops.choice import choose_loop
from modules.engine.loops.fixed_row import CompiledStep, FixedRow
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.rows import CausalRow
from modules.engine.loops.serial import SerialEngine
from modules.memory.forecasting.forecast import kv_cache_bytes
from modules.memory.model.spec import inspect
from modules.sampling import GenerationParams
from tests.loop_rig import Ask, generated, greedy, load
from tests.tiny_models import tiny_model

PROMPT = [65 + number * 7 % 60 for number in range(40)]
CONTEXT = 160


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def fixed(loaded: LoadedModel) -> LoadedModel:
    """The same, planned with a cache of fixed size."""
    return replace(loaded, plan=replace(loaded.plan, run=replace(loaded.plan.run, kv_cache="static")))


@pytest.fixture(scope="module")
def loaded(models: Path) -> LoadedModel:
    return fixed(load(tiny_model("llama", models), context_tokens=CONTEXT))


@pytest.fixture(scope="module")
def engine(loaded: LoadedModel) -> Iterator[SerialEngine]:
    """Compiled once for all tests that only ask."""
    told: list[str] = []
    engine = choose_loop(loaded, compiling=lambda: told.append("compiling"))
    assert isinstance(engine, SerialEngine)
    assert told == ["compiling"]
    assert engine.info.warnings == ()
    assert engine._fixed is not None and engine._fixed.has_step
    yield engine
    engine.close()


def test_the_compiled_step_writes_what_generate_writes(engine: SerialEngine, loaded: LoadedModel) -> None:
    want = generated(loaded, PROMPT, 40)
    assert Ask("1", PROMPT, greedy(40)).run(engine).tokens == want
    assert Ask("again", PROMPT, greedy(40)).run(engine).tokens == want


def test_it_goes_through_the_compiled_code_without_compiling_anew(engine: SerialEngine, loaded: LoadedModel) -> None:
    compiled = counters["stats"]["unique_graphs"]
    calls = counters["frames"]["total"]
    assert compiled > 0
    for length in (1, 9, 33):
        assert Ask(f"{length}", PROMPT[:length], greedy(20)).run(engine).tokens == generated(
            loaded, PROMPT[:length], 20
        )
    assert counters["stats"]["unique_graphs"] == compiled
    assert counters["frames"]["total"] == calls


def test_a_next_turn_reads_only_what_is_new_and_another_chat_finds_nothing_of_it(
    engine: SerialEngine, loaded: LoadedModel
) -> None:
    first = Ask("1", PROMPT, greedy(30)).run(engine)
    longer = [*PROMPT, *first.tokens, 70, 71, 72]
    second = Ask("2", longer, greedy(20)).run(engine)
    assert second.end.usage.cached_tokens >= len(PROMPT) + 29
    assert second.tokens == generated(loaded, longer, 20)
    other = [90 + number % 20 for number in range(25)]
    third = Ask("3", other, greedy(20)).run(engine)
    assert third.end.usage.cached_tokens == 0
    assert third.tokens == generated(loaded, other, 20)
    cut = [*other[:15], 66, 67]
    assert Ask("4", cut, greedy(20)).run(engine).tokens == generated(loaded, cut, 20)


def test_it_writes_up_to_the_last_token_of_its_context(engine: SerialEngine) -> None:
    ask = Ask("long", PROMPT, greedy(1000, ban_eos_token=True)).run(engine)
    assert (ask.end.reason, len(PROMPT) + len(ask.tokens)) == ("length", CONTEXT)


def test_samplers_draw_what_they_draw_on_the_plain_step(engine: SerialEngine, models: Path) -> None:
    params = GenerationParams(temperature=0.9, top_p=0.95, repetition_penalty=1.1, seed=3, max_new_tokens=50)
    plain = SerialEngine(load(tiny_model("llama", models), context_tokens=CONTEXT))
    try:
        want = Ask("plain", PROMPT, params).run(plain).tokens
    finally:
        plain.close()
    assert Ask("fixed", PROMPT, params).run(engine).tokens == want


def test_it_takes_its_memory_once_and_just_what_the_plan_says(engine: SerialEngine, models: Path) -> None:
    row = engine._fixed
    assert row is not None
    spec = inspect(tiny_model("llama", models))
    assert row.size_bytes == kv_cache_bytes(spec, engine.loaded.plan.run, CONTEXT)
    before = [room.data_ptr() for layer in row.cache.layers for room in layer.rooms]
    Ask("1", PROMPT, greedy(30)).run(engine)
    assert [room.data_ptr() for layer in row.cache.layers for room in layer.rooms] == before
    assert len(engine._shelf) == 0
    assert engine.stats().kv_tokens_used == len(PROMPT) + 29


def test_a_read_that_fails_half_way_leaves_nothing_behind(engine: SerialEngine, loaded: LoadedModel) -> None:
    row = engine._fixed
    assert row is not None
    want = generated(loaded, PROMPT, 20)
    Ask("1", PROMPT[:20], greedy(5)).run(engine)
    last: Any = row.cache.layers[-1]
    update, failures = last.update, iter([MemoryError()])

    def fail_once(*args: Any, **kwargs: Any) -> Any:
        for failure in failures:
            raise failure
        return update(*args, **kwargs)

    last.update = fail_once
    try:
        ask = Ask("2", PROMPT, greedy(20)).run(engine)
    finally:
        del last.update
    assert next(failures, None) is None
    assert ask.end.reason == "error"  # its chunks are the smallest already: nothing can be given up
    assert Ask("3", PROMPT, greedy(20)).run(engine).tokens == want


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_other_families_compiled_write_what_they_write(family: str, models: Path) -> None:
    loaded = load(tiny_model(family, models), context_tokens=CONTEXT)
    want = generated(loaded, PROMPT, 20)
    row = FixedRow(loaded.model, loaded.device, CONTEXT)
    assert row.compile() == ""
    plain = CausalRow(copy.deepcopy(loaded.model), loaded.device)
    logits, expected = row.read(PROMPT), plain.read(PROMPT)
    for token in want:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        assert int(logits.argmax()) == token
        logits, expected = row.read([token]), plain.read([token])


def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(models: Path) -> None:
    loaded = load(tiny_model("llama", models), context_tokens=CONTEXT)
    want = generated(loaded, PROMPT, 20)
    torch._dynamo.reset()
    inductor: Any = torch._inductor.config
    caches: Any = torch.compiler.config
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), caches.patch(force_disable_caches=True):
        engine = choose_loop(fixed(loaded))
    try:
        (warning,) = engine.info.warnings
        assert "torch could not compile it (" in warning
        assert "--kv-cache plain is as fast" in warning
        assert Ask("1", PROMPT, greedy(20)).run(engine).tokens == want
        assert Ask("2", [*PROMPT, *want], greedy(5)).run(engine).end.usage.cached_tokens >= len(PROMPT)
    finally:
        engine.close()


def test_a_step_that_computes_something_else_is_not_taken(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(tiny_model("llama", models), context_tokens=CONTEXT)
    right = CompiledStep.__call__
    monkeypatch.setattr(CompiledStep, "__call__", lambda self, token, place: right(self, token, place).flip(0))
    row = FixedRow(loaded.model, loaded.device, CONTEXT)
    assert "computes something else" in row.compile()
    assert not row.has_step
    assert row.tokens == []


def test_a_model_with_windows_or_states_has_no_cache_of_fixed_size(models: Path) -> None:
    for family in ("gemma3", "mamba2"):
        model = load(tiny_model(family, models)).model
        with pytest.raises(ValueError, match="keep all keys and values"):
            FixedRow(model, torch.device("cpu"), CONTEXT)
