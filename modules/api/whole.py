"""Text that clients send, held against what tokenizers take."""

from __future__ import annotations

from pydantic_core import PydanticCustomError


def whole(text: str) -> str:
    """`text`, if it is Unicode text. JSON can spell half a character, a lone surrogate, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("lone_surrogate", "it holds half a character (a lone surrogate)") from error
    return text
