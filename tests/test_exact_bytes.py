"""Weights, caches and quantized matrices of many families: what Snug says is what a loaded model has, to the byte."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from modules.memory.forecasting.forecast import DType
from tests.exact_rows import Row, quantized, weights_and_cache
from tests.tiny_families import CONFIGS

QUANTIZED_HERE = (
    "llama_tied", "gpt2", "gptj", "opt", "bloom", "falcon", "mixtral", "gemma3n_text", "qwen3_moe", "qwen3_next",
    "deepseek_v3", "gpt_oss", "mamba", "jamba", "t5", "bart",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny models of this file go."""
    return tmp_path_factory.mktemp("families")


def check(rows: Iterable[Row]) -> None:
    """Print every row, then demand that all are exact."""
    found = list(rows)
    print("", *found, sep="\n")
    assert [str(row) for row in found if not row.exact] == []
    assert found


def test_there_are_many_families() -> None:
    assert len(CONFIGS) >= 50


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", CONFIGS)
def test_weights_and_caches_are_exact_from_the_config_and_from_headers(family: str, dtype: DType, folder: Path) -> None:
    check(weights_and_cache(family, folder, dtype))


@pytest.mark.parametrize("family", QUANTIZED_HERE)
def test_what_bitsandbytes_makes_of_a_model_is_exact(family: str, folder: Path) -> None:
    check(quantized(family, folder))
