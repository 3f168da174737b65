"""The bytes of single tokens of a transformers tokenizer: parts of characters, and spaces that a decoder would drop.

Decoding one token by itself tells neither. Not here: which tokens are control tokens (loaded.py).
"""

from __future__ import annotations

import re
from typing import Any

_ONE_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"


def _letters() -> dict[str, int]:
    """The letters of byte-level vocabularies, as GPT-2 wrote them: bytes that can be seen stand for themselves, the
    others for the characters from 256 on.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + number): byte for number, byte in enumerate(unseen)}


class Spelling:
    """How the tokens of one tokenizer are spelled."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = backend.decoder.__getstate__().decode() if backend is not None and backend.decoder else ""
        self._letters = _letters() if '"ByteLevel"' in decoder else {}
        self._has_bytes = '"ByteFallback"' in decoder
        self._has_spaces = _SPACE in decoder
        self._added: dict[int, str] = {index: one.content for index, one in tokenizer.added_tokens_decoder.items()}

    def of(self, token_id: int) -> bytes | None:
        """The bytes of a token; None where its text is all that is known."""
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if not isinstance(token, str):
            return token if isinstance(token, bytes) else None
        if self._letters:
            known = all(letter in self._letters for letter in token)
            return bytes(self._letters[letter] for letter in token) if known else None
        if self._has_bytes and (byte := _ONE_BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.replace(_SPACE, " ").encode() if self._has_spaces else None
