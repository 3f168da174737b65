"""A character's lorebook on the page: its entries, which of them the open conversation calls for, changes, files."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from modules.characters.character import Lorebook, LoreEntry
from modules.characters.lore_editing import MAX_ENTRY_CHARACTERS, BookFields, EntryFields, LoreEditing, revision_of
from modules.characters.lorebook import DEFAULT_SCAN_DEPTH, Verdict
from modules.chat.lore import LoreNow
from modules.errors import NotFound
from modules.services import Services
from modules.ui.views import Json, printable
from modules.ui.widgets import Body, decoded
from modules.ui.words import told

SHOWN_AT_ONCE = 100
_SHOWN_CHARACTERS = 160
_SHOWN_KEYS = 12


class Look(Body):
    """Entries of a character's lorebook, beside the conversation that is open on the page."""

    id: str = Field(max_length=200)
    query: str = Field(default="", max_length=200)
    limit: int = Field(default=SHOWN_AT_ONCE, ge=1, le=20_000)
    conversation: str | None = Field(default=None, max_length=64)
    draft: str = Field(default="", max_length=MAX_ENTRY_CHARACTERS)


class Place(Look):
    """One entry of the book as the page has seen it."""

    revision: str = Field(max_length=40)
    at: int = Field(ge=0)


class Entry(Place):
    """An entry as edited; a new one stands at -1."""

    at: int = Field(ge=-1)
    fields: EntryFields


class Switch(Place):
    enabled: bool


class Restore(Look):
    """An entry that was deleted, whole."""

    at: int = Field(ge=0)
    entry: dict[str, Any]


class Configure(Look):
    revision: str = Field(max_length=40)
    fields: BookFields


class File(Look):
    """A lorebook file; `data` is base64."""

    name: str = Field(max_length=1000)
    data: str


class LorebookDoors:
    """What the lorebook's dialog may ask for; every answer is the whole view, for static/lorebook.js."""

    def __init__(self, services: Services) -> None:
        self.everybody = services.library
        self.now = LoreNow(services.models, services.store, services.prompts, services.chat)
        self.store = services.store

    def lorebook(self, owner: str, body: Look) -> Json:
        """The entries that a query names, the first `limit` of them."""
        return self._view(owner, body, self._editing(owner).book(body.id))

    def lore_entry(self, owner: str, body: Place) -> Json:
        """One entry whole, for its editor."""
        book = self._editing(owner).book(body.id)
        if body.revision != revision_of(book) or body.at >= len(book.entries):
            raise NotFound("The lorebook was changed in another tab.", remedy="Look at it again.")
        return {"entry": _fields(book.entries[body.at])}

    def save_lore(self, owner: str, body: Entry) -> Json:
        """Change an entry or add one."""
        at = None if body.at < 0 else body.at
        return self._view(owner, body, self._editing(owner).put(body.id, body.revision, at, body.fields))

    def switch_lore(self, owner: str, body: Switch) -> Json:
        """Switch an entry on or off."""
        return self._view(
            owner, body, self._editing(owner).switch(body.id, body.revision, body.at, enabled=body.enabled)
        )

    def delete_lore(self, owner: str, body: Place) -> Json:
        """Take an entry out; `restore_lore` puts it back."""
        book, entry = self._editing(owner).delete(body.id, body.revision, body.at)
        return self._view(owner, body, book) | {"deleted": entry.model_dump(mode="json")}

    def restore_lore(self, owner: str, body: Restore) -> Json:
        """Put back what was deleted."""
        return self._view(owner, body, self._editing(owner).restore(body.id, body.at, body.entry))

    def configure_lore(self, owner: str, body: Configure) -> Json:
        """Change how the book is read."""
        return self._view(owner, body, self._editing(owner).configure(body.id, body.revision, body.fields))

    def import_lore(self, owner: str, body: File) -> Json:
        """Add the entries of a file."""
        name = PurePosixPath(body.name.replace("\\", "/")).name[:80]
        book, added = self._editing(owner).add_file(body.id, decoded(body.data), repr(name))
        return self._view(owner, body, book) | {"added": added.entries, "known": added.known}

    def _editing(self, owner: str) -> LoreEditing:
        return LoreEditing(self.everybody.whose(owner).characters)

    def _view(self, owner: str, body: Look, book: Lorebook) -> Json:
        told = self._verdicts(owner, body, book)
        words = body.query.casefold().split()
        found = [at for at, entry in enumerate(book.entries) if _holds(entry, words)]
        return {
            "id": body.id,
            "revision": revision_of(book),
            "entries": [_row(book, at, told[at] if told else None) for at in found[: body.limit]],
            "found": len(found),
            "all": len(book.entries),
            "firing": sum(verdict.fires for verdict in told) if told is not None else None,
            "scan_depth": book.scan_depth,
            "token_budget": book.token_budget,
            "recursive_scanning": book.recursive_scanning,
            "usual_depth": DEFAULT_SCAN_DEPTH,
        }

    def _verdicts(self, owner: str, body: Look, book: Lorebook) -> tuple[Verdict, ...] | None:
        """What the open conversation calls for, None where it is not with this character."""
        if not body.conversation:
            return None
        try:
            conversation = self.store.get(owner, body.conversation)
        except NotFound:  # it has ended, or was deleted in another tab
            return None
        if conversation.setup.character != body.id or conversation.setup.manner == "instruct":
            return None
        return self.now.verdicts(conversation, book, body.draft)


def _holds(entry: LoreEntry, words: list[str]) -> bool:
    if not words:
        return True
    text = "\n".join((entry.comment, *entry.keys, *entry.secondary_keys, entry.content)).casefold()
    return all(word in text for word in words)


def _row(book: Lorebook, at: int, verdict: Verdict | None) -> Json:
    entry = book.entries[at]
    keys = [printable(key)[:60] for key in entry.keys if key.strip()]
    return {
        "at": at,
        "title": printable(entry.comment)[:120],
        "keys": keys[:_SHOWN_KEYS],
        "more_keys": max(0, len(keys) - _SHOWN_KEYS),
        "about": printable(" ".join(entry.content.split())[:_SHOWN_CHARACTERS]),
        "enabled": entry.enabled,
        "constant": entry.constant,
        "fires": verdict.fires if verdict else None,
        "reason": told(verdict.reason) if verdict else "",
    }


def _fields(entry: LoreEntry) -> Json:
    return {
        "comment": printable(entry.comment)[:200],
        "keys": [printable(key) for key in entry.keys],
        "secondary_keys": [printable(key) for key in entry.secondary_keys],
        "content": printable(entry.content),
        "enabled": entry.enabled,
        "constant": entry.constant,
        "case_sensitive": entry.case_sensitive,
        "insertion_order": entry.insertion_order,
        "position": "before_char" if entry.position == "before_char" else "after_char",
        "expressions": sum(map(entry.is_expression, entry.keys)),
    }
