"""LoRA adapters that are merged into weights in safetensors, in a plan: for which ways, and what that takes meanwhile.

Pure. Afterwards the model is as large and as fast as without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modules.errors import NotAvailableHere
from modules.memory.forecasting.budget import Budget
from modules.memory.model.lora import Lora
from modules.memory.model.model_spec import ModelSpec
from modules.settings import LoadOptions
from modules.units import MiB

# A matrix is changed so many bytes of fp32 at a time.
STEP_BYTES = 16 * MiB


def check_merging(spec: ModelSpec, options: LoadOptions) -> None:
    """Raise NotAvailableHere where --lora cannot be merged into the weights of `spec` as the flags have them."""
    given = {
        "--load-in-8bit": options.load_in_8bit, "--load-in-4bit": options.load_in_4bit, "--disk": options.disk,
        "--deepspeed": options.deepspeed, "--loader vllm": options.loader == "vllm",
    }  # fmt: skip
    flag = next((flag for flag, asked in given.items() if asked), "")
    if flag or spec.prequantized != "none":
        why = f"not with {flag}" if flag else f"{spec.name} is stored as {spec.prequantized}"
        drop = f"Drop {flag} or --lora" if flag else "Drop --lora"
        raise NotAvailableHere(
            f"--lora {' '.join(options.lora)}: adapters are merged into weights in 16 or 32 bits, in memory; {why}.",
            remedy=f"{drop}, or use the model and the adapter as .gguf files.",
            param="lora",
        )


def with_merging(budget: Budget, loras: Sequence[Lora], element_bytes: int) -> Budget:
    """`budget` of a device whose weights, numbers of `element_bytes`, are changed one by one while it is loaded.

    Beside them lie one's new copy, what is computed of it at once, and pages of the file that were not let go yet.
    """
    if not loras:
        return budget
    largest = max(lora.largest for lora in loras)
    meanwhile = element_bytes * largest + min(4 * STEP_BYTES, 16 * largest) + budget.weights // 32
    peak = budget.resident - budget.kv_cache - budget.draft + meanwhile
    return replace(budget, load_peak=max(budget.load_peak, peak))
