"""KV pages on the CPU: each head's in one piece, so that a row whose pages follow each other is read where it lies.

The library puts the pages of all layers that hold the same tokens side by side, and copies every row's keys and values
for every token. Read in place and heads first, attention over 2,000 tokens takes 0.7 (fp32) to 0.9 (bf16) of the time;
in place but tokens first, 1.4 times (docs/log.md).
It touches inner parts of transformers 5.23: generation/continuous_batching/cache_allocators.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator

KeysAndValues = tuple[torch.Tensor, torch.Tensor]


def lay_out_by_layer(cache: Any) -> bool:
    """Give each layer's heads a part of `cache`'s memory of their own, before anything is in it.

    False, and nothing changed, where several allocators share the memory (layers with a window beside others).
    """
    allocators = list(cache.cache_allocators.values())
    if len(allocators) != 1 or type(allocators[0]) is not FullAttentionCacheAllocator:
        return False
    (allocator,) = allocators
    page, layers = allocator.tokens_per_page, allocator.layer_indices
    heads, head_dim = allocator.num_key_value_heads, allocator.head_dim
    by_layer = allocator.cache_tensor.view(len(layers), 2, heads, -1, head_dim)
    allocator._heads_first = {layer: (by_layer[i, 0], by_layer[i, 1]) for i, layer in enumerate(layers)}
    allocator._kv_token_views = {
        layer: (keys.transpose(0, 1), values.transpose(0, 1))
        for layer, (keys, values) in allocator._heads_first.items()
    }
    allocator.block_physical_stride = page
    allocator.write_trash_index = page * allocator.blocks_per_sector
    return True


def take_lowest_first(cache: Any) -> None:
    """Let the next pages be those with the lowest numbers, which follow each other unless rows took turns."""
    cache.pool.free_sectors.sort(reverse=True)


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Where the rows of one step lie: token ranges among its queries, and places in each layer's memory.

    A place is the first token's number and how many follow it, or the numbers of pages that are apart.
    """

    read_index: torch.Tensor
    query_ends: list[tuple[int, int]]
    key_ends: list[tuple[int, int]]
    places: list[tuple[int | torch.Tensor, int]]


def batch_rows(allocator: Any, inputs: dict[str, Any]) -> BatchRows:
    """Where the rows of this step lie. Worked out by its first layer, kept with `allocator` for the others."""
    read_index = inputs["read_index"][allocator.index]
    known: BatchRows | None = getattr(allocator, "_batch_rows", None)
    if known is not None and known.read_index is read_index:
        return known
    key_ends = list(pairwise(inputs["cu_seq_lens_k"][allocator.layer_type].tolist()))
    query_ends = list(pairwise(inputs["cu_seq_lens_q"].tolist()))
    page = allocator.tokens_per_page
    places: list[tuple[int | torch.Tensor, int]] = []
    if hasattr(allocator, "_heads_first") and read_index.numel():
        for start, end in key_ends:
            pages = read_index[start:end:page] // page
            first, last = int(pages[0]), int(pages[-1])
            follow = last - first == len(pages) - 1 and bool((pages.diff() == 1).all())
            places.append((first * page if follow else pages, end - start))
    rows = BatchRows(read_index, query_ends, key_ends, places)
    allocator._batch_rows = rows
    return rows


def write_and_read(
    allocator: Any, layer: int, key: torch.Tensor, value: torch.Tensor, rows: BatchRows, write_index: torch.Tensor
) -> list[KeysAndValues]:
    """Write new states `(kv_heads, tokens, …)` to their pages; all keys and values of each row, copied only where its
    pages are apart. Every row begins on a page of its own.
    """
    keys, values = allocator._heads_first[layer]
    if len(rows.places) == 1 and isinstance(rows.places[0][0], int):  # one row, the commonest case, in its own fast way
        start, length = rows.places[0]
        row_keys, row_values = keys[:, start : start + length], values[:, start : start + length]
        row_keys[:, -key.shape[1] :] = key
        row_values[:, -key.shape[1] :] = value
        return [(row_keys, row_values)]
    nothing = rows.read_index[:0]
    allocator.update(key.transpose(0, 1), value.transpose(0, 1), layer, nothing, write_index)
    page = allocator.tokens_per_page
    return [(_read(keys, place, length, page), _read(values, place, length, page)) for place, length in rows.places]


def _read(pool: torch.Tensor, place: int | torch.Tensor, length: int, page_tokens: int) -> torch.Tensor:
    if isinstance(place, int):
        return pool[:, place : place + length]
    pages = pool.view(pool.shape[0], -1, page_tokens, pool.shape[2])
    return pages.index_select(1, place).flatten(1, 2)[:, :length]
