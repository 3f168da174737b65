"""A row of a model that sees: text as any row, pictures as the vectors that its eyes make of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modules.engine.loops.rows import CausalRow
from modules.engine.loops.sight import Eyes, Seen


class SeeingRow(CausalRow):
    """`tokens` are keys (sight.py): a picture's tokens are negative there, and equal only for equal pictures.

    `seen` are the pictures of the request that is being read; a row that waits for its next turn holds none.
    """

    def __init__(self, model: Any, device: torch.device, eyes: Eyes, cache: Any = None) -> None:
        super().__init__(model, device, cache)
        self._eyes = eyes
        self.seen: Seen | None = None

    def _asked(self, ids: Sequence[int]) -> dict[str, Any]:
        seen, start = self.seen, len(self.tokens)
        if seen is None or not seen.pictures:
            return super()._asked(ids)
        asked: dict[str, Any]
        if any(key < 0 for key in ids):
            asked = {"inputs_embeds": self._eyes.embedded(seen, ids, start)}
        else:
            asked = super()._asked(ids)
        if seen.positions is not None:
            asked["position_ids"] = self._positions(seen, start, start + len(ids))
        return asked

    def _positions(self, seen: Seen, start: int, end: int) -> torch.Tensor:
        """Positions (3, 1, tokens): the prompt's own, then one after the other."""
        assert seen.positions is not None
        known = seen.positions[:, start:end]
        after = torch.arange(start + known.shape[1], end) + seen.delta
        return torch.cat([known, after.expand(3, -1)], dim=1).unsqueeze(1).to(self._device)

    def _like(self, cache: Any) -> CausalRow:
        return SeeingRow(self._model, self._device, self._eyes, cache)
