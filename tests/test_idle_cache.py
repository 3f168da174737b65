"""Conversations that wait, kept beside llama.cpp's cache: only where there is room, and found again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.engine.base import TextPiece
from modules.hardware import Inventory
from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.model.spec import inspect
from modules.memory.planning.idle_cache import idle_limit_bytes
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.memory.planning.problem import margin
from modules.settings import LoadOptions
from modules.units import GiB, MiB
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import Ask
from tests.shapes import machine
from tests.tiny_models import tiny_gguf

CONTEXT = 512
# Of so small a machine; of larger ones 5 %.
LITTLE = 512 * MiB


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models"), readable=True)


def plan(file: Path, inventory: Inventory, **flags: Any) -> Plan:
    options = LoadOptions.model_validate({"model": file.name, "ctx_size": CONTEXT, **flags})
    return make_plan(Question(inspect(file), options, inventory, file.parent))


def with_free(size: int) -> Inventory:
    """A machine without GPUs and with `size` bytes free."""
    roomy = machine(0, ram_gib=16)
    return replace(roomy, cpu=replace(roomy.cpu, free_bytes=size))


def test_where_there_is_room_idle_conversations_may_hold_as_much_as_the_cache(file: Path) -> None:
    roomy = plan(file, with_free(8 * GiB), loader="llamacpp")
    budget = roomy.budgets["cpu"]
    assert budget.kv_cache <= budget.idle_cache <= budget.kv_cache * 1.01 + MiB
    assert idle_limit_bytes(roomy.budgets) == budget.idle_cache
    assert budget.idle_cache % MiB == 0  # as llama.cpp counts its limit
    assert any("for idle conversations" in reason for reason in roomy.reasons)


def test_without_room_for_them_the_same_plan_has_none_and_fits(file: Path) -> None:
    roomy = plan(file, with_free(8 * GiB), loader="llamacpp").budgets["cpu"]
    needed = roomy.total - roomy.idle_cache
    tight = plan(file, with_free(needed + margin(needed)), loader="llamacpp")
    assert tight.fits
    assert idle_limit_bytes(tight.budgets) == 0
    assert tight.budgets["cpu"].total == needed


def test_room_that_nobody_asked_for_never_makes_a_fit_close(file: Path) -> None:
    roomy = plan(file, with_free(8 * GiB), loader="llamacpp").budgets["cpu"]
    enough, one_less = (with_free(roomy.total + LITTLE - less) for less in (0, 1))
    granted, kept = plan(file, enough, loader="llamacpp"), plan(file, one_less, loader="llamacpp")
    assert granted.budgets["cpu"].idle_cache == roomy.idle_cache
    assert kept.budgets["cpu"].idle_cache == 0
    for found in (granted, kept):
        assert not any("close fit" in reason for reason in found.reasons)
    close = plan(file, with_free(roomy.total - roomy.idle_cache + LITTLE - 1), loader="llamacpp")
    assert any("close fit" in reason for reason in close.reasons)


def test_transformers_keeps_no_idle_conversations_beside_its_cache(file: Path) -> None:
    assert plan(file, with_free(8 * GiB), loader="transformers").budgets["cpu"].idle_cache == 0


def test_a_conversation_that_waited_while_others_filled_the_cache_is_found_beside_it(file: Path) -> None:
    beside = Budget({"idle_cache": Figure(64 * MiB, "formula")})
    for idle, kept in ((beside, True), (Budget(), False)):
        with engine_of(replace(plan_of(file, CONTEXT), budgets={"cpu": idle})) as engine:
            ids = engine.encode([TextPiece(TEXT * 40)])
            prompts = [ids[start : start + CONTEXT * 2 // 5][:: -1 if start else 1] for start in (0, 100, 200)]
            before = [Ask(f"chat {number}", prompt, long(4)).run(engine) for number, prompt in enumerate(prompts)]
            again = [Ask(f"chat {number} again", prompt, long(4)).run(engine) for number, prompt in enumerate(prompts)]
        assert [ask.text for ask in again] == [ask.text for ask in before]
        assert all(ask.end.usage.cached_tokens > CONTEXT // 5 for ask in again) is kept


def test_what_was_forecast_too_low_before_leaves_less_room_for_them(file: Path) -> None:
    roomy = plan(file, with_free(8 * GiB), loader="llamacpp").budgets["cpu"]
    raised = int((roomy.total - roomy.idle_cache) * 1.2)
    exactly = with_free(raised + LITTLE + MiB // 2)
    assert plan(file, exactly, loader="llamacpp").budgets["cpu"].idle_cache == roomy.idle_cache
    options = LoadOptions.model_validate({"model": file.name, "ctx_size": CONTEXT, "loader": "llamacpp"})
    wary = make_plan(Question(inspect(file), options, exactly, file.parent, observed=lambda *_: 1.2))
    assert wary.fits
    assert wary.budgets["cpu"].idle_cache == 0
