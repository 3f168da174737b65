"""The kinds of KV cache in the planner: which are listed, taken, refused, and what is said of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.errors import BadFlag, NotAvailableHere, OutOfMemory
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, kv_work_bytes
from modules.memory.forecasting.formulas import formula_text
from modules.memory.forecasting.kv_cache import KVCache, packed_bytes, why_not, work_bytes
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import list_ways
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans, longest_context, make_plan
from modules.memory.planning.problem import margin
from modules.memory.planning.smaller import Failure, difference, smaller_plans
from modules.settings import LoadOptions, check_machine, check_together
from modules.ui.ways import options_of
from modules.units import GiB
from tests.shapes import NO_FLAGS, llama, machine
from tests.test_formulas import worked_out

LONG = llama("7B", context=32768)


def table(spec: ModelSpec, gpu_gib: float, *, ram_gib: float = 64, **flags: object) -> PlanTable:
    """The plans of a machine with one GPU, or none for 0 GiB."""
    inventory = machine(1 if gpu_gib else 0, gpu_gib, ram_gib=ram_gib)
    return list_plans(Question(spec, LoadOptions.model_validate(flags), inventory, Path("cache")))


def caches(found: PlanTable) -> set[KVCache]:
    """The kinds among a table's plans."""
    return {plan.run.kv_cache for plan in found.plans}


def test_bytes_are_codes_scales_and_the_latest_tokens() -> None:
    # 8,192 tokens: 127 blocks of 64 are packed, 64 tokens are not; room for 128 of those; 8 heads of 128 numbers.
    assert packed_bytes(8, 128, 8192, bits=8, width=2) == (
        8128 * 2 * 8 * 128 + (127 * 8 * 128 + 8128 * 8 * 2) * 2 + 128 * 2 * 8 * 128 * 2
    )
    assert packed_bytes(8, 128, 8192, bits=4, width=2) == (
        8128 * 8 * 128 + (127 * 8 * 128 + 8128 * 8 * 2) * 2 * 2 + 128 * 2 * 8 * 128 * 2
    )
    assert work_bytes(8, 128, 8192, bits=8, width=2) == 8192 * 2 * 8 * 128 * 2


@pytest.mark.parametrize(("gpu_gib", "ram_gib"), [(24, 24), (0, 64), (80, 256)])
def test_where_the_context_fits_as_computed_no_other_kind_is_shown(gpu_gib: int, ram_gib: int) -> None:
    found = table(llama("7B"), gpu_gib, ram_gib=ram_gib, ctx_size=4096, dtype="fp16")
    assert found.chosen is not None
    assert found.chosen.run.kv_cache == "plain"
    assert "--kv-cache" not in found.chosen.flags
    assert not [plan for plan in found.plans if plan.run.kv_cache != "plain" and plan.placement == {"": "cuda:0"}]


def test_a_cache_of_fewer_bits_makes_a_context_fit_that_was_asked_for() -> None:
    found = table(LONG, 24, ctx_size=32768)
    assert found.chosen is not None
    assert (found.chosen.run.kv_cache, found.chosen.run.quantization) == ("int8", "none")
    assert found.chosen.title == "16-bit on the GPU, KV cache in 8 bits"
    said = " ".join(found.chosen.reasons)
    assert "KV cache in 8 bits: 8.30 GiB instead of 16.0 GiB for 32,768 tokens" in said
    assert "requests run one at a time" in said
    assert ("--kv-cache", "int8") in zip(found.chosen.flags, found.chosen.flags[1:], strict=False)
    again = list_plans(replace(found.question, options=options_of(found.chosen.flags, NO_FLAGS))).chosen
    assert again is not None
    assert (again.run, again.budgets) == (found.chosen.run, found.chosen.budgets)


def test_a_context_that_nobody_asked_for_is_rather_shortened() -> None:
    found = table(LONG, 6, ram_gib=8)
    assert found.chosen is not None
    assert found.chosen.run.kv_cache == "plain"
    assert found.chosen.run.context_tokens < 8192
    assert {"int8", "int4"} & caches(found)


def test_four_bits_come_after_eight() -> None:
    found = table(LONG, 12, ctx_size=32768, load_in_4bit=True)
    assert found.chosen is not None
    assert found.chosen.run.kv_cache == "int4"
    assert found.chosen.quality < table(LONG, 16, ctx_size=32768, load_in_4bit=True).plans[0].quality


def test_a_flag_names_the_kind_and_a_plain_one_is_never_packed() -> None:
    assert caches(table(LONG, 24, kv_cache="int8")) == {"int8"}
    assert caches(table(LONG, 24, ctx_size=32768, kv_cache="plain")) == {"plain"}
    refused = table(LONG, 12, ram_gib=8, ctx_size=32768, load_in_4bit=True, kv_cache="plain").refusal
    assert isinstance(refused, OutOfMemory)
    assert "--kv-cache auto" in refused.remedy


def test_an_offloaded_cache_lies_in_cpu_memory_and_three_layers_of_it_on_the_gpu() -> None:
    plan = table(LONG, 24, ctx_size=32768, kv_cache="offloaded").chosen
    assert plan is not None
    whole = kv_cache_bytes(LONG, plan.run, 32768)
    assert plan.budgets["cpu"].kv_cache == whole == 16 * GiB
    assert plan.budgets["cuda:0"].kv_cache == 3 * whole // 32 == kv_work_bytes(LONG, plan.run)
    assert formula_text("kv_cache", LONG, plan.run, 3 * whole // 32) == "3 layers at once · 536,870,912 B"
    fast = table(LONG, 24, ctx_size=32768).chosen
    assert fast is not None
    assert plan.tokens_per_s[0] < fast.tokens_per_s[0] / 3
    unasked = table(LONG, 4, ctx_size=32768, dtype="fp16")
    assert unasked.chosen is None or unasked.chosen.run.kv_cache != "offloaded"
    little = table(LONG, 24, ram_gib=8, ctx_size=32768, kv_cache="offloaded")
    assert little.chosen is None
    assert little.plans[0].short_bytes > 8 * GiB


def test_offloading_is_refused_without_a_gpu_and_with_zero3() -> None:
    options = LoadOptions.model_validate({"kv_cache": "offloaded"})
    with pytest.raises(NotAvailableHere, match="no GPU here"):
        check_machine(options, machine(0, 0))
    with pytest.raises(NotAvailableHere, match="there is no GPU"):
        list_ways(LONG, options, 0)
    with pytest.raises(NotAvailableHere, match="not built for ZeRO-3"):
        list_ways(LONG, LoadOptions.model_validate({"kv_cache": "offloaded", "deepspeed": True}), 1)


def test_a_cache_of_fixed_size_is_taken_only_when_asked_for_and_costs_what_a_plain_one_does() -> None:
    plan = table(LONG, 40, ctx_size=8192, kv_cache="static").chosen
    plain = table(LONG, 40, ctx_size=8192, kv_cache="plain").chosen
    assert plan is not None and plain is not None
    assert (plan.run.kv_cache, plan.placement, plan.speculate) == ("static", {"": "cuda:0"}, "off")
    assert plan.budgets == plain.budgets
    assert plan.budgets["cuda:0"].kv_cache == kv_cache_bytes(LONG, plan.run, 8192) == 4 * GiB
    assert ("--kv-cache", "static") in zip(plan.flags, plan.flags[1:], strict=False)
    said = " ".join(plan.reasons)
    assert "KV cache of fixed size: 4.00 GiB for 8,192 tokens are taken during the load" in said
    assert "has not been measured" in said
    for gib in (4, 24, 80):
        assert "static" not in caches(table(LONG, gib, ctx_size=32768))
    quantized = table(LONG, 24, ctx_size=4096, kv_cache="static", load_in_4bit=True).chosen
    assert quantized is not None and quantized.run.kv_cache == "static"


def test_a_cache_of_fixed_size_is_refused_where_no_compiled_step_can_be() -> None:
    options = LoadOptions.model_validate({"kv_cache": "static"})
    with pytest.raises(NotAvailableHere, match="no GPU here"):
        check_machine(options, machine(0, 0))
    with pytest.raises(NotAvailableHere, match="there is no GPU"):
        list_ways(LONG, options, 0)
    with pytest.raises(NotAvailableHere, match="not built for ZeRO-3"):
        list_ways(LONG, LoadOptions.model_validate({"kv_cache": "static", "deepspeed": True}), 1)
    for flags in ({"attn_implementation": "flash_attention_2"}, {"speculate": "ngram"}, {"draft_model": "small"}):
        with pytest.raises(BadFlag, match="cannot go together") as caught:
            check_together(LoadOptions.model_validate({"kv_cache": "static", **flags}))
        assert "would not stay" not in caught.value.remedy
    for changes in (
        {"layer_kinds": ("full", "sliding") * 16}, {"layer_kinds": ("hybrid",) * 32}, {"is_encoder_decoder": True},
        {"latent_attention": True},
    ):  # fmt: skip
        assert why_not("static", replace(LONG, **changes), 1)
    little = table(LONG, 12, ctx_size=32768, kv_cache="static")  # weights on two devices are two graphs at least
    assert little.chosen is None
    assert little.refusal is not None and "--kv-cache auto" in little.refusal.remedy


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"layer_kinds": ("recurrent",) * 32}, "no layer keeps"),
        ({"layer_kinds": ("sliding",) * 32}, "no layer keeps"),
        ({"layer_kinds": ("full", "shared") * 16}, "share another's"),
        ({"latent_attention": True}, "compressed already"),
        ({"layer_kv_elements": (8192,) * 32}, "different sizes"),
        ({"model_type": "minimax"}, "no cache but its own"),
    ],
)
def test_a_model_that_cannot_have_it_says_why_in_the_list_and_to_the_flag(
    changes: dict[str, object], reason: str
) -> None:
    spec = replace(llama("7B"), **changes)  # type: ignore[arg-type]
    ways, dropped = list_ways(spec, LoadOptions.model_validate({}), 0)
    assert {way.run.kv_cache for way in ways} == {"plain"}
    assert [why for what, why in dropped if what.startswith("KV cache in 8 bits, KV cache in 4 bits") and reason in why]
    with pytest.raises(NotAvailableHere, match=reason):
        list_ways(spec, LoadOptions.model_validate({"kv_cache": "int4"}), 0)
    assert why_not("plain", spec, 0) == ""


def test_a_cache_of_windows_is_not_packed_where_that_saves_nothing() -> None:
    spec = replace(LONG, layer_kinds=("full", *("sliding",) * 31), sliding_window=4096)
    dropped = dict(list_ways(spec, LoadOptions.model_validate({}), 0)[1])
    assert dropped["KV cache in 8 bits, KV cache in 4 bits"].startswith("it would save next to nothing")


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_formula_works_out_to_the_figure(kind: KVCache) -> None:
    run = RunSpec("bfloat16", context_tokens=5000, kv_cache=kind)
    size = kv_cache_bytes(LONG, run, 5000) + kv_work_bytes(LONG, run)
    assert worked_out(formula_text("kv_cache", LONG, run, size)) == size


def test_where_memory_ran_out_a_smaller_cache_is_tried_before_fewer_bits() -> None:
    found = table(LONG, 0, ram_gib=40, ctx_size=32768, dtype="bf16")
    assert found.chosen is not None
    assert found.chosen.run.kv_cache == "plain"
    failure = Failure(found.chosen, found.options, least_tokens=30000)

    def replan(options: LoadOptions) -> object:
        again = list_plans(found.question.asking(options))
        if again.refusal is not None:
            raise again.refusal
        return again.plans[0]

    smaller = smaller_plans(failure, found, replan)  # type: ignore[arg-type]
    assert [plan.run.kv_cache for plan in smaller[:2]] == ["int8", "int4"]
    assert difference(found.chosen, smaller[0]) == "KV cache in 8 bits"
    bound = replace(failure, options=found.options.model_copy(update={"kv_cache": "plain"}), flags_bind=True)
    assert {plan.run.kv_cache for plan in smaller_plans(bound, found, replan)} <= {"plain"}  # type: ignore[arg-type]


def test_where_memory_ran_out_with_double_quantization_the_next_ways_keep_it() -> None:
    found = table(LONG, 0, ram_gib=40, ctx_size=32768, load_in_4bit=True, use_double_quant=True)
    assert found.chosen is not None
    chosen = replace(found.chosen, flags=())  # Snug's own choice: no flag of the user's says so
    options = found.options.model_copy(update={"load_in_4bit": False, "use_double_quant": False})

    def replan(options: LoadOptions) -> Plan:
        return make_plan(found.question.asking(options))

    first = smaller_plans(Failure(chosen, options, least_tokens=1000), found, replan)[0]
    assert (first.run.context_tokens, first.run.quantization, first.run.double_quant) == (16384, "nf4", True)


@settings(max_examples=60, deadline=None)
@given(
    gib=st.floats(4, 40), more=st.floats(0, 20), ctx=st.sampled_from([2048, 8192, 32768]),
    flags=st.sampled_from([{}, {"load_in_4bit": True}, {"kv_cache": "int8"}, {"kv_cache": "offloaded"}]),
)  # fmt: skip
def test_what_fits_is_within_what_is_free_and_more_memory_never_forces_a_smaller_cache(
    gib: float, more: float, ctx: int, flags: dict[str, Any]
) -> None:
    order: tuple[KVCache, ...] = ("plain", "int8", "int4")
    little = table(LONG, gib, ctx_size=ctx, **flags)
    much = table(LONG, gib + more, ctx_size=ctx, **flags)
    for plan in little.plans:
        devices = (*little.inventory.gpus, little.inventory.cpu)
        lacking = [
            plan.budgets[one.id].total - (one.free_bytes - margin(one.free_bytes))
            for one in devices
            if one.id in plan.budgets
        ]
        assert plan.fits == (max(lacking) <= 0)
        assert not plan.fits or longest_context(little, plan) >= ctx
    if little.chosen is None or "kv_cache" in flags:
        return
    assert much.chosen is not None
    same = (little.chosen.run.quantization, little.chosen.placement) == (
        much.chosen.run.quantization, much.chosen.placement,
    )  # fmt: skip
    if same:
        assert order.index(much.chosen.run.kv_cache) <= order.index(little.chosen.run.kv_cache)
