"""What options and parameters are called on the page, in English, from their declarations."""

from __future__ import annotations

from modules.memory.forecasting.budget import Method
from modules.sampling import GenerationParams

_WORDS = {
    "cpu": "CPU", "gpu": "GPU", "nvme": "NVMe", "deepspeed": "DeepSpeed", "bf16": "bf16", "8bit": "8-bit",
    "4bit": "4-bit", "ctx": "context", "dir": "folder", "dtype": "precision", "attn": "attention",
    "quant": "quantization", "kv": "KV", "lora": "LoRA",
}  # fmt: skip
METHODS: dict[Method, str] = {
    "exact": "exact: counted byte by byte",
    "dry-run": "dry run: the model's own steps, played without weights",
    "formula": "formula: an estimate",
}
"""How a figure of a plan was come by."""
STOP_INFO = f"{GenerationParams.model_fields['stop'].description} One a line."


def label_of(name: str) -> str:
    """`gpu_memory` → `GPU memory`."""
    words = [_WORDS.get(word, word) for word in name.split("_")]
    if words[0].isalpha() and words[0].islower():
        words[0] = words[0].capitalize()
    return " ".join(words)
