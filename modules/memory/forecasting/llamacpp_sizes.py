"""What llama.cpp allocates for a GGUF file, as formulas. Its own dry fit says it exactly (llamacpp_fit.py).

Pure arithmetic; source: llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, and what was seen in its log.
"""

from __future__ import annotations

from dataclasses import dataclass

from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.model.layers import LayerKind
from modules.memory.model.spec import ModelSpec
from modules.units import MiB

# The engine process without a model: Python, Snug and llama.cpp, no torch (measured).
PROCESS_BYTES = 96 * MiB
# CUDA's libraries and its driver's share, in the same process. Not yet measured.
GPU_PROCESS_BYTES = 400 * MiB
# Conversations that are decoded at once. They share one cache.
SLOTS = 8
_CELLS = 256


# Bytes of a block of a cache's numbers in ggml's formats F16, Q8_0, Q4_0: in blocks a scale and the codes.
BLOCK = 32
BLOCK_BYTES: dict[KVCache, int] = {"plain": 2 * BLOCK, "int8": 2 + BLOCK, "int4": 2 + BLOCK // 2}


def why_not_cached(kind: KVCache, spec: ModelSpec) -> str:
    """Why llama.cpp cannot keep the cache of `spec` as `kind`; "" where it can."""
    if kind == "offloaded":
        return "llama.cpp keeps each layer's cache beside its weights"
    if kind == "static":
        return "llama.cpp's caches have a fixed size anyway, and its step needs no compiling"
    if kind != "plain" and spec.head_dim % BLOCK:
        return f"llama.cpp packs {BLOCK} numbers at a time, and heads of {spec.head_dim} are no multiple of that"
    return ""


def layer_cache_bytes(spec: ModelSpec, kind: LayerKind, tokens: int, chunk: int, cache: KVCache = "plain") -> int:
    """One layer's cache: cells in steps of 256, of a window those of every slot; recurrent states in fp32."""
    state = (spec.state_elements + spec.state_fp32) * 4 * SLOTS if kind in ("recurrent", "hybrid") else 0
    if kind in ("recurrent", "shared"):
        return state
    kept = min(tokens, spec.sliding_window * SLOTS + chunk) if kind == "sliding" else tokens
    return state + -(-kept // _CELLS) * _CELLS * spec.kv_elements * BLOCK_BYTES[cache] // BLOCK


def compute_bytes(spec: ModelSpec, context: int, chunk: int) -> int:
    """The compute buffer and a row of logits a slot: T·4·(3I + 5h) + 2·T·S + slots·V·4.

    Within 1 % of the dry fit for Llama-like models with flash attention.
    """
    tokens = min(chunk, context)
    inner = spec.intermediate_size * max(1, spec.experts_per_token)
    return tokens * (4 * (3 * inner + 5 * spec.hidden_size) + 2 * context) + SLOTS * spec.vocab_size * 4


@dataclass(frozen=True, slots=True)
class Beside:
    """What a device's buffers depend on where llama.cpp has GPUs.

    `first`: it is the first of them, which also reads prompts for the layers in CPU memory: their weights and caches
    pass through it. `fetched_weight` and `fetched_cache` are the bytes of the largest, 0 where all are on GPUs.
    """

    first: bool = True
    fetched_weight: int = 0
    fetched_cache: int = 0


def gpu_compute_bytes(spec: ModelSpec, context: int, chunk: int, beside: Beside) -> int:
    """The compute buffer of one GPU: T·4·(3I + 4h) + 2·T·S, of a later one T·4·(3I + 2h) + 2·T·S.

    On the first, where layers stay in CPU memory, the larger of T·4·(3I + 6h) + 3·T·S with the largest matrix, and
    T·4·6h + 2·T·S with the largest layer's keys and values: upper bounds, since the allocator leaves gaps. The rest
    are llama.cpp's own figures to 0.1 MiB (ggml_backend_sched_reserve; tests/test_llamacpp_gpu.py).
    """
    tokens = min(chunk, context)
    inner, hidden = spec.intermediate_size * max(1, spec.experts_per_token), spec.hidden_size
    mask = 2 * tokens * context
    if not beside.first:
        return tokens * 4 * (3 * inner + 2 * hidden) + mask
    if not beside.fetched_weight:
        return tokens * 4 * (3 * inner + 4 * hidden) + mask
    feeding = tokens * (4 * (3 * inner + 6 * hidden) + 3 * context) + beside.fetched_weight
    attending = tokens * 4 * 6 * hidden + mask + beside.fetched_cache
    return max(feeding, attending)


def gpu_pool_bytes(spec: ModelSpec, context: int, chunk: int, cache: KVCache) -> int:
    """What ggml's CUDA pool takes beside: a chunk's inputs as the products want them, T·4·I, and of a packed cache one
    layer in 16 bits, S·kv·2 (mmq.cu, fattn.cu). An upper bound for products in 16 bits; not measured.
    """
    unpacked = 0 if cache == "plain" else context * spec.kv_elements * 2
    return min(chunk, context) * 4 * pool_width(spec) + unpacked


def pool_width(spec: ModelSpec) -> int:
    """Numbers of a token that go into the widest product of a layer."""
    return max(spec.intermediate_size, spec.hidden_size) * max(1, spec.experts_per_token)


def host_compute_bytes(spec: ModelSpec, context: int, chunk: int) -> int:
    """The CPU's buffers beside GPUs: what passes between the devices, T·(16h + 2S), and a row of logits a slot."""
    tokens = min(chunk, context)
    return tokens * (16 * spec.hidden_size + 2 * context) + SLOTS * spec.vocab_size * 4
