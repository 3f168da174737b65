"""The lorebook of a character as people edit it: entries put in, changed, taken out and back, a file of them added.

Entries have no names of their own: they are told apart by their place, and by a revision of the whole book, so that
what was changed in another tab is never written over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from modules.characters import card
from modules.characters.character import MAX_ENTRIES, Character, Lorebook, LoreEntry, checked
from modules.characters.library import Characters
from modules.characters.worlds import read_book
from modules.errors import BadCharacter, NotFound, StaleView
from modules.few import FIRST_FAULT, FewFields
from modules.units import format_size

MAX_KEYS = 200
MAX_KEY_CHARACTERS = 300
MAX_ENTRY_CHARACTERS = 100_000
_MOST = 1_000_000

Keys = Annotated[
    tuple[Annotated[str, Field(max_length=MAX_KEY_CHARACTERS)], ...], FIRST_FAULT, Field(max_length=MAX_KEYS)
]


class EntryFields(FewFields):
    """What an editor shows of an entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    comment: str = Field(default="", max_length=200)
    keys: Keys = ()
    secondary_keys: Keys = ()
    content: str = Field(default="", max_length=MAX_ENTRY_CHARACTERS)
    enabled: bool = True
    constant: bool = False
    case_sensitive: bool = False
    insertion_order: float = Field(default=100, ge=-_MOST, le=_MOST)
    position: str = Field(default="after_char", pattern="^(before_char|after_char)$")


class BookFields(FewFields):
    """How a book is read: None is what Snug does for books that say nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    scan_depth: int | None = Field(default=None, ge=0, le=10_000)
    token_budget: int | None = Field(default=None, ge=0, le=_MOST)
    recursive_scanning: bool = False


@dataclass(frozen=True, slots=True)
class Added:
    """What came of a file: entries that are new, and those that were there already."""

    entries: int
    known: int


class LoreEditing:
    """The lorebooks of all characters, to be changed. Safe to use from any thread.

    A change of a character that came with Snug makes it the user's own, as any other.
    """

    def __init__(self, characters: Characters) -> None:
        self._characters = characters

    def book(self, ident: str) -> Lorebook:
        """A character's lorebook, an empty one where it has none. Raises BadName, NotFound, BadCharacter."""
        return self._characters.get(ident).character_book or Lorebook()

    def put(self, ident: str, revision: str, at: int | None, fields: EntryFields) -> Lorebook:
        """Change the entry at a place, or without one add an entry, whatever else changed. What no editor shows stays.

        Raises StaleView, NotFound, BadCharacter, StoreFailed; so do the other changes.
        """

        def change(book: Lorebook) -> tuple[LoreEntry, ...]:
            old = book.entries[_place(book, at)] if at is not None else LoreEntry()
            shown = fields.model_dump(mode="json")
            shown["selective"] = any(key.strip() for key in fields.secondary_keys)
            entry = checked(LoreEntry, old.model_dump() | shown, "The entry")
            if not any(key.strip() for key in fields.keys) and not fields.constant:
                raise BadCharacter(
                    "The entry has no key, so nothing would ever call for it.",
                    remedy="Write a key, or let it be told always.",
                    param="keys",
                )
            if at is None:
                return (*book.entries, entry)
            return (*book.entries[:at], entry, *book.entries[at + 1 :])

        return self._change(ident, None if at is None else revision, change)

    def switch(self, ident: str, revision: str, at: int, *, enabled: bool) -> Lorebook:
        """Switch an entry on or off."""

        def change(book: Lorebook) -> tuple[LoreEntry, ...]:
            entry = book.entries[_place(book, at)].model_copy(update={"enabled": enabled})
            return (*book.entries[:at], entry, *book.entries[at + 1 :])

        return self._change(ident, revision, change)

    def delete(self, ident: str, revision: str, at: int) -> tuple[Lorebook, LoreEntry]:
        """Take an entry out; it is returned whole, for `restore`."""
        taken = []

        def change(book: Lorebook) -> tuple[LoreEntry, ...]:
            taken.append(book.entries[_place(book, at)])
            return (*book.entries[:at], *book.entries[at + 1 :])

        return self._change(ident, revision, change), taken[0]

    def restore(self, ident: str, at: int, entry: dict[str, Any]) -> Lorebook:
        """Put an entry back as it was, at its place or the nearest that there is now."""
        whole = checked(LoreEntry, entry, "The entry")
        return self._change(ident, None, lambda book: (*book.entries[:at], whole, *book.entries[at:]))

    def configure(self, ident: str, revision: str, fields: BookFields) -> Lorebook:
        """Change how the book is read."""
        return self._change(ident, revision, lambda book: book.entries, **fields.model_dump())

    def add_file(self, ident: str, data: bytes, where: str) -> tuple[Lorebook, Added]:
        """Add the entries of a lorebook file but those that are there already, word for word.

        How the book is read comes along where the character had no lorebook.
        """
        read = read_book(data, where)
        told = []

        def change(book: Lorebook) -> tuple[LoreEntry, ...]:
            there = {_words(entry) for entry in book.entries}
            new = [entry for entry in read.entries if _words(entry) not in there]
            told.append(Added(len(new), len(read.entries) - len(new)))
            return (*book.entries, *new)

        has_one = self._characters.get(ident).character_book is not None
        settings = {} if has_one else read.model_dump(exclude={"entries"})
        return self._change(ident, None, change, **settings), told[0]

    def _change(
        self,
        ident: str,
        revision: str | None,
        change: Callable[[Lorebook], tuple[LoreEntry, ...]],
        **settings: Any,
    ) -> Lorebook:
        with self._characters.changing:
            character = self._characters.get(ident)
            book = character.character_book or Lorebook()
            if revision is not None and revision != revision_of(book):
                raise StaleView("The lorebook was changed in another tab.", remedy="Look at it again, then change it.")
            changed = book.model_copy(update=settings | {"entries": change(book)})
            if len(changed.entries) > MAX_ENTRIES:
                raise BadCharacter(
                    f"The lorebook would have {len(changed.entries):,} entries.",
                    remedy=f"Snug takes up to {MAX_ENTRIES:,}: delete some first.",
                )
            kept = None if changed == Lorebook() else changed
            told = character.model_copy(update={"character_book": kept})
            _require_room(told)
            self._characters.save(ident, told, None)
            return self.book(ident)  # as it is read from now on


def revision_of(book: Lorebook) -> str:
    """Another text after every change of a book."""
    return hashlib.sha256(json.dumps(book.model_dump(mode="json")).encode()).hexdigest()[:20]


def _require_room(character: Character) -> None:
    """Raise BadCharacter where the character's file could not be read again."""
    size = len(card.to_json(character).encode("utf-8", "replace"))
    if size > card.MAX_JSON_BYTES:
        raise BadCharacter(
            f"{character.name} would have {format_size(size)} of text with it; Snug reads cards up to "
            f"{format_size(card.MAX_JSON_BYTES)}.",
            remedy="Shorten it, or delete other entries first.",
        )


def _place(book: Lorebook, at: int) -> int:
    if not 0 <= at < len(book.entries):
        raise NotFound("There is no such entry.", remedy="It may have been deleted in another tab; look again.")
    return at


def _words(entry: LoreEntry) -> str:
    return json.dumps([entry.keys, entry.secondary_keys, entry.content])
