"""English sentences that are complete already → the templates that they were made from, with their values.

The rooms below the page speak English, in f-strings; the catalogue holds those as templates with names in braces. Here
a sentence finds its template again, so that no room has to know of languages.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_NAME = re.compile(r"\{(\w+)\}")
_WORD = re.compile(r"[^\W\d_]{3,}")
_LETTER = re.compile(r"[^\W\d_]")
_NEXT_SENTENCE = re.compile(r"[.!?] +[A-Z“]")
LEAST_LETTERS = 6
"""Templates of fewer letters say too little: `{a}, {b}` would be found everywhere."""


@dataclass(frozen=True, slots=True)
class Template:
    """One template: its fixed parts, the names between them, and how many letters are fixed."""

    text: str
    parts: tuple[str, ...]
    names: tuple[str, ...]
    letters: int

    def values(self, sentence: str) -> dict[str, str] | None:
        """What stands in the places of the names; None where `sentence` is not made from it.

        Each fixed part is taken where it comes first, which finds a way if there is one, in one pass.
        """
        first, *middle, last = self.parts
        end = len(sentence) - len(last)
        if not sentence.startswith(first) or not sentence.endswith(last) or end < len(first):
            return None
        found: dict[str, str] = {}
        at = len(first)
        for name, part in zip(self.names, [*middle, None], strict=True):
            there = end if part is None else sentence.find(part, at, end)
            if there < at or found.setdefault(name, sentence[at:there]) != sentence[at:there]:
                return None
            at = there + len(part or "")
        return found


@dataclass(frozen=True, slots=True)
class Match:
    """A sentence's template, and what stands in the places of its names."""

    template: str
    values: Mapping[str, str]


class Templates:
    """Finds templates quickly: by a word that a sentence must hold."""

    def __init__(self, texts: Iterable[str], *, short: Iterable[str] = ()) -> None:
        """`short` may have fewer letters, as their values are checked."""
        self._by_word: dict[str, list[Template]] = defaultdict(list)
        least = dict.fromkeys(texts, LEAST_LETTERS) | dict.fromkeys(short, 1)
        for text in least:
            if not _NAME.search(text):
                continue
            fixed = _NAME.sub(" ", text)
            words, letters = _WORD.findall(fixed), len(_LETTER.findall(fixed))
            if words and letters >= least[text]:
                template = Template(text, tuple(_NAME.split(text)[::2]), tuple(_NAME.findall(text)), letters)
                self._by_word[max(words, key=len)].append(template)

    def find(self, sentence: str) -> Iterator[Match]:
        """The templates that `sentence` may be made from, most fixed letters first; no value ends a sentence."""
        words = set(_WORD.findall(sentence))
        near = (template for word in words for template in self._by_word.get(word, ()))
        for template in sorted(near, key=lambda one: -one.letters):
            found = template.values(sentence)
            if found is not None and not any(map(_NEXT_SENTENCE.search, found.values())):
                yield Match(template.text, found)
