"""What a lower precision costs: as measured at one end, as published at the other, in order between."""

from __future__ import annotations

import pytest

from modules.memory.forecasting.forecast import Quantization, RunSpec
from modules.memory.planning.quality import expected_quality, loss_text


def loss(quantization: Quantization, parameters: float, *, double: bool = False) -> float:
    run = RunSpec("bfloat16", quantization, double_quant=double)
    return 1 / expected_quality(run, int(parameters)) - 1


@pytest.mark.parametrize(
    ("quantization", "double", "measured"),
    [("int8", False, 0.02), ("nf4", False, 0.26), ("nf4", True, 0.27), ("fp4", False, 0.50)],
)
def test_the_starter_model_loses_what_was_measured(quantization: Quantization, double: bool, measured: float) -> None:
    assert loss(quantization, 134_515_008, double=double) == pytest.approx(measured)


def test_smaller_models_lose_more_and_large_ones_what_was_published() -> None:
    losses = [loss("nf4", size) for size in (1e6, 135e6, 360e6, 1.1e9, 3e9, 7e9, 70e9)]
    assert losses == sorted(losses, reverse=True)
    assert losses[3] == pytest.approx(0.055, abs=0.005)
    assert losses[-1] == losses[-3] == pytest.approx(0.035)


@pytest.mark.parametrize("size", [1e8, 1e9, 1e10])
def test_fewer_bits_cost_more_at_every_size(size: float) -> None:
    losses = [loss("none", size), loss("int8", size), loss("nf4", size), loss("nf4", size, double=True)]
    assert losses == sorted(losses) and losses[0] == 0 and losses[-1] < loss("fp4", size)


def test_a_loss_is_told_as_a_range_and_nothing_where_there_is_none() -> None:
    assert loss_text(1.0) == loss_text(expected_quality(RunSpec("bfloat16"), 10**9, narrowed=True)) == ""
    assert loss_text(1 / 1.035) == "2 to 6 % of quality"
    assert loss_text(1 / 1.005) == "under 1 % of quality"
    assert loss_text(1 / 1.26) == "15 to 44 % of quality"
