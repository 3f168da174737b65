"""GGUF files with layers on GPUs: what the plan says held against llama.cpp's own buffers, on cards that are none
(tests/fake_gpu.py); splits, the engine, refusals.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.engine.base import OnProgress
from modules.engine.llamacpp.gpus import check_gpus, find_full, most_taken, taken_bytes
from modules.errors import BadFlag, NotAvailableHere, OutOfMemory
from modules.hardware import Inventory
from modules.memory import llamacpp_build
from modules.memory.dryruns.llamacpp_fit import Buffers
from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.figures import Held, beside_gpus_budget
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.llamacpp_build import GPU_BUILD, can_use_gpus
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.gguf_layers import fill_from_the_end, lay_out, parts_of
from modules.memory.planning.placement import Room
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans, longest_context, make_plan
from modules.memory.planning.problem import margin
from modules.memory.planning.smaller import Failure, difference, rungs, smaller_plans
from modules.memory.planning.speed import middle
from modules.models import planning as models_planning
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings, check_machine, check_together
from modules.settings_reading import read_settings
from modules.ui.ways import options_of
from modules.units import GiB, MiB
from tests.big_gguf import Size, big_gguf
from tests.fake_gpu import Forks, dry_buffers, dry_log, library, loaded
from tests.fakes import Script, ScriptedEngine, ScriptedLoad
from tests.llamacpp_rig import ignore, plan_of
from tests.shapes import NO_FLAGS, llama, machine
from tests.tiny_models import tiny_gguf

SLOW = pytest.mark.slow
CPU_BUILD = pytest.mark.skipif(can_use_gpus(), reason="the installed xllamacpp computes on GPUs")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Processes with cards that are none."""
    library()
    with closing(Forks()) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@cache
def spec_of(folder: Path, size: Size) -> ModelSpec:
    """Llama of that size in Q4_K_M."""
    return inspect(big_gguf(folder, size))


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    """A model of six layers that writes text."""
    return tiny_gguf(folder, width=512, inner=1024, layers=6, kind="Q8_0", context=8192, readable=True)


def options_with(**flags: object) -> LoadOptions:
    return LoadOptions.model_validate(flags)


def table(spec: ModelSpec, there: Inventory, **flags: object) -> PlanTable:
    """Every way to run `spec` where llama.cpp's build can use the GPUs."""
    return list_plans(Question(spec, options_with(**flags), there, Path("cache"), llamacpp_gpu=True))


def drafted(spec: ModelSpec, there: Inventory, draft: ModelSpec) -> Plan:
    """The plan with a model that guesses ahead."""
    options = options_with(draft_model=draft.name)
    return make_plan(Question(spec, options, there, Path("cache"), draft=draft, llamacpp_gpu=True))


def chosen(spec: ModelSpec, there: Inventory, **flags: object) -> Plan:
    plan = table(spec, there, **flags).chosen
    assert plan is not None
    return plan


def check_limits(plan: Plan, there: Inventory) -> None:
    """What a plan says that fits, fits."""
    for device in (*there.gpus, there.cpu):
        taken = plan.budgets.get(device.id, Budget()).total
        assert taken <= device.free_bytes - margin(device.free_bytes), plan.title


# What is on the GPU, and what is left in CPU memory.


@pytest.mark.parametrize("size", ["3B", "8B", "70B", *(pytest.param(size, marks=SLOW) for size in ("1B", "7B", "13B"))])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("context", "chunk", "kept"),
    [(1024, 128, "plain"), (8192, 512, "plain"), (32768, 512, "plain"), (8192, 512, "int8"), (32768, 512, "int4")],
)
def test_weights_caches_and_buffers_of_a_split_are_what_llama_cpp_would_allocate(
    forks: Forks, folder: Path, size: Size, share: float, context: int, chunk: int, kept: KVCache
) -> None:
    spec = spec_of(folder, size)
    run = RunSpec("float16", context_tokens=context, prefill_chunk=chunk, kv_cache=kept, runtime="llamacpp")
    parts, layers = parts_of(spec, run), max(2, round((spec.layers + 1) * share))
    layout = lay_out(parts, ["cuda:0"], (layers,))
    budgets = {
        device: beside_gpus_budget(
            spec, run, device, Held(layout.weights[device], kv_cache=layout.caches[device]), parts.beside(layers)
        )
        for device in ("cpu", "cuda:0")
    }
    compare(forks, spec, run, budgets, (layers,), [900])


def compare(
    forks: Forks,
    spec: ModelSpec,
    run: RunSpec,
    budgets: Mapping[str, Budget],
    layers: tuple[int, ...],
    cards: list[float],
) -> None:
    """Hold budgets to llama.cpp's dry fit: weights and caches to its table's MiB, buffers from above."""
    real = dry_buffers(dry_log(forks, spec.path, run, cards, layers))
    told = []
    for device, buffers in real.items():
        if not buffers.total:
            continue
        budget, rows = budgets[device], SLOTS * spec.vocab_size * 4 if device == "cpu" else 0
        assert budget.weights == pytest.approx(buffers.model, abs=2 * MiB), device
        assert budget.kv_cache == pytest.approx(buffers.context, abs=2 * MiB), device
        forecast = budget.prefill_peak - rows  # rows of logits: llama.cpp's table leaves them out
        told.append(f"{device} {forecast / MiB:.1f} MiB for {buffers.compute / MiB:.1f}")
        assert forecast >= buffers.compute - MiB // 4, told
        bound = device == "cuda:0" and sum(layers) <= spec.layers  # elsewhere the formula is exact
        assert forecast - buffers.compute <= (0.45 * buffers.compute if bound else MiB // 4), told
    print(spec.name, layers, *told)


@pytest.mark.parametrize(
    ("size", "layers", "cards"),
    [
        ("70B", 81, (24, 24)), ("70B", 60, (24, 24)), ("70B", 81, (16, 16, 24)), ("13B", 41, (6, 8)),
        ("13B", 30, (4, 8)),
    ],
)  # fmt: skip
def test_splits_over_several_cards_lie_where_the_plan_says(
    forks: Forks, folder: Path, size: Size, layers: int, cards: tuple[float, ...]
) -> None:
    spec = spec_of(folder, size)
    there = several(*cards)
    plan = chosen(spec, there, gpu_layers=layers, ctx_size=4096, kv_cache="plain")
    assert sum(plan.gpu_layers) == layers and sum(1 for count in plan.gpu_layers if count) == len(cards)
    check_limits(plan, there)
    compare(forks, spec, plan.run, plan.budgets, plan.gpu_layers, list(cards))


def several(*cards: float, ram_gib: float = 64) -> Inventory:
    """A machine with cards of these GiB."""
    there = machine(len(cards), 0, ram_gib=ram_gib)
    gpus = tuple(
        replace(gpu, total_bytes=int(size * GiB), free_bytes=int(size * GiB))
        for gpu, size in zip(there.gpus, cards, strict=True)
    )
    return replace(there, gpus=gpus)


def test_no_pipeline_is_built_over_several_cards_and_nothing_on_a_card_for_the_cpu_alone(
    forks: Forks, folder: Path
) -> None:
    path, run = spec_of(folder, "7B").path, RunSpec("float16", context_tokens=4096)
    log = "".join(dry_log(forks, path, run, (24, 24), (16, 17)))
    assert "sched copies = 1" in log and "pipeline parallelism enabled" not in log
    alone = "".join(dry_log(forks, path, run, (24, 24), ()))
    assert "CUDA0 compute buffer" not in alone


# The arithmetic of splits.


def test_the_last_layers_go_to_the_gpus_the_output_with_the_last_and_the_table_never(folder: Path) -> None:
    spec = spec_of(folder, "13B")
    parts = parts_of(spec, RunSpec("float16", context_tokens=4096, runtime="llamacpp"))
    assert [unit.kind for unit in parts.units] == ["block"] * 40 + ["head"] and parts.layers == 40
    unit = max(unit.loaded + unit.cache for unit in parts.units)
    rooms = (Room("cuda:0", 3 * unit), Room("cuda:1", 5 * unit))
    counts = fill_from_the_end(parts, rooms, most=41)
    assert 3 <= counts[0] <= 5 and 5 <= counts[1] <= 8
    layout = lay_out(parts, ["cuda:0", "cuda:1"], counts)
    where = {group.layer if group.kind == "block" else group.kind: device for group, device in layout.places}
    assert where["embedding"] == "cpu" and where["head"] == "cuda:1"
    on_cpu = 41 - sum(counts)
    assert [where[layer] for layer in range(40)] == [
        *["cpu"] * on_cpu, *["cuda:0"] * counts[0], *["cuda:1"] * (counts[1] - 1),
    ]  # fmt: skip
    assert sum(layout.weights.values()) == sum(tensor.size_bytes for tensor in spec.tensors)
    one = parts.units[0].cache
    assert layout.caches == {"cpu": on_cpu * one, "cuda:0": counts[0] * one, "cuda:1": (counts[1] - 1) * one}


def test_a_table_that_is_the_output_too_lies_in_both_places(folder: Path) -> None:
    spec = spec_of(folder, "3B")
    plan = chosen(spec, machine(1, 24))
    table_bytes = next(tensor.size_bytes for tensor in spec.tensors if "embed_tokens" in tensor.name)
    assert plan.budgets["cpu"].weights == table_bytes
    assert plan.budgets["cuda:0"].weights == sum(tensor.size_bytes for tensor in spec.tensors)


@pytest.mark.parametrize(
    ("size", "cards", "title"),
    [
        ("7B", (12,), "As stored (llama.cpp) on the GPU"),
        ("70B", (24, 24), "As stored (llama.cpp) on 2 GPUs"),
        ("7B", (24, 12), "As stored (llama.cpp) on GPU 0"),
    ],
)
def test_what_fits_lies_on_as_few_cards_as_it_takes(
    folder: Path, size: Size, cards: tuple[float, ...], title: str
) -> None:
    there = several(*cards)
    plan = chosen(spec_of(folder, size), there)
    assert (plan.title, plan.loader, sum(plan.gpu_layers)) == (title, "llamacpp", plan.spec.layers + 1)
    check_limits(plan, there)


def test_what_does_not_fit_is_split_and_says_what_lies_where(folder: Path) -> None:
    there = machine(1, 8, ram_gib=16)
    plan = chosen(spec_of(folder, "13B"), there, kv_cache="plain")
    (count,) = plan.gpu_layers
    assert plan.title == f"As stored (llama.cpp), {count - 1} of 40 layers on the GPU" and 10 < count < 40
    assert plan.placement["model.layers.0"] == "cpu" and plan.placement["model.layers.39"] == "cuda:0"
    told = " ".join(plan.reasons)
    assert f"the first {41 - count} in CPU memory, {count - 1} on the GPU with the output; the GPU has no room" in told
    assert "pass into the GPU for each 512 tokens" in told
    assert plan.flags == ("--loader", "llamacpp", "--kv-cache", "plain", "--gpu-layers", str(count))
    check_limits(plan, there)
    more = table(plan.spec, there, kv_cache="plain", gpu_layers=count + 1, ctx_size=plan.run.context_tokens)
    assert more.chosen is None and isinstance(more.refusal, OutOfMemory)
    assert f"--gpu-layers {count}" in more.refusal.remedy
    assert {figure.method for figure in plan.budgets["cuda:0"].figures.values()} == {"exact", "formula"}


def test_limits_of_each_device_are_kept(folder: Path) -> None:
    spec, there = spec_of(folder, "13B"), several(24, 24)
    flags = {"gpu_memory": ["2GiB", "3GiB"], "ctx_size": 4096, "kv_cache": "plain", "gpu_layers": None}
    plan = chosen(spec, there, loader="llamacpp", **flags)
    for device, limit in (("cuda:0", 2 * GiB), ("cuda:1", 3 * GiB)):
        assert plan.budgets[device].total - plan.budgets[device].context <= limit
    assert len([count for count in plan.gpu_layers if count]) == 2
    held = plan.budgets["cpu"].weights
    assert chosen(spec, there, loader="llamacpp", cpu_memory=f"{held}B", **flags).gpu_layers == plan.gpu_layers
    assert table(spec, there, loader="llamacpp", cpu_memory=f"{held - 1}B", **flags).chosen is None


def test_a_first_card_without_room_is_left_out(folder: Path) -> None:
    plan = chosen(spec_of(folder, "13B"), several(1, 8), kv_cache="plain", ctx_size=4096)
    assert plan.gpu_layers[0] == 0 < plan.gpu_layers[1]
    assert "cuda:0" not in plan.budgets


def test_a_draft_model_counts_on_the_card_that_computes_and_beside_several_in_cpu_memory(folder: Path) -> None:
    small, there = spec_of(folder, "1B"), machine(1, 12, ram_gib=32)
    whole = drafted(spec_of(folder, "7B"), there, small)
    assert whole.speculate == "draft"
    assert whole.budgets["cuda:0"].draft > sum(tensor.size_bytes for tensor in small.tensors)
    check_limits(whole, there)
    two = drafted(spec_of(folder, "70B"), several(24, 24), small)
    assert len(two.gpu_layers) == 2
    assert two.budgets["cpu"].draft > sum(tensor.size_bytes for tensor in small.tensors) > two.budgets["cuda:0"].draft


@pytest.mark.parametrize(("asked", "places"), [(0, {"cpu"}), (-1, {"cpu", "cuda:0"}), (10, {"cpu", "cuda:0"})])
def test_gpu_layers_narrows_the_choice(folder: Path, asked: int, places: set[str]) -> None:
    found = table(spec_of(folder, "7B"), machine(1, 24), gpu_layers=asked)
    assert {plan.loader for plan in found.plans} == {"llamacpp"}
    for plan in found.plans:
        assert set(plan.budgets) == places
        assert sum(plan.gpu_layers) == (asked if asked >= 0 else 33)


def test_the_spellings_that_people_know_set_it() -> None:
    for spelling in ("--gpu-layers", "--n-gpu-layers", "-ngl"):
        assert read_settings([spelling, "20"]).gpu_layers == 20
    with pytest.raises(BadFlag, match=r"--cpu and --gpu-layers"):
        check_together(options_with(cpu=True, gpu_layers=3))
    with pytest.raises(NotAvailableHere, match="finds no GPU"):
        check_machine(options_with(gpu_layers=3), machine())
    with pytest.raises(NotAvailableHere, match="no GGUF file"):
        table(llama("7B"), machine(1, 24), gpu_layers=3)


# More memory, more speed.


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from(["1B", "7B", "13B", "70B"]), cards=st.lists(st.integers(2, 30), min_size=1, max_size=3),
    more=st.integers(0, 12), ram=st.sampled_from([16, 32, 64]), cache=st.sampled_from(["plain", "int8", "int4"]),
    which=st.integers(0, 2),
)  # fmt: skip
def test_more_memory_is_never_slower_and_never_has_fewer_layers_on_the_cards(
    folder: Path, size: Size, cards: list[int], more: int, ram: int, cache: str, which: int
) -> None:
    spec, grown = spec_of(folder, size), list(cards)
    grown[which % len(cards)] += more
    flags = {"loader": "llamacpp", "kv_cache": cache, "ctx_size": 4096}
    little, much = (table(spec, several(*sizes, ram_gib=ram), **flags) for sizes in (cards, grown))
    for found, sizes in ((little, cards), (much, grown)):
        for plan in found.plans:
            if plan.fits:
                check_limits(plan, several(*sizes, ram_gib=ram))
    if little.chosen is None:
        return
    assert much.chosen is not None
    assert sum(much.chosen.gpu_layers) >= sum(little.chosen.gpu_layers)
    assert middle(much.chosen.tokens_per_s) * 1.11 >= middle(little.chosen.tokens_per_s)


@settings(max_examples=15, deadline=None)
@given(
    size=st.sampled_from(["1B", "7B", "13B", "70B"]), cards=st.lists(st.integers(3, 40), min_size=1, max_size=3),
    ram=st.sampled_from([8, 32, 64]),
)  # fmt: skip
def test_the_flags_of_every_way_that_fits_give_exactly_that_way(
    folder: Path, size: Size, cards: list[int], ram: int
) -> None:
    there = several(*cards, ram_gib=ram)
    for plan in table(spec_of(folder, size), there).plans:
        if not plan.fits or plan.loader != "llamacpp":
            continue
        options = options_of(plan.flags, NO_FLAGS)
        check_together(options)
        again = list_plans(Question(plan.spec, options, there, Path("cache"), llamacpp_gpu=True)).chosen
        assert again is not None, plan.flags
        assert (again.title, again.run, again.gpu_layers) == (plan.title, plan.run, plan.gpu_layers), plan.flags


def test_where_memory_ran_out_fewer_layers_are_tried(folder: Path) -> None:
    spec, there = spec_of(folder, "13B"), machine(1, 24, ram_gib=32)
    found = table(spec, there, loader="llamacpp")
    assert found.chosen is not None and found.chosen.gpu_layers == (41,)
    failure = Failure(found.chosen, found.options, least_tokens=8000)
    smaller = smaller_plans(failure, found, lambda options: make_plan(found.question.asking(options)))
    held = [plan.gpu_layers for plan in smaller if plan.run.context_tokens == found.chosen.run.context_tokens]
    assert held[:4] == [(30,), (20,), (10,), ()]
    told = [difference(found.chosen, plan) for plan in smaller if plan.gpu_layers in ((30,), ())]
    assert "30 of its 40 layers on a GPU instead of 40" in told[0]
    assert "all of its 40 layers in CPU memory instead of 40 on a GPU" in told[-1]


def test_the_last_rung_of_a_load_that_a_card_had_no_room_for_is_the_cpu(folder: Path) -> None:
    spec, there = spec_of(folder, "13B"), machine(1, 24, ram_gib=32)
    for flags, tried in (({}, 3), ({"ctx_size": 4096}, 3), ({"gpu_layers": 41}, 1)):
        found = table(spec, there, loader="llamacpp", **flags)
        assert found.chosen is not None and found.chosen.gpu_layers
        failure = Failure(found.chosen, found.options, flags_bind=True)
        steps = rungs(smaller_plans(failure, found, partial(replan, found.question)), 2)
        assert len(steps) >= tried
        if "gpu_layers" in flags:  # what the user set stays
            assert {plan.gpu_layers for plan in steps} == {(41,)}
            continue
        assert [bool(plan.gpu_layers) for plan in steps] == [True, True, False]
        assert steps[-1].run.context_tokens == found.chosen.run.context_tokens
        assert difference(found.chosen, steps[-1]).startswith("all of its 40 layers in CPU memory")
        check_limits(steps[-1], there)


def replan(question: Question, options: LoadOptions) -> Plan:
    """The plan for the same of other options."""
    return make_plan(question.asking(options))


class Full:
    """A LoadEngine for GGUF files whose card is full, whatever it says. Loads get copies; `tried` is by all of them."""

    tried: ClassVar[list[tuple[int, ...]]] = []

    def __call__(self, plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
        """Play a script where no layer is on a GPU."""
        self.tried.append(plan.gpu_layers)
        if plan.gpu_layers:
            raise OutOfMemory("GPU 0 has no room for 1 GiB more.")
        return ScriptedLoad(Script())(plan, on_progress)


def test_a_load_that_no_card_has_room_for_ends_on_the_cpu_and_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_planning, "can_use_gpus", lambda: True)
    path, full = big_gguf(settings.model_dir, "1B"), Full()
    full.tried.clear()
    there = machine(1, 24, ram_gib=32)
    manager = ModelManager(settings, loaders={"llamacpp": full}, read_inventory=lambda _: there, in_process=True)
    try:
        info = manager.load(options_with(model=path.name, loader="llamacpp"))
        error = manager.state.error
    finally:
        manager.close()
    assert info.loop and len(full.tried) == 4 and full.tried[-1] == () and all(full.tried[:-1])
    assert isinstance(error, OutOfMemory) and "layers in CPU memory" in error.message


def test_where_nothing_fits_no_change_is_named_that_llama_cpp_cannot_make(folder: Path) -> None:
    found = table(spec_of(folder, "70B"), machine(1, 2, ram_gib=16), loader="llamacpp")
    assert isinstance(found.refusal, OutOfMemory)
    assert "--disk" not in found.refusal.remedy and "more" in found.refusal.remedy


def test_each_layer_more_is_faster_and_a_split_has_a_longest_context(folder: Path) -> None:
    spec, there = spec_of(folder, "13B"), machine(1, 24)
    rates = [middle(chosen(spec, there, gpu_layers=layers).tokens_per_s) for layers in (0, 10, 20, 30, 41)]
    assert rates == sorted(rates) and rates[-1] > 5 * rates[0]
    found = table(spec, machine(1, 12, ram_gib=16), kv_cache="plain")
    assert found.chosen is not None
    longest = longest_context(found, found.chosen)
    assert longest >= found.chosen.run.context_tokens


# What the installed build can do.


def test_a_build_for_the_cpu_leaves_the_cards_out_and_names_the_command(folder: Path) -> None:
    there = machine(1, 24)
    found = list_plans(Question(spec_of(folder, "7B"), NO_FLAGS, there, Path("cache")))
    assert all(not plan.gpu_layers for plan in found.plans)
    assert any(what == "llama.cpp on the GPU" and GPU_BUILD in why for what, why in found.dropped)
    options = options_with(gpu_layers=20)
    with pytest.raises(NotAvailableHere, match="CPU alone") as caught:
        make_plan(Question(spec_of(folder, "7B"), options, there, Path("cache")))
    assert GPU_BUILD in caught.value.remedy and "vulkan" in caught.value.remedy
    assert caught.value.param == "gpu_layers"


def test_on_an_imagined_machine_the_build_that_is_needed_is_named(folder: Path) -> None:
    question = Question(
        spec_of(folder, "7B"), NO_FLAGS, machine(1, 24), Path("cache"), imagined=True, llamacpp_gpu=True
    )
    assert any(GPU_BUILD in reason for reason in make_plan(question).reasons)
    assert not any(GPU_BUILD in reason for reason in make_plan(replace(question, imagined=False)).reasons)


def test_builds_are_told_by_the_backends_that_their_library_names(tmp_path: Path) -> None:
    for name, content, is_one in (
        ("cpu.so", b"\0ggml_backend_cpu_reg\0", False), ("cuda.so", b"\0ggml_backend_cuda_reg\0", True),
        ("vulkan.so", b"\0ggml_backend_vk_reg\0", True), ("empty.so", b"", False),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert llamacpp_build._names_backend(tmp_path / name) is is_one


@CPU_BUILD
def test_the_engine_refuses_layers_that_the_installed_build_cannot_compute(tiny: Path) -> None:
    from modules.engine.llamacpp.engine import load

    with pytest.raises(NotAvailableHere, match="CPU alone") as caught:
        load(replace(plan_of(tiny), gpu_layers=(3,)), ignore)
    assert GPU_BUILD in caught.value.remedy


# The engine, with cards that are none: llama.cpp's own load and its own reply.


SHORT = RunSpec("float16", context_tokens=1024, prefill_chunk=128)


@pytest.fixture(scope="module")
def expected(forks: Forks, tiny: Path) -> str:
    """The reply of a model that lies in CPU memory."""
    return loaded(forks, tiny, SHORT, (8, 8), ())[1]


@pytest.mark.parametrize("layers", [(4,), (7,), (3, 4), (0, 7), (2, 2)])
def test_wherever_the_layers_lie_the_reply_is_the_same(
    forks: Forks, tiny: Path, expected: str, layers: tuple[int, ...]
) -> None:
    buffers, reply, _ = loaded(forks, tiny, SHORT, (8, 8), layers)
    assert reply == expected and len(reply) > 20
    used = {f"cuda:{number}" for number, count in enumerate(layers) if count}
    assert used <= set(buffers) <= {*used, "cpu"}
    spec = inspect(tiny)
    parts = parts_of(spec, replace(SHORT, runtime="llamacpp"))
    layout = lay_out(parts, [f"cuda:{number}" for number in range(len(layers))], layers)
    for device, weights in layout.weights.items():
        if weights:
            assert buffers[device].model == pytest.approx(weights, abs=MiB // 50)
            kept = layout.caches[device] + (8 * spec.vocab_size * 4 if device == "cpu" else 0)
            assert buffers[device].context == pytest.approx(kept, abs=MiB // 50)


def test_a_draft_model_goes_to_the_one_card_and_beside_several_stays_in_cpu_memory(
    forks: Forks, tiny: Path, folder: Path
) -> None:
    small, run = tiny_gguf(folder, readable=True), RunSpec("float16", context_tokens=512, prefill_chunk=64)
    for layers, offloaded in (((7,), "offloaded 3/3"), ((3, 4), "offloaded 0/3")):
        _, _, log = loaded(forks, tiny, run, (8, 8), layers, draft=small)
        assert offloaded in log


_ENGINE = """
import queue
from modules.engine.base import Delta, Finished, GenerationRequest, TextPiece
from modules.engine.llamacpp.engine import load
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from tests.llamacpp_rig import TEXT, ignore, long
from tests.shapes import machine
options = LoadOptions(loader="llamacpp", ctx_size=1024, gpu_layers=int(sys.argv[8]))
plan = make_plan(Question(inspect(Path(sys.argv[3])), options, machine(1, 8), Path("cache"), llamacpp_gpu=True))
engine = load(plan, ignore)
placed = {device: size for device, size in engine.info.placement.items() if size}
planned = {device: budget.weights for device, budget in plan.budgets.items() if budget.weights}
assert placed != planned, "to the byte it would be the plan again: the log rounds"
assert {device: round(size / 2**20, 1) for device, size in placed.items()} == {
    device: round(size / 2**20, 1) for device, size in planned.items()}, (placed, planned)
peak = engine.stats().peak_bytes
assert set(peak) == {"cpu", *(name for name in plan.budgets if name != "cpu")}
for name, budget in plan.budgets.items():
    if name != "cpu":
        told = budget.weights + budget.kv_cache
        assert told <= peak[name] + 2**15 and peak[name] < told + 2**26, (name, peak, budget)
        assert engine.stats().gpu_bytes[name] == peak[name]
events = queue.SimpleQueue()
engine.submit(GenerationRequest("one", "", tuple(engine.encode([TextPiece(TEXT)])), long(30)), events.put)
told = list(iter(lambda: isinstance(event := events.get(timeout=120), Finished) or event, True))
print(plan.gpu_layers, [token for event in told if isinstance(event, Delta) for token in event.token_ids])
engine.close()
"""


def test_the_engine_runs_a_plan_with_layers_on_a_card(forks: Forks, tiny: Path) -> None:
    replies = []
    for layers in (0, 3, 7):
        printed, _ = forks.run(_ENGINE, ["8", tiny, 1024, 512, "plain", "", layers])
        placed, _, reply = printed.strip().partition(") ")
        assert placed == (f"({layers}," if layers else "(")
        replies.append(reply)
    assert len(replies[0]) > 100 and replies == [replies[0]] * 3


_TOO_SMALL = """
from modules.engine.llamacpp.engine import load
from modules.errors import OutOfMemory
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from tests.llamacpp_rig import ignore
from tests.shapes import machine
options = LoadOptions(loader="llamacpp", ctx_size=1024, gpu_layers=7)
if sys.argv[8]:
    cards.refuse_above.argtypes = [ctypes.c_size_t]
    cards.refuse_above(int(sys.argv[8]))
plan = make_plan(Question(inspect(Path(sys.argv[3])), options, machine(1, 8), Path("cache"), llamacpp_gpu=True))
try:
    load(plan, ignore)
except OutOfMemory as error:
    print(error.message, error.remedy)
"""


def test_a_card_that_others_have_filled_since_is_told_as_out_of_memory(forks: Forks, tiny: Path) -> None:
    told = out_of_memory(forks, tiny, "0.01")
    assert "GPU 0 has no room for 16.1 MiB more" in told and "fewer --gpu-layers" in told


@pytest.mark.parametrize("mib", [1, 14])
def test_a_card_that_refuses_although_it_says_that_it_is_free_is_told_as_out_of_memory(
    forks: Forks, tiny: Path, mib: int
) -> None:
    assert "GPU 0 has no room for 16.1 MiB more" in out_of_memory(forks, tiny, "8", str(mib * MiB))


def out_of_memory(forks: Forks, tiny: Path, gib: str, most_at_once: str = "") -> str:
    """What a load of all layers onto a card of `gib` that is too full is told."""
    return forks.run(_TOO_SMALL, [gib, tiny, 1024, 512, "plain", "", most_at_once])[0]


def test_what_a_load_takes_of_each_card_is_told() -> None:
    kind = Enum("kind", {"GGML_BACKEND_DEVICE_TYPE_CPU": 0, "GGML_BACKEND_DEVICE_TYPE_GPU": 1})
    cpu: dict[str, Any] = {"type": kind.GGML_BACKEND_DEVICE_TYPE_CPU, "memory_free": 9}
    cards: list[dict[str, Any]] = [
        {"type": kind.GGML_BACKEND_DEVICE_TYPE_GPU, "memory_free": free} for free in (700, 800)
    ]
    after = [cpu, cards[0], cards[1] | {"memory_free": 500}]
    assert taken_bytes([cpu, *cards], after) == {"cuda:1": 300}
    check_gpus(after, (0, 3))
    assert find_full(after, (0, 501)).startswith("GPU 1 has 500 B free")
    assert not find_full(after, (700, 500))
    said = {"cpu": Buffers(7), "cuda:0": Buffers(1, 2, 3), "cuda:1": Buffers(200)}
    assert most_taken({"cuda:1": 300}, said) == {"cuda:0": 6, "cuda:1": 300}
    assert most_taken({}, {}) == {}
