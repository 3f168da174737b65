"""What one training step of a model needs: full, LoRA or QLoRA. Formulas, each with its source.

Pure arithmetic over a ModelSpec and a TrainingRun. Snug trains nothing: these figures are for people who plan to.
Notation: T tokens of all sequences, h hidden, I intermediate, a heads, k KV heads, d head_dim, V vocabulary, L layers,
e bytes of a number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.forecast import (
    CPU_PROCESS_BYTES,
    CUDA_CONTEXT_BYTES,
    DType,
    RunSpec,
    dequantize_bytes,
    element_bytes,
    elements,
    is_quantizable,
    tensor_meta_bytes,
    tied_copies,
    weight_bytes,
)
from modules.memory.model.spec import ModelSpec, TensorInfo

TrainingMode = Literal["full", "lora", "qlora"]
Optimizer = Literal["adamw", "adam8bit", "sgd"]

# bitsandbytes 0.50, optim/optimizer.py: smaller tensors keep fp32 states, larger ones scales for blocks of 256.
_SMALLEST_8BIT, _BLOCK_8BIT = 4096, 256
_RUNTIMES = {CUDA_CONTEXT_BYTES: "CUDA context, cuBLAS and kernels", CPU_PROCESS_BYTES: "process and libraries"}
# PEFT keeps adapters in fp32 beside a 16-bit base.
_ADAPTER_ELEMENT = 4


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """How a model is to be trained: `batch` sequences of `tokens` tokens a step.

    `mode` "lora" trains adapters of `rank` beside a frozen base of `dtype`, "qlora" beside one of nf4 with double
    quantization. `checkpointing` keeps only each layer's input and computes the rest again on the way back.
    """

    mode: TrainingMode = "full"
    batch: int = 1
    tokens: int = 512
    optimizer: Optimizer = "adamw"
    checkpointing: bool = False
    rank: int = 16
    dtype: DType = "bfloat16"
    attention: str = "sdpa"


def training_budget(spec: ModelSpec, run: TrainingRun, *, context: int = CUDA_CONTEXT_BYTES) -> Budget:
    """The Budget of one device that trains `spec` as `run` says; `context` is what its runtime takes.

    Gradients are set to None after each step, as transformers' Trainer does, so they grow while activations shrink:
    the figure for activations is what a step takes at its peak beyond weights, optimizer and all gradients. The
    optimizer works on all tensors at once (foreach, torch's choice on a GPU).
    """
    base = _base_run(run)
    meta = sum(tensor_meta_bytes(spec, tensor, base) for tensor in spec.tensors)
    figures: dict[Purpose, Figure] = {
        "weights": Figure(
            weight_bytes(spec, base) - meta + _adapter_bytes(spec, run), "exact", _weights_text(spec, run)
        ),
        "quant_meta": Figure(meta, "exact", "nf4: a scale per 64 weights, in 8 bits with a scale per 256 of them"),
        "gradients": _gradients(spec, run),
        "optimizer": _optimizer(spec, run),
        "activations": _activations(spec, run),
        "dequant_buffer": Figure(dequantize_bytes(spec, base), "formula", "the largest quantized matrix in 16 bits"),
        "context": Figure(context, "formula", _RUNTIMES.get(context, "what the runtime takes")),
    }
    return Budget.of(figures)


def _base_run(run: TrainingRun) -> RunSpec:
    if run.mode == "qlora":
        return RunSpec(run.dtype, quantization="nf4", double_quant=True, compute_dtype=run.dtype)
    return RunSpec(run.dtype)


def trained_shapes(spec: ModelSpec, run: TrainingRun) -> list[tuple[int, ...]]:
    """The shapes of what is trained: every tensor, or two adapters `(rank, in)` and `(out, rank)` a target."""
    if run.mode == "full":
        copies = tied_copies(spec)
        return [tensor.shape for tensor in spec.tensors if tensor.name not in copies]
    return [shape for target in targets(spec) for shape in ((run.rank, target.shape[1]), (target.shape[0], run.rank))]


def targets(spec: ModelSpec) -> list[TensorInfo]:
    """The matrices that adapters are put beside: every linear layer inside a block, as QLoRA does."""
    return [tensor for tensor in spec.tensors if is_quantizable(spec, tensor)]


def trained_count(spec: ModelSpec, run: TrainingRun) -> int:
    """How many numbers are trained."""
    return sum(math.prod(shape) for shape in trained_shapes(spec, run))


def _trained_element(run: TrainingRun) -> int:
    return element_bytes(run.dtype) if run.mode == "full" else _ADAPTER_ELEMENT


def _adapter_bytes(spec: ModelSpec, run: TrainingRun) -> int:
    return 0 if run.mode == "full" else trained_count(spec, run) * _ADAPTER_ELEMENT


def _weights_text(spec: ModelSpec, run: TrainingRun) -> str:
    count = sum(elements(tensor) for tensor in spec.tensors if tensor.name not in tied_copies(spec))
    kind = "nf4 where bitsandbytes can" if run.mode == "qlora" else f"{element_bytes(run.dtype)} B"
    adapters = "" if run.mode == "full" else f" + {trained_count(spec, run):,} of adapters · {_ADAPTER_ELEMENT} B"
    return f"{count:,} weights · {kind}{adapters}"


def _gradients(spec: ModelSpec, run: TrainingRun) -> Figure:
    count, width = trained_count(spec, run), _trained_element(run)
    return Figure(count * width, "exact", f"{count:,} trained · {width} B")


def _optimizer(spec: ModelSpec, run: TrainingRun) -> Figure:
    """AdamW: two states in the precision of what is trained (torch.optim). 8-bit Adam: two bytes and their scales."""
    count, width = trained_count(spec, run), _trained_element(run)
    if run.optimizer == "sgd":
        return Figure(0, "exact", "SGD without momentum keeps nothing")
    if run.optimizer == "adamw":
        return Figure(2 * count * width, "exact", f"{count:,} trained · 2 states · {width} B")
    size = sum(_adam_8bit_bytes(math.prod(shape)) for shape in trained_shapes(spec, run))
    text = f"{count:,} trained · 2 states · 1 B, a 4 B scale per {_BLOCK_8BIT}; fp32 for less than {_SMALLEST_8BIT}"
    return Figure(size, "exact", text)


def _adam_8bit_bytes(count: int) -> int:
    return 2 * (4 * count if count < _SMALLEST_8BIT else count + 4 * -(-count // _BLOCK_8BIT))


def saved_per_token(spec: ModelSpec, run: TrainingRun) -> int:
    """Bytes that one decoder layer keeps a token for its backward pass.

    Llama-like, full, SDPA: two norms, each 4h in fp32 and 2eh; e·(2ad + 2kd) for queries, keys, values and output; 4eI
    of the gated MLP; 4a + 8 of statistics. Byte for byte torch's own memory events, bf16 and fp32, MHA and GQA.
    Eager attention keeps its scores: (2e + 2)·a a key. A frozen base keeps no inputs of its own matrices: 4h a norm
    and 3eI, and for each adapter its input in fp32.
    """
    width, hidden = element_bytes(run.dtype), spec.hidden_size
    inner = spec.intermediate_size * max(1, spec.experts_per_token)
    attention = width * 2 * spec.head_dim * (spec.attention_heads + spec.kv_heads) + 4 * spec.attention_heads + 8
    if run.attention == "eager":
        attention += (2 * width + 2) * spec.attention_heads * run.tokens
    if run.mode == "full":
        return 2 * (4 + 2 * width) * hidden + attention + 4 * width * inner
    return 8 * hidden + _adapter_inputs(spec, run) + attention + 3 * width * inner


def _adapter_inputs(spec: ModelSpec, run: TrainingRun) -> int:
    """Bytes that the adapters of one layer keep a token: inputs in fp32, a copy each unless the base is fp32 too."""
    found = targets(spec)
    low = 4 * run.rank * len(found)
    if run.dtype == "float32":
        return low // max(1, spec.layers) + 4 * (2 * spec.hidden_size + spec.intermediate_size)
    return (low + sum(4 * target.shape[1] for target in found)) // max(1, spec.layers)


def _activations(spec: ModelSpec, run: TrainingRun) -> Figure:
    """What the fullest moment of a step takes beyond weights, optimizer and all gradients, which are counted apart."""
    found = moments(spec, run)
    when = max(found, key=lambda name: found[name])
    tokens = run.batch * run.tokens
    kept = element_bytes(run.dtype) * spec.hidden_size if run.checkpointing else saved_per_token(spec, run)
    text = (
        f"most at the {when}: {spec.layers} layers · {tokens:,} tokens · {kept:,} B kept, {spec.vocab_size:,} logits a "
        f"token, one layer's backward pass; less the gradients that are not there yet"
    )
    return Figure(max(0, found[when] - _gradients(spec, run).bytes), "formula", text)


def moments(spec: ModelSpec, run: TrainingRun) -> dict[str, int]:
    """Bytes beyond weights and optimizer states at the moments of a step that can be the fullest.

    Loss: all that is kept, and 12 bytes a logit (its log-softmax in fp32 and two gradients of it). Head: all that is
    kept, the head's gradient, and the backward pass of a norm, 18h. Last layer, with checkpointing: the same with one
    layer computed again, and (8 + 3e)·h. First layer: what it keeps, (8 + 3e)·h, and the gradients of all layers after
    it; at its end all gradients. Optimizer: all gradients, and for AdamW on all tensors at once (foreach, torch's
    choice on a GPU) one temporary number each. Against real steps of small Llamas: -1.8 % to +1.3 % in all.
    """
    width, hidden, tokens = element_bytes(run.dtype), spec.hidden_size, run.batch * run.tokens
    full = run.mode == "full"
    layer, backward = saved_per_token(spec, run) * tokens, (8 + 3 * width) * hidden * tokens
    rotary = 2 * width * spec.head_dim * tokens
    last_norm = (4 + (2 * width if full else 0)) * hidden * tokens
    kept = rotary + spec.layers * (width * hidden * tokens if run.checkpointing else layer)
    gradients = _gradients(spec, run).bytes
    table = spec.vocab_size * hidden * width if full else 0
    later = gradients - _first_block(spec, run) - (0 if spec.tied_embeddings else table)
    return {
        "loss": kept + last_norm + 12 * spec.vocab_size * tokens,
        "head": kept + last_norm + table + 18 * hidden * tokens,
        "last layer": kept + table + backward + layer if run.checkpointing else 0,
        "first layer": max(later + layer + rotary + backward, gradients + backward),
        "optimizer": gradients * (2 if run.optimizer == "adamw" else 1),
    }


def _first_block(spec: ModelSpec, run: TrainingRun) -> int:
    """Bytes of the gradients of one block."""
    blocks = [tensor for tensor in spec.tensors if tensor.block]
    if run.mode != "full" or not blocks:
        return 0
    return sum(elements(t) for t in blocks if t.block == blocks[0].block) * element_bytes(run.dtype)
