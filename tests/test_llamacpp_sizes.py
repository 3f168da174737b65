"""GGUF files in the planner: what llama.cpp takes by formula and by its own fit, when it is chosen, when not."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from modules.engine.host.worker import LoadByName
from modules.errors import NotAvailableHere
from modules.memory.dryruns.asking import DryRuns
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, prefill_peak_bytes, weight_bytes
from modules.memory.forecasting.formulas import formula_text
from modules.memory.forecasting.llamacpp_sizes import SLOTS, layer_cache_bytes
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.candidates import list_ways
from modules.memory.planning.planner import PlanTable, Question, list_plans
from modules.models.starting import load_engine_for
from modules.settings import LoadOptions
from tests.plan_cases import NO_GPU, ONE_GPU
from tests.tiny_models import tiny_gguf


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    path = tiny_gguf(tmp_path_factory.mktemp("models"), width=512, inner=1024, layers=4, kind="Q8_0", context=8192)
    return inspect(path)


def options_of(**options: object) -> LoadOptions:
    """Load options with these set."""
    return LoadOptions.model_validate(options)


def table_of(spec: ModelSpec, tmp_path: Path, **options: object) -> PlanTable:
    """Every way to run `spec` on a machine without GPUs."""
    return list_plans(Question(spec, options_of(**options), NO_GPU, tmp_path))


@pytest.mark.parametrize(("context", "chunk"), [(512, 512), (8192, 512), (8192, 128)])
def test_the_formulas_are_within_a_hundredth_of_the_fit(
    spec: ModelSpec, tmp_path: Path, context: int, chunk: int
) -> None:
    run = RunSpec("float16", context_tokens=context, prefill_chunk=chunk, runtime="llamacpp")
    with closing(DryRuns(tmp_path / "cache")) as runs:
        fit = runs.fit(spec, run)["cpu"]
    formula = kv_cache_bytes(spec, run, context) + prefill_peak_bytes(spec, run, with_head=True)
    assert formula == pytest.approx(fit.context + fit.compute, rel=0.01)
    assert weight_bytes(spec, run) == fit.model == sum(tensor.size_bytes for tensor in spec.tensors)


def test_windows_have_cells_for_every_slot_and_states_one_each(spec: ModelSpec) -> None:
    window = replace(spec, sliding_window=64)
    assert layer_cache_bytes(window, "sliding", 8192, 128) == (64 * SLOTS + 128 + 128) * spec.kv_elements * 2
    assert layer_cache_bytes(window, "sliding", 256, 128) == layer_cache_bytes(window, "full", 256, 128)
    state = replace(spec, state_elements=10, state_fp32=5)
    assert layer_cache_bytes(state, "recurrent", 8192, 128) == 15 * 4 * SLOTS


def test_a_gguf_file_runs_with_llama_cpp_unless_a_flag_says_otherwise(spec: ModelSpec, tmp_path: Path) -> None:
    table = table_of(spec, tmp_path)
    assert table.chosen is not None
    assert (table.chosen.loader, table.chosen.placement, table.chosen.flags) == (
        "llamacpp", {"": "cpu"}, ("--loader", "llamacpp"),
    )  # fmt: skip
    assert table.chosen.budgets["cpu"].weights == sum(tensor.size_bytes for tensor in spec.tensors)
    assert load_engine_for(table.chosen) == LoadByName("modules.engine.llamacpp.engine:load")
    assert {plan.loader for plan in table_of(spec, tmp_path, loader="transformers").plans} == {"transformers"}
    assert {plan.loader for plan in table_of(spec, tmp_path, loader="llamacpp").plans} == {"llamacpp"}


def test_both_ways_are_weighed_where_there_is_a_gpu(spec: ModelSpec, tmp_path: Path) -> None:
    table = list_plans(Question(spec, options_of(), ONE_GPU, tmp_path))
    assert table.chosen is not None and table.chosen.fits
    (compared,) = [reason for reason in table.chosen.reasons if "llama.cpp" in reason]
    assert compared.endswith("slower.")
    assert any(what == "llama.cpp on the GPU" and "CPU alone" in why for what, why in table.dropped)
    alone = list_plans(Question(spec, options_of(loader="llamacpp"), ONE_GPU, tmp_path))
    assert alone.chosen is not None and alone.chosen.placement == {"": "cpu"}


def test_smaller_caches_are_weighed_for_transformers_and_for_llama_cpp(spec: ModelSpec, tmp_path: Path) -> None:
    assert not [why for _, why in table_of(spec, tmp_path).dropped if "save next to nothing" in why]
    alone = table_of(spec, tmp_path, loader="llamacpp")
    assert not [what for what, _ in alone.dropped if "KV cache" in what]
    ways = list_ways(spec, options_of(), 0)[0]
    for runtime in ("torch", "llamacpp"):
        assert {way.run.kv_cache for way in ways if way.run.runtime == runtime} == {"plain", "int8", "int4"}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dtype": "fp32"}, "own formats"),
        ({"disk": True}, "from memory"),
        ({"attn_implementation": "eager"}, "own formats"),
    ],
)
def test_flags_that_mean_transformers_leave_llama_cpp_out_and_say_why(
    spec: ModelSpec, tmp_path: Path, options: dict[str, object], why: str
) -> None:
    table = table_of(spec, tmp_path, **options)
    assert "llamacpp" not in {plan.loader for plan in table.plans}
    assert any(what == "llama.cpp" and why in reason for what, reason in table.dropped)
    with pytest.raises(NotAvailableHere, match=why):
        table_of(spec, tmp_path, loader="llamacpp", **options)


def test_encoder_decoder_models_stay_with_transformers(spec: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(NotAvailableHere, match="encoder-decoder"):
        table_of(replace(spec, is_encoder_decoder=True), tmp_path, loader="llamacpp")


def test_the_chosen_plan_takes_the_figures_of_the_fit_once_they_are_known(spec: ModelSpec, tmp_path: Path) -> None:
    with closing(DryRuns(tmp_path / "cache")) as runs:
        question = Question(spec, options_of(ctx_size=2048), NO_GPU, tmp_path)
        before = list_plans(question).plans[0]
        fit = runs.fit(spec, before.run)["cpu"]
        sharp = replace(question, peaks=lambda spec, run, kind: runs.peaks(spec, run, kind=kind))
        plan = list_plans(sharp).plans[0]
    figure = plan.budgets["cpu"].figures["prefill_peak"]
    assert figure.method == "dry-run"
    assert plan.budgets["cpu"].weights + plan.budgets["cpu"].kv_cache + figure.bytes == fit.total


def test_packed_caches_are_ways_of_llama_cpp_too_but_not_taken_unasked(spec: ModelSpec, tmp_path: Path) -> None:
    ways, _ = list_ways(spec, options_of(loader="llamacpp"), 0)
    assert [way.run.kv_cache for way in ways] == ["plain", "int8", "int4"]
    unasked = table_of(spec, tmp_path).chosen
    assert unasked is not None and unasked.run.kv_cache == "plain"
    taken: dict[str, int] = {}
    for kind, told in (("plain", "2 B"), ("int8", "34/32 B"), ("int4", "18/32 B")):
        plan = table_of(spec, tmp_path, kv_cache=kind).chosen
        assert plan is not None and (plan.loader, plan.run.kv_cache) == ("llamacpp", kind)
        assert told in formula_text("kv_cache", spec, plan.run, plan.budgets["cpu"].kv_cache)
        taken[kind] = plan.budgets["cpu"].kv_cache
    assert taken["int8"] * 64 == taken["plain"] * 34 and taken["int4"] * 64 == taken["plain"] * 18


def test_heads_that_no_block_fits_leave_packed_caches_to_transformers(tmp_path: Path) -> None:
    narrow = inspect(tiny_gguf(tmp_path))  # heads of 16
    assert {plan.run.kv_cache for plan in table_of(narrow, tmp_path, loader="llamacpp").plans} == {"plain"}
    with pytest.raises(NotAvailableHere, match="heads of 16"):
        table_of(narrow, tmp_path, loader="llamacpp", kv_cache="int8")
