"""The whole engine process's peak on this machine against its forecast: within 5 %, never more than 3 % too low."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.process_memory import CONTEXTS, FLAGS, measure

STARTER = Path("models/SmolLM2-135M-Instruct")
QUICK = {("bf16", 256), ("nf4", 256), ("fp32", 2048)}
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak"),
    pytest.mark.skipif(not STARTER.exists(), reason="the starter model is not there"),
    pytest.mark.timeout(900),
]


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        pytest.param(kind, context, marks=() if (kind, context) in QUICK else pytest.mark.slow)
        for kind in FLAGS
        for context in CONTEXTS
    ],
)
def test_the_process_peaks_where_the_forecast_says(kind: str, context: int) -> None:
    row = measure(kind, context, STARTER)
    assert 0.97 <= row["peak_ratio"] <= 1.05, row
