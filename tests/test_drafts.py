"""What guesses ahead, as planned: by which flags, with how many bytes and where, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.errors import BadFlag, NotAvailableHere, OutOfMemory
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, prefill_peak_bytes, weight_bytes
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.drafts import draft_figure, draft_run
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.settings import LoadOptions, check_together
from tests.shapes import llama, machine, t5_3b

LARGE, SMALL = llama("13B"), replace(llama("7B"), name="small")


def plan(spec: ModelSpec, draft: ModelSpec | None, gpus: int = 1, gib: float = 80, **flags: Any) -> Plan:
    options = LoadOptions.model_validate(flags)
    return make_plan(Question(spec, options, machine(gpus, gib), Path("cache"), draft=draft))


def test_a_draft_model_takes_its_weights_and_the_cache_of_one_conversation() -> None:
    run = RunSpec("bfloat16", context_tokens=8192)
    own = draft_run(SMALL, run)
    assert own.context_tokens == min(8192, SMALL.max_context)
    assert (own.dtype, own.quantization, own.kv_cache) == ("bfloat16", "none", "plain")
    figure = draft_figure(SMALL, LARGE, run)
    assert figure.bytes == weight_bytes(SMALL, own) + kv_cache_bytes(SMALL, own, own.context_tokens)
    # The other way round, reading takes more in the draft model than in the model itself.
    more = prefill_peak_bytes(LARGE, own, with_head=True) - prefill_peak_bytes(SMALL, run, with_head=True)
    assert more > 0
    cache = kv_cache_bytes(LARGE, own, own.context_tokens)
    assert draft_figure(LARGE, SMALL, run).bytes == weight_bytes(LARGE, own) + cache + more


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_its_bytes_are_counted_once_where_the_model_computes_first(gpus: int) -> None:
    without, beside = (plan(LARGE, draft, gpus, 80, ctx_size=2048) for draft in (None, SMALL))
    device = "cuda:0" if gpus else "cpu"
    run = beside.run
    assert (without.draft, beside.draft, beside.speculate) == (None, SMALL, "draft")
    assert [name for name, budget in beside.budgets.items() if budget.draft] == [device]
    assert beside.budgets[device].draft == draft_figure(SMALL, LARGE, run).bytes
    grown = beside.budgets[device].total - without.budgets[device].total
    assert grown == beside.budgets[device].draft


def test_a_draft_model_that_does_not_fit_beside_the_model_leaves_less_for_it() -> None:
    flags: dict[str, Any] = {"dtype": "bf16", "ctx_size": 2048, "cpu": True}
    roomy = plan(LARGE, SMALL, 0, **flags)
    assert roomy.fits
    tight = machine(0, ram_gib=36)
    options = LoadOptions.model_validate(flags)
    assert make_plan(Question(LARGE, options, tight, Path("cache"))).fits
    with pytest.raises(OutOfMemory):
        make_plan(Question(LARGE, options, tight, Path("cache"), draft=SMALL))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, "ngram"),
        ({"speculate": "off"}, "off"),
        ({"load_in_8bit": True}, "off"),
        ({"load_in_8bit": True, "speculate": "ngram"}, "ngram"),
        ({"kv_cache": "int8"}, "off"),
        ({"deepspeed": True}, "off"),
    ],
)
def test_look_up_is_on_unasked_only_where_checking_is_cheap_and_changes_nothing(
    flags: dict[str, Any], expected: str
) -> None:
    assert plan(llama("7B"), None, **flags).speculate == expected


def test_an_encoder_decoder_model_is_not_guessed_for() -> None:
    assert plan(t5_3b(), None).speculate == "off"


@pytest.mark.parametrize(
    ("spec", "draft", "why"),
    [
        (LARGE, t5_3b(), "encoder-decoder"),
        (t5_3b(), SMALL, "encoder-decoder"),
        (LARGE, replace(SMALL, source="gguf"), "GGUF"),
        (LARGE, replace(SMALL, layer_kinds=("full", "recurrent")), "states"),
    ],
)
def test_what_cannot_draft_is_refused_with_a_remedy(spec: ModelSpec, draft: ModelSpec, why: str) -> None:
    with pytest.raises(NotAvailableHere, match=why) as caught:
        plan(spec, draft)
    assert caught.value.param == "draft_model"
    assert "--speculate ngram" in caught.value.remedy


@pytest.mark.parametrize(
    "flags",
    [
        {"draft_model": "x", "speculate": "off"},
        {"draft_model": "x", "speculate": "ngram"},
        {"draft_model": "x", "deepspeed": True},
        {"speculate": "ngram", "deepspeed": True},
        {"speculate": "ngram", "kv_cache": "int4"},
        {"draft_model": "x", "kv_cache": "int8"},
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(BadFlag, match="cannot go together") as caught:
        check_together(LoadOptions.model_validate(flags))
    assert caught.value.remedy
