"""Logits processors of extensions in the engine's process: heard where they are right, left out where they fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modules.engine.base import Degraded, Event, Finished, GenerationRequest
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.serial import SerialEngine
from modules.extensions.script import EngineScript
from modules.sampling import GenerationParams
from tests.loop_rig import Ask, load
from tests.tiny_models import tiny_model

GREEDY = GenerationParams(temperature=0, max_new_tokens=6, ban_eos_token=True)
ONE_TOKEN = """
import gradio as gr
import torch
from modules import shared
from transformers import LogitsProcessor, LogitsProcessorList

params = {"token": 5}

class Only(LogitsProcessor):
    def __init__(self, token, begin):
        self.token, self.begin = token, begin
    def __call__(self, input_ids, scores):
        assert input_ids.shape[1] >= self.begin and input_ids.shape[0] == 1 == scores.shape[0]
        forced = torch.full_like(scores, -float("inf"))
        forced[:, self.token] = 0
        return forced

def logits_processor_modifier(processor_list, input_ids):
    assert isinstance(processor_list, LogitsProcessorList)
    assert shared.tokenizer is not None and shared.model.config.vocab_size > 0
    processor_list.append(Only(params["token"], input_ids.shape[1]))
    return processor_list

def ui():
    gr.Slider(0, 9)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("tiny"))


def asked(engine: Any, scripts: tuple[EngineScript, ...], name: str = "a") -> Ask:
    """A request with scripts, until its end."""
    ask = Ask(name, [1, 2, 3], GREEDY)

    def on_event(event: Event) -> None:
        ask.events.append(event)
        if isinstance(event, Finished):
            ask.done.set()

    engine.submit(GenerationRequest(name, "ann", (1, 2, 3), GREEDY, scripts=scripts), on_event)
    assert ask.done.wait(60)
    return ask


def ids(ask: Ask) -> list[int]:
    return [token for event in ask.events for token in getattr(event, "token_ids", ())]


def told(ask: Ask) -> list[Degraded]:
    return [event for event in ask.events if isinstance(event, Degraded)]


def script(folder: Path, source: str, params: str = "{}", name: str = "one") -> EngineScript:
    path = folder / name / "script.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    return EngineScript(name, str(path), params)


@pytest.mark.parametrize("kind", [SerialEngine, BatchedEngine])
def test_a_script_in_the_usual_shape_decides_every_token_by_its_params_of_now(
    kind: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    engine = kind(load(folder, loop="serial" if kind is SerialEngine else "batched"))
    try:
        wanted = script(tmp_path, ONE_TOKEN)
        assert ids(asked(engine, (wanted,))) == [5] * 6
        assert ids(asked(engine, (script(tmp_path, ONE_TOKEN, '{"token": 7}'),), "b")) == [7] * 6
        assert ids(asked(engine, (), "c")) != [7] * 6
    finally:
        engine.close()


FAULTS = {
    "import a_module_that_is_not_there": "ModuleNotFoundError",
    "def logits_processor_modifier(a, b): raise ValueError('no')": "ValueError: no",
    "def logits_processor_modifier(a, b): return 7": "not a list",
    "def logits_processor_modifier(a, b): return [7]": "not a list",
    "def logits_processor_modifier(a, b): return [lambda ids, scores: 1 / 0]": "ZeroDivisionError",
    "def logits_processor_modifier(a, b): return [lambda ids, scores: None]": "TypeError",
    "def logits_processor_modifier(a, b): return [lambda ids, scores: scores[:, :3]]": "same",
    "def logits_processor_modifier(a, b): return [lambda ids, scores: scores * float('nan')]": "not numbers",
    "def spin(ids, scores):\n  while True: pass\ndef logits_processor_modifier(a, b): return [spin]": "did not return",
    "def logits_processor_modifier(a, b): exit()": "SystemExit",
}


def test_one_that_fails_is_named_and_the_reply_is_the_models_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.engine.loops.foreign.STEP_S", 0.3)
    engine = SerialEngine(load(folder))
    try:
        plain = ids(asked(engine, (), "plain"))
        for number, (source, reason) in enumerate(FAULTS.items()):
            ask = asked(engine, (script(tmp_path, source, name=f"bad{number}"),), f"bad{number}")
            assert ids(ask) == plain, source
            (degraded,) = told(ask)
            assert reason in degraded.why, source
            assert degraded.extension == f"bad{number}"
    finally:
        engine.close()


def test_one_that_forbids_every_token_cannot_end_the_loop(folder: Path, tmp_path: Path) -> None:
    source = "def logits_processor_modifier(a, b): return [lambda ids, scores: scores - float('inf')]"
    engine = SerialEngine(load(folder))
    try:
        ask = asked(engine, (script(tmp_path, source),))
        assert len(ids(ask)) == 6
    finally:
        engine.close()


def test_long_replies_forbids_ends_until_there_are_enough_tokens(folder: Path) -> None:
    engine = SerialEngine(load(folder))
    end = sorted(engine.loaded.eos_ids)[0]
    wanted = EngineScript("long", str(Path("extensions/long_replies/script.py").resolve()), '{"tokens": 4}')
    foreign = engine._foreign
    try:
        (guard,) = foreign.processors((wanted,), [1, 2, 3], lambda *problem: pytest.fail(str(problem)))
        scores = torch.zeros(engine.info.vocab_size)
        for _ in range(4):
            assert guard(scores)[end] == -torch.inf
            guard.add(1)
        assert guard(scores)[end] == 0
    finally:
        engine.close()


def test_the_example_takes_likelihood_off_words_that_were_said(folder: Path) -> None:
    engine = SerialEngine(load(folder))
    wanted = EngineScript("example", str(Path("extensions/example/script.py").resolve()), '{"calm": 2.0}')
    try:
        (guard,) = engine._foreign.processors((wanted,), [1, 2, 2], lambda *problem: pytest.fail(str(problem)))
        scores = torch.zeros(engine.info.vocab_size)
        assert guard(scores)[:4].tolist() == [0, -2, -2, 0]
        assert scores.abs().sum() == 0
    finally:
        engine.close()
