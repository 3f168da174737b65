"""What llama.cpp allocates for a GGUF file, as formulas. Its own dry fit says it exactly (llamacpp_fit.py).

Pure arithmetic; source: llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, and what was seen in its log.
"""

from __future__ import annotations

from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.model.layers import LayerKind
from modules.memory.model.spec import ModelSpec
from modules.units import MiB

# The engine process without a model: Python, Snug and llama.cpp, no torch (measured).
PROCESS_BYTES = 96 * MiB
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
