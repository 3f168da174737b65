"""What llama.cpp allocates for a GGUF file, as formulas. Its own dry fit says it exactly (llamacpp_fit.py).

Pure arithmetic; source: llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, and what was seen in its log.
"""

from __future__ import annotations

from modules.memory.model.layers import LayerKind
from modules.memory.model.spec import ModelSpec
from modules.units import MiB

# The engine process without a model: Python, Snug and llama.cpp, no torch (measured).
PROCESS_BYTES = 96 * MiB
# Conversations that are decoded at once. They share one cache.
SLOTS = 8
_CELLS = 256


def layer_cache_bytes(spec: ModelSpec, kind: LayerKind, tokens: int, chunk: int) -> int:
    """One layer's cache: 16-bit cells in steps of 256, of a window those of every slot; recurrent states in fp32."""
    state = (spec.state_elements + spec.state_fp32) * 4 * SLOTS if kind in ("recurrent", "hybrid") else 0
    if kind in ("recurrent", "shared"):
        return state
    kept = min(tokens, spec.sliding_window * SLOTS + chunk) if kind == "sliding" else tokens
    return state + -(-kept // _CELLS) * _CELLS * spec.kv_elements * 2


def compute_bytes(spec: ModelSpec, context: int, chunk: int) -> int:
    """The compute buffer and a row of logits a slot: T·4·(3I + 5h) + 2·T·S + slots·V·4.

    Within 1 % of the dry fit for Llama-like models with flash attention.
    """
    tokens = min(chunk, context)
    inner = spec.intermediate_size * max(1, spec.experts_per_token)
    return tokens * (4 * (3 * inner + 5 * spec.hidden_size) + 2 * context) + SLOTS * spec.vocab_size * 4
