"""Forecasts against torch's CUDA allocator: run with `pytest -m gpu`; benchmarks/memory_gpu.py keeps the rows.

7B and 14B are slow: with `--all` only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import make_model
from benchmarks.memory_gpu import CONTEXTS, KINDS, compare_case, summary
from modules.memory.dryruns.asking import DryRuns
from tests.conftest import STARTER_MODEL

pytestmark = pytest.mark.gpu
CASES = list(product(KINDS, CONTEXTS))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[DryRuns]:
    with closing(DryRuns(tmp_path / "dryruns")) as client:
        yield client


def compare_all(path: Path, shape: str, runs: DryRuns, folder: Path) -> list[dict[str, Any]]:
    """The rows of every kind and context; a case that failed, or is not on the GPU whole, fails the test."""
    rows = [compare_case(path, (shape, kind, context), runs, folder) for kind, context in CASES]
    for row in rows:
        print(row)
    assert [row["error"] for row in rows if "error" in row] == []
    return rows


@pytest.mark.model
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("context", [512, 4096])
def test_the_dry_run_of_the_starter_model_is_near_what_cuda_allocates(
    kind: str, context: int, runs: DryRuns, tmp_path: Path
) -> None:
    row = compare_case(STARTER_MODEL, ("starter", kind, context), runs, tmp_path)
    assert row["allocated_ratio"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "shape", ["1b", pytest.param("7b", marks=pytest.mark.slow), pytest.param("14b", marks=pytest.mark.slow)]
)
def test_what_is_allocated_and_reserved_is_forecast(shape: str, runs: DryRuns, tmp_path: Path) -> None:
    found = summary(compare_all(make_model(tmp_path, shape), shape, runs, tmp_path))
    assert found["allocated"]["worst"] <= 0.02
    assert found["reserved"]["median"] <= 0.03
    assert found["reserved"]["worst"] <= 0.05
