"""Text ↔ token ids with a server's own tokenizer, asked over HTTP; content is never read as control tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from modules.engine.base import TextPiece
from modules.engine.control_tokens import PieceEncoder, border_of
from modules.engine.remote.client import RemoteClient
from modules.on_behalf import ASKED_FOR

# What may be a control token: such a text in content is asked about before it is encoded. The last are MiniMax'.
_CANDIDATE = re.compile(
    r"<[^<>\s]{1,80}>|\[/?[A-Za-z_]\w{0,40}\]|<｜[^｜]{1,60}｜>|\[\|[^\[\]|]{1,60}\|\]"
    r"|[\[\]][!\w]{0,8}~[!\w]{0,8}[\[\]]", re.ASCII
)  # fmt: skip
_KEPT = 4096

Tokenize = Callable[[str, bool], list[int]]


class RemoteTokens(Protocol):
    """A server's tokenizer."""

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces; content never yields control tokens."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included."""

    def border_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What the tokenizer by itself puts before and after a text."""


class SnugTokens:
    """Another Snug's: it takes pieces as they are."""

    def __init__(self, client: RemoteClient, border: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        self._client = client
        self._border = border

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """See RemoteTokens."""
        asked = [{"text": piece.text, "template": piece.template} for piece in pieces]
        return _ids(self._client.ask_now("/internal/token/encode", {"pieces": asked}))

    def decode(self, token_ids: Sequence[int]) -> str:
        """See RemoteTokens."""
        return str(self._client.ask_now("/internal/token/decode", {"tokens": list(token_ids)})["text"])

    def border_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See RemoteTokens."""
        return self._border


class AskedTokens:
    """A tokenizer that encodes texts. Which texts are control tokens is found out by asking, once each for a person."""

    def __init__(self, as_template: Callable[[str], list[int]], as_text: Callable[[str], list[int]]) -> None:
        """`as_template` reads control tokens in a text, `as_text` none; neither adds any."""
        self._as_template = as_template
        self._as_text = as_text
        self._control: dict[tuple[str, str], int | None] = {}
        self._newline = as_template("\n")

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """See RemoteTokens."""
        control = self._known_among(piece.text for piece in pieces)
        return PieceEncoder(self._as_text, self._remembered, control, None).encode(pieces)

    def _remembered(self, text: str) -> list[int]:
        return list(self._newline) if text == "\n" else self._as_template(text)

    def _known_among(self, texts: Iterable[str]) -> dict[str, int]:
        """The control tokens in `texts` with their ids."""
        if len(self._control) > _KEPT:
            self._control.clear()
        found = {word for text in texts for word in _CANDIDATE.findall(text)}
        return {word: token for word in found if (token := self._control_of(word)) is not None}

    def _control_of(self, word: str) -> int | None:
        """The id of a control token; None for other words."""
        key = (ASKED_FOR.get(), word)
        try:
            return self._control[key]
        except KeyError:
            ids = self._as_template(word)
            token = ids[0] if len(ids) == 1 and ids != self._as_text(word) else None
        self._control[key] = token
        return token


class LlamaServerTokens(AskedTokens):
    """llama-server's, which tells text from control tokens itself."""

    def __init__(self, client: RemoteClient) -> None:
        self._client = client
        super().__init__(lambda text: self._ask(text, special=True), lambda text: self._ask(text, special=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """See RemoteTokens."""
        return str(self._client.ask_now("//detokenize", {"tokens": list(token_ids)})["content"])

    def border_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See RemoteTokens."""
        return border_of(self._ask("a", special=False), self._ask("a", special=False, add=True))

    def _ask(self, text: str, *, special: bool, add: bool = False) -> list[int]:
        return _ids(self._client.ask_now("//tokenize", {"content": text, "add_special": add, "parse_special": special}))


class VllmTokens(AskedTokens):
    """vLLM's, which reads control tokens in every text: as text they are encoded in two halves."""

    def __init__(self, client: RemoteClient, model: str) -> None:
        self._client = client
        self._model = model
        super().__init__(self._ask, self._halved)

    def decode(self, token_ids: Sequence[int]) -> str:
        """See RemoteTokens."""
        asked = {"model": self._model, "tokens": list(token_ids)}
        return str(self._client.ask_now("//detokenize", asked)["prompt"])

    def border_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """See RemoteTokens."""
        return border_of(self._ask("a"), self._ask("a", add=True))

    def _halved(self, text: str) -> list[int]:
        """Ids of a control token's text, perhaps behind a newline, as text."""
        at = 1 + text.startswith("\n")
        return [*self._ask(text[:at]), *(self._ask(text[at:]) if text[at:] else ())]

    def _ask(self, text: str, *, add: bool = False) -> list[int]:
        asked = {"model": self._model, "prompt": text, "add_special_tokens": add}
        return _ids(self._client.ask_now("//tokenize", asked))


def _ids(answer: Any) -> list[int]:
    return list(map(int, answer["tokens"]))
