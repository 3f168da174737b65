"""One product of a linear layer on the CPU: as torch computes it, and as engine/speedups/ has it computed.

`python -m benchmarks.products [--repeats N]`: bf16 as torch calls oneDNN against weights packed beforehand, fp32 by MKL
against oneDNN. Each product takes another of so many matrices that none of them is in a cache; the sides take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn

from benchmarks.common import finish, median
from modules.engine.speedups.linears import onednn_linear
from modules.engine.speedups.packed import can_pack, packed_product_of

SHAPES = ((576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 4096), (11008, 4096))
"""(out_features, in_features): the starter's, TinyLlama's, Llama 2 7B's."""
TOKENS = (1, 8, 64, 512)
BEYOND_CACHES = 128 * 2**20
MOST_LAYERS = 300


def layers_of(shape: tuple[int, int], dtype: torch.dtype) -> list[nn.Linear]:
    """Layers that together are larger than any cache."""
    rows, columns = shape
    width = torch.empty((), dtype=dtype).element_size()
    count = min(MOST_LAYERS, max(2, BEYOND_CACHES // (rows * columns * width)))
    return [nn.Linear(columns, rows, bias=False, dtype=dtype) for _ in range(count)]


def row(
    name: str, dtype: torch.dtype, shape: tuple[int, int], faster: Callable[[Any], Callable[[torch.Tensor], Any]],
    repeats: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Medians of both sides for every number of tokens."""
    layers = layers_of(shape, dtype)
    sides: dict[str, list[Any]] = {"torch": layers, "snug": [faster(layer) for layer in layers]}
    found = []
    for tokens in TOKENS:
        states = torch.randn(1, tokens, shape[1], dtype=dtype)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(repeats):
            for side, products in sides.items():
                started = time.perf_counter()
                products[number % len(products)](states)
                times[side].append(time.perf_counter() - started)
        torch_us, snug_us = (median(times[side]) * 1e6 for side in ("torch", "snug"))
        speed = shape[0] * shape[1] * states.element_size() / snug_us / 1e3
        found.append({
            "product": name, "out": shape[0], "in": shape[1], "tokens": tokens, "torch_us": round(torch_us, 1),
            "snug_us": round(snug_us, 1), "weights_GB_per_s": round(speed, 1), "ratio": round(torch_us / snug_us, 2),
        })  # fmt: skip
        print(f"{name:18} {shape[0]:6} × {shape[1]:5} {tokens:4} tokens: torch {torch_us:9.0f} µs, "
              f"Snug {snug_us:9.0f} µs, × {torch_us / snug_us:.2f}", flush=True)  # fmt: skip
    return found


@torch.inference_mode()
def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        if can_pack():
            rows += row("bf16, packed", torch.bfloat16, shape, packed_product_of, repeats)
        rows += row("fp32, oneDNN", torch.float32, shape, lambda layer: lambda x: onednn_linear(layer, x), repeats)
    finish("products", {"repeats": repeats, "rows": rows})


if __name__ == "__main__":
    main()
