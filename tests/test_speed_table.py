"""The table of speeds: each row that decodes beside what the memory's bandwidth allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import limit, table
from modules.memory.forecasting.forecast import RunSpec, elements
from modules.memory.model.spec import inspect
from tests.tiny_models import tiny_model

HERE = {"cpu": "some CPU", "cores": 2, "ram_gib": 8.0}
SIZE = {"weights": 1_000_000, "cache": 100.0}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(limit, "RESULTS", tmp_path)
    return tmp_path


def keep(folder: Path, name: str, machine: dict[str, Any] = HERE, **figures: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"machine": machine, **figures}))


def decode_row(folder: Path, machine: dict[str, Any] = HERE) -> list[str]:
    row = {"kind": "bf16", "context": 1000, "snug": [40.0], "generate": [20.0], "ratio": 2.0}
    keep(folder, "decode", machine, rows=[row])
    return [line for line in table.markdown(list(table.rows())).splitlines() if "decode after" in line]


def test_a_token_reads_all_weights_once_for_all_rows_and_each_row_its_own_cache() -> None:
    assert limit.tokens_per_s(2_100_000, SIZE, 500) == 2.0
    assert limit.tokens_per_s(2_100_000, SIZE, 500, rows=2) == pytest.approx(2 * 2_100_000 / 1_100_000)


def test_bytes_of_a_model_are_those_that_lie_in_its_files(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    spec = inspect(path)
    size = limit.bytes_a_token(spec, RunSpec("float32"))
    stored = sum(elements(tensor) for tensor in spec.tensors)
    assert not spec.tied_embeddings  # of its table of words one row is read
    assert size["weights"] == 4 * (stored - spec.vocab_size * spec.hidden_size)
    assert size["cache"] == 4 * 2 * spec.layers * spec.kv_heads * spec.head_dim


def test_a_row_that_decodes_has_the_limit_of_this_machine_in_the_middle_of_its_reply(results: Path) -> None:
    keep(results, "limit", read_Bps=110_320_000, models={"bf16": SIZE})
    (line,) = decode_row(results)
    assert "| 100 tok/s | model.generate | 20 tok/s | 40 tok/s | 2.00 × |" in line  # 1,000 tokens and half of 64


def test_what_was_taken_on_another_machine_has_no_limit(results: Path) -> None:
    assert "|  | model.generate |" in decode_row(results)[0]
    keep(results, "limit", read_Bps=110_320_000, models={"bf16": SIZE})
    assert "|  | model.generate |" in decode_row(results, HERE | {"cores": 64})[0]


def test_a_gpu_is_held_to_its_own_bandwidth_and_to_generate(results: Path) -> None:
    rows = [
        {"kind": "bf16", "context": 36, "snug": [50.0], "generate": [10.0], "ratio": 5.0},
        {"kind": "bf16", "stats": {}, "loop": "batched"},
    ]
    keep(results, "gpu-7b", rows=rows, new_tokens=128, read_Bps=101_000_000, models={"bf16": SIZE})
    shown = table.markdown(list(table.rows())).splitlines()
    assert [line.split(" | ")[1:6] for line in shown if "GPU, 7b" in line] == [
        ["100 tok/s", "model.generate", "10 tok/s", "50 tok/s", "5.00 ×"],
        ["100 tok/s", "the limit", "100 tok/s", "50 tok/s", "0.50 ×"],
    ]


def test_the_best_of_all_measurements_on_this_machine_counts(results: Path) -> None:
    assert limit.earlier(HERE) == []
    keep(results, "limit", read_Bps_all=[3.0, 5.0])
    assert limit.earlier(HERE) == [3.0, 5.0]
    assert limit.earlier(HERE | {"cpu": "another"}) == []
