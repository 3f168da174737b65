"""KV caches as computed, in 8 and in 4 bits: how fast tokens follow each other, what is kept, what it costs in quality.

The serial loop's own rows, without server or sampling. Speeds: the kinds take turns, so that a machine that slows down
slows all. Quality: perplexity read a few tokens at a time, as much of it as possible from packed tokens, and how
often the most likely token is the one that a cache kept as computed gives. `--perplexity` and `--speed` run one alone.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.common import ROOT, STARTER, finish, median, spread
from modules.engine.loading.huggingface import describe, load_tokenizer
from modules.engine.loops.attention import prefer_cpu_attention
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.packed_cache import PackedLayer, cache_maker
from modules.engine.loops.rows import CausalRow
from modules.engine.speedups.norms import speed_up_norms
from modules.hardware import read_inventory
from modules.memory.forecasting.forecast import kv_cache_bytes, kv_work_bytes
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions

KINDS: tuple[KVCache, ...] = ("plain", "int8", "int4")
LENGTHS = (256, 2048, 4096)
WRITTEN = 24
STRETCH, SKIPPED = 16, 128
TEXTS = {"prose.txt": "tests/data/prose.txt", "architecture.md, 2,048 tokens": "docs/architecture.md"}


def main() -> None:
    """Measure what was asked for, all of it by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--perplexity", action="store_true")
    asked = parser.parse_args()
    both = asked.speed == asked.perplexity
    loaded = _load()
    result: dict[str, Any] = {}
    if both or asked.perplexity:
        result["quality"] = measure_quality(loaded)
    if both or asked.speed:
        prefer_cpu_attention(loaded, many_rows=False)
        speed_up_norms(loaded)
        result["rows"] = measure_speed(loaded)
    finish("kv_cache", result)


def _load() -> LoadedModel:
    """The starter model in bf16."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    folder = ROOT / "models" / STARTER
    options = LoadOptions.model_validate({"dtype": "bf16", "cpu": True})
    plan = make_plan(Question(inspect(folder), options, read_inventory(ROOT), Path("cache")))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)
    return describe(plan, model, load_tokenizer(plan), time.monotonic())


def _row(loaded: LoadedModel, kind: KVCache) -> CausalRow:
    plan = replace(loaded.plan, run=replace(loaded.plan.run, kv_cache=kind))
    return CausalRow(loaded.model, loaded.device, cache_maker(replace(loaded, plan=plan))())


def measure_speed(loaded: LoadedModel) -> list[dict[str, Any]]:
    """Milliseconds a token after a prompt of each length, and the bytes that are kept then."""
    rows = []
    for tokens in LENGTHS:
        ids = [1 + number % 40_000 for number in range(tokens - WRITTEN)]
        open_rows = {kind: _row(loaded, kind) for kind in KINDS}
        for row in open_rows.values():
            for start in range(0, len(ids), 512):
                row.read(ids[start : start + 512])
        times: dict[KVCache, list[float]] = {kind: [] for kind in KINDS}
        for number in range(WRITTEN):
            for kind, row in open_rows.items():
                started = time.perf_counter()
                row.read([5 + number])
                times[kind].append((time.perf_counter() - started) * 1000)
        for kind, row in open_rows.items():
            rows.append(_told(loaded, kind, tokens, row, times[kind]))
            print(rows[-1])
    return rows


def _told(loaded: LoadedModel, kind: KVCache, tokens: int, row: CausalRow, times: list[float]) -> dict[str, Any]:
    run = replace(loaded.plan.run, kv_cache=kind, context_tokens=tokens)
    packed = [layer for layer in row.cache.layers if isinstance(layer, PackedLayer)]
    return {
        "kind": kind,
        "tokens": tokens,
        "ms_a_token": round(median(times), 2),
        "spread_ms": spread(times),
        "kept_bytes": kv_cache_bytes(loaded.plan.spec, run, tokens),
        "kept_with_room_bytes": row.size_bytes,
        "work_bytes": kv_work_bytes(loaded.plan.spec, run),
        "work_with_room_bytes": packed[0].work.size_bytes if packed else 0,
    }


def measure_quality(loaded: LoadedModel) -> list[dict[str, Any]]:
    """Perplexity of each text with each kind, and how often the most likely token is the plain cache's."""
    rows = []
    for name, path in TEXTS.items():
        ids = loaded.tokenizer((ROOT / path).read_text(encoding="utf-8"))["input_ids"][:2048]
        plain, chosen = perplexity(loaded, ids, "plain")
        for kind in KINDS[1:]:
            found, other = perplexity(loaded, ids, kind)
            agree = float((chosen == other).float().mean())
            row = {"text": name, "tokens": len(ids), "kind": kind, "plain": round(plain, 4), "ratio": found / plain}
            rows.append({**row, "same_token": round(agree, 4)})
            print(rows[-1])
    return rows


@torch.no_grad()
def perplexity(loaded: LoadedModel, ids: list[int], kind: KVCache) -> tuple[float, torch.Tensor]:
    """Perplexity of `ids` after the first SKIPPED, read STRETCH at a time, and the most likely tokens."""
    cache = _row(loaded, kind).cache
    total, count, chosen = 0.0, 0, []
    for start in range(0, len(ids) - 1, STRETCH):
        piece = torch.tensor([ids[start : start + STRETCH]])
        logits = loaded.model(piece, past_key_values=cache, use_cache=True).logits[0].float()
        wanted = torch.tensor(ids[start + 1 : start + 1 + STRETCH])
        if start >= SKIPPED:
            scores = logits[: len(wanted)]
            total += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
            count += len(wanted)
            chosen.append(scores.argmax(-1))
    return math.exp(total / count), torch.cat(chosen)


if __name__ == "__main__":
    main()
