"""The other side of benchmarks/decode.py: plain `model.generate` in a process of its own.

Reads one JSON line a request ({"ids": [...], "new_tokens": N}) and answers with one
({"first_token_s": …, "tokens_per_s": …, "ids": [...]}).
Started with the model folder and a kind (bf16, fp32, int8, nf4).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """Notes when tokens arrive; the first call brings the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """A token (or the prompt) is there."""
        del value
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Generation is over."""


def load(folder: str, kind: str) -> Any:
    """The model as a user of transformers would load it."""
    options: dict[str, Any] = {"dtype": torch.float32 if kind == "fp32" else torch.bfloat16}
    if kind == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif kind == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    return AutoModelForCausalLM.from_pretrained(Path(folder), **options).eval()


def answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Run one request greedily, without letting it end early."""
    ids, clock = torch.tensor([request["ids"]]), Clock()
    start = time.perf_counter()
    with torch.inference_mode():
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=request["new_tokens"],
            min_new_tokens=request["new_tokens"],
            streamer=clock,
        )
    first, last = clock.times[1], clock.times[-1]
    speed = (len(clock.times) - 2) / (last - first)
    return {"first_token_s": first - start, "tokens_per_s": speed, "ids": made[0, ids.shape[1] :].tolist()}


def main() -> None:
    """Serve requests from standard input until it ends."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        with contextlib.redirect_stdout(nowhere):
            model = load(sys.argv[1], sys.argv[2])
            for line in sys.stdin:
                answers.write(json.dumps(answer(model, json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
