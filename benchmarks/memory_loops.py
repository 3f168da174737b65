"""The dry run held against the engine's own two loops on the CPU: rows over pages, and one row whose cache grows.

Both read a prompt in chunks and then write tokens. The forecast is the planner's: a pool of exactly the context's
tokens. What the loops take beyond it (whole pages, room to grow, tables of inputs) is the difference that shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.allocations import Allocated, measure, real_model
from benchmarks.memory_inference import BOTH
from benchmarks.memory_rows import Row
from modules.engine.paged import PagedModel
from modules.engine.rows import CausalRow
from modules.engine.serial import steps
from modules.memory.dryrun import DTYPES, Counted, count_run, fake_model, use_engine_attention
from modules.memory.forecast import DType, RunSpec
from tests.tiny_models import tiny_config

LOOP_FAMILIES = ("llama", "qwen3")
SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 64,
    "max_position_embeddings": 4096,
}  # fmt: skip
CHUNK, WRITTEN = 256, 4
LENGTHS = (512, 1000, 2048)


def compare_loops(folder: Path, family: str) -> Iterator[Row]:
    """A prompt read and a few tokens written, in fp32 and bf16, at three lengths; bytes beyond weights."""
    file = folder / f"{family}-loop" / "config.json"
    tiny_config(family, **SIZES).save_pretrained(file.parent)
    for dtype, tokens in product(BOTH, LENGTHS):
        counted = _count(file, dtype, tokens)
        forecast = counted.kv_cache + max(counted.prefill_peak, counted.decode_peak)
        for way, run in (("pages", _run_paged), ("growing cache", _run_serial)):
            model = real_model(tiny_config(family, **SIZES), DTYPES[dtype], "sdpa")
            yield Row("loop", family, f"{way} {dtype}", tokens, forecast, run(model, tokens).peak)


def _count(file: Path, dtype: DType, tokens: int) -> Counted:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = fake_model(file, RunSpec(dtype), "cpu")
        use_engine_attention(model)
        return count_run(model, tokens, CHUNK)


def _run_paged(model: Any, tokens: int) -> Allocated:
    """A row of `tokens` tokens, some of them written, in a pool that holds just them."""
    plan = SimpleNamespace(run=SimpleNamespace(prefill_chunk=CHUNK))
    loaded: Any = SimpleNamespace(model=model, plan=plan, device=torch.device("cpu"))

    def read() -> None:
        paged = PagedModel(loaded, lambda row_ids, _: [1] * len(row_ids), pool_tokens=tokens)
        paged.add("row", [1] * (tokens - WRITTEN), reserved_units=paged.units(tokens))
        while sum(stretch.end for stretch in paged.step()) < tokens:
            pass
        paged.close()

    read()
    return measure(read)[1]


def _run_serial(model: Any, tokens: int) -> Allocated:
    """The same in a cache that grows."""
    use_engine_attention(model)

    def read() -> None:
        row = CausalRow(model, torch.device("cpu"))
        left = [1] * WRITTEN
        for _ in steps(row, [1] * (tokens - WRITTEN), lambda _: left.pop() if left else None, chunk=CHUNK):
            pass

    read()
    return measure(read)[1]
