"""The dry run held against the engine's own two loops on the CPU: rows over pages, and one row whose cache grows.

Both read a prompt in chunks and then write tokens. The forecast of "loop" rows is the planner's: a pool of exactly the
context's tokens. Rows "loop, its own" add what each loop is known to take beyond it: `paged_bytes`, or a dry run in
which the cache grows as the engine's does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.allocations import Allocated, measure, real_model
from benchmarks.memory_inference import BOTH
from benchmarks.memory_rows import Row
from modules.engine.loops.paged import CPU_PAGE_TOKENS, PagedModel
from modules.engine.loops.rows import CausalRow
from modules.engine.loops.serial import steps
from modules.memory.dryruns.dryrun import DTYPES, Counted, count_run, fake_model, use_engine_attention
from modules.memory.dryruns.live_bytes import LiveBytes
from modules.memory.forecasting.forecast import DType, RunSpec
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
        planned = _planned(file, dtype, tokens)
        own = {
            "pages": planned + paged_bytes(_count(file, dtype, tokens).kv_cache, tokens),
            "growing cache": _growing(file, dtype, tokens),
        }
        for way, run in (("pages", _run_paged), ("growing cache", _run_serial)):
            model = real_model(tiny_config(family, **SIZES), DTYPES[dtype], "sdpa")
            real = run(model, tokens).peak
            yield Row("loop", family, f"{way} {dtype}", tokens, planned, real)
            yield Row("loop, its own", family, f"{way} {dtype}", tokens, own[way], real)


def paged_bytes(cache: int, tokens: int) -> int:
    """What a pool of pages takes beyond the `cache` of `tokens` tokens: a last page that is not full, two that are
    never used, and the tables of one step (transformers 5.23, continuous_batching: cache.py, input_outputs.py)."""
    pages = -(-tokens // CPU_PAGE_TOKENS)
    spare = (pages + 2) * CPU_PAGE_TOKENS - tokens
    small = 7 * (-(-(CHUNK + 1) // 32) * 32) + CHUNK + 1  # int32: seven rows of inputs in lines of 128 bytes, outputs
    places = CHUNK + pages * CPU_PAGE_TOKENS + CHUNK  # int64: where to write, what to read
    return cache // tokens * spare + 4 * small + 8 * places


def _planned(file: Path, dtype: DType, tokens: int) -> int:
    counted = _count(file, dtype, tokens)
    return counted.kv_cache + max(counted.prefill_peak, counted.decode_peak)


@cache
def _count(file: Path, dtype: DType, tokens: int) -> Counted:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = fake_model(file, RunSpec(dtype), "cpu")
        use_engine_attention(model)
        return count_run(model, tokens, CHUNK)


def _growing(file: Path, dtype: DType, tokens: int) -> int:
    """The most that is alive while every chunk is read and every token written, the cache growing on the way."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = fake_model(file, RunSpec(dtype), "cpu")
        use_engine_attention(model)
        counter = LiveBytes()
        for tensor in (*model.parameters(), *model.buffers()):
            counter.add(tensor)
        weights = counter.begin()
        with counter:
            _write(model, tokens)
        return counter.peak - weights


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
        _write(model, tokens)

    read()
    return measure(read)[1]


def _write(model: Any, tokens: int) -> None:
    """A row of `tokens` tokens in a cache that grows, some of them written."""
    row = CausalRow(model, torch.device("cpu"))
    left = [1] * WRITTEN
    for _ in steps(row, [1] * (tokens - WRITTEN), lambda _: left.pop() if left else None, chunk=CHUNK):
        pass
