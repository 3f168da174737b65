"""What an engine process on a CPU takes beside its model: libraries, tokenizer, the heap's holes, the load's peak.

Measured on Linux with glibc 2.36, torch 2.13, transformers 5.23 and bitsandbytes 0.50 (benchmarks/process_memory.py):
resident pages, so the libraries' own code counts. Pure arithmetic.
"""

from __future__ import annotations

from modules.memory.forecasting.budget import Figure, Purpose
from modules.memory.forecasting.forecast import (
    RunSpec,
    element_bytes,
    largest_quantizable,
    prefill_peak_bytes,
    quantizable,
)
from modules.memory.model.spec import ModelSpec
from modules.units import MiB

# Python, torch (with the compiler that transformers' decorators bring, 94 MiB of it) and transformers after a first
# step: 415 MiB with the starter model, whose tokenizer of 49,152 entries takes 43 of them.
LIBRARIES_BYTES = 372 * MiB
# tokenizer.json as its library keeps it, an entry of the vocabulary.
TOKEN_BYTES = 900
# bitsandbytes with the Python objects of its layers.
BITSANDBYTES_BYTES = 36 * MiB
# DeepSpeed with torch's collectives.
DEEPSPEED_BYTES = 32 * MiB
# Rows of scores that the engine's own attention (engine/loops/attention.py) has at a time; its buffers for them come in
# steps of so many keys.
SCORE_ROWS, SCORE_COLUMNS = 384, 1024


def process_figures(spec: ModelSpec, run: RunSpec, *, computes: bool, deepspeed: bool = False) -> dict[Purpose, Figure]:
    """The figures of a Budget that a process on the CPU adds to weights and caches, or has otherwise than a GPU."""
    figures: dict[Purpose, Figure] = {"context": runtime_figure(spec, run, deepspeed=deepspeed)}
    if not computes:
        return figures
    attention = attention_bytes(spec, run)
    if attention > prefill_peak_bytes(spec, run, with_head=True):
        figures["prefill_peak"] = Figure(attention, "formula", _attention_text(spec, run))
    figures["allocator"] = _holes(spec, run)
    return figures


def load_peak_bytes(spec: ModelSpec, run: RunSpec, resident: int, *, device: str, computes: bool = True) -> int:
    """The most that the load takes on a device, of which `resident` stays.

    Pages of files do not count: the system takes them back where it needs them. A change of dtype alone therefore takes
    nothing beside.
    """
    return resident + (conversion_bytes(spec, run, device=device) if computes else 0)


def conversion_bytes(spec: ModelSpec, run: RunSpec, *, device: str) -> int:
    """The most that quantizing one matrix takes beside the quantized matrix.

    On the CPU 14 B a weight for 4-bit (fp32 copy, scaled copy, int32 codes, bytes, two halves) and 9 B for int8 (fp32
    product, rounded, bytes): bitsandbytes 0.50, backends/default/ops.py. On a GPU the matrix as it was, 2 or 4 B.
    """
    if run.quantization == "none" or spec.prequantized != "none":
        return 0
    largest = largest_quantizable(spec)
    if device != "cpu":
        return largest * element_bytes(run.dtype)
    return largest * (9 if run.quantization == "int8" else 14)


def decode_figure(spec: ModelSpec, run: RunSpec) -> Figure:
    """Most bytes beyond weights and cache while one token is written: e·(4h + 3I), or the logits V·(e + 4)."""
    width = element_bytes(run.dtype)
    routed = max(1, spec.experts_per_token)
    mlp = width * (4 * spec.hidden_size + 3 * spec.intermediate_size * routed)
    logits = spec.vocab_size * (width + 4)
    if logits >= mlp:
        return Figure(logits, "formula", f"logits: {spec.vocab_size:,} tokens of the vocabulary · ({width} B + 4 B)")
    inner = f"{spec.intermediate_size:,}" + (f" · {routed} experts" if routed > 1 else "")
    return Figure(mlp, "formula", f"{width} B · (4 · {spec.hidden_size:,} + 3 · {inner})")


def attention_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """Most bytes while the engine's own attention reads a chunk in bf16: scores, keys and values in rows, the chunk.

    384·kv·S·2 + 2·kv·d·S·2 + 6·T·h·2; 0 where torch's fused kernel computes it.
    """
    if not _scores_bytes(spec, run):
        return 0
    states = 2 * spec.kv_heads * spec.head_dim * run.context_tokens * 2
    return _scores_bytes(spec, run) + states + min(run.prefill_chunk, run.context_tokens) * 2 * 6 * spec.hidden_size


def _scores_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """The buffer for scores, over which their softmax is written."""
    if run.dtype != "bfloat16" or run.attention != "sdpa":
        return 0
    return min(SCORE_ROWS, run.prefill_chunk) * spec.kv_heads * _columns(run) * 2


def _columns(run: RunSpec) -> int:
    return -(-run.context_tokens // SCORE_COLUMNS) * SCORE_COLUMNS


def _attention_text(spec: ModelSpec, run: RunSpec) -> str:
    tokens = min(run.prefill_chunk, run.context_tokens)
    rows = f"{min(SCORE_ROWS, run.prefill_chunk)} · {spec.kv_heads} KV heads"
    return (
        f"scores: {rows} · {_columns(run):,} · 2 B + keys and values 2 · {spec.kv_heads} · "
        f"{spec.head_dim} · {run.context_tokens:,} · 2 B + {tokens:,} tokens · 2 B · 6 · {spec.hidden_size:,}"
    )


def runtime_figure(spec: ModelSpec, run: RunSpec, *, deepspeed: bool = False) -> Figure:
    """The process without weights and buffers."""
    quantized = run.quantization != "none" or spec.prequantized != "none"
    parts = {
        "Python, torch and transformers": LIBRARIES_BYTES,
        f"tokenizer {spec.vocab_size:,} entries ·": TOKEN_BYTES,
        "bitsandbytes": BITSANDBYTES_BYTES if quantized else 0,
        "DeepSpeed": DEEPSPEED_BYTES if deepspeed else 0,
    }
    size = sum(parts.values()) + TOKEN_BYTES * (spec.vocab_size - 1)
    return Figure(size, "formula", " + ".join(f"{name} {part:,} B" for name, part in parts.items() if part))


def _holes(spec: ModelSpec, run: RunSpec) -> Figure:
    """What the heap holds between blocks in use: what the buffers of earlier, shorter chunks took, once more.

    Fitted: six times the buffer for scores, or one more chunk's activations where there are none; with int8 also all
    that the products of one block allocate, T·Σ(13·in + 10·out), none of it used again before the heap is trimmed:
    glibc 2.36 finds no use for an aligned block that was freed if the next one is as large.
    """
    scores, chunk = 6 * _scores_bytes(spec, run), prefill_peak_bytes(spec, run, with_head=True)
    products = int8_block_bytes(spec, run)
    text = f"the heap's holes, six times the scores: 6 · {scores // 6:,} B"
    if chunk > scores:
        text = f"the heap's holes, a chunk's activations again: {chunk:,} B"
    if products:
        text += f" + what a block's quantized products allocate {products:,} B"
    return Figure(max(scores, chunk) + products, "formula", text)


def int8_block_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """All that int8 products of the largest block allocate for a chunk; 0 without int8.

    A value in: cast 2, magnitude 2, scaled fp32 4, rounded 4, byte 1; a value out: int32 4, fp32 4, cast 2
    (bitsandbytes 0.50, backends/default/ops.py).
    """
    if run.quantization != "int8":
        return 0
    blocks: dict[str, int] = {}
    for tensor in quantizable(spec):
        if tensor.block:
            rows, columns = tensor.shape
            blocks[tensor.block] = blocks.get(tensor.block, 0) + 13 * columns + 10 * rows
    return min(run.prefill_chunk, run.context_tokens) * max(blocks.values(), default=0)
