"""Text ↔ token ids with the tokenizer inside a GGUF file: llama.cpp's own, asked of its server."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from modules.engine.base import TextPiece
from modules.engine.control_tokens import MOST_SINGLE_CHARACTERS, PieceEncoder, border_of
from modules.engine.llamacpp.server import LlamaServer
from modules.memory.model.gguf import ArrayValue, GgufHeader, read_gguf

_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # llama.h, llama_token_type
_SPECIALS = ("bos", "eos", "eot", "unknown", "separator", "padding")


class TokenTable:
    """The tokens of a GGUF file, as far as prompts need them."""

    def __init__(self, path: Path) -> None:
        """Raises BadGguf."""
        header = read_gguf(path, whole=frozenset({_TOKENS, _TYPES}))
        self._header = header
        texts, types = _array(header, _TOKENS).texts, _array(header, _TYPES).items
        self.chat_template = str(header.metadata.get("tokenizer.chat_template", ""))
        self.metadata = header.metadata
        self.size = len(texts)
        self.texts = texts
        self.unknown_id = next((index for index, kind in enumerate(types) if kind == _UNKNOWN), None)
        self.control = {
            str(text): index
            for index, (text, kind) in enumerate(zip_longest(texts, types, fillvalue=_NORMAL))
            if self._is_control(str(text), int(kind))
        }

    def _is_control(self, text: str, kind: int) -> bool:
        """Whether llama.cpp reads this text as the token: by its kind, and what the template writes between <…>.

        Of the latter llama.cpp makes control tokens itself where a file lacks or misstates their kind.
        """
        if not text or text.isspace():
            return False
        marked = len(text) > 2 and text[0] == "<" and text[-1] == ">"
        return kind in (_CONTROL, _UNKNOWN) or ((marked or kind == _USER_DEFINED) and text in self.chat_template)

    def special_tokens(self) -> dict[str, str]:
        """`bos_token` and its kin, as chat templates know them."""
        names = {name: self._header.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _SPECIALS}
        short = {"unknown": "unk", "separator": "sep", "padding": "pad"}
        return {
            f"{short.get(name, name)}_token": self.texts[index]
            for name, index in names.items()
            if isinstance(index, int) and 0 <= index < self.size
        }


class LlamaTokens:
    """Engine.encode and decode."""

    def __init__(self, server: LlamaServer, table: TokenTable) -> None:
        self._server = server
        self._control = frozenset(table.control.values())
        self._encoder = PieceEncoder(self.encode_text, self._as_template, table.control, table.unknown_id)

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces; content never yields control tokens."""
        return self._encoder.encode(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included."""
        return str(self._server.ask("/detokenize", {"tokens": list(token_ids)})["content"])

    def border_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer by itself puts before and after a text."""
        return border_of(self._ask("a", special=False), self._ask("a", special=False, add=True))

    def _as_template(self, text: str) -> list[int]:
        return self._ask(text, special=True)

    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, none of them a control token: user-defined tokens are read as such at all times. However
        many there are, llama.cpp is asked three times at most; of very many, what would be one is left out."""
        ids = self._ask(text, special=False)
        if len(text) == 1 or self._control.isdisjoint(ids):
            return ids
        for pieces in (self._encoder.broken_up(text), list(text)):
            if len(pieces) > MOST_SINGLE_CHARACTERS:
                break
            ids = self._ask(pieces, special=False)
            if self._control.isdisjoint(ids):
                return ids
        return [token for token in ids if token not in self._control]

    def _ask(self, text: str | list[str], *, special: bool, add: bool = False) -> list[int]:
        """Ids of a text, or of pieces that are read each by itself."""
        asked = {"content": text, "add_special": add, "parse_special": special}
        return list(map(int, self._server.ask("/tokenize", asked)["tokens"]))


def _array(header: GgufHeader, key: str) -> ArrayValue:
    value = header.metadata.get(key)
    return value if isinstance(value, ArrayValue) else ArrayValue(0)
