"""Which ways to run are listed, dropped and chosen, for machines and models that we do not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.errors import NotAvailableHere, OutOfMemory
from modules.hardware import Inventory
from modules.memory.dryruns.asking import Peaks
from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.forecast import weight_bytes
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import Place, Way
from modules.memory.planning.fitting import solve_at
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans, longest_context
from modules.memory.planning.problem import CHUNKS, CONTEXT_STEP, Problem, margin
from modules.memory.planning.speed import Estimate
from modules.settings import LoadOptions, check_together
from modules.ui.ways import options_of
from modules.units import GiB, MiB
from tests.shapes import NO_FLAGS, llama, machine, mixtral, small_llama

MODELS = {
    "1B": small_llama(), "7B": llama("7B"), "7B, 32k": llama("7B", context=32768), "13B": llama("13B"),
    "70B": llama("70B"), "7B in fp32": llama("7B", dtype="F32"), "Mixtral": mixtral(),
}  # fmt: skip
GPUS = {"none": (0, 0), "1x8": (1, 8), "1x12": (1, 12), "1x24": (1, 24), "2x24": (2, 24), "4x80": (4, 80)}
MACHINES = {
    f"{name}, {ram} GiB RAM": machine(count, size, ram_gib=ram)
    for name, (count, size) in GPUS.items()
    for ram in (8, 24, 256)
}


def table(spec: ModelSpec, inventory: Inventory, **flags: object) -> PlanTable:
    """list_plans with flags given as on the command line."""
    options = LoadOptions.model_validate(flags)
    return list_plans(Question(spec, options, inventory, Path("cache")))


def ways(found: PlanTable) -> list[str]:
    """The titles of a table's plans."""
    return [plan.title for plan in found.plans]


def pace_s(plan: Plan) -> float:
    """What ways are compared by."""
    return Estimate(plan.tokens_per_s, plan.prefill_tokens_per_s).pace_s


def check_fits(plan: Plan, inventory: Inventory) -> None:
    """A plan that says that it fits is within what is free, with the margin; one that does not says what it lacks."""

    def lacking(more: int) -> bool:
        """Whether any device is too small with so many bytes more free on each."""
        return any(
            plan.budgets.get(device.id, Budget()).total > device.free_bytes + more - margin(device.free_bytes + more)
            for device in (*inventory.gpus, inventory.cpu)
        )

    assert plan.fits == (plan.short_bytes == 0)
    assert plan.fits == (not lacking(0)), plan.title
    if not plan.fits:
        assert lacking(plan.short_bytes - 1024) and not lacking(plan.short_bytes)


@pytest.mark.parametrize("where", MACHINES)
@pytest.mark.parametrize("model", MODELS)
def test_every_plan_says_truly_whether_it_fits_and_its_flags_choose_it_again(model: str, where: str) -> None:
    spec, inventory = MODELS[model], MACHINES[where]
    found = table(spec, inventory)
    again_found = table(spec, inventory)
    assert (again_found.plans, str(again_found.refusal)) == (found.plans, str(found.refusal))
    for plan in found.plans:
        check_fits(plan, inventory)
        assert plan.reasons
        assert 0 < plan.tokens_per_s[0] <= plan.tokens_per_s[1]
    if found.chosen is None:
        assert found.refusal is not None
        assert not [plan for plan in found.plans if plan.fits and "--disk" not in plan.flags and plan.placement]
        return
    assert found.plans[0] is found.chosen
    options = options_of(found.chosen.flags, NO_FLAGS)
    check_together(options)
    again = list_plans(Question(spec, options, inventory, Path("cache"))).chosen
    assert again is not None
    assert (again.run, again.placement, again.budgets) == (
        found.chosen.run, found.chosen.placement, found.chosen.budgets,
    )  # fmt: skip
    assert again.flags == found.chosen.flags


@pytest.mark.parametrize(
    ("model", "where", "expected"),
    [
        ("1B", "none, 24 GiB RAM", "16-bit on the CPU"),
        ("7B", "none, 24 GiB RAM", "16-bit on the CPU"),
        ("7B", "none, 8 GiB RAM", "4-bit (nf4) on the CPU"),
        ("7B", "1x8, 24 GiB RAM", "4-bit (nf4) on the GPU"),
        ("7B", "1x24, 8 GiB RAM", "16-bit on the GPU"),
        ("7B in fp32", "1x24, 24 GiB RAM", "16-bit on the GPU"),
        ("7B in fp32", "2x24, 24 GiB RAM", "32-bit on 2 GPUs"),
        ("13B", "1x12, 24 GiB RAM", "4-bit (nf4) on the GPU"),
        ("13B", "2x24, 24 GiB RAM", "16-bit on 2 GPUs"),
        ("70B", "2x24, 24 GiB RAM", "4-bit (nf4) on 2 GPUs"),
        ("70B", "4x80, 24 GiB RAM", "4-bit (nf4) on GPU 0"),
        ("Mixtral", "4x80, 24 GiB RAM", "16-bit on 2 GPUs"),
        ("Mixtral", "none, 256 GiB RAM", "16-bit on the CPU"),
    ],
)
def test_without_flags_snug_takes_weights_as_stored_where_they_are_fast_enough_and_else_the_fastest(
    model: str, where: str, expected: str
) -> None:
    chosen = table(MODELS[model], MACHINES[where]).chosen
    assert chosen is not None
    assert chosen.title == expected


def test_a_mixture_of_experts_is_told_that_quantization_changes_nothing() -> None:
    found = table(MODELS["Mixtral"], MACHINES["4x80, 256 GiB RAM"])
    ((what, why),) = found.dropped
    assert what == "8-bit, 4-bit (nf4), 4-bit (nf4, double)"
    assert "reaches 2.9 % of this model; it skips experts" in why
    assert not [way for way in ways(found) if way.startswith(("8-bit", "4-bit"))]


def test_a_mixture_of_experts_reads_only_the_experts_that_a_token_uses() -> None:
    inventory = MACHINES["4x80, 256 GiB RAM"]
    mixed = table(MODELS["Mixtral"], inventory).chosen
    dense = table(MODELS["70B"], inventory, dtype="fp16").chosen
    assert mixed is not None
    assert dense is not None
    assert mixed.tokens_per_s[1] > 3 * dense.tokens_per_s[1]


def test_the_reasons_compare_the_choice_with_what_else_fits_and_what_does_not() -> None:
    found = table(MODELS["7B"], MACHINES["1x8, 8 GiB RAM"])
    assert found.chosen is not None
    said = " ".join(found.chosen.reasons)
    assert "4-bit (nf4): 3.88 GiB weights" in said
    assert "8-bit would lose less quality" in said
    assert "by published bandwidths, not measured here" in said
    small = " ".join(table(MODELS["1B"], MACHINES["none, 24 GiB RAM"]).plans[0].reasons)
    assert "4-bit (nf4) also fits, but writes" in small
    assert "loses 3 to 9 % of quality" in small


def test_flags_narrow_the_choice() -> None:
    inventory = MACHINES["1x24, 256 GiB RAM"]
    assert {plan.run.quantization for plan in table(MODELS["7B"], inventory, load_in_8bit=True).plans} == {"int8"}
    assert {plan.run.quantization for plan in table(MODELS["7B"], inventory, dtype="bf16").plans} == {"none"}
    assert {plan.loader for plan in table(MODELS["7B"], inventory, deepspeed=True).plans} == {"deepspeed"}
    on_cpu = table(MODELS["7B"], inventory, cpu=True)
    assert not [plan for plan in on_cpu.plans if any(device.startswith("cuda") for device in plan.budgets)]


def test_gpu_memory_is_one_printed_number_and_a_tenth_less_moves_a_layer_away() -> None:
    inventory = MACHINES["1x12, 256 GiB RAM"]
    plan = table(MODELS["7B"], inventory, auto_devices=True, bf16=True).chosen
    assert plan is not None
    limit = plan.flags[plan.flags.index("--gpu-memory") + 1]
    assert limit.endswith("GiB")
    again = table(MODELS["7B"], inventory, gpu_memory=limit, bf16=True).chosen
    assert again is not None
    assert again.placement == plan.placement
    less = table(MODELS["7B"], inventory, gpu_memory=f"{float(limit[:-3]) - 0.1:.1f}GiB", bf16=True).chosen
    assert less is not None
    assert less.limits["cuda:0"] < plan.limits["cuda:0"]


def test_a_prompt_is_read_in_smaller_chunks_where_a_layer_that_fits_then_is_worth_more() -> None:
    wide = MACHINES["1x8, 8 GiB RAM"]
    sizes = {"cuda:0": int(4.607 * GiB), "cpu": int(9.245 * GiB)}
    gpu, cpu = (replace(d, total_bytes=sizes[d.id], free_bytes=sizes[d.id]) for d in (wide.gpus[0], wide.cpu))
    narrow = replace(wide, gpus=(gpu,), cpu=cpu)
    plan, usual = table(MODELS["7B"], narrow, ctx_size=1024).chosen, table(MODELS["13B"], wide).chosen
    assert plan is not None and usual is not None
    assert plan.title == "4-bit (nf4, double), 27 of 32 layers on the GPU"
    assert plan.run.prefill_chunk == CHUNKS[1]
    assert "128 tokens at a time: 512 take memory that the weights need" in " ".join(plan.reasons)
    options = options_of(plan.flags, LoadOptions.model_validate({"ctx_size": 1024}))
    again = list_plans(Question(MODELS["7B"], options, narrow, Path("cache"))).chosen
    assert again is not None and (again.placement, again.run) == (plan.placement, plan.run)
    assert (usual.title, usual.run.prefill_chunk) == ("4-bit (nf4, double), 29 of 40 layers on the GPU", CHUNKS[0])


def test_several_gpus_are_filled_evenly_and_no_more_of_them_than_it_takes() -> None:
    plan = table(MODELS["13B"], MACHINES["2x24, 24 GiB RAM"]).chosen
    assert plan is not None
    first, second = (plan.budgets[f"cuda:{number}"].total for number in range(2))
    block = weight_bytes(plan.spec, plan.run) // plan.spec.layers
    assert abs(first - second) <= block
    few = table(MODELS["70B"], MACHINES["4x80, 24 GiB RAM"], dtype="fp16").chosen
    assert few is not None
    assert set(few.budgets) == {"cuda:0", "cuda:1"}
    limited = table(MODELS["13B"], MACHINES["2x24, 24 GiB RAM"], dtype="fp16", gpu_memory="20 20").chosen
    assert limited is not None
    assert limited.budgets["cuda:0"].total > limited.budgets["cuda:1"].total  # as the user's limits say, in order


def test_disk_and_deepspeed_are_listed_but_not_taken_unasked() -> None:
    found = table(MODELS["70B"], MACHINES["1x8, 8 GiB RAM"])
    assert found.chosen is None
    assert isinstance(found.refusal, OutOfMemory)
    assert "--disk" in found.refusal.remedy
    disk = next(plan for plan in found.plans if "--disk" in plan.flags)
    asked = list_plans(Question(MODELS["70B"], options_of(disk.flags, NO_FLAGS), MACHINES["1x8, 8 GiB RAM"], Path("c")))
    assert asked.chosen is not None
    assert asked.chosen.placement == disk.placement


def test_a_gguf_file_is_not_quantized_a_second_time() -> None:
    spec = replace(MODELS["7B"], source="gguf", stored_dtype="bfloat16")
    assert table(spec, MACHINES["1x24, 24 GiB RAM"]).dropped
    with pytest.raises(NotAvailableHere, match="second time"):
        table(spec, MACHINES["1x24, 24 GiB RAM"], load_in_4bit=True)


def test_a_file_that_is_quantized_already_never_leaves_the_gpu_in_part() -> None:
    """transformers would refuse it: some modules are dispatched on the CPU or the disk."""
    spec = replace(MODELS["13B"], prequantized="nf4")
    for flags in ({}, {"auto_devices": True}, {"disk": True}, {"gpu_memory": "4"}):
        for plan in table(spec, MACHINES["1x8, 24 GiB RAM"], **flags).plans:
            assert len(set(plan.placement.values())) == 1, (plan.title, flags)


def test_forecasts_that_were_too_low_before_widen_the_margin() -> None:
    spec, inventory = MODELS["7B"], machine(1, 16.5, ram_gib=64)
    options = LoadOptions.model_validate({"dtype": "bf16", "ctx_size": 4096, "kv_cache": "plain"})
    asked: list[tuple[str, str, str]] = []

    def observed(device_name: str, loader: str, quantization: str) -> float:
        asked.append((device_name, loader, quantization))
        return 1.2

    calm = list_plans(Question(spec, options, inventory, Path("c")))
    warned = list_plans(Question(spec, options, inventory, Path("c"), observed=observed))
    assert calm.chosen is not None
    assert warned.chosen is not None
    assert calm.chosen.placement == {"": "cuda:0"}
    assert warned.chosen.placement != {"": "cuda:0"}
    assert ("card", "transformers", "none") in asked


@pytest.mark.parametrize(("gpu_gib", "chunk", "method"), [(24, 512, "dry-run"), (17, 128, "formula")])
def test_a_dry_runs_count_replaces_the_formula_and_may_change_the_plan(gpu_gib: int, chunk: int, method: str) -> None:
    """On the smaller GPU the counted run does not fit: a smaller chunk does, its formula raised as far."""
    spec, inventory = MODELS["7B"], machine(1, gpu_gib, ram_gib=64)
    options = LoadOptions.model_validate({"dtype": "bf16", "ctx_size": 4096})

    class Counted:
        prefill_peak, decode_peak = 3 * GiB, MiB

    plan = list_plans(Question(spec, options, inventory, Path("c"), peaks=lambda _spec, _run, _kind: Counted())).chosen
    assert plan is not None
    assert plan.placement == {"": "cuda:0"}
    assert plan.run.prefill_chunk == chunk
    assert plan.budgets["cuda:0"].figures["prefill_peak"].method == method
    assert plan.budgets["cuda:0"].prefill_peak == pytest.approx(3 * GiB * chunk / 512, rel=0.01)
    assert table(spec, inventory, dtype="bf16", ctx_size=4096).plans[0].run.prefill_chunk == 512


def test_the_longest_context_is_held_to_the_dry_run_and_never_shorter_than_the_plans_own() -> None:
    spec, inventory = llama("7B", context=32768), machine(1, 24, ram_gib=64)

    def told(prefill_peak: int, **flags: object) -> tuple[int, int]:
        """(the chosen plan's own context, the longest) where a dry run counts `prefill_peak`."""
        options = LoadOptions.model_validate({"dtype": "bf16", "kv_cache": "plain", **flags})
        counted = Peaks(weights=0, kv_cache=0, prefill_peak=prefill_peak, decode_peak=MiB)
        found = list_plans(Question(spec, options, inventory, Path("c"), peaks=lambda _spec, _run, _kind: counted))
        assert found.chosen is not None
        return found.chosen.run.context_tokens, longest_context(found, found.chosen)

    (_, roomy), (_, tight) = told(MiB), told(2 * GiB)
    assert 8192 < tight < roomy < 32768
    own, longest = told(MiB, ctx_size=roomy + 1)
    assert own == longest == roomy + 1


def test_what_a_dry_run_of_a_quantized_model_counted_holds_its_dequantized_weights() -> None:
    spec, inventory = MODELS["7B"], machine(1, 24, ram_gib=64)
    options = LoadOptions.model_validate({"load_in_4bit": True, "ctx_size": 2048})
    formulas = list_plans(Question(spec, options, inventory, Path("c"))).chosen
    assert formulas is not None
    before = formulas.budgets["cuda:0"]
    assert before.dequant_buffer > 0

    class Counted:
        prefill_peak, decode_peak = before.prefill_peak + before.dequant_buffer, MiB

    plan = list_plans(Question(spec, options, inventory, Path("c"), peaks=lambda _spec, _run, _kind: Counted())).chosen
    assert plan is not None
    assert (plan.run, plan.budgets["cuda:0"].dequant_buffer) == (formulas.run, 0)
    assert plan.budgets["cuda:0"].total == before.total


@pytest.mark.parametrize("where", ["none, 24 GiB RAM", "1x12, 24 GiB RAM", "2x24, 24 GiB RAM"])
def test_the_longest_context_fits_and_a_step_more_does_not(where: str) -> None:
    spec, inventory = MODELS["7B, 32k"], MACHINES[where]
    found = table(spec, inventory)
    problem = Problem(spec, LoadOptions.model_validate({}), inventory.gpus, inventory.cpu, inventory.disk)
    for plan in found.plans:
        devices = {device.partition(":")[0] for device in plan.placement.values()}
        place: Place = "zero3" if not devices else "split" if len(devices - {"disk"}) > 1 else "gpu"
        way = Way(plan.run, "cpu" if devices <= {"cpu", "disk"} and devices else place, "disk" in devices)
        if place == "gpu" and len(set(plan.placement.values())) > 1:
            way = replace(way, place="gpus")
        tokens = longest_context(found, plan)
        assert (tokens >= plan.run.context_tokens) == plan.fits
        assert not tokens or solve_at(problem, way, tokens) is not None
        assert tokens == spec.max_context or solve_at(problem, way, tokens + CONTEXT_STEP) is None


SIZES = st.floats(2, 100)


@settings(max_examples=120, deadline=None)
@given(
    model=st.sampled_from(["1B", "7B", "7B, 32k", "13B"]), gpus=st.integers(0, 3), gpu_gib=SIZES, ram_gib=SIZES,
    more_gpu=st.floats(0, 24), more_ram=st.floats(0, 64),
    flags=st.sampled_from([{}, {"bf16": True}, {"load_in_4bit": True}, {"load_in_8bit": True}, {"cpu": True}]),
)  # fmt: skip
def test_more_memory_never_gives_a_slower_or_a_worse_plan(
    model: str, gpus: int, gpu_gib: float, ram_gib: float, more_gpu: float, more_ram: float, flags: dict[str, object]
) -> None:
    """Never worse in everything that counts: who gets more memory gets more quality, more speed or more context."""
    little = table(MODELS[model], machine(gpus, gpu_gib, ram_gib=ram_gib), **flags).chosen
    much = table(MODELS[model], machine(gpus, gpu_gib + more_gpu, ram_gib=ram_gib + more_ram), **flags).chosen
    if little is None:
        return
    assert much is not None
    assert (
        much.quality > little.quality
        or pace_s(much) <= pace_s(little) * 1.11
        or much.run.context_tokens > little.run.context_tokens
    )


@settings(max_examples=60, deadline=None)
@given(model=st.sampled_from(["7B", "13B"]), gib=st.floats(5, 40), more=st.floats(0, 20))
def test_more_memory_on_the_gpu_never_takes_layers_off_it(model: str, gib: float, more: float) -> None:
    flags: dict[str, object] = {"bf16": True, "auto_devices": True, "ctx_size": 2048}
    little = table(MODELS[model], machine(1, gib, ram_gib=256), **flags).chosen
    much = table(MODELS[model], machine(1, gib + more, ram_gib=256), **flags).chosen
    assert little is not None
    assert much is not None
    assert much.limits.get("cuda:0", 0) >= little.limits.get("cuda:0", 0)
    assert pace_s(much) <= pace_s(little) * 1.0001
