"""Logits of prompts in continuous batching: at each token of a prompt that is scored, beside those of the rows' last
tokens.

It touches inner parts of transformers 5.23: generation/continuous_batching. While such a prompt is read a step has few
tokens, and the prompt begins with nothing that others have read: where pages are shared there are no logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from modules.engine.loops.scoring import Scoring

Tell = Callable[[int, torch.Tensor], None]


@dataclass(frozen=True, slots=True)
class _Part:
    """Of one row's part of a step: where it begins in the step, where in the prompt, and how many places count."""

    tell: Tell
    place: int
    start: int
    count: int


class PagedScores:
    """The prompts that are being scored, by their rows."""

    def __init__(self, processor: Any) -> None:
        self._rows: dict[str, tuple[Scoring, Tell]] = {}
        self._processor = processor
        self._parts: list[_Part] = []
        self._compute = processor.model_runner.compute_batch
        processor.model_runner.compute_batch = self._compute_batch
        self._search = processor.cache.search_prefix_match
        processor.cache.search_prefix_match = self._search_prefix

    def put(self, row_id: str, scoring: Scoring, tell: Tell) -> None:
        """Have `tell` called with a place in the row's prompt and the logits (places, vocab) from there on."""
        self._rows[row_id] = scoring, tell

    def forget(self, row_id: str | None = None) -> None:
        """The row has ended; None: all have."""
        if row_id is None:
            self._rows.clear()
        else:
            self._rows.pop(row_id, None)

    @property
    def most_tokens(self) -> int | None:
        """How many tokens a step may have, None where nothing is scored now."""
        reading = [scoring.stretch_tokens for scoring, _ in self._rows.values() if not scoring.done]
        return min(reading) + len(self._processor.scheduler.active_requests) if reading else None

    def take(self, logits: torch.Tensor) -> None:
        """Hand on those logits of a step (places, vocab) that were asked for: the last ones."""
        logits = logits[len(logits) - sum(part.count for part in self._parts) :]
        for part in self._parts:
            part.tell(part.start, logits[: part.count])
            logits = logits[part.count :]

    def _search_prefix(self, row_id: str, prompt_ids: list[int]) -> int:
        scoring = self._rows.get(row_id)
        matched: int = 0 if scoring and not scoring[0].done else self._search(row_id, prompt_ids)
        return matched

    def _compute_batch(self, model: Any, inputs: dict[str, Any]) -> None:
        """ModelRunner.compute_batch with logits for each place that is scored, behind all others."""
        self._parts = list(self._asked())
        if self._parts:
            last = inputs["logits_indices"]
            places = [place for part in self._parts for place in range(part.place, part.place + part.count)]
            inputs["logits_indices"] = torch.cat([last, torch.tensor(places, dtype=last.dtype, device=last.device)])
        self._compute(model, inputs)

    def _asked(self) -> Iterator[_Part]:
        place = 0
        for future in self._processor.inputs_and_outputs.requests_in_batch:
            found = self._rows.get(future.state.request_id)
            end = future.state.position_offset
            start = end - future.query_length
            if found is not None and not found[0].done:
                scoring, tell = found
                yield _Part(tell, place, start, scoring.known_after(start, end))
            place += future.query_length
