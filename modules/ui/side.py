"""The list of conversations at the side: what the page may ask for there, files in and out included.

Every answer is JSON for static/side.js and static/files.js.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Annotated, Literal

from pydantic import Field

from modules.accounts.person import Person
from modules.chat.exporting import MOST_OF_ONE, json_piece, to_markdown
from modules.chat.incognito import is_incognito
from modules.chat.searching import Found
from modules.chat.taking_in import take_in
from modules.chat.trash import Deletion
from modules.errors import Busy, NotFound
from modules.few import FIRST_FAULT
from modules.messages import Conversation
from modules.on_behalf import UNTIL_ANSWERED, OwnPlaces
from modules.services import Services
from modules.ui.views import Json, printable
from modules.ui.widgets import Body, Pick
from modules.ui.words import t, told

EXPORTED_AT_ONCE = 200
EXPORT_S = 120.0  # to wait for another export of the same person
MOST_EXPORTED = 16_000_000  # characters in one answer; a conversation alone may have more


class Look(Body):
    """What of the list is on show; `incognito` names what this page alone knows of."""

    query: str = Field(default="", max_length=1000)
    folder: str | None = Field(default=None, max_length=64)
    limit: int = Field(default=100, ge=1, le=100_000)
    deleted: bool = False
    incognito: list[str] = Field(default=[], max_length=50)


class Rename(Pick):
    title: str = Field(max_length=200)


class Pin(Pick):
    pinned: bool


class Move(Pick):
    folder: str | None = Field(max_length=64)


class FolderName(Body):
    """A new name for a folder; without an id, a new folder."""

    id: str | None = Field(default=None, max_length=64)
    name: str = Field(max_length=80)


class Export(Body):
    """Conversations to write; without ids the answer lists all."""

    ids: list[str] | None = Field(default=None, max_length=EXPORTED_AT_ONCE)
    format: Literal["json", "markdown"] = "json"


class Import(Body):
    """A file's text, or a piece of it that is a file by itself; `only`: digests of what is taken though it is known."""

    text: str
    only: Annotated[list[str], FIRST_FAULT] | None = Field(default=None, max_length=100_000)


class SideDoors:
    """The list and what is done to whole conversations."""

    def __init__(self, services: Services) -> None:
        self.store, self.chat = services.store, services.chat
        self.shelf, self.extractor, self.still_in = services.store.shelf, services.extractor, services.still_in
        self._exporting, self._searching = OwnPlaces(1), OwnPlaces(1)

    def conversations(self, owner: str, body: Look) -> Json:
        """What the list shows: deleted conversations, what holds a query, or all, of a folder or of all."""
        answer: Json = {
            "revision": str(self.shelf.revision(owner)),
            "folders": self._folders(owner),
            "indexing": self._indexing(),
        }
        if body.deleted:
            items = [_deleted(item) for item in self.shelf.deleted(owner)]
            return answer | {"items": items[: body.limit], "more": len(items) > body.limit}
        folder = body.folder if any(item["id"] == body.folder for item in answer["folders"]) else None
        with self._searching.of(owner) if body.query.strip() else nullcontext():  # it may read all texts
            found = self.shelf.list(owner, body.query.strip(), body.limit + 1, folder)
        secret = [] if body.query.strip() else [_item(Found(item)) for item in self._incognito(owner, body.incognito)]
        items = [_item(item) for item in found[: body.limit]]
        return answer | {"items": secret + items, "more": len(found) > body.limit, "folder": folder}

    def _indexing(self) -> Json | None:
        """How far the search index is, while it is being built."""
        progress = self.store.indexing.progress()
        return {"share": progress.share, "before": progress.before} if progress else None

    def _incognito(self, owner: str, ids: list[str]) -> list[Conversation]:
        found = []
        for ident in filter(is_incognito, ids):
            try:
                found.append(self.store.get(owner, ident))
            except NotFound:  # it has ended
                continue
            self.shelf.see(ident)
        return found

    def _folders(self, owner: str) -> list[Json]:
        return [
            {"id": folder.id, "name": printable(folder.name), "conversations": folder.conversations}
            for folder in self.shelf.folders(owner)
        ]

    def rename(self, owner: str, body: Rename) -> Json:
        """Give a conversation another title."""
        self.store.rename(owner, body.id, body.title)
        return {"done": True}

    def pin(self, owner: str, body: Pin) -> Json:
        """Put a conversation above the others, or back."""
        self.shelf.pin(owner, body.id, body.pinned)
        return {"done": True}

    def move(self, owner: str, body: Move) -> Json:
        """Put a conversation into a folder, or out of any."""
        self.shelf.move(owner, body.id, body.folder)
        return {"done": True}

    def name_folder(self, owner: str, body: FolderName) -> Json:
        """Make a folder, or give one another name."""
        if body.id is None:
            return {"folder": self.shelf.make_folder(owner, body.name).id}
        self.shelf.rename_folder(owner, body.id, body.name)
        return {"folder": body.id}

    def remove_folder(self, owner: str, body: Pick) -> Json:
        """Remove a folder; its conversations stay."""
        self.shelf.remove_folder(owner, body.id)
        return {"done": True}

    def remove(self, owner: str, body: Pick) -> Json:
        """Delete a conversation; `restore` brings it back, but for an incognito one."""
        self.chat.delete_conversation(owner, body.id)
        return {"done": True}

    def restore(self, owner: str, body: Pick) -> Json:
        """Bring a deleted conversation back."""
        return {"restored": self.shelf.restore(owner, body.id).id}

    def erase(self, owner: str, body: Pick) -> Json:
        """Make a deletion final."""
        self.shelf.erase(owner, body.id)
        return {"done": True}

    def export(self, owner: str, body: Export) -> Json:
        """Pieces of a file, one a conversation; those deleted meanwhile are left out. Without ids, all ids.

        After MOST_EXPORTED characters, pictures among them, the rest has to be asked for: `done` says how many came.
        `too_large` names those that no import would take. Raises Busy: until one is sent a person's others wait.
        """
        if body.ids is None:
            return {"ids": list(self.shelf.ids(owner))}
        with ExitStack() as alone:
            (UNTIL_ANSWERED.get() or alone).enter_context(self._alone(owner))
            return self._pieces(owner, body.ids, body.format)

    @contextmanager
    def _alone(self, owner: str) -> Iterator[None]:
        """One at a time, for each may be hundreds of megabytes, and is held several times over."""
        mine = self._exporting.of(owner)
        if not mine.acquire(timeout=EXPORT_S):
            raise Busy("Another export of yours is under way.", remedy="Try again when it is done.")
        try:
            yield
        finally:
            mine.release()

    def _pieces(self, owner: str, ids: list[str], kind: Literal["json", "markdown"]) -> Json:
        pieces: list[str] = []
        too_large: list[str] = []
        done = 0
        for ident in ids:
            done += 1
            try:
                tree = self.shelf.tree(owner, ident)
            except NotFound:
                continue
            piece = json_piece(tree) if kind == "json" else to_markdown(tree)
            if len(piece) > MOST_OF_ONE - 1000:  # with what stands around it in a file
                too_large.append(printable(tree.title) or t("New chat"))
            else:
                pieces.append(piece)
            if sum(map(len, pieces)) > MOST_EXPORTED:
                break
        return {"pieces": pieces, "done": done, "too_large": too_large}

    def take_in(self, person: Person, body: Import) -> Json:
        """Keep the conversations of a file; the answer tells what was taken, what was there already, what failed."""
        may = self.still_in(person)
        return take_in(self.shelf, person.owner, body.text, self.extractor, only=body.only, may=may).as_json(told)


def _item(found: Found) -> Json:
    """One line of the list, with the place that a search found."""
    conversation, snippet = found.conversation, found.snippet
    return {
        "id": conversation.id,
        "title": printable(conversation.title) or t("New chat"),
        "updated_at": conversation.updated_at,
        "pinned": conversation.pinned,
        "folder": conversation.folder_id,
        "incognito": is_incognito(conversation.id),
        "message": found.message_id,
        "snippet": [printable(snippet.before), printable(snippet.hit), printable(snippet.after)] if snippet else None,
    }


def _deleted(item: Deletion) -> Json:
    """A line of the list of what was deleted."""
    return {"id": item.conversation_id, "title": printable(item.title) or t("New chat"), "updated_at": item.deleted_at}
