"""GGUF files in parts: listed, planned and run as the one model that they are; what is missing is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from modules.engine.base import TextPiece
from modules.errors import BadGguf, NotAvailableHere
from modules.memory.model.listing import list_models
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, list_plans
from modules.settings import LoadOptions
from tests.fakes import fake_inventory
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import Ask
from tests.tiny_models import tiny_gguf


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A small model in one file."""
    return tiny_gguf(tmp_path / "whole", kind="F32", readable=True)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of three parts of the same, in a models folder."""
    tiny_gguf(tmp_path / "models", kind="F32", readable=True, part_tensors=8)
    [path] = (tmp_path / "models").glob("*-00001-of-00003.gguf")
    return path


def test_the_parts_are_one_model_in_the_list_and_to_the_planner(whole: Path, first: Path) -> None:
    parts, one = inspect(first), inspect(whole)
    assert sorted(parts.tensors, key=lambda tensor: tensor.name) == sorted(one.tensors, key=lambda tensor: tensor.name)
    assert (parts.layers, parts.max_context, parts.vocab_size) == (one.layers, one.max_context, one.vocab_size)
    [entry] = list_models(first.parent)
    assert (entry.name, entry.problem) == (first.name, "")
    assert entry.size_bytes == sum(path.stat().st_size for path in first.parent.iterdir())


def test_only_llama_cpp_runs_them_and_the_plan_says_so(first: Path) -> None:
    def question(**flags: object) -> Question:
        options = LoadOptions.model_validate({"model": first.name, **flags})
        return Question(inspect(first), options, fake_inventory(), first.parent)

    table = list_plans(question())
    assert {plan.loader for plan in table.plans} == {"llamacpp"}
    assert any("split" in why for _, why in table.dropped)
    with pytest.raises(NotAvailableHere, match="one piece"):
        list_plans(question(loader="transformers"))
    with pytest.raises(NotAvailableHere, match=r"one piece.*llama\.cpp"):
        list_plans(question(dtype="fp32"))


def test_a_missing_part_is_named_and_a_later_part_is_no_model(first: Path) -> None:
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    with pytest.raises(BadGguf, match="not the first part"):
        inspect(second)
    second.unlink()
    [entry] = list_models(first.parent)
    assert f"{second.name} is missing" in entry.problem


def test_a_count_beyond_reason_costs_nothing(first: Path) -> None:
    odd = first.with_name("x-00001-of-99999.gguf")
    first.rename(odd)
    with pytest.raises(BadGguf, match="first part"):
        inspect(odd)


def test_llama_cpp_says_with_the_parts_what_it_says_with_the_whole(whole: Path, first: Path) -> None:
    said = []
    for path in (whole, first):
        with engine_of(plan_of(path)) as engine:
            said.append(Ask("a", engine.encode([TextPiece(TEXT)]), long(24)).run(engine).tokens)
    assert said[0] == said[1] and len(said[0]) == 24
