"""Snug's own routes for tokens: what the loaded model's tokenizer and chat template are, text ↔ token ids.

With them another Snug makes its prompts itself, content never read as control tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from pydantic import ConfigDict, Field, model_validator

from modules.api.shapes import Json
from modules.engine.base import TextPiece
from modules.engine.host.host import EngineHost
from modules.errors import BadValue
from modules.few import FIRST_FAULT, FewFields
from modules.services import Services

MAX_CHARACTERS = 4_000_000
# No reply goes on while the tokenizer reads, a second for a million characters: longer texts only where a context is as
# long, and long ones one at a time.
MOST_READ, MOST_OF_A_TOKEN, LONG = 1_000_000, 8, 100_000
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


class LongTexts:
    """Has texts read by the loaded model's tokenizer; those of more than LONG characters one at a time."""

    def __init__(self, services: Services) -> None:
        self._models = services.models
        self._places = CapacityLimiter(1)

    async def read(
        self, pieces: Sequence[TextPiece], use: Callable[[EngineHost, Sequence[TextPiece]], list[int]]
    ) -> list[int]:
        """What `use` makes of them. Raises BadValue where they are too long for any prompt."""

        def ask() -> list[int]:
            return self._models.with_engine(lambda engine: use(engine, pieces))

        characters = sum(len(piece.text) for piece in pieces)
        info = self._models.state.info
        most = max(MOST_READ, MOST_OF_A_TOKEN * info.context_tokens) if info else MAX_CHARACTERS
        if characters > most:
            raise BadValue(
                f"The text has {characters:,} characters; at most {most:,} are read at once.",
                remedy="Send it in parts.",
                param="text",
            )
        if characters <= LONG:
            return await to_thread.run_sync(ask)
        async with self._places:  # whoever waits holds no thread of the page's
            return await to_thread.run_sync(ask)


def token_routes(services: Services, long_texts: LongTexts) -> APIRouter:
    """The routes under /v1/internal/token."""
    models = services.models
    router = APIRouter(prefix="/v1/internal/token")

    @router.get("/info")
    def info() -> Json:
        """What prompts for the loaded model are made with."""
        loaded = models.engine().info
        return {name: getattr(loaded, name) for name in _LENT}

    @router.post("/encode")
    async def encode(body: EncodeRequest) -> Json:
        """Token ids of a text or of pieces, with none that the tokenizer would add by itself."""
        tokens = await long_texts.read(body.asked, _encoded)
        return {"tokens": tokens, "length": len(tokens)}

    @router.post("/count")
    async def count(body: EncodeRequest) -> Json:
        """How many tokens a text or pieces have."""
        tokens = await long_texts.read(body.asked, _encoded)
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


def _encoded(engine: EngineHost, pieces: Sequence[TextPiece]) -> list[int]:
    return engine.encode(pieces)
