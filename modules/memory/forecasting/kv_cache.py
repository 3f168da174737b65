"""How keys and values of a conversation can be kept: as computed, in memory of fixed size for a compiled step, in 8 or
4 bits, or in CPU memory beside a GPU.

What each kind takes and loses, and which models cannot have it. Pure; packed_cache.py and fixed_row.py of
engine/loops keep them so.
"""

from __future__ import annotations

from typing import Literal

from modules.memory.model.model_spec import ModelSpec

KVCache = Literal["plain", "static", "int8", "int4", "offloaded"]

BITS: dict[KVCache, int] = {"int8": 8, "int4": 4}
LABELS: dict[KVCache, str] = {
    "plain": "", "static": "KV cache of fixed size", "int8": "KV cache in 8 bits", "int4": "KV cache in 4 bits",
    "offloaded": "KV cache in CPU memory",
}  # fmt: skip
# Keys are packed a block of so many tokens at a time, channel by channel; the last tokens stay as computed.
BLOCK_TOKENS = 64
RECENT_TOKENS = 64
_MOST_GROUP = 64
# Perplexity as computed over perplexity so kept; docs/log.md has the runs. The others change no number.
QUALITY: dict[KVCache, float] = {"plain": 1.0, "static": 1.0, "int8": 1.0, "int4": 0.995, "offloaded": 1.0}
# What unpacking moves for each token, in bytes of the same cache as computed. From the starter model's tokens at 4,096
# tokens on two cores (docs/log.md); on a GPU a guess.
UNPACKING: dict[KVCache, float] = {"int8": 3.0, "int4": 4.5}
# Of an offloaded cache a GPU holds at most so many layers: the one in use, its copy that is one step longer, the next.
LAYERS_ON_GPU = 3
# Families whose code takes no cache but its own (transformers 5.23).
_OWN_CACHE = frozenset({"minimax"})


def value_group(head_dim: int) -> int:
    """How many neighbouring numbers of a token's value share a scale: the largest divisor of `head_dim` up to 64."""
    return next(size for size in range(min(head_dim, _MOST_GROUP), 0, -1) if head_dim % size == 0)


def packed_tokens(tokens: int) -> int:
    """Of `tokens` read, how many are packed: whole blocks, without the last RECENT_TOKENS."""
    return max(0, tokens - RECENT_TOKENS) // BLOCK_TOKENS * BLOCK_TOKENS


def packed_bytes(heads: int, head_dim: int, tokens: int, *, bits: int, width: int) -> int:
    """One layer's keys and values of `tokens` tokens in `bits` bits; `width` are the bytes of a computed number.

    P packed tokens: P·2·heads·head_dim·bits/8, a scale (in 4 bits also a minimum) for each channel of a block of keys
    and for each group of values, and room for RECENT_TOKENS + BLOCK_TOKENS tokens as computed.
    """
    packed = packed_tokens(tokens)
    codes = packed * 2 * heads * head_dim * bits // 8
    recent = (RECENT_TOKENS + BLOCK_TOKENS) * 2 * heads * head_dim
    return codes + (scale_count(heads, head_dim, packed, bits=bits) + recent) * width


def scale_count(heads: int, head_dim: int, packed: int, *, bits: int) -> int:
    """How many scales, in 4 bits minima too, belong to `packed` packed tokens of one layer."""
    of_keys = packed // BLOCK_TOKENS * heads * head_dim
    of_values = packed * heads * (head_dim // value_group(head_dim))
    return (of_keys + of_values) * (2 if bits == 4 else 1)


def work_bytes(heads: int, head_dim: int, tokens: int, *, bits: int, width: int) -> int:
    """What computing with packed layers takes beside them: one layer's keys and values unpacked.

    In 4 bits half of the keys' or values' codes are apart from each other for a moment: a byte for each two.
    """
    apart = packed_tokens(tokens) * heads * head_dim // 2 if bits == 4 else 0
    return tokens * 2 * heads * head_dim * width + apart


def why_not(kind: KVCache, spec: ModelSpec, gpus: int) -> str:
    """Why `spec` cannot keep its cache as `kind` on a machine with so many GPUs; "" where it can."""
    if kind == "plain":
        return ""
    if kind == "offloaded" and not gpus:
        return "it leaves a GPU's memory, and there is no GPU"
    if kind == "static" and not gpus:
        return "a compiled step is slower than the plain one on a CPU, and there is no GPU"
    if spec.is_encoder_decoder:
        return "not built for encoder-decoder models"
    if spec.vision is not None:
        return "not built for models that see"
    if spec.model_type in _OWN_CACHE:
        return "this family takes no cache but its own"
    if spec.layer_kinds and "full" not in spec.layer_kinds:
        return "no layer keeps keys and values of the whole context"
    if "shared" in spec.layer_kinds:
        return "not built for layers that share another's keys and values"
    if kind == "static" and set(spec.layer_kinds) - {"full"}:
        return "not built for layers with a window or a state"
    if kind == "offloaded":
        return ""
    if spec.latent_attention:
        return "the cache is compressed already (latent attention)"
    if spec.layer_kv_elements or not spec.kv_elements or spec.kv_elements != 2 * spec.kv_heads * spec.head_dim:
        return "not built for layers of different sizes"
    return ""
