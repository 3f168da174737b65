"""Many rows in one model over a paged KV cache: transformers' continuous batching behind a face of ours.

Only this file and attention.py touch its inner parts (transformers 5.23: generation/continuous_batching). We own the
thread and call prepare, step and update ourselves; `choose` replaces its sampling. Who runs when is decided in
batched.py.

CUDA graphs and asynchronous batching stay off: a captured graph would freeze `choose`, which is Python a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.requests import RequestState
from transformers.generation.continuous_batching.utils import find_head_dim, find_num_key_value_heads
from transformers.utils.generic import is_flash_attention_requested

from modules.engine.loops.apart import PagesApart
from modules.engine.loops.attention import prefer_cpu_attention
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.paged_drafts import PagedDrafts
from modules.engine.loops.paged_scores import PagedScores, Tell
from modules.engine.loops.pages import lay_out_by_layer, take_lowest_first
from modules.engine.loops.scoring import Scoring
from modules.engine.loops.serial import release_memory
from modules.engine.process.mappings import let_go_of_zeros
from modules.heap import LARGE_STEP_TOKENS, give_back

Choose = Callable[[list[str], torch.Tensor], list[int]]

# Only whole pages are shared between turns, so small ones save prefill. A CPU decodes as fast with 4 as with 256.
CPU_PAGE_TOKENS = 4
GPU_PAGE_TOKENS = 32
# flash_attn_with_kvcache reads pages of a multiple of 256 tokens only.
FLASH_PAGE_TOKENS = 256
MOST_ROWS = 64


@dataclass(frozen=True, slots=True)
class Stretch:
    """One row's part of one step: its tokens `start` to `end` were read, and a token chosen if `chose`."""

    row_id: str
    start: int
    end: int
    chose: bool


class PagedModel:
    """A model with a pool of KV pages. Used by one thread."""

    def __init__(
        self, loaded: LoadedModel, choose: Choose, *, page_tokens: int | None = None, pool_tokens: int = 0
    ) -> None:
        """`choose(row ids, logits (rows, vocab) in fp32)` gives each row's next token. `pool_tokens` 0: as planned.

        Raises ValueError, AttributeError and the like for models that continuous batching does not carry.
        """
        self._loaded = loaded
        self._model = loaded.model
        self._choose = choose
        if page_tokens is None:
            page_tokens = CPU_PAGE_TOKENS if loaded.device.type == "cpu" else GPU_PAGE_TOKENS
            if is_flash_attention_requested(self._model.config):
                page_tokens = FLASH_PAGE_TOKENS
        self._page_tokens = page_tokens
        self._budget = self.most_batch_tokens = max(1, loaded.plan.run.prefill_chunk)
        self._attention = self._model.config._attn_implementation
        self.closed = True
        self._build(pool_tokens)

    def _build(self, pool_tokens: int) -> None:
        settings = ContinuousBatchingConfig(
            page_size=self._page_tokens,
            num_blocks=ceil(pool_tokens / self._page_tokens) or self._count_blocks(self._loaded),
            max_batch_tokens=self.most_batch_tokens,
            max_requests_per_batch=min(MOST_ROWS, self.most_batch_tokens),
            use_cuda_graph=False,
            use_async_batching=False,
            auto_switch_to_flash=False,
            safety_margin=0.0,  # rows are admitted by what they may need; below a margin it would drop every prefix
        )
        greedy: Any = GenerationConfig(do_sample=False, eos_token_id=-1)
        try:
            self._manager = self._model.init_continuous_batching(greedy, settings)
            # After the library's check of names that it knows.
            ours = prefer_cpu_attention(self._loaded, many_rows=True)
            self._processor = self._manager._create_batch_processor()
            self._cache = self._processor.cache
            let_go_of_zeros(self._cache.cache_tensor)
            if ours:
                lay_out_by_layer(self._cache)
        except Exception:
            self._restore_attention()
            raise
        self._allocators: list[Any] = list(self._cache.cache_allocators.values())
        self._apart = PagesApart(self._cache)
        self._processor.model_runner._sample = self._sample
        self._scores = PagedScores(self._processor)
        self._drafts = PagedDrafts(self._processor)
        self.closed = False
        self.limit_batch(self._budget)

    @property
    def capacity(self) -> int:
        """Units of KV memory (sectors) in the pool."""
        return int(self._cache.num_sectors)

    @property
    def capacity_tokens(self) -> int:
        """About how many tokens the pool holds."""
        return 0 if self.closed else int(self._cache.num_blocks) * self._page_tokens

    @property
    def most_rows(self) -> int:
        """Rows at the same time, so that all of them decode in one step and a prefill still advances."""
        return max(1, min(MOST_ROWS, self._budget // 2))

    @property
    def batch_tokens(self) -> int:
        """Tokens in one step at most."""
        return self._budget

    def limit_batch(self, tokens: int) -> None:
        """Read at most `tokens` tokens in one step from now on."""
        self._budget = self._processor.max_batch_tokens = max(1, min(tokens, self.most_batch_tokens))

    def units(self, tokens: int) -> int:
        """Units of KV memory that a row of `tokens` tokens takes, none of them shared."""
        return sum(ceil(ca.needs_new_blocks("", 0, tokens) / ca.blocks_per_sector) for ca in self._allocators)

    def pool_tokens(self, tokens: Sequence[int]) -> int:
        """The size of a pool in which rows of so many `tokens` fit, none of them shared; 0 where only the planned one
        will do (layers with a window beside others share their memory in a way of their own)."""
        if len(self._allocators) != 1:
            return 0
        return sum((ceil(length / self._page_tokens) + 1) * self._page_tokens for length in tokens)

    def longest_row(self) -> int:
        """The most tokens that a row can hold in an empty pool."""
        low, high = 0, self.capacity_tokens * 64
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.units(middle) <= self.capacity else (low, middle - 1)
        return low

    def add(self, row_id: str, tokens: Sequence[int], *, reserved_units: int, whose: str = "") -> None:
        """A new row that begins with `tokens`. `reserved_units` is what all rows are promised, this one included.

        Pages of ended rows stay for others of the same `whose` that begin alike, until the room is needed: the oldest
        go first.
        """
        self.make_room(reserved_units, tokens, whose)
        self._apart.put(row_id, whose)
        take_lowest_first(self._cache)
        state = RequestState(request_id=row_id, initial_tokens=list(tokens), max_new_tokens=None)
        self._processor.scheduler.add_waiting_request(state)

    def make_room(self, reserved_units: int, tokens: Sequence[int] = (), whose: str = "") -> None:
        """Drop the oldest kept pages until all rows can grow to what is reserved, but not those that `tokens` share."""
        room = max(0, self.capacity - reserved_units)
        for allocator in self._allocators:
            ledger = allocator.ledger
            shared = self._apart.shared(allocator, tokens, whose)
            kept = [block for block in ledger.cached_blocks if block not in shared]
            for block in kept[: max(0, len(kept) - room * allocator.blocks_per_sector)]:
                del ledger.cached_blocks[block]
                ledger.hash_to_block.pop(ledger.block_to_hash.pop(block))
                allocator.pool.free_blocks(allocator.index, [block])
        self._cache.pool.try_to_free_sectors()

    def droppable(self, row_id: str, most: int) -> int:
        """Of `most` tokens that the row would read after its last one, how many could be forgotten again."""
        return self._drafts.droppable(row_id, min(most, self._budget - 1))

    def draft(self, row_id: str, tokens: Sequence[int]) -> None:
        """Let the row read `tokens` too in the next step: `choose` gets it once for each of them and once more."""
        self._drafts.put(row_id, tokens)

    def drafted(self, row_id: str) -> tuple[int, ...]:
        """What the row reads in this step behind its last token."""
        return self._drafts.tokens.get(row_id, ())

    def score(self, row_id: str, scoring: Scoring, tell: Tell) -> None:
        """Have the logits of a new row's prompt told. See PagedScores."""
        self._scores.put(row_id, scoring, tell)

    def remove(self, row_id: str) -> None:
        """Forget a row; its whole pages may serve others of the same person that begin alike."""
        self._scores.forget(row_id)
        self._apart.forget(row_id)
        self._processor.scheduler.set_request_cancellation(row_id)
        self._processor.scheduler.clear_cancelled_requests()

    def reset(self, *, forget_prefixes: bool = False) -> None:
        """Forget every row, after an error in a step or before the end."""
        self._scores.forget()
        self._apart.forget()
        self._processor.reset()
        if forget_prefixes:
            self._cache.evict_cached_blocks()

    def resize(self, pool_tokens: int = 0) -> None:
        """Another pool, with no row in it; 0: as planned. After an error there is none, until this succeeds."""
        self.close()
        release_memory(thorough=True)
        self._build(pool_tokens)

    @torch.inference_mode()
    def step(self) -> list[Stretch]:
        """One forward step for as many rows as fit; what each did. After an error, `reset` and add the rows again."""
        self._processor.max_batch_tokens = min(self._budget, self._scores.most_tokens or self._budget)
        if not self._processor.prepare_next_batch():
            return []
        batch = [
            Stretch(
                f.state.request_id, f.state.position_offset - f.query_length, f.state.position_offset, f.has_new_token
            )
            for f in self._processor.inputs_and_outputs.requests_in_batch
        ]
        try:
            self._processor._generation_step(self._model)
        finally:
            self._drafts.tokens.clear()
        self._processor.update_batch()
        if sum(stretch.end - stretch.start for stretch in batch) >= LARGE_STEP_TOKENS:
            give_back()
        return batch

    def close(self) -> None:
        """Give the pool back and the model its own attention. Closing it again does nothing."""
        if self.closed:
            return
        self.closed = True
        self._restore_attention()
        self._manager.destroy()
        del self._processor, self._cache, self._allocators, self._apart, self._manager
        del self._scores, self._drafts  # they know the processor, and with it the pool

    def _restore_attention(self) -> None:
        if self._model.config._attn_implementation != self._attention:
            self._model.set_attn_implementation(self._attention)

    def _sample(self, scores: torch.Tensor, output_ids: torch.Tensor) -> None:
        """Take ModelRunner._sample's place. Rows that read only a part of their prompt come last and get no token."""
        batch = self._processor.inputs_and_outputs.requests_in_batch
        row_ids = self._drafts.row_ids(batch)
        self._scores.take(scores[0])
        if row_ids:
            tokens = self._choose(row_ids, scores[0, : len(row_ids)])
            if self._drafts.tokens:
                tokens = self._drafts.settle(row_ids, tokens)
            output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=output_ids.dtype)

    def _count_blocks(self, loaded: LoadedModel) -> int:
        """Pages a layer: as the plan's KV budget says, one context where it says nothing."""
        config = loaded.model.config.get_text_config()
        page_bytes = FullAttentionCacheAllocator.get_bytes_per_page(
            find_num_key_value_heads(config), find_head_dim(config), loaded.model.dtype, self._page_tokens
        )
        one_context = ceil(loaded.info.context_tokens / self._page_tokens)
        blocks = loaded.kv_budget_bytes // (page_bytes * config.num_hidden_layers)
        return blocks or one_context
