"""Tokens guessed ahead by llama.cpp: the same replies in every row, what a draft model takes, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.engine.base import TextPiece
from modules.engine.llamacpp.engine import LlamaCppEngine
from modules.errors import BadValue, NotAvailableHere
from modules.memory.dryruns.llamacpp_fit import Buffers, read_load
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.candidates import list_ways
from modules.memory.planning.drafts import draft_figure
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from tests.llamacpp_load import load_log
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import Ask
from tests.shapes import llama, machine
from tests.tiny_models import tiny_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # In fp32: over several tokens at once llama.cpp rounds fp16 products otherwise, and near-ties part.
    return tiny_gguf(tmp_path_factory.mktemp("models"), readable=True, kind="F32")


def guessing(file: Path, kind: str) -> Plan:
    """A plan that guesses as `kind` says; the draft model is the model, so that it guesses well."""
    plan = replace(plan_of(file, 1024), draft=inspect(file) if kind == "draft" else None)
    return replace(plan, speculate=next(one for one in ("off", "ngram", "draft") if one == kind))


def replies(engine: LlamaCppEngine, prompts: list[list[int]], *, together: bool) -> list[Ask]:
    asks = [Ask(f"{together} {n}", prompt, long(40), user=f"u{n}") for n, prompt in enumerate(prompts)]
    if together:
        return [ask.wait() for ask in [ask.submit(engine) for ask in asks]]
    return [ask.run(engine) for ask in asks]


@pytest.fixture(scope="module")
def plain(file: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts, and the greedy tokens that follow them without any guess."""
    with engine_of(guessing(file, "off")) as engine:
        starts = [engine.encode([TextPiece(TEXT[n:] * 2)]) for n in range(4)]
        written = [ask.tokens for ask in replies(engine, starts, together=False)]
        # The same words once more: what was written stands in the prompt, up to its last ten tokens.
        prompts = [start + reply + start + reply[:10] for start, reply in zip(starts, written, strict=True)] + starts
    # In an engine that has read nothing yet, as the guessing ones: what is written and what is read rounds otherwise.
    with engine_of(guessing(file, "off")) as engine:
        alone = replies(engine, prompts, together=False)
    assert all(ask.end.timings.drafted_tokens == ask.end.timings.accepted_tokens == 0 for ask in alone)
    return prompts, [ask.tokens for ask in alone]


@pytest.mark.parametrize("kind", ["ngram", "draft"])
def test_greedy_tokens_are_the_same_alone_and_where_eight_ask_at_once(
    file: Path, plain: tuple[list[list[int]], list[list[int]]], kind: str
) -> None:
    prompts, expected = plain
    with engine_of(guessing(file, kind)) as engine:
        for together in (False, True):
            asks = replies(engine, prompts, together=together)
            assert [ask.tokens for ask in asks] == expected
            assert [ask.end.timings.decoded_tokens for ask in asks] == [40] * len(prompts)
            drafted = sum(ask.end.timings.drafted_tokens for ask in asks)
            accepted = sum(ask.end.timings.accepted_tokens for ask in asks)
            assert drafted > 0 and 0 <= accepted <= drafted
            assert "one conversation at a time" in engine.info.loop_reason
            if kind == "draft":  # the model itself: its guesses come true
                assert accepted > max(20, 0.9 * drafted)


def test_words_that_come_again_are_guessed_rightly_by_what_followed_them(file: Path) -> None:
    with engine_of(guessing(file, "ngram")) as engine:
        prompt = engine.encode([TextPiece(TEXT)])
        again = GenerationParams(temperature=0, max_new_tokens=60, grammar='root ::= "harbour "{6}')
        ask = Ask("again", prompt, again).run(engine)
    assert ask.text == "harbour " * 6
    assert ask.end.timings.accepted_tokens > 20


def test_guesses_are_counted_for_replies_that_a_stop_string_ends(file: Path) -> None:
    with engine_of(guessing(file, "draft")) as engine:
        prompt = engine.encode([TextPiece(TEXT)])
        text = Ask("free", prompt, long(40)).run(engine).text
        ask = Ask("stopped", prompt, long(40, stop=(text[30:34],))).run(engine)
    assert ask.end.reason == "stop" and 0 < ask.end.timings.accepted_tokens <= ask.end.timings.drafted_tokens


def test_samplers_and_seeds_choose_what_they_choose_without(file: Path) -> None:
    def sampled(kind: str) -> list[list[int]]:
        with engine_of(guessing(file, kind)) as engine:
            prompt = engine.encode([TextPiece(TEXT * 2)])
            params = long(30).model_copy(update={"temperature": 0.9, "top_p": 0.9})
            seeds = [params.model_copy(update={"seed": seed}) for seed in (3, 4)]
            return [Ask(f"{one.seed}", prompt, one).run(engine).tokens for one in seeds]

    first, second = sampled("off")
    assert first != second
    assert sampled("draft") == [first, second]


def test_a_draft_model_with_another_vocabulary_is_refused_before_anything_is_loaded(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(file.read_bytes().replace(b"<|im_start|>", b"<|xx_start|>"))
    plan = replace(plan_of(file), speculate="draft", draft=inspect(other))
    with (
        pytest.raises(BadValue, match=r"vocabulary is not that of readable-64-2-F32 \(1 entries differ\)") as caught,
        engine_of(plan),
    ):
        pass
    assert caught.value.param == "draft_model" and "--speculate ngram" in caught.value.remedy


@pytest.mark.parametrize(("context", "chunk"), [(1024, 512), (8192, 128)])
def test_the_bytes_of_a_draft_model_are_what_its_load_allocates(tmp_path: Path, context: int, chunk: int) -> None:
    large = tiny_gguf(tmp_path, width=512, inner=1024, layers=4, kind="Q8_0", context=8192)
    small = tiny_gguf(tmp_path, width=512, inner=1024, layers=4, context=8192)
    run = RunSpec("float16", context_tokens=context, prefill_chunk=chunk, runtime="llamacpp")
    without, beside = (read_load(load_log(large, run, draft=draft).splitlines())["cpu"] for draft in (None, small))
    grown = Buffers(*(getattr(beside, name) - getattr(without, name) for name in ("model", "context", "compute")))
    figure = draft_figure(inspect(small), inspect(large), run)
    print(f"draft {context} {chunk}: {figure.bytes:,} forecast, {grown.total:,} allocated ({grown})")
    assert figure.bytes == pytest.approx(grown.total, rel=0.02)


def planned(file: Path, draft: Path | None, **flags: Any) -> Plan:
    options = LoadOptions.model_validate({**flags, **({"draft_model": draft.name} if draft else {})})
    spec = None if draft is None else inspect(draft)
    return make_plan(Question(inspect(file), options, machine(0), Path("cache"), draft=spec))


def test_nothing_is_guessed_unasked_and_what_is_asked_for_is_planned(file: Path) -> None:
    assert planned(file, None, loader="llamacpp").speculate == "off"
    asked = planned(file, None, loader="llamacpp", speculate="ngram")
    assert asked.speculate == "ngram" and any("near-ties" in reason for reason in asked.reasons)
    windowed = replace(inspect(file), layer_kinds=("sliding", "full"), sliding_window=64)
    options = LoadOptions.model_validate({"loader": "llamacpp", "speculate": "ngram"})
    left_out = make_plan(Question(windowed, options, machine(0), Path("cache")))
    assert left_out.speculate == "off" and any("ngram is left out" in reason for reason in left_out.reasons)
    assert not any("near-ties" in reason for reason in left_out.reasons)
    assert planned(file, None, loader="transformers").speculate == "ngram"
    beside = planned(file, file)
    assert (beside.loader, beside.speculate, beside.draft) == ("llamacpp", "draft", inspect(file))
    figure = draft_figure(inspect(file), inspect(file), beside.run)
    assert beside.budgets["cpu"].draft == figure.bytes > 0


def test_a_draft_leaves_a_file_to_llama_cpp_alone(file: Path) -> None:
    spec = inspect(file)
    for flags, runtimes in (({}, {"llamacpp", "torch"}), ({"draft_model": "x"}, {"llamacpp"})):
        ways, _ = list_ways(spec, LoadOptions.model_validate(flags), 0)
        assert {way.run.runtime for way in ways} == runtimes
    with pytest.raises(NotAvailableHere, match="--draft-model") as caught:
        list_ways(spec, LoadOptions.model_validate({"draft_model": "x", "dtype": "bf16"}), 0)
    assert caught.value.param == "draft_model" and caught.value.remedy == "Drop --draft-model."


def test_what_cannot_draft_for_a_file_is_refused_with_a_remedy(file: Path) -> None:
    spec = inspect(file)
    windowed = replace(spec, layer_kinds=("sliding", "full"))
    cases: list[tuple[ModelSpec, ModelSpec, str, str]] = [
        (spec, llama("7B"), "auto", "is no GGUF file"),
        (spec, spec, "transformers", "is a GGUF file"),
        (llama("7B"), spec, "auto", "is a GGUF file"),
        (spec, windowed, "auto", "windows or states"),
        (windowed, spec, "llamacpp", "windows or states"),
    ]  # fmt: skip
    for model, draft, loader, why in cases:
        options = LoadOptions.model_validate({"loader": loader, "draft_model": "x"})
        with pytest.raises(NotAvailableHere, match=why) as caught:
            make_plan(Question(model, options, machine(0), Path("cache"), draft=draft))
        assert caught.value.param == "draft_model" and "--speculate ngram" in caught.value.remedy
