"""Budget: what the figures sum to, and what of them is drawn."""

from __future__ import annotations

import pickle

from modules.memory.forecasting.budget import PURPOSE_TITLES, Budget, Figure, Purpose


def budget_of(load_peak: int = 0, margin: int = 0, **sizes: int) -> Budget:
    figures: dict[Purpose, Figure] = {p: Figure(sizes[p], "formula") for p in PURPOSE_TITLES if p in sizes}
    return Budget.of(figures, load_peak=load_peak, margin=margin)


def test_every_purpose_is_a_number_of_bytes_and_zero_where_there_is_none() -> None:
    sizes = {purpose: 10**number for number, purpose in enumerate(PURPOSE_TITLES)}
    full = budget_of(**sizes)
    assert {purpose: getattr(full, purpose) for purpose in PURPOSE_TITLES} == sizes
    assert {getattr(Budget(), purpose) for purpose in PURPOSE_TITLES} == {0}


def test_what_stays_and_the_most_that_comes_and_goes_make_the_total() -> None:
    budget = budget_of(
        weights=1, quant_meta=20, kv_cache=300, context=4_000, prefill_peak=50_000, decode_peak=40_000,
        dequant_buffer=600_000, allocator=7_000_000, offload_buffer=80_000_000,
    )  # fmt: skip
    assert budget.resident == 80_004_321
    assert budget.transient == 7_650_000
    assert budget.total == 87_654_321


def test_training_counts_its_activations_gradients_and_optimizer() -> None:
    budget = budget_of(weights=1, gradients=20, optimizer=300, activations=4_000, prefill_peak=9)
    assert budget.total == 4_321


def test_a_load_that_takes_more_than_the_run_is_the_total() -> None:
    assert budget_of(load_peak=100, weights=40, prefill_peak=5).total == 100
    assert budget_of(load_peak=44, weights=40, prefill_peak=5).total == 45


def test_the_margin_reaches_both_ways_and_never_below_nothing() -> None:
    budget = budget_of(margin=30, weights=100)
    assert (budget.low, budget.high) == (70, 130)
    assert budget_of(margin=30, weights=10).low == 0


def test_of_reading_and_writing_only_the_larger_is_drawn_and_the_parts_sum_to_the_total() -> None:
    reading = budget_of(weights=1, prefill_peak=20, decode_peak=10)
    writing = budget_of(weights=1, prefill_peak=10, decode_peak=20)
    training = budget_of(weights=1, prefill_peak=10, decode_peak=20, activations=30)
    assert reading.parts() == [("weights", 1), ("prefill_peak", 20)]
    assert writing.parts() == [("weights", 1), ("decode_peak", 20)]
    assert training.parts() == [("weights", 1), ("activations", 30)]
    assert all(sum(size for _, size in budget.parts()) == budget.total for budget in (reading, writing, training))


def test_figures_of_nothing_are_left_out_and_a_budget_travels_to_the_engine_process() -> None:
    budget = budget_of(weights=5, kv_cache=0)
    assert list(budget.figures) == ["weights"]
    assert pickle.loads(pickle.dumps(budget)) == budget
