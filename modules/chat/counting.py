"""How many tokens a long text has, cheap while it is typed: stretches that did not change are not read again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary
from zlib import crc32

from modules.chat.prompts import PromptEngine, whole_characters
from modules.engine.base import TextPiece
from modules.on_behalf import own_key

SHORTEST_STRETCH, LONGEST_STRETCH = 1_000, 8_000  # characters read at a time, up to the end of a line
MOST_CHARACTERS = 1_000_000  # read at all; beyond it the rest is taken to be like that
_COUNTS_KEPT = 2_000


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens of a text; not `exact` where it was read in stretches, or the engine tells no tokens."""

    tokens: int
    exact: bool


class TokenCounter:
    """Counts with the engine's own tokenizer, control tokens written by hand as such. Safe to use from any thread."""

    def __init__(self) -> None:
        self._counts: WeakKeyDictionary[PromptEngine, OrderedDict[bytes, int]] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def count(self, engine: PromptEngine, text: str) -> Count:
        """The tokens of `text` as a prompt, with what the tokenizer puts before it."""
        info = engine.info
        if info.takes == "words":
            return Count(len(text) // 4 + bool(text), exact=False)
        read = list(_stretches(text[:MOST_CHARACTERS]))
        tokens = sum(self._count(engine, stretch) for stretch in read)
        if len(text) > MOST_CHARACTERS:
            tokens = tokens * len(text) // MOST_CHARACTERS
        border = 0 if not text else len(info.text_prefix_ids)
        return Count(tokens + border, exact=len(read) <= 1)

    def _count(self, engine: PromptEngine, stretch: str) -> int:
        key = own_key(stretch)
        with self._lock:
            counts = self._counts.setdefault(engine, OrderedDict())
            if key in counts:
                counts.move_to_end(key)
                return counts[key]
        counted = len(engine.encode([TextPiece(whole_characters(stretch), template=True)]))
        with self._lock:
            counts[key] = counted
            while len(counts) > _COUNTS_KEPT:
                counts.popitem(last=False)
        return counted


def _stretches(text: str) -> Iterator[str]:
    """The text cut after some lines, chosen by what they say, so that typing in one stretch leaves the others alone."""
    start = end = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        chosen = end - start >= SHORTEST_STRETCH and crc32(line.encode("utf-8", "surrogatepass")) % 16 == 0
        if chosen or end - start >= LONGEST_STRETCH:
            yield from (text[at : min(at + LONGEST_STRETCH, end)] for at in range(start, end, LONGEST_STRETCH))
            start = end
    yield from (text[at : at + LONGEST_STRETCH] for at in range(start, len(text), LONGEST_STRETCH))
