"""Bytes that Snug says against bytes that a loaded model has, for every family of tests/tiny_families.py, to the byte.

`python -m benchmarks.memory_exact` loads each tiny model in bf16 and fp32, and quantized by bitsandbytes; it prints
every row and keeps them all. tests/test_exact_bytes.py holds most of them to equality.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import transformers

from benchmarks.common import finish
from modules.memory.forecasting.forecast import DType
from tests.exact_rows import Row, quantized, weights_and_cache
from tests.tiny_families import CONFIGS


def compare(folder: Path) -> Iterator[Row]:
    """Every row of every family."""
    dtypes: tuple[DType, ...] = ("bfloat16", "float32")
    for family in CONFIGS:
        for dtype in dtypes:
            yield from weights_and_cache(family, folder, dtype)
        yield from quantized(family, folder)


def main() -> None:
    """Compare, print, keep."""
    transformers.logging.set_verbosity_error()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in compare(Path(folder)):
            print(row, flush=True)
            rows.append({**asdict(row), "exact": row.exact})
    exact = sum(bool(row["exact"]) for row in rows)
    finish("memory-exact", {"families": len(CONFIGS), "exact": exact, "rows": rows})


if __name__ == "__main__":
    main()
