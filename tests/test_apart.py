"""What an engine keeps of one person's texts shortens nobody else's prompts: its pages, rows, slots, servers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.engine.base import Engine, TextPiece
from modules.engine.llamacpp.slots import Slots
from modules.engine.loops.apart import named
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.fixed_row import FixedRow
from modules.engine.loops.serial import SerialEngine
from modules.memory.forecasting.budget import Budget, Figure
from modules.units import MiB
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import Ask, greedy, load
from tests.tiny_models import tiny_gguf, tiny_model

PROMPT = [65 + number % 26 for number in range(80)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def serial(folder: Path) -> Engine:
    return SerialEngine(load(folder))


def fixed(folder: Path) -> Engine:
    loaded = load(folder)
    return SerialEngine(loaded, fixed=FixedRow(loaded.model, torch.device("cpu"), 512))


def batched(folder: Path) -> Engine:
    return BatchedEngine(load(folder))


@pytest.mark.parametrize("make", [serial, fixed, batched])
def test_how_much_of_a_prompt_was_known_tells_nothing_of_anothers(make: Callable[[Path], Engine], models: Path) -> None:
    with closing(make(tiny_model("llama", models))) as engine:
        number = iter(range(100))

        def cached(whose: str, prompt: list[int]) -> int:
            ask = Ask(f"{next(number)}", prompt, greedy(2), whose=whose).run(engine)
            return ask.end.usage.cached_tokens

        assert cached("", PROMPT) == 0
        assert cached("ben", PROMPT) == cached("cem", [*PROMPT, 70]) == 0
        assert cached("ben", PROMPT) == (0 if make is fixed else pytest.approx(len(PROMPT), abs=4))
        assert cached("ben", [*PROMPT, 70]) >= len(PROMPT) - 4
        assert cached("cem", PROMPT[:40]) == (0 if make is fixed else pytest.approx(40, abs=4))
        assert cached("", [*PROMPT, 71]) == (0 if make is fixed else pytest.approx(len(PROMPT), abs=4))


def test_replies_beside_each_other_with_one_prompt_are_the_same_and_share_nothing(models: Path) -> None:
    with closing(BatchedEngine(load(tiny_model("llama", models)))) as engine:
        asked = [Ask(f"{who}", PROMPT, greedy(30), user=who, whose=who).submit(engine) for who in ("", "ben", "cem")]
        made = [ask.wait() for ask in asked]
        assert made[0].tokens == made[1].tokens == made[2].tokens
        again = [
            Ask(f"{who} 2", [*PROMPT, *made[0].tokens, 66], greedy(3), whose=who).run(engine) for who in ("", "ben")
        ]
        assert all(ask.end.usage.cached_tokens >= len(PROMPT) + 25 for ask in again)
        assert Ask("dan", [*PROMPT, *made[0].tokens], greedy(3), whose="dan").run(engine).end.usage.cached_tokens == 0


def test_pages_have_other_names_for_everybody_and_stay_as_they_are_for_nobody() -> None:
    assert named(PROMPT, "", 4) is PROMPT
    names = {tuple(named(PROMPT, who, 4)) for who in ("", "a", "b", "a b", "\ud800")}
    assert len(names) == 5
    assert all(list(name[4:]) == PROMPT[4:] for name in names)
    assert named(PROMPT, "a", 4) != named([66, *PROMPT[1:]], "a", 4)
    assert named(PROMPT[:3], "a", 4) == PROMPT[:3]
    assert len(named(PROMPT, "a", 1)) == len(PROMPT)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf"), readable=True)


@pytest.mark.parametrize("idle_bytes", [0, 64 * MiB])
def test_llamacpp_finds_nothing_of_another_persons(gguf: Path, idle_bytes: int) -> None:
    budgets = {"cpu": Budget({"idle_cache": Figure(idle_bytes, "formula")} if idle_bytes else {})}
    with engine_of(replace(plan_of(gguf), budgets=budgets)) as engine:
        prompt = engine.encode([TextPiece(TEXT * 10)])[:120]
        number = iter(range(100))

        def run(whose: str, ids: list[int]) -> Any:
            return Ask(f"{next(number)}", ids, long(4), whose=whose).run(engine)

        first = run("", prompt)
        assert run("", prompt).end.usage.cached_tokens >= len(prompt) - 1
        other = run("ben", prompt)
        assert (other.end.usage.cached_tokens, other.text) == (0, first.text)
        assert run("ben", [*prompt, *prompt[:3]]).end.usage.cached_tokens >= len(prompt)
        assert run("cem", [*prompt, *prompt[:3]]).end.usage.cached_tokens == 0
        assert run("dan", prompt[:60]).end.usage.cached_tokens == 0
        for who in "abcdefghij":  # more people than slots
            assert run(who, prompt).end.usage.cached_tokens == 0
        assert run("cem", prompt).end.usage.cached_tokens == 0


def test_a_slot_counts_as_somebodys_only_when_it_is_known_to_be() -> None:
    slots, ids = Slots(2), list(range(20))
    with slots.place("ana", ids) as place:
        assert place.fields == {"cache_prompt": True}, "alone, llama.cpp finds the best place itself"
        place.slot, place.held = 0, ids
    with slots.place("ben", ids) as place, slots.place("ben", ids) as beside:
        assert {place.fields["id_slot"], beside.fields["id_slot"]} == {0, 1}
        assert not place.fields["cache_prompt"] and not beside.fields["cache_prompt"]
        place.slot, place.held = place.fields["id_slot"], ids  # the other one never began
    taken = place.fields["id_slot"]
    with slots.place("ben", ids) as again:
        assert again.fields == {"id_slot": taken, "cache_prompt": True}
        again.slot, again.held = taken, ids
    with slots.stranger("ana"), slots.place("ben", ids) as meanwhile:
        assert not meanwhile.fields["cache_prompt"], "what runs beside may have taken this slot"
        meanwhile.slot, meanwhile.held = meanwhile.fields["id_slot"], ids
    with slots.place("ben", ids) as after:
        assert not after.fields["cache_prompt"]
