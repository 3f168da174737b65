"""Drafted tokens in continuous batching: a row reads them behind its last token, and forgets those that are wrong.

It touches inner parts of transformers 5.23: generation/continuous_batching. A row that writes may be given several
tokens to process; logits are asked for at each of them, and before the library's own update the row is set back to
what was right. Keys and values of the rest are written over by the tokens to come: no page holds only them for long,
and none is shared before it is full of right ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers.generation.continuous_batching.cache_allocators import FullAttentionCacheAllocator
from transformers.generation.continuous_batching.requests import RequestStatus

NOT_CHOSEN = -1
"""What stands in the place of a token that was not chosen, as one before it was not the one guessed."""


class PagedDrafts:
    """The drafts of one step. `tokens` are cleared after it."""

    def __init__(self, processor: Any) -> None:
        self.tokens: dict[str, tuple[int, ...]] = {}
        self._processor = processor
        # A window's ring of pages is written over: what was there before a wrong guess would be lost.
        self._can_forget = all(
            type(allocator) is FullAttentionCacheAllocator for allocator in processor.cache.cache_allocators.values()
        )
        self._compute = processor.model_runner.compute_batch
        processor.model_runner.compute_batch = self._compute_batch

    def droppable(self, row_id: str, most: int) -> int:
        """Of `most` tokens that the row would read after its last one, how many could be forgotten again."""
        state = self._processor.scheduler.active_requests.get(row_id)
        writes = state is not None and state.status == RequestStatus.DECODING and len(state.tokens_to_process) == 1
        return most if writes and self._can_forget else 0

    def put(self, row_id: str, tokens: Sequence[int]) -> None:
        """Let the row, which must be one that writes, read `tokens` in the next step too."""
        self.tokens[row_id] = tuple(tokens)
        state = self._processor.scheduler.active_requests[row_id]
        state.tokens_to_process = [*state.tokens_to_process, *tokens]

    def row_ids(self, batch: Sequence[Any]) -> list[str]:
        """For each place with logits the row that it belongs to."""
        ids = [future.state.request_id for future in batch if future.has_new_token]
        return [row_id for row_id in ids for _ in range(1 + len(self.tokens.get(row_id, ())))]

    def settle(self, row_ids: Sequence[str], chosen: Sequence[int]) -> list[int]:
        """Set each row back to what was right of its draft, given a token or NOT_CHOSEN for each place; the last token
        chosen of each row, in order.
        """
        found = {
            row_id: [token for _, token in places if token != NOT_CHOSEN]
            for row_id, places in groupby(zip(row_ids, chosen, strict=True), key=lambda place: place[0])
        }
        cache = self._processor.cache
        for future in self._processor.inputs_and_outputs.requests_in_batch:
            state = future.state
            if drafted := self.tokens.get(state.request_id):
                right = found[state.request_id][:-1]
                state.position_offset -= 1 + len(drafted)
                future.complete_blocks = cache.count_new_complete_blocks(state, 1 + len(right))
                state.position_offset += 1 + len(right)
                state.generated_tokens.extend(right)
        return [tokens[-1] for tokens in found.values()]

    def _compute_batch(self, model: Any, inputs: dict[str, Any]) -> None:
        """ModelRunner.compute_batch with logits for each drafted token."""
        if self.tokens:
            inputs["logits_indices"] = self._places(inputs["logits_indices"])
        self._compute(model, inputs)

    def _places(self, last: torch.Tensor) -> torch.Tensor:
        """Where among the tokens of the step logits are needed, given where each row's last token stands."""
        batch = [future for future in self._processor.inputs_and_outputs.requests_in_batch if future.has_new_token]
        places: list[int] = []
        for future, end in zip(batch, last.tolist(), strict=False):
            places += range(end - len(self.tokens.get(future.state.request_id, ())), end + 1)
        return torch.tensor(places, dtype=last.dtype, device=last.device)
