"""LoRA adapters in a plan: which models can have them, and what they take. Pure: the files are read elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from modules.errors import NotAvailableHere
from modules.memory.forecasting.budget import Figure
from modules.memory.model.lora import Lora
from modules.memory.model.model_spec import ModelSpec
from modules.settings import LoadOptions


def check_loras(spec: ModelSpec, options: LoadOptions) -> None:
    """Refuse adapters for what does not run through llama.cpp. Raises NotAvailableHere naming flag and remedy."""
    if not options.lora:
        return
    reason = ""
    if spec.source != "gguf":
        reason = f"{spec.name} is no GGUF file, and llama.cpp alone applies adapters here"
    elif options.loader not in ("auto", "llamacpp"):
        reason = f"--loader {options.loader} applies no adapters"
    if reason:
        raise NotAvailableHere(
            f"--lora {' '.join(options.lora)}: {reason}.",
            remedy="Use the model as a .gguf file with --loader llamacpp, or drop --lora.",
            param="lora",
        )


def lora_figure(loras: Sequence[Lora]) -> Figure:
    """Bytes of `loras` beside the weights: their tensors as they are stored, in buffers of their own."""
    size = sum(lora.size_bytes for lora in loras)
    return Figure(size, "exact", " + ".join(f"{lora.name} {lora.size_bytes:,} B" for lora in loras))


def ignored_note(lora: Lora) -> str:
    """What to say of an adapter that llama.cpp applies in part."""
    norms = "1 norm" if lora.ignored == 1 else f"{lora.ignored} norms"
    return f"Of the LoRA adapter {lora.name}, {norms} cannot be applied by llama.cpp; all else is."
