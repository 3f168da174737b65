"""How far the dry run is from what really happens: allocator peaks of tiny models of many families on this CPU.

`python -m benchmarks.memory [--parts families …] [--families llama …] [--resume] [--seconds 380]` compares, byte by
byte, with torch.profiler's allocator events: prefill and decode of families, bitsandbytes, training steps, the engine's
own loops. It prints every row, the bad ones too; results/memory-PART.json is written after each family. `--resume`
leaves out families that are there already, `--seconds` begins no further one after so long. `--gpu` compares forecasts
with torch's CUDA allocator instead, for random weights of 1B, 7B and 14B (memory_gpu.py).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import transformers

from benchmarks.memory_gpu import add_arguments, compare_on_gpu
from benchmarks.memory_inference import FAMILIES, QUANTIZED_FAMILIES, compare_family, compare_quantized
from benchmarks.memory_loops import LOOP_FAMILIES, compare_loops
from benchmarks.memory_rows import Results, Row
from benchmarks.memory_training import TRAINED_FAMILIES, compare_training

PARTS: dict[str, tuple[Sequence[str], Callable[[Path, str], Iterator[Row]]]] = {
    "loops": (LOOP_FAMILIES, compare_loops),
    "quantized": (QUANTIZED_FAMILIES, compare_quantized),
    "training": (TRAINED_FAMILIES, compare_training),
    "families": (FAMILIES, compare_family),
}


def compare_part(part: str, families: Sequence[str], *, resume: bool, deadline: float) -> None:
    """The rows of a part's families, until time.monotonic() passes `deadline`."""
    order, compare = PARTS[part]
    results = Results(part, order, resume=resume)
    known = results.families
    for family in (family for family in order if family in families and family not in known):
        if time.monotonic() > deadline:
            break
        with tempfile.TemporaryDirectory() as scratch:
            results.replace(family, compare(Path(scratch), family))
    results.show_summary()
    if results.missing:
        print(f"{part}: no rows yet of {', '.join(results.missing)}")


def main() -> None:
    """Compare everything, or only what a GPU does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--resume", action="store_true", help="keep rows of families that are there already")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no further family after so long")
    parser.add_argument("--gpu", action="store_true", help="compare with the CUDA allocator")
    add_arguments(parser)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.gpu:
        compare_on_gpu(arguments.shapes, arguments.kinds, arguments.contexts)
        return
    deadline = time.monotonic() + arguments.seconds
    for part in arguments.parts:
        compare_part(part, arguments.families, resume=arguments.resume, deadline=deadline)


if __name__ == "__main__":
    main()
