"""Snug's own routes for tokens: what the loaded model's tokenizer and chat template are, text ↔ token ids.

With them another Snug makes its prompts itself, content never read as control tokens.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import ConfigDict, Field, model_validator

from modules.api.shapes import Json
from modules.engine.base import TextPiece
from modules.errors import BadValue
from modules.few import FIRST_FAULT, FewFields
from modules.services import Services

MAX_CHARACTERS = 4_000_000
MAX_PIECES = 16_384
MAX_TOKENS = 1_000_000
_STRICT = ConfigDict(strict=True, extra="forbid")
_LENT = (
    "name", "takes", "vocab_size", "context_tokens", "is_encoder_decoder", "chat_template", "special_tokens",
    "end_texts", "text_prefix_ids", "text_suffix_ids",
)  # fmt: skip


class Piece(FewFields):
    """A stretch of a prompt; only a `template` piece may become control tokens."""

    model_config = _STRICT

    text: Annotated[str, Field(max_length=MAX_CHARACTERS)]
    template: bool = False


class EncodeRequest(FewFields):
    """The body of POST /v1/internal/token/encode: a text, in which control tokens may be written, or pieces."""

    model_config = _STRICT

    text: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    pieces: Annotated[list[Piece], FIRST_FAULT, Field(max_length=MAX_PIECES)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> EncodeRequest:
        if (self.text is None) == (self.pieces is None):
            raise BadValue("Either text or pieces must be there.", remedy="Send one of them.", param="text")
        return self

    @property
    def asked(self) -> list[TextPiece]:
        """The pieces."""
        if self.pieces is None:
            return [TextPiece(self.text or "", template=True)]
        return [TextPiece(piece.text, piece.template) for piece in self.pieces]


class DecodeRequest(FewFields):
    """The body of POST /v1/internal/token/decode."""

    model_config = _STRICT

    tokens: Annotated[list[int], FIRST_FAULT, Field(max_length=MAX_TOKENS)]


def token_routes(services: Services) -> APIRouter:
    """The routes under /v1/internal/token."""
    models = services.models
    router = APIRouter(prefix="/v1/internal/token")

    @router.get("/info")
    def info() -> Json:
        """What prompts for the loaded model are made with."""
        loaded = models.engine().info
        return {name: getattr(loaded, name) for name in _LENT}

    @router.post("/encode")
    def encode(body: EncodeRequest) -> Json:
        """Token ids of a text or of pieces, with none that the tokenizer would add by itself."""
        tokens: list[int] = models.with_engine(lambda engine: engine.encode(body.asked))
        return {"tokens": tokens, "length": len(tokens)}

    @router.post("/count")
    def count(body: EncodeRequest) -> Json:
        """How many tokens a text or pieces have."""
        tokens: list[int] = models.with_engine(lambda engine: engine.encode(body.asked))
        return {"length": len(tokens)}

    @router.post("/decode")
    def decode(body: DecodeRequest) -> Json:
        """The text of token ids, control tokens included."""
        known = models.engine().info.vocab_size
        if any(not 0 <= token < known for token in body.tokens):
            raise BadValue(f"Token ids go from 0 to {known - 1}.", param="tokens")
        text: Any = models.with_engine(lambda engine: engine.decode(body.tokens))
        return {"text": text}

    return router
