"""Embeddings through llama.cpp: how the tokens of a text become one vector, and a request for that."""

from __future__ import annotations

import time
from http.client import HTTPException
from typing import Literal

from modules.engine.base import FinishReason
from modules.engine.embedding import EmbeddingTelling
from modules.engine.llamacpp.question import Question
from modules.engine.llamacpp.server import LlamaServer
from modules.errors import NotAvailableHere
from modules.memory.model.gguf import Value
from modules.memory.planning.planner import Plan

# llama.cpp computes no embedding while any reply is written. For so long new replies may still begin before one.
PASSED_BY_S = 15.0

Pooling = Literal["mean", "cls", "last"]
_KINDS: dict[int, Pooling] = {0: "mean", 1: "mean", 2: "cls", 3: "last"}  # llama.h, llama_pooling_type; 0 is none


def pooling_of(plan: Plan, metadata: dict[str, Value]) -> Pooling:
    """How the file of `plan` says that its tokens become one vector: the mean, where it says nothing.

    Raises NotAvailableHere for a file that ranks texts instead.
    """
    kind = metadata.get(f"{metadata.get('general.architecture')}.pooling_type", 0)
    if not isinstance(kind, int) or kind not in _KINDS:
        raise NotAvailableHere(
            f"--embeddings: {plan.spec.name} is made to rank texts, not to embed them.",
            remedy="Drop it, or use another model.",
            param="embeddings",
        )
    return _KINDS[kind]


def longest_input(plan: Plan, pooling: Pooling) -> int:
    """Most tokens of a text. All of them are computed in one step, unless the last one's vector is all that counts."""
    context = plan.run.context_tokens
    return context - 1 if pooling == "last" else min(plan.run.prefill_chunk, context - 1)


class LlamaEmbedding(EmbeddingTelling):
    """One text to llama.cpp's server. Only `cancel` may come from another thread."""

    _question: Question | None = None

    @property
    def waited_enough(self) -> bool:
        """Whether no further reply may begin before it."""
        return time.perf_counter() - self._submitted > PASSED_BY_S

    def cancel(self) -> None:
        """End it at once; what is computed for it then is dropped."""
        super().cancel()
        if self._question is not None:
            self._question.close()

    def read(self, server: LlamaServer) -> FinishReason:
        """Ask, and tell the answer."""
        self._question = question = server.begin("/v1/embeddings", {"input": list(self.request.prompt_ids)})
        if self.cancelled:  # before there was a question to close
            question.close()
        try:
            answer = question.answer()
        except (OSError, ValueError, HTTPException):
            if self.cancelled:
                return "cancelled"
            raise
        return "cancelled" if self.cancelled else self.take(answer)
