"""What a load and its use took becomes entries of the ledger, forecast beside measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modules.engine.base import EngineStats, ModelInfo
from modules.measuring import entries_after_load, entries_after_use
from modules.memory.forecasting.budget import Budget, Figure, Method, Purpose
from modules.memory.planning.planner import Plan
from modules.units import MiB
from tests.fakes import fake_inventory, fake_plan

MACHINE = fake_inventory((8,))


def budget(load_peak: int = 0, **sizes: int) -> Budget:
    figures: dict[Purpose, Figure] = {name: Figure(size, "exact") for name, size in sizes.items()}  # type: ignore[misc]
    return Budget.of(figures, load_peak=load_peak)


def planned(**budgets: Budget) -> Plan:
    named = {"cuda:0" if name == "gpu" else name: value for name, value in budgets.items()}
    return replace(fake_plan(context_tokens=1000), budgets=named, title="4-bit on the GPU")


def info(**placement: int) -> ModelInfo:
    return ModelInfo(
        name="scripted", architecture="", loop="serial", loop_reason="", context_tokens=1000, vocab_size=10,
        is_encoder_decoder=False, dtype="bfloat16", quantization="none", chat_template="", special_tokens={},
        end_texts=(), placement={"cuda:0" if name == "gpu" else name: size for name, size in placement.items()},
        modules={}, load_s=1.0, peak_bytes=0,
    )  # fmt: skip


def test_after_a_load_weights_are_held_against_weights_with_their_quantization_data() -> None:
    plan = planned(gpu=budget(weights=90, quant_meta=10, kv_cache=50), cpu=budget(weights=40, context=480))
    first, second = entries_after_load(plan, info(gpu=100, cpu=44), MACHINE)
    assert (first.device, first.forecast_bytes, first.measured_bytes, first.ratio) == ("cuda:0", 100, 100, 1.0)
    assert (second.device, second.device_name) == ("cpu", MACHINE.cpu.name)
    assert second.ratio == pytest.approx(1.1)
    assert {entry.moment for entry in (first, second)} == {"weights"}
    assert first.way == "4-bit on the GPU" and "torch" in first.version


def test_after_use_the_peak_is_held_against_the_forecast_for_the_context_that_was_reached() -> None:
    plan = planned(cpu=budget(weights=100 * MiB, kv_cache=40 * MiB, prefill_peak=10 * MiB, context=480 * MiB))
    stats = EngineStats(longest_tokens=250, peak_bytes={"cpu": 600 * MiB})
    (entry,) = entries_after_use(plan, info(), stats, MACHINE)
    assert entry.forecast_bytes == (100 + 10 + 10 + 480) * MiB
    assert (entry.ratio, entry.context_used, entry.moment) == (1.0, 0.25, "use")


def test_on_a_gpu_the_cuda_context_is_in_neither_figure() -> None:
    plan = planned(gpu=budget(weights=100, kv_cache=40, context=650))
    stats = EngineStats(longest_tokens=5000, peak_bytes={"cpu": 7, "cuda:0": 140})
    (entry,) = entries_after_use(plan, info(), stats, MACHINE)
    assert (entry.device, entry.forecast_bytes, entry.context_used) == ("cuda:0", 140, 1.0)


def test_a_load_that_takes_more_than_running_is_the_forecast_peak() -> None:
    plan = planned(cpu=budget(weights=100, load_peak=300))
    (entry,) = entries_after_use(plan, info(), EngineStats(longest_tokens=9, peak_bytes={"cpu": 300}), MACHINE)
    assert entry.forecast_bytes == 300


@pytest.mark.parametrize(
    ("loop", "device", "forecast"),
    [("serial", "cuda:0", 110), ("batched", "cuda:0", 140), ("batched", "cpu", 110), ("llamacpp", "cpu", 140)],
)
def test_a_cache_that_is_taken_whole_counts_whole(loop: str, device: str, forecast: int) -> None:
    plan = planned(**{device: budget(weights=100, kv_cache=40)})
    stats = EngineStats(longest_tokens=250, peak_bytes={device: 140})
    (entry,) = entries_after_use(plan, replace(info(), loop=loop), stats, MACHINE)  # type: ignore[arg-type]
    assert entry.forecast_bytes == forecast


@pytest.mark.parametrize(("measured", "forecast"), [(90, 100), (100, 100), (120, 120), (150, 150), (170, 150)])
def test_whatever_idle_conversations_took_of_their_room_is_as_forecast(measured: int, forecast: int) -> None:
    plan = planned(cpu=budget(weights=100, idle_cache=50))
    stats = EngineStats(longest_tokens=250, peak_bytes={"cpu": measured})
    (entry,) = entries_after_use(plan, replace(info(), loop="llamacpp"), stats, MACHINE)
    assert entry.forecast_bytes == forecast


@pytest.mark.parametrize(("measured", "forecast"), [(90, 100), (120, 120), (150, 150), (170, 150)])
def test_room_for_embeddings_that_nobody_asked_for_is_no_forecast_that_was_too_high(
    measured: int, forecast: int
) -> None:
    plan = planned(cpu=budget(weights=100, embeddings=50))
    stats = EngineStats(longest_tokens=250, peak_bytes={"cpu": measured})
    (entry,) = entries_after_use(plan, replace(info(), loop="llamacpp"), stats, MACHINE)
    assert entry.forecast_bytes == forecast


@pytest.mark.parametrize(("method", "forecast"), [("exact", 150), ("formula", 110)])
def test_adapters_that_lie_in_part_on_each_device_are_forecast_at_most(method: Method, forecast: int) -> None:
    figures: dict[Purpose, Figure] = {"weights": Figure(100, "exact"), "adapters": Figure(50, method)}
    plan = planned(gpu=Budget.of(figures))
    stats = EngineStats(longest_tokens=250, peak_bytes={"cuda:0": 110})
    (entry,) = entries_after_use(plan, replace(info(), loop="llamacpp"), stats, MACHINE)
    assert entry.forecast_bytes == forecast


def test_an_engine_that_made_nothing_says_nothing_of_its_peak() -> None:
    plan = planned(cpu=budget(weights=100))
    assert entries_after_use(plan, info(), EngineStats(peak_bytes={"cpu": 100}), MACHINE) == []


def test_ranks_that_share_a_model_are_left_out() -> None:
    plan = replace(planned(cpu=budget(weights=100)), loader="deepspeed")
    assert entries_after_load(plan, info(cpu=100), MACHINE) == []
    assert entries_after_use(plan, info(), EngineStats(longest_tokens=9, peak_bytes={"cpu": 9}), MACHINE) == []


def test_an_entry_names_the_libraries_that_made_the_bytes() -> None:
    plan = replace(planned(cpu=budget(weights=100)), loader="llamacpp")
    (entry,) = entries_after_load(plan, info(cpu=100), MACHINE)
    assert entry.version.startswith("xllamacpp ") and "torch" not in entry.version
