"""GGUF → a normal safetensors folder, once: so that every way of loading applies to the model.

Runs as a program of its own, since it needs torch and a lot of memory for a short while:
`python -m modules.engine.loading.convert FILE.gguf FOLDER`. Prints `progress FRACTION STAGE` lines. Writes in bf16.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def convert(source: Path, folder: Path) -> None:
    """Dequantize `source` and save model, tokenizer and chat template into `folder`, which must exist and be empty."""
    _report(0.05, "reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    _report(0.35, "dequantizing the weights")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    _report(0.8, "writing safetensors")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _report(1.0, "done")


def _report(fraction: float, stage: str) -> None:
    sys.stdout.write(f"progress {fraction} {stage}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
