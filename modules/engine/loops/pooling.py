"""Texts as token ids → their vectors: one pass over a base model, then the mean, the first or the last token's state.

As sentence-transformers computes them, in fp32 whatever the model computes in. Which texts go together is encoder.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from modules.memory.model.embedder import Embedder, Pooling


@torch.no_grad()
def embed(
    model: Any, device: torch.device, texts: Sequence[Sequence[int]], embedder: Embedder, pad_id: int
) -> torch.Tensor:
    """The vectors (texts, hidden) of `texts`, fp32 in CPU memory. Shorter texts are filled up behind their end."""
    lengths = torch.tensor([len(ids) for ids in texts], device=device)
    longest = max(map(len, texts))
    padded = [[*ids, *[pad_id] * (longest - len(ids))] for ids in texts]
    mask = torch.arange(longest, device=device)[None, :] < lengths[:, None]
    inputs = {"input_ids": torch.tensor(padded, device=device), "attention_mask": mask.long()}
    states = model(**inputs).last_hidden_state
    vectors = pool(states, mask, embedder.pooling)
    return (normalize(vectors, dim=-1) if embedder.normalizes else vectors).cpu()


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One fp32 vector a text (texts, hidden) of `states` (texts, tokens, hidden), of which `mask` (texts, tokens) says
    what is text: the padding comes behind it.
    """
    if pooling == "cls":
        return states[:, 0].float()
    if pooling == "last":
        last = mask.sum(dim=1) - 1
        return states[torch.arange(len(states), device=states.device), last].float()
    kept = mask[:, :, None]
    return (states.float() * kept).sum(dim=1) / kept.sum(dim=1)
