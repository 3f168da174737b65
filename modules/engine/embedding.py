"""One text → one vector, its outward side: for engines that ask a server with OpenAI's /v1/embeddings, and our own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modules.engine.base import Embedding, Emit, FinishReason, GenerationRequest, Usage
from modules.engine.telling import Telling
from modules.engine.text import ReadyText
from modules.errors import GenerationFailed


class EmbeddingTelling(Telling):
    """A request for an embedding: no text, one vector, its one end."""

    def __init__(self, request: GenerationRequest, emit: Emit) -> None:
        held = len(request.prompt_ids)
        super().__init__(request, emit, ReadyText(()), held=held, longest=held + 1)
        self._counted = held

    @property
    def most_tokens(self) -> int:
        """What it may take of the KV cache at most."""
        return len(self.request.prompt_ids)

    def take(self, answer: Any) -> FinishReason:
        """Tell the vector of a server's `answer`. Raises GenerationFailed where there is none."""
        usage = answer.get("usage") if isinstance(answer, Mapping) else None
        counted = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
        self._counted = counted if type(counted) is int and counted > 0 else self._counted
        return self.tell(_vector(answer))

    def tell(self, vector: Sequence[Any]) -> FinishReason:
        """Tell the `vector`. Raises GenerationFailed where it is none."""
        if not vector or not all(type(value) in (int, float) and math.isfinite(value) for value in vector):
            raise GenerationFailed(
                "The embedding is not a list of finite numbers.", remedy="Try another text, or another model."
            )
        self._send(Embedding(tuple(map(float, vector))))
        return "stop"

    def _usage(self) -> Usage:
        return Usage(self._counted, 0, 0)


def _vector(answer: Any) -> list[Any]:
    """`data[0].embedding` of an answer that may be anything."""
    data = answer.get("data") if isinstance(answer, Mapping) else None
    first = data[0] if isinstance(data, list) and data else None
    vector = first.get("embedding") if isinstance(first, Mapping) else None
    return vector if isinstance(vector, list) else []
