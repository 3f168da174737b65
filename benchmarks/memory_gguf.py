"""What llama.cpp's dry fit says of a GGUF file against the buffers that loading it then allocates.

`python -m benchmarks.memory_gguf [FILE.gguf …]`: the starter's file (fetched once), further ones that you name, and
Llamas with random weights in four formats; contexts of 512 to 8,192 tokens, chunks of 128 and 512. Goal: within 1 %.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from benchmarks.common import ROOT
from benchmarks.memory_rows import Results, Row
from modules.memory.dryruns.asking import DryRuns
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, prefill_peak_bytes
from modules.memory.model.spec import ModelSpec, inspect
from modules.starter import fetch_gguf
from tests.llamacpp_load import allocated
from tests.tiny_models import tiny_gguf

FORMATS = ("F16", "Q8_0", "Q4_0", "Q5_1")
CONTEXTS = (512, 2048, 8192)
CHUNKS = (128, 512)


def rows(spec: ModelSpec, runs: DryRuns) -> Iterator[Row]:
    """The fit, and Snug's formulas, against the load."""
    for context in CONTEXTS:
        if context > spec.max_context:
            continue
        for chunk in CHUNKS:
            run = RunSpec("float16", context_tokens=context, prefill_chunk=chunk, runtime="llamacpp")
            fit, real = runs.fit(spec, run)["cpu"], allocated(spec.path, run)["cpu"]
            formula = kv_cache_bytes(spec, run, context) + prefill_peak_bytes(spec, run, with_head=True)
            way = f"chunk {chunk}"
            yield Row("dry fit, all buffers", spec.name, way, context, fit.total, real.total)
            yield Row("dry fit, compute buffer", spec.name, way, context, fit.compute, real.compute)
            yield Row("formula, cache and compute", spec.name, way, context, formula, real.context + real.compute)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, closing(DryRuns(Path(folder) / "cache")) as runs:
        made = [tiny_gguf(Path(folder), width=512, inner=1024, layers=4, kind=kind, context=8192) for kind in FORMATS]
        files = [fetch_gguf(ROOT / "models" / ".gguf"), *arguments.files, *made]
        results = Results("gguf", [path.stem for path in files], resume=False)
        for path in files:
            results.replace(path.stem, rows(inspect(path), runs))
    results.show_summary()


if __name__ == "__main__":
    main()
