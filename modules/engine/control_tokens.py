"""Pieces of a prompt → token ids, where only what the template wrote may become control tokens, never content.

It knows tokenizers as two functions: those of transformers from loops/loaded.py, of llama.cpp from llamacpp/tokens.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from modules.engine.base import TextPiece

# End-of-turn tokens of well-known chat templates, for models whose generation_config names only the document's end.
CHAT_END_TOKENS = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|return|>", "<|end_of_turn|>",
    "<|endofturn|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "[|endofturn|]",
)  # fmt: skip
# Private-use characters: what is between them is encoded as plain text. The same as transformers'
# utils/chat_template_utils.py uses for `sanitize_control_tokens`.
_START, _END = "\U000f0000", "\U000f0001"
_LONGEST_CONTROL = 200
MOST_MARKS = 256
"""Control tokens in the content of one prompt that are kept apart from what stands around them. Each costs calls of the
tokenizer, and who else waits for it waits as long: where there are more, a content with some is read as one text."""
MOST_SINGLE_CHARACTERS = 20_000
"""Characters that may be read one by one because a tokenizer makes control tokens of them otherwise."""


Encode = Callable[[str], Sequence[int]]


class PieceEncoder:
    """Pieces → ids. Text without any control token in its content gets exactly the ids that the tokenizer gives to
    the whole text, so a piece border is no token border by itself.
    """

    def __init__(
        self, as_text: Encode, as_template: Encode, control: Mapping[str, int], unknown_id: int | None
    ) -> None:
        """`as_text` reads nothing as a control token, `as_template` the texts of `control`; both add no token."""
        self._as_text = as_text
        self._as_template = as_template
        self._control = _any_of(control)
        self._parts = re.compile(f"({self._control.pattern})")
        self._control_ids = frozenset(control.values()) - {unknown_id}

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces in order, with none added before or after."""
        merged = [
            TextPiece(_unmarked("".join(piece.text for piece in run)), template)
            for template, run in groupby(pieces, key=lambda piece: piece.template)
        ]
        ids: list[int] = []
        for text, as_text in self._stretches(merged):
            ids += self._encode_one(text, as_text=as_text, at_start=not ids)
        if self._count(ids) <= sum(len(self._control.findall(p.text)) for p in merged if p.template):
            return ids
        # Rare: a normalizer or a unigram vocabulary made a control token from other text. Piece by piece then.
        singles = _Singles(self._as_text, self._control_ids)
        return [token for piece in merged for token in self._encode_alone(piece, singles)]

    def broken_up(self, text: str) -> list[str]:
        """`text` in pieces, none of which holds one of the texts of `control`: those are single characters here."""
        parts = enumerate(self._parts.split(text))
        return [piece for number, part in parts for piece in (part if number % 2 else [part]) if piece]

    def _stretches(self, merged: Sequence[TextPiece]) -> Iterator[tuple[str, bool]]:
        """(text, as_text) of all pieces; what holds marks stands alone where there are too many of them."""
        marks = [0 if piece.template else sum(1 for _ in self._control.finditer(piece.text)) for piece in merged]
        if sum(marks) <= MOST_MARKS:
            yield from _stretches(merged, self._control)
            return
        for crowded, run in groupby(zip(merged, marks, strict=True), key=lambda pair: pair[1] > 0):
            together = [piece for piece, _ in run]
            if crowded:
                yield from ((piece.text, True) for piece in together)
            else:
                yield from _stretches(together, self._control)

    def _encode_one(self, text: str, *, as_text: bool, at_start: bool) -> list[int]:
        """Ids of one stretch. Within a text it follows a newline, so that no space is put before it, as
        transformers' `encode_marked_chat` does."""
        encode = self._as_text if as_text else self._as_template
        if at_start:
            return list(encode(text))
        newline = list(self._as_template("\n"))
        ids = list(encode("\n" + text))
        return ids[len(newline) :] if ids[: len(newline)] == newline else list(encode(text))

    def _encode_alone(self, piece: TextPiece, singles: _Singles) -> list[int]:
        ids = self._encode_one(piece.text, as_text=not piece.template, at_start=True)
        if piece.template or not self._count(ids):
            return ids
        parts = self._parts.split(piece.text)
        if len(parts) > 2 * MOST_MARKS + 1:
            return [token for token in ids if token not in self._control_ids]
        made: list[int] = []
        for text in filter(None, parts):
            whole = self._encode_one(text, as_text=True, at_start=not made)
            made += singles.of(text, whole) if self._count(whole) else whole
        return made

    def _count(self, ids: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in ids)


class _Singles:
    """Texts read character by character, so that nothing in them becomes a control token. Of long ones what would is
    left out instead."""

    def __init__(self, as_text: Encode, control_ids: frozenset[int]) -> None:
        self._as_text = as_text
        self._control_ids = control_ids
        self._left = MOST_SINGLE_CHARACTERS
        self._known: dict[str, list[int]] = {}

    def of(self, text: str, whole: Sequence[int]) -> list[int]:
        """Ids of `text`, of which the tokenizer makes `whole`."""
        self._left -= len(text)
        if self._left < 0:
            return self._plain(whole)
        for char in {*text} - self._known.keys():
            self._known[char] = self._plain(self._as_text(char))
        return [token for char in text for token in self._known[char]]

    def _plain(self, ids: Sequence[int]) -> list[int]:
        return [token for token in ids if token not in self._control_ids]


def border_of(bare: Sequence[int], whole: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after the ids `bare` in `whole`: what a tokenizer by itself puts around a text."""
    for start in range(len(whole) - len(bare) + 1):
        if list(whole[start : start + len(bare)]) == list(bare):
            return tuple(whole[:start]), tuple(whole[start + len(bare) :])
    return (), ()


Tree = dict[str, Any]


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of `texts`, the longest first; nothing where there are none.

    What they begin with in common is looked at once: one after the other, a thousand reserved tokens would each be
    tried at every place of a text that repeats their beginning.
    """
    known = [text for text in dict.fromkeys(texts) if text]
    tree: Tree = {}
    for text in known:
        node = tree
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    try:
        return re.compile(_pattern(tree) or "(?!)")
    except RecursionError:  # each the beginning of the next, hundreds of times: no model's, but a file may say so
        return re.compile("|".join(map(re.escape, sorted(known, key=len, reverse=True))))


def _pattern(node: Tree) -> str:
    """What may follow where the branches of a tree begin."""
    straight = ""
    while len(node) == 1 and "" not in node:
        ((char, node),) = node.items()
        straight += re.escape(char)
    branches = [re.escape(char) + _pattern(child) for char, child in node.items() if char]
    return straight + (f"(?:{'|'.join(branches)}){'?' if '' in node else ''}" if branches else "")


def _unmarked(text: str) -> str:
    """`text` without the characters that stand for the borders here: what they part would be counted as no mark."""
    return text.replace(_START, "").replace(_END, "")


def _stretches(pieces: Sequence[TextPiece], control: re.Pattern[str]) -> list[tuple[str, bool]]:
    """(text, as_text) stretches: control tokens that touch content are to be read as text, the rest runs together."""
    marked = ""
    for piece in pieces:
        text = piece.text if piece.template else control.sub(f"{_START}\\g<0>{_END}", piece.text)
        tail = marked[-_LONGEST_CONTROL:]
        if any(match.start() < len(tail) < match.end() for match in control.finditer(tail + text)):
            marked += _END  # keep the halves of a token that would straddle the border apart
        marked += text
    parts = re.split(f"{_START}({control.pattern}){_END}|[{_START}{_END}]", marked)
    return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]
