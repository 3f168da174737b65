"""Attention on the CPU, in the place of transformers' `sdpa`: the same sums in an order that the CPU is faster at.

Decoding packs the query heads that share a KV head into one matrix. A batch of rows is computed row by row, each over
its own keys only, without masks. bf16 prompts are read by plain matrix products where the CPU multiplies bf16 itself:
torch's fused kernel takes 1.7 times as long there, but for a few tokens. Everything else is left to torch, and GPUs
keep sdpa or flash.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.pages import batch_rows, write_and_read
from modules.memory.forecasting.process import SCORE_COLUMNS, SCORE_ROWS

# Names of an `attn_implementation`.
ONE_ROW = "cpu_row"
MANY_ROWS = "cpu_rows"  # has no mask function: neither the model nor continuous batching then builds a mask

# So few scores a head take torch's fused kernel half the time of two matrix products and a softmax.
FUSED_SCORES = 4096
# A score matrix is computed SCORE_ROWS rows at a time: it stays in the CPU's cache, and keys that come after a block
# are skipped.


def prefer_cpu_attention(loaded: LoadedModel, *, many_rows: bool) -> bool:
    """Let the model compute attention here if it would use sdpa on the CPU. Whether it does.

    `many_rows`: continuous batching calls it, with its cache. Otherwise it is called as sdpa is.
    """
    model = loaded.model
    if loaded.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(ONE_ROW, attend)
    AttentionMaskInterface.register(ONE_ROW, mask_unless_causal)
    AttentionInterface.register(MANY_ROWS, attend_row_by_row)
    if not model._can_set_attn_implementation():
        return False
    model.set_attn_implementation(MANY_ROWS if many_rows else ONE_ROW)
    return True


def mask_unless_causal(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **more: Any,
) -> torch.Tensor | None:
    """The mask of `sdpa_mask`; None where every query sees all that comes before it, which `attend` knows itself."""
    at_the_end = kv_offset == 0 and q_offset + q_length == kv_length
    if at_the_end and allow_is_causal_skip and attention_mask is None and mask_function is causal_mask_function:
        return None
    mask: torch.Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        **more,
    )
    return mask


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of `query` `(batch, heads, tokens, head_dim)` over all keys, as `(batch, tokens, heads, value_dim)`.

    Called as `sdpa_attention_forward` is, which gets all that is not one row of plain causal attention.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = not more.get("dropout") and more.get("softcap") is None and more.get("position_bias") is None
    if plain and attention_mask is None and query.shape[0] == 1 and (causal or query.shape[2] == 1):
        out = causal_attention(query[0], key[0], value[0], scaling=more.get("scaling"))
        return out.transpose(0, 1).unsqueeze(0).contiguous(), None
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, is_causal=is_causal, **more
    )
    return result


def attend_row_by_row(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    cache: Any = None,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a batch of continuous batching: `query` `(1, heads, tokens of all rows, head_dim)`.

    Writes the new keys and values into `cache` and reads all of each row's back. `cu_seq_lens_q` and `cu_seq_lens_k`
    say where rows end. Raises ValueError for what it does not compute.
    """
    unknown = [name for name in ("softcap", "position_bias", "s_aux") if more.get(name) is not None]
    if cache is None or attention_mask is not None or unknown or hasattr(module, "sinks"):
        raise ValueError(f"attention over pages computes no mask, {unknown} or sinks, and only with a paged cache")
    allocator = cache.layer_to_allocator[module.layer_idx]
    where = batch_rows(allocator, more)
    if where.places:
        write_index = more["write_index"][allocator.index]
        states = write_and_read(allocator, module.layer_idx, key[0], value[0], where, write_index)
    else:
        key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=more)
        states = [(key[0, :, start:end], value[0, :, start:end]) for start, end in where.key_ends]
    window = getattr(allocator, "sliding_window", None)
    rows = [
        causal_attention(query[0, :, start:end], *states, scaling=scaling, window=window)
        for (start, end), states in zip(where.query_ends, states, strict=True)
    ]
    out = rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)
    return out.transpose(0, 1).unsqueeze(0).contiguous(), None


def causal_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """One row's attention `(heads, queries, value_dim)`; the queries are the last of the keys' tokens.

    `query` is `(heads, queries, head_dim)`, `key` and `value` `(kv_heads, keys, …)`. A query sees itself and what comes
    before it, the last `window` tokens of it where given. `scaling` None: 1 / √head_dim.
    """
    heads, queries, head_dim = query.shape
    keys = key.shape[1]
    scaling = head_dim**-0.5 if scaling is None else scaling
    if queries == 1 and (window is None or keys <= window):
        packed = query.reshape(1, key.shape[0], -1, head_dim)
        out = scaled_dot_product_attention(packed, key.unsqueeze(0), value.unsqueeze(0), scale=scaling)
        return out.reshape(heads, 1, -1)
    if queries * keys > FUSED_SCORES and query.dtype == torch.bfloat16 and multiplies_bf16():
        return _by_blocks(query * scaling, key.contiguous(), value.contiguous(), window)
    whole = queries == keys and (window is None or keys <= window)
    mask = None if whole else _visible(queries, keys, window)
    return scaled_dot_product_attention(
        query.unsqueeze(0),
        key.unsqueeze(0),
        value.unsqueeze(0),
        attn_mask=mask,
        is_causal=whole,
        scale=scaling,
        enable_gqa=heads != key.shape[0],
    )[0]


@cache
def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 matrices."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _by_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    """`causal_attention` of scaled queries by matrix products, a block of queries at a time."""
    heads, queries, head_dim = query.shape
    kv_heads, keys = key.shape[:2]
    step = max(1, SCORE_ROWS * kv_heads // heads)
    # One buffer for all blocks: buffers that grow from block to block leave holes in the heap, at 8,192 tokens 400 MiB.
    # The softmax is written over the scores, row by row: what it needs is then in the CPU's cache.
    span = keys if window is None else min(keys, step + window)
    most = heads * min(step, queries) * -(-span // SCORE_COLUMNS) * SCORE_COLUMNS
    room = query.new_empty(most)
    out = query.new_empty(queries, heads, value.shape[2])
    for start in range(0, queries, step):
        end = min(start + step, queries)
        last = keys - queries + end
        first = 0 if window is None else max(0, last - (end - start) - window + 1)
        packed = query[:, start:end].reshape(kv_heads, -1, head_dim)
        shape = (kv_heads, packed.shape[1], last - first)
        size = kv_heads * packed.shape[1] * (last - first)
        scores = torch.bmm(packed, key[:, first:last].transpose(1, 2), out=room[:size].view(shape))
        width = end - start if window is None else last - first  # without a window only the last keys can be hidden
        hidden = ~_visible(end - start, width, window)
        scores.view(kv_heads, -1, end - start, last - first)[..., -width:].masked_fill_(hidden, -torch.inf)
        shares = torch.softmax(scores, dim=-1, out=scores)
        weighted = torch.bmm(shares, value[:, first:last])
        out[start:end].transpose(0, 1).copy_(weighted.view(heads, end - start, -1))
    return out.transpose(0, 1)  # as its caller's caller wants it in memory


def _visible(queries: int, keys: int, window: int | None) -> torch.Tensor:
    """True at `(query, key)` where the query, one of the last of `keys` tokens, sees the key."""
    places = torch.arange(keys)  # compared rather than cut from ones: tril wakes all threads, whatever its size
    own = places[keys - queries :, None]
    visible = places <= own
    return visible if window is None else visible & (places > own - window)
