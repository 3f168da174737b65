"""Forecasts against torch's CUDA allocator: run with `pytest -m gpu`; benchmarks/memory_gpu.py has more."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory_gpu import KINDS, plan_case, run_case
from modules.memory.dryruns import DryRuns
from tests.conftest import STARTER_MODEL

pytestmark = [pytest.mark.gpu, pytest.mark.model]


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("context", [512, 4096])
def test_the_dry_run_of_the_starter_model_is_near_what_cuda_allocates(kind: str, context: int, tmp_path: Path) -> None:
    plan = plan_case(STARTER_MODEL, kind, context, tmp_path)
    runs = DryRuns(tmp_path / "dryruns")
    try:
        peaks = runs.measure(plan.spec, plan.run, kind="cuda")
    finally:
        runs.close()
    allocated = run_case(STARTER_MODEL, kind, context, tmp_path)["allocated"]
    forecast = peaks.weights + peaks.kv_cache + max(peaks.prefill_peak, peaks.decode_peak)
    assert forecast == pytest.approx(allocated, rel=0.1)
