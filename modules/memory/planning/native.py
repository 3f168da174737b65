"""What llama.cpp alone does here, in a plan: LoRA adapters and embeddings; which models can have them, what they take.

Pure: the files of adapters are read elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from modules.errors import NotAvailableHere
from modules.memory.forecasting.budget import Figure
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.lora import Lora
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.merging import check_merging
from modules.settings import LoadOptions


def check_native(spec: ModelSpec, options: LoadOptions) -> None:
    """Refuse both for what does not run through llama.cpp, but adapters that are merged into safetensors, and for a
    model that embeds anyway.

    Raises NotAvailableHere naming flag and remedy.
    """
    merged = spec.source == "safetensors"
    if options.lora and merged:
        check_merging(spec, options)
    asked = [("lora", f"--lora {' '.join(options.lora)}")] if options.lora and not merged else []
    asked += [("embeddings", "--embeddings")] if options.embeddings and spec.embedder is None else []
    reason = ""
    if spec.source != "gguf":
        reason = f"{spec.name} is no GGUF file, and llama.cpp alone does that here"
    elif options.loader not in ("auto", "llamacpp"):
        reason = f"--loader {options.loader} cannot do that"
    if asked and reason:
        param, flag = asked[0]
        raise NotAvailableHere(
            f"{flag}: {reason}.",
            remedy=f"Use the model as a .gguf file with --loader llamacpp, or drop {flag.partition(' ')[0]}.",
            param=param,
        )


def lora_figure(loras: Sequence[Lora]) -> Figure:
    """Bytes of `loras` beside the weights: their tensors as they are stored, in buffers of their own."""
    size = sum(lora.size_bytes for lora in loras)
    return Figure(size, "exact", " + ".join(f"{lora.name} {lora.size_bytes:,} B" for lora in loras))


def lora_figures_beside_gpus(loras: Sequence[Lora], devices: Sequence[str]) -> dict[str, Figure]:
    """The same by device: each part lies with what it changes, so each device may come to hold all of it."""
    whole = lora_figure(loras)
    return {device: Figure(whole.bytes, "formula", f"{whole.formula}, at most") for device in devices}


def embedding_figure(spec: ModelSpec, run: RunSpec) -> Figure:
    """What reading a text for its embedding takes beyond reading a prompt: 2·T·V·4 + T·h·4.

    llama.cpp computes and keeps the logits of each of its T tokens then, which nobody needs. It keeps the room.
    """
    tokens, words = min(run.prefill_chunk, run.context_tokens), spec.vocab_size
    size = 4 * tokens * (2 * words + spec.hidden_size)
    return Figure(size, "formula", f"{tokens:,} tokens × (2 × {words:,} logits + {spec.hidden_size:,}) × 4 B")


def embedding_figures_beside_gpus(spec: ModelSpec, run: RunSpec, used: Sequence[str]) -> dict[str, Figure]:
    """The same by device, of GPUs `used`: the last computes the logits, CPU memory keeps them and the vectors."""
    tokens, words = min(run.prefill_chunk, run.context_tokens), spec.vocab_size
    kept = Figure(4 * tokens * (words + spec.hidden_size), "formula",
                  f"{tokens:,} tokens × ({words:,} logits + {spec.hidden_size:,}) × 4 B")  # fmt: skip
    return {
        used[-1]: Figure(4 * tokens * words, "formula", f"{tokens:,} tokens × {words:,} logits × 4 B"),
        "cpu": kept,
    }


def ignored_note(lora: Lora) -> str:
    """What to say of an adapter that llama.cpp applies in part."""
    norms = "1 norm" if lora.ignored == 1 else f"{lora.ignored} norms"
    return f"Of the LoRA adapter {lora.name}, {norms} cannot be applied by llama.cpp; all else is."
