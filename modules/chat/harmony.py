"""Replies in the harmony form of gpt-oss: messages in channels, each `header <|message|> body <|end|>`.

What is on the channel analysis is thought, on final it is answer, and a commentary to a function is a call of it. Only
where the parts lie is known here; reply_reading.py makes parts of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CONTROL = ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>")
ANSWER = "<|channel|>final<|message|>"
"""How an answer begins."""
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
_TO = re.compile(r"to=functions\.([\w.\-]+)")
_LONGEST_HEADER = 500

Kind = Literal["thought", "answer", "call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """More of a message. `name` is the function's, where it is a call; `first` and `last` piece of that message."""

    kind: Kind
    text: str
    name: str = ""
    first: bool = False
    last: bool = False


def is_harmony(template: str) -> bool:
    """Whether a chat template is of this form."""
    return "<|channel|>" in template and "<|message|>" in template


class HarmonySplitter:
    """The messages of one reply, as it comes. The prompt ends with `<|start|>assistant`: the first header has begun."""

    def __init__(self) -> None:
        self._held = ""
        self._in_body = False
        self._kind: Kind = "answer"
        self._name = ""
        self._first = True

    def feed(self, text: str) -> list[Piece]:
        """The pieces that `text` completes."""
        self._held += text
        pieces: list[Piece] = []
        while self._body(pieces) if self._in_body else self._header():
            pass
        return pieces

    def end(self) -> list[Piece]:
        """What was held back. A reply without any header is answer."""
        held, self._held = self._held, ""
        if self._in_body:
            return [self._piece(held, last=True)]
        cut = "<|" in held or held.strip() == "assistant" or "to=functions." in held
        return [Piece("answer", held)] if held and not cut else []

    def _header(self) -> bool:
        """Read the header, if it is whole. Whether anything was done."""
        header, found, rest = self._held.partition("<|message|>")
        if not found:
            if len(header) < _LONGEST_HEADER and _may_be_header(header):
                return False
            found, rest, header = "<|message|>", self._held, ""  # no header at all: all of it is answer
        to = _TO.search(header)
        self._kind = "call" if to else "thought" if "analysis" in header else "answer"
        self._name = to[1] if to else ""
        self._held, self._in_body, self._first = rest, True, True
        return True

    def _body(self, pieces: list[Piece]) -> bool:
        """Tell what is there of the body. Whether it has ended."""
        place, mark = min(((self._held.find(mark), mark) for mark in _ENDS if mark in self._held), default=(-1, ""))
        if place < 0:
            border = len(self._held) - held_back(self._held, _ENDS)
            if border:
                pieces.append(self._piece(self._held[:border]))
                self._held = self._held[border:]
            return False
        pieces.append(self._piece(self._held[:place], last=True))
        self._held = self._held[place + len(mark) :]
        self._in_body = False
        return True

    def _piece(self, text: str, *, last: bool = False) -> Piece:
        first, self._first = self._first, False
        return Piece(self._kind, text, self._name, first, last)


def _may_be_header(header: str) -> bool:
    """Whether text may still become one: of the message that the prompt has begun, or of the next."""
    begin = header.lstrip()
    return any(sign.startswith(begin) or begin.startswith(sign) for sign in ("to=functions.", "assistant", "<|"))


def held_back(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of `text` may be the beginning of one of `marks`."""
    most = max(len(mark) for mark in marks) - 1
    for size in range(min(most, len(text)), 0, -1):
        if any(mark.startswith(text[-size:]) for mark in marks):
            return size
    return 0
