"""What ten alternatives for each token cost, which the notebook asks of transformers: tokens a second with and without.

One server, both sides turn about, through the API, which also writes the alternatives as JSON: an upper bound for the
notebook, which does not. And one token's choice alone, turn about, in microseconds: the least of many, which other
work on the machine hardly moves. `python -m benchmarks.alternatives [--dtypes bf16 fp32] [--repeats 5]`.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks.common import ROOT, STARTER, finish, measure, median, snug, spread
from modules.engine.loops.sampler import Sampler
from modules.sampling import GenerationParams

NEW_TOKENS = 64
ALTERNATIVES = 10
TEXTS = {"short": "The lighthouse keeper found a strange letter.", "long": "The keeper wrote: all is well. " * 120}


VOCABULARIES = (49_152, 151_936)  # of the starter model, of Qwen
CHOICES = 400


def choose(vocab_size: int) -> dict[str, Any]:
    """Microseconds for one token's choice, with the alternatives and without."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / STARTER)
    params = GenerationParams(temperature=0.8, seed=1)
    sides = {
        side: Sampler(
            params.model_copy(update={"logprobs": asked}), prompt_ids=(1,), eos_ids=(2,), vocab_size=vocab_size,
            decode=lambda ids: str(tokenizer.decode([ident % len(tokenizer) for ident in ids])),
        )
        for side, asked in (("with", ALTERNATIVES), ("without", 0))
    }  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    least = dict.fromkeys(sides, float("inf"))
    for _ in range(CHOICES):
        logits = torch.randn(vocab_size, generator=generator)
        for side, sampler in sides.items():
            begun = time.perf_counter()
            sampler.next(logits)
            least[side] = min(least[side], 1e6 * (time.perf_counter() - begun))
    print(f"one choice of {vocab_size:,}: with {least['with']:.0f} µs, without {least['without']:.0f} µs", flush=True)
    return {"vocab_size": vocab_size, "choice_us": least}


def compare(dtype: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each length of text in one precision."""
    with snug("--dtype", dtype) as base:
        return [_row(dtype, kind, text, base, repeats) for kind, text in TEXTS.items()]


def _row(dtype: str, kind: str, text: str, base: str, repeats: int) -> dict[str, Any]:
    body = {
        "model": STARTER, "prompt": text, "max_tokens": NEW_TOKENS, "ban_eos_token": True, "temperature": 0.8,
        "seed": 1,
    }  # fmt: skip
    sides = {"with": body | {"logprobs": ALTERNATIVES}, "without": body}
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for index in range(repeats + 1):
        for side in sides if index % 2 else reversed(sides):
            measured, _ = measure(base, "/v1/completions", sides[side])
            if index:  # the first round warms up
                speeds[side].append(measured.tokens_per_s)
    ratio = median(speeds["with"]) / median(speeds["without"])
    figures = f"with {spread(speeds['with']):22} without {spread(speeds['without']):22} × {ratio:.3f}"
    print(f"{dtype} {kind:6} tok/s: {figures}", flush=True)
    return {"dtype": dtype, "text": kind, "tokens_per_s": speeds, "ratio": ratio}


def main() -> None:
    """Compare in every precision asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="*", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    choices = [choose(vocab_size) for vocab_size in VOCABULARIES]
    rows = [row for dtype in asked.dtypes for row in compare(dtype, asked.repeats)]
    finish("alternatives", {"new_tokens": NEW_TOKENS, "choices": choices, "rows": rows, "goal": "at least 0.9"})


if __name__ == "__main__":
    main()
