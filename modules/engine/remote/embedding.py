"""One text to a server's /v1/embeddings; its vector as our event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from modules.engine.base import Emit, GenerationRequest
from modules.engine.embedding import EmbeddingTelling
from modules.engine.remote.connecting import Found

PATH = "/embeddings"


class RemoteEmbedding(EmbeddingTelling):
    """A request for an embedding, made elsewhere."""

    def __init__(self, request: GenerationRequest, emit: Emit, found: Found) -> None:
        super().__init__(request, emit)
        self._model = found.model
        self.on_cancel: Callable[[], None] = lambda: None

    @property
    def body(self) -> dict[str, Any]:
        """What to ask of the server."""
        words = self.request.words
        text = list(self.request.prompt_ids) if words is None else words.text
        return {"input": text, "encoding_format": "float"} | ({"model": self._model} if self._model else {})

    def cancel(self) -> None:
        """End it at once."""
        super().cancel()
        self.on_cancel()
