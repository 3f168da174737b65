"""What must hold of plans for any model on any machine: machines and models here are drawn at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from modules.hardware import Device, Inventory
from modules.memory.forecasting.budget import Budget
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import DEFAULT_CONTEXT
from modules.memory.planning.choosing import COMFORTABLE_S, FAR_FASTER
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans
from modules.memory.planning.problem import margin
from modules.memory.planning.speed import Estimate, middle
from modules.settings import LoadOptions, check_together
from modules.ui.ways import options_of
from modules.units import GiB
from tests.shapes import NO_FLAGS, llama, random_llama

KERNELS = frozenset({"avx512f", "avx512_bf16"})
CARDS = ("RTX 3060", "RTX 3090", "RTX 4090", "A100 80GB", "unknown card")
# What two forecasts of speed may differ by and still count as the same, with room for rounding.
TIE = 1.11
MORE = 1 if settings().derandomize else 25
"""With `--all` (tests/conftest.py) so many times the examples, new ones each time: a thousand of what matters most."""


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """A decoder like Llama of 20 M to 80 B parameters, with many heads of keys or few."""
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    return random_llama(
        hidden=heads * draw(st.sampled_from([64, 128])),
        layers=draw(st.sampled_from([2, 8, 24, 48])),
        heads=heads,
        kv_heads=heads // draw(st.sampled_from([1, 4, 8])),
        context=draw(st.sampled_from([1024, 4096, 32768])),
        dtype=draw(st.sampled_from(["BF16", "F16", "F32"])),
    )


def device(id: str, kind: Any, name: str, gib: float, used: float) -> Device:
    """A device of `gib`, of which others use the share `used`."""
    return Device(id, kind, name, int(gib * GiB), int(gib * GiB * (1 - used)))


@st.composite
def machines(draw: st.DrawFn) -> Inventory:
    """Up to three cards of different kinds, any memory, other programs on all of them."""
    used = st.floats(0, 0.5)
    gpus = tuple(
        device(f"cuda:{number}", "cuda", draw(st.sampled_from(CARDS)), draw(st.floats(2, 80)), draw(used))
        for number in range(draw(st.integers(0, 3)))
    )
    return Inventory(
        gpus,
        device("cpu", "cpu", "cpu", draw(st.floats(2, 256)), draw(used)),
        device("disk", "disk", "/disk", 2000, 0),
        draw(st.sampled_from([2, 8, 32])),
        draw(st.sampled_from([frozenset(), KERNELS])),
    )


@st.composite
def more_memory(draw: st.DrawFn, machine: Inventory) -> Inventory:
    """The same machine with more free on some of its devices."""

    def grown(device: Device) -> Device:
        more = int(draw(st.sampled_from([0, 0.5, 2, 8, 40])) * GiB)
        return replace(device, total_bytes=device.total_bytes + more, free_bytes=device.free_bytes + more)

    return replace(machine, gpus=tuple(map(grown, machine.gpus)), cpu=grown(machine.cpu))


def wished(spec: ModelSpec) -> int:
    """The context that is aimed at unasked."""
    return min(spec.max_context, DEFAULT_CONTEXT)


FLAGS = st.sampled_from(
    [{}, {}, {"bf16": True}, {"load_in_4bit": True}, {"load_in_8bit": True}, {"cpu": True}, {"ctx_size": 1024}]
)


def table(spec: ModelSpec, machine: Inventory, flags: Mapping[str, object]) -> PlanTable:
    return list_plans(Question(spec, LoadOptions.model_validate(dict(flags)), machine, Path("cache")))


def pace_s(plan: Plan) -> float:
    """What ways are compared by."""
    return Estimate(plan.tokens_per_s, plan.prefill_tokens_per_s).pace_s


def reading_decides(plan: Plan) -> bool:
    """Whether reading a message takes longer than writing the reply."""
    return 128 / middle(plan.prefill_tokens_per_s) > 256 / middle(plan.tokens_per_s)


@settings(max_examples=20 * MORE, deadline=None)
@given(spec=models(), machine=machines(), flags=FLAGS)
def test_a_plan_that_says_it_fits_fits_and_the_same_question_has_the_same_answer(
    spec: ModelSpec, machine: Inventory, flags: dict[str, object]
) -> None:
    found = table(spec, machine, flags)
    assert (found.chosen is None) == (found.refusal is not None)
    for plan in found.plans:
        lacking = max(
            plan.budgets.get(device.id, Budget()).total - (device.free_bytes - margin(device.free_bytes))
            for device in (*machine.gpus, machine.cpu)
        )
        assert plan.fits == (lacking <= 0) == (plan.short_bytes == 0), plan.title
        assert 0 < plan.tokens_per_s[0] <= plan.tokens_per_s[1]
        assert 0 < plan.prefill_tokens_per_s[0] <= plan.prefill_tokens_per_s[1]
        assert 0 < plan.quality <= 1
        assert plan.reasons and "cuda" not in " ".join(plan.reasons)
    assert table(spec, machine, flags).plans == found.plans


@settings(max_examples=40 * MORE, deadline=None)
@given(data=st.data(), spec=models(), machine=machines(), flags=FLAGS)
def test_more_memory_is_never_slower_than_comfortable_never_worse_for_nothing_and_never_shorter_for_nothing(
    data: st.DataObject, spec: ModelSpec, machine: Inventory, flags: dict[str, object]
) -> None:
    little = table(spec, machine, flags).chosen
    much = table(spec, data.draw(more_memory(machine)), flags).chosen
    if little is None:
        return
    assert much is not None
    longer, faster = much.run.context_tokens > little.run.context_tokens, pace_s(much) < pace_s(little)
    comfortable = pace_s(much) <= COMFORTABLE_S * TIE
    assert pace_s(much) <= TIE * pace_s(little) or comfortable or longer
    assert (
        middle(much.tokens_per_s) * TIE >= middle(little.tokens_per_s)
        or comfortable
        or longer
        or reading_decides(little)
    ), (little.title, much.title)
    assert much.quality >= little.quality or faster or longer
    # What is cut short anyway may become a little shorter, for more quality or speed; what was whole stays whole.
    least = little.run.context_tokens * (1 if little.run.context_tokens == wished(spec) else 0.75)
    assert much.run.context_tokens >= least or pace_s(much) * FAR_FASTER <= TIE * pace_s(little), (
        little.title, little.run.context_tokens, much.title, much.run.context_tokens,
    )  # fmt: skip


@settings(max_examples=6, deadline=None)
@given(spec=models(), machine=machines())
def test_the_flags_of_every_way_that_fits_give_exactly_that_way(spec: ModelSpec, machine: Inventory) -> None:
    for plan in table(spec, machine, {}).plans:
        if plan.fits:
            options = options_of(plan.flags, NO_FLAGS)
            check_together(options)
            again = list_plans(Question(spec, options, machine, Path("cache"))).chosen
            assert again is not None, plan.flags
            assert (again.title, again.run, again.placement) == (plan.title, plan.run, plan.placement), plan.flags


@settings(max_examples=15, deadline=None)
@given(spec=models(), machine=machines())
def test_the_printed_gpu_memory_gives_the_same_split_and_a_step_less_moves_something_off_the_gpu_or_cuts_the_context(
    spec: ModelSpec, machine: Inventory
) -> None:
    machine = replace(machine, gpus=machine.gpus[:1])
    if not machine.gpus:
        return
    plan = table(spec, machine, {"auto_devices": True, "bf16": True}).chosen
    if plan is None or "--gpu-memory" not in plan.flags:
        return
    options = options_of(plan.flags, NO_FLAGS)
    assert options.gpu_memory is not None
    (limit,) = options.gpu_memory
    again = list_plans(Question(spec, options, machine, Path("cache"))).chosen
    assert again is not None and again.placement == plan.placement
    less = options.model_copy(update={"gpu_memory": (limit - GiB // 10,)})
    if limit > GiB // 10:
        moved = list_plans(Question(spec, less, machine, Path("cache"))).chosen
        less_there = moved is None or moved.limits.get("cuda:0", 0) < plan.limits["cuda:0"]
        assert less_there or (moved is not None and moved.run.context_tokens < plan.run.context_tokens)


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(["7B", "13B", "70B"]), cores=st.sampled_from([2, 8]), ram=st.sampled_from([24, 32, 64]),
    gib=st.integers(4, 40), more=st.integers(1, 12),
)  # fmt: skip
def test_a_larger_card_never_cuts_the_context_and_never_writes_more_slowly_than_one_reads(
    model: Literal["7B", "13B", "70B"], cores: int, ram: int, gib: int, more: int
) -> None:
    """Cards and models that people have, where both went wrong: 13B on 24 and 28 GiB, on 6 and 8 GiB."""

    def on(size: int) -> Plan | None:
        gpu = device("cuda:0", "cuda", "a card", size, 0)
        machine = Inventory((gpu,), device("cpu", "cpu", "cpu", ram, 0), device("disk", "disk", "/disk", 900, 0), cores,
                            KERNELS)  # fmt: skip
        return table(llama(model), machine, {}).chosen

    little, much = on(gib), on(gib + more)
    if little is None:
        return
    assert much is not None
    faster = pace_s(much) * FAR_FASTER <= TIE * pace_s(little)
    assert much.run.context_tokens >= little.run.context_tokens or faster
    slower = middle(much.tokens_per_s) * TIE < middle(little.tokens_per_s)
    assert not slower or pace_s(much) <= COMFORTABLE_S * TIE or reading_decides(little)
