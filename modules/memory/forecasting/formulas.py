"""The formulas of forecast.py with a model's own numbers put in, as text for people: what a figure is made of.

Each text works out to the figure's bytes, or names the whole of which a device holds its part. A figure that came from
elsewhere (a dry run) gets none of these.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

from modules.memory.forecasting.budget import Budget, Purpose
from modules.memory.forecasting.forecast import (
    CUDA_CONTEXT_BYTES,
    RunSpec,
    dequantize_bytes,
    element_bytes,
    elements,
    is_quantizable,
    kv_cache_bytes,
    kv_work_bytes,
    layer_cache_bytes,
    prefill_peak_bytes,
    tensor_bytes,
    tensor_meta_bytes,
    tied_copies,
    weight_bytes,
)
from modules.memory.forecasting.kv_cache import (
    BITS,
    BLOCK_TOKENS,
    LAYERS_ON_GPU,
    RECENT_TOKENS,
    packed_tokens,
    scale_count,
)
from modules.memory.forecasting.llamacpp_sizes import BLOCK, BLOCK_BYTES, SLOTS
from modules.memory.model.spec import ModelSpec
from modules.units import format_size

_WIDTHS = {0.5: "½", 1.0: "1", 2.0: "2", 4.0: "4"}


def explained(budget: Budget, spec: ModelSpec, run: RunSpec) -> Budget:
    """`budget` with formulas for the figures that bring none of their own."""
    figures = {
        purpose: replace(figure, formula=figure.formula or formula_text(purpose, spec, run, figure.bytes))
        for purpose, figure in budget.figures.items()
    }
    return replace(budget, figures=figures)


def formula_text(purpose: Purpose, spec: ModelSpec, run: RunSpec, size_bytes: int) -> str:
    """What `size_bytes` for `purpose` are made of; "" where there is no formula for them."""
    if purpose == "weights":
        meta = _meta_bytes(spec, run)
        return _part_of(_weights(spec, run), weight_bytes(spec, run) - meta, size_bytes)
    if purpose == "quant_meta":
        return _part_of(_scales(spec, run), _meta_bytes(spec, run), size_bytes)
    if purpose == "kv_cache":
        return _cache_of_device(spec, run, size_bytes)
    if purpose == "prefill_peak" and size_bytes == prefill_peak_bytes(spec, run, with_head=True):
        return _prefill(spec, run, size_bytes)
    if purpose == "dequant_buffer" and size_bytes == dequantize_bytes(spec, run):
        return _dequantized(spec, run, size_bytes)
    if purpose == "offload_buffer":
        return "the largest part that is fetched to this device for each use"
    if purpose == "context" and size_bytes == CUDA_CONTEXT_BYTES:
        return "CUDA context, cuBLAS and loaded kernels"
    return ""


def _part_of(text: str, whole_bytes: int, size_bytes: int) -> str:
    if not text or whole_bytes == size_bytes:
        return text
    return f"this device's part of {format_size(whole_bytes)} = {text}"


def _weights(spec: ModelSpec, run: RunSpec) -> str:
    """`6,979,321,856 weights · ½ B + 1,050,939,392 weights · 2 B`, the narrowest first."""
    copies, counted, packed = tied_copies(spec), Counter[float](), 0
    sizes = [
        (elements(tensor), tensor_bytes(spec, tensor, run) - tensor_meta_bytes(spec, tensor, run))
        for tensor in spec.tensors
        if tensor.name not in copies
    ]
    sizes += [(elements(tensor), tensor_bytes(spec, tensor, run, quantize=False)) for tensor in spec.buffers]
    for count, size in sizes:
        width = size / max(1, count)
        if width in _WIDTHS:
            counted[width] += count
        else:
            packed += size
    terms = [f"{count:,} weights · {_WIDTHS[width]} B" for width, count in sorted(counted.items())]
    return " + ".join([*terms, *([f"{packed:,} B packed in the file"] if packed else [])])


def _meta_bytes(spec: ModelSpec, run: RunSpec) -> int:
    copies = tied_copies(spec)
    return sum(tensor_meta_bytes(spec, tensor, run) for tensor in spec.tensors if tensor.name not in copies)


def _scales(spec: ModelSpec, run: RunSpec) -> str:
    """`109,051,904 blocks of 64 · 4 B + 224 matrices · 64 B`."""
    matrices = [tensor for tensor in spec.tensors if tensor_meta_bytes(spec, tensor, run)]
    total = _meta_bytes(spec, run)
    if spec.prequantized != "none" or not matrices:
        return ""
    if run.quantization == "int8":
        return f"{total // 4:,} rows · 4 B"
    blocks = sum(-(-elements(tensor) // 64) for tensor in matrices)
    if not run.double_quant:
        return f"{blocks:,} blocks · 4 B + {len(matrices):,} matrices · 64 B"
    nested = sum(math.ceil(math.ceil(elements(tensor) / 64) / 256) for tensor in matrices)
    return f"{blocks:,} blocks · 1 B + {nested:,} groups · 4 B + {len(matrices):,} matrices · 1,092 B"


def _cache(spec: ModelSpec, run: RunSpec) -> str:
    """`32 layers · 2 · 8 heads · 128 · 8,192 tokens · 2 B`; layers that keep different amounts are terms of a sum."""
    width, tokens = element_bytes(run.dtype), run.context_tokens
    sizes = Counter(layer_cache_bytes(spec, run, layer, tokens) for layer in range(spec.layers))
    number, full = f"{width} B", tokens * spec.kv_elements * width
    packed = layer_cache_bytes(spec, run, spec.layer_kinds.index("full"), tokens) if run.kv_cache in BITS else -1
    if run.runtime == "llamacpp" and packed >= 0:
        number, full, packed = f"{BLOCK_BYTES[run.kv_cache]}/{BLOCK} B", packed, -1
    plain = f"2 · {spec.kv_heads} heads · {spec.head_dim}"
    each = plain if spec.kv_elements == 2 * spec.kv_heads * spec.head_dim else f"{spec.kv_elements:,} numbers"
    terms = []
    for size, count in sorted(sizes.items(), reverse=True):
        if size == packed:
            terms.append(f"{count} layers · ({_packed_layer(spec, run)})")
        elif size == full:
            terms.append(f"{count} layers · {each} · {tokens:,} tokens · {number}")
        elif size:
            terms.append(f"{count} layers · {size:,} B")
    if spec.is_encoder_decoder:
        terms.append(f"{tokens:,} tokens · {spec.hidden_size:,} · {width} B of the encoder")
    return " + ".join(terms)


def _packed_layer(spec: ModelSpec, run: RunSpec) -> str:
    """`8,128 tokens · 2 · 8 heads · 128 · 1 B + 260,096 scales · 2 B + 128 tokens · 2 · 8 heads · 128 · 2 B`."""
    bits, tokens, each = BITS[run.kv_cache], packed_tokens(run.context_tokens), f"2 · {spec.kv_heads} heads"
    scales = scale_count(spec.kv_heads, spec.head_dim, tokens, bits=bits)
    width, recent = element_bytes(run.dtype), RECENT_TOKENS + BLOCK_TOKENS
    return (
        f"{tokens:,} tokens · {each} · {spec.head_dim} · {'½' if bits == 4 else '1'} B + {scales:,} scales · {width} B"
        f" + {recent} tokens as computed · {each} · {spec.head_dim} · {width} B"
    )


def _cache_of_device(spec: ModelSpec, run: RunSpec, size_bytes: int) -> str:
    """The cache with what computing with it takes beside; of an offloaded one either lies apart from the other."""
    kept, work = kv_cache_bytes(spec, run, run.context_tokens), kv_work_bytes(spec, run)
    if run.kv_cache == "offloaded" and size_bytes == work:
        return f"{LAYERS_ON_GPU} layers at once · {work // LAYERS_ON_GPU:,} B"
    if run.kv_cache not in BITS or run.runtime == "llamacpp":
        return _part_of(_cache(spec, run), kept, size_bytes)
    return _part_of(f"{_cache(spec, run)} + 1 layer unpacked · {work:,} B", kept + work, size_bytes)


def _prefill(spec: ModelSpec, run: RunSpec, size_bytes: int) -> str:
    """The largest of three formulas, named by its numbers; llama.cpp has one of its own."""
    width = element_bytes(run.dtype)
    tokens = run.context_tokens if spec.is_encoder_decoder else min(run.prefill_chunk, run.context_tokens)
    routed = max(1, spec.experts_per_token)
    inner = f"{spec.intermediate_size:,}" + (f" · {routed} experts" if routed > 1 else "")
    if run.runtime == "llamacpp":
        mask = f"2 B · {run.context_tokens:,} tokens"
        rows = f"{SLOTS} rows of logits · {spec.vocab_size:,} · 4 B"
        return f"{tokens:,} tokens · (4 B · (3 · {inner} + 5 · {spec.hidden_size:,}) + {mask}) + {rows}"
    if size_bytes == tokens * width * (4 * spec.hidden_size + 3 * spec.intermediate_size * routed):
        return f"{tokens:,} tokens · {width} B · (4 · {spec.hidden_size:,} + 3 · {inner})"
    if size_bytes == spec.vocab_size * (width + 4):
        return f"logits: {spec.vocab_size:,} tokens of the vocabulary · ({width} B + 4 B)"
    scores = f"{spec.attention_heads} heads · {tokens:,} · {run.context_tokens:,} tokens · {8 if width == 4 else 10} B"
    heads = f"2 · {spec.head_dim} · ({spec.attention_heads} + {spec.kv_heads})"
    return f"scores: {scores} + {tokens:,} tokens · {width} B · (4 · {spec.hidden_size:,} + {heads})"


def _dequantized(spec: ModelSpec, run: RunSpec, size_bytes: int) -> str:
    """The matrix that decides, with what computing with it takes."""
    width = element_bytes(run.compute_dtype)
    for tensor in spec.tensors:
        if not is_quantizable(spec, tensor):
            continue
        rows, columns = tensor.shape
        if run.quantization == "int8" and size_bytes == run.prefill_chunk * (2 * columns + 6 * rows):
            return f"{run.prefill_chunk:,} tokens · (2 B · {columns:,} in + 6 B · {rows:,} out)"
        if run.quantization != "int8" and size_bytes == rows * columns * width:
            return f"{rows:,} · {columns:,} weights · {width} B"
    return ""
