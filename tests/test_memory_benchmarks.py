"""What the memory benchmarks do beside measuring: rows kept between runs, and a GPU's case gone through on the CPU."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch

from benchmarks import common, memory_gpu, memory_rows
from benchmarks.gpu import make_model
from benchmarks.memory_gpu import compare_case, run_case, summary
from benchmarks.memory_rows import Results, Row
from modules.memory.dryruns.asking import DryRuns


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of its own."""
    for module in (common, memory_rows, memory_gpu):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def row(family: str, forecast: int, real: int = 1000) -> Row:
    return Row("prefill", family, "sdpa", 96, forecast, real)


def test_families_are_kept_one_by_one_and_a_later_run_goes_on(results: Path) -> None:
    first = Results("part", ["a", "b", "c"], resume=True)
    first.replace("b", [row("b", 1000)])
    first.replace("a", [row("a", 990), row("a", 1030)])
    second = Results("part", ["a", "b", "c"], resume=True)
    assert (second.families, second.missing) == ({"a", "b"}, ["c"])
    second.replace("a", [row("a", 1004)])
    record = json.loads((results / "memory-part.json").read_text())
    assert [(kept["family"], kept["ratio"]) for kept in record["rows"]] == [("a", 1.004), ("b", 1.0)]
    assert record["missing"] == ["c"]
    assert Results("part", ["a", "b", "c"], resume=False).families == set()


def test_rows_of_another_machine_are_not_gone_on_with(results: Path) -> None:
    Results("part", ["a"], resume=True).replace("a", [row("a", 1000)])
    file = results / "memory-part.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "machine": {**record["machine"], "torch": "1.0"}}))
    assert Results("part", ["a"], resume=True).families == set()
    file.write_text("{")
    assert Results("part", ["a"], resume=True).families == set()


def test_the_worst_row_decides_for_its_family() -> None:
    (line,) = memory_rows.summary([row("a", 1000), row("a", 1010), row("b", 1004), row("c", 1025)])
    assert (line["families_within_half_percent"], line["families_within_two_percent"]) == (1, 2)
    assert (line["rows_beyond_two_percent"], line["worst_ratio"]) == (1, 1.025)


def test_a_summary_of_gpu_rows_counts_what_failed() -> None:
    measured = {"allocated_ratio": 1.01, "reserved_ratio": 0.96}
    found = summary([measured, {"error": "out of memory"}])
    assert (found["rows"], found["failed"]) == (2, 1)
    assert found["reserved"]["worst"] == pytest.approx(0.04)


@pytest.mark.skipif(torch.cuda.is_available(), reason="goes through a GPU's case where there is none")
def test_a_case_for_a_gpu_can_be_gone_through_without_one(tmp_path: Path) -> None:
    path = make_model(tmp_path, "tiny")
    assert run_case(path, "bf16", 512, tmp_path) == {"allocated": 0, "reserved": 0}
    with closing(DryRuns(tmp_path / "dryruns")) as runs:
        assert "planned over cpu" in compare_case(path, ("tiny", "bf16", 512), runs, tmp_path)["error"]
