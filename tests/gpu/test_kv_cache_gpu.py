"""KV caches beside a GPU and packed on it: run with `pytest -m gpu`; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modules.hardware import read_inventory
from modules.memory.forecasting.forecast import kv_cache_bytes, kv_work_bytes
from modules.memory.forecasting.kv_cache import KVCache
from tests.conftest import STARTER_MODEL
from tests.loading_rig import plan_of
from tests.loop_rig import Ask, greedy

pytestmark = [pytest.mark.gpu, pytest.mark.model]

PROMPT = [1 + number * 7 % 40_000 for number in range(3000)]


@pytest.fixture
def started(started: Any, tmp_path: Path) -> Any:
    """Load the starter model with a kind of cache; closed at the end of the test."""

    def start(kind: KVCache) -> Any:
        plan = plan_of(
            STARTER_MODEL, inventory=read_inventory(tmp_path), cache=tmp_path, ctx_size=4096, dtype="fp32",
            kv_cache=kind,
        )  # fmt: skip
        assert plan.run.kv_cache == kind
        return started(plan)

    return start


def test_an_offloaded_cache_gives_the_tokens_of_a_plain_one_and_leaves_the_gpu_free(started: Any) -> None:
    plain = started("plain")
    expected = Ask("1", PROMPT, greedy(16)).run(plain).tokens
    plain.close()
    torch.cuda.empty_cache()
    engine = started("offloaded")
    before = torch.cuda.memory_allocated()
    first = Ask("1", PROMPT, greedy(16)).run(engine)
    assert first.tokens == expected
    run, spec = engine.loaded.plan.run, engine.loaded.plan.spec
    held = torch.cuda.memory_allocated() - before
    assert held <= kv_work_bytes(spec, run) < kv_cache_bytes(spec, run, len(PROMPT)) / 4
    again = Ask("2", [*PROMPT, *first.tokens], greedy(4)).run(engine)
    assert again.end.usage.cached_tokens >= len(PROMPT)


def test_a_recorded_step_gives_the_tokens_of_the_plain_one_in_the_memory_that_was_planned(started: Any) -> None:
    plain = started("plain")
    expected = Ask("1", PROMPT, greedy(32)).run(plain).tokens
    plain.close()
    del plain
    torch.cuda.empty_cache()
    engine = started("static")
    assert engine.info.warnings == ()
    assert engine._fixed.has_step and engine._fixed.is_recorded
    run, spec = engine.loaded.plan.run, engine.loaded.plan.spec
    assert engine._fixed.size_bytes == kv_cache_bytes(spec, run, run.context_tokens)
    for _ in range(2):
        assert Ask("1", PROMPT, greedy(32)).run(engine).tokens == expected
    assert Ask("2", PROMPT[:5], greedy(8)).run(engine).end.reason == "length"
    assert Ask("3", PROMPT, greedy(32)).run(engine).tokens == expected


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_packed_cache_answers_on_a_gpu_and_is_as_small_as_forecast(kind: KVCache, started: Any) -> None:
    engine = started(kind)
    before = torch.cuda.memory_allocated()
    assert Ask("1", PROMPT, greedy(16)).run(engine).end.reason == "length"
    run, spec = engine.loaded.plan.run, engine.loaded.plan.spec
    held = torch.cuda.memory_allocated() - before
    assert held <= kv_cache_bytes(spec, run, run.context_tokens) + kv_work_bytes(spec, run)
