"""Conversations of a file → the list: kept, but for those that are in the list already, word for word.

What a file holds is importing.py's to say; `digest` says what counts as the same conversation.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from modules.attachments.extracted import MAX_PICTURE_SIDE, Extracted
from modules.attachments.extracting import Extractor, Read
from modules.chat.aside import Aside
from modules.chat.importing import Skipped, drawn, read_file
from modules.chat.packing import printable
from modules.chat.shelf import Outline, Shelf
from modules.chat.trees import MOST_PICTURE_BYTES, Tree, TreeFile
from modules.engine.turns import Turns
from modules.errors import BadAttachment
from modules.messages import Conversation

_DIGEST_SIGNS = 24
DRAW_S = 120.0  # for the pictures of one file
STRETCH_S = 5.0  # of drawing, then whoever waits has a turn
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Known:
    """A conversation of a file that is in the list already."""

    digest: str
    title: str


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What came of a file. `skipped` could not be read; `notes` are about what was left out of those taken."""

    imported: tuple[Conversation, ...]
    messages: int
    known: tuple[Known, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]

    def as_json(self, tell: Callable[[str], str] = str) -> dict[str, Any]:
        """For the page, in the language that `tell` speaks."""
        return {
            "imported": [{"id": item.id, "title": printable(item.title) or tell("New chat")} for item in self.imported],
            "messages": self.messages,
            "known": [{"digest": item.digest, "title": printable(item.title)} for item in self.known],
            "skipped": [{"where": printable(item.where), "why": tell(printable(item.why))} for item in self.skipped],
            "notes": [tell(printable(note)) for note in self.notes],
        }


def take_in(
    shelf: Shelf,
    owner: str,
    text: str,
    extractor: Extractor,
    *,
    only: Sequence[str] | None = None,
    aside: Aside | None = None,
    turns: Turns | None = None,
    may: Callable[[], bool] = lambda: True,
) -> TakenIn:
    """Keep the conversations of a file's text. With `only` those of these digests, though they are there already.

    `aside` has the pictures for which references stand in the text. Pictures are drawn anew by `extractor`, within
    DRAW_S and a second for each megabyte; what takes longer is left out. Files that share `turns` are read one at a
    time, and drawn by turns.
    Raises StoreFailed, QueueFull, Busy, or Unauthorized where the owner `may` no more; then nothing of it is kept.
    """
    turns = turns or Turns()
    with turns.turn(owner):
        read = read_file(text)
        trees = [aside.filled(tree) for tree in read.trees] if aside else read.trees
    with shelf.comparing.of(owner):
        new, known = _new(shelf, owner, trees) if only is None else (_of_digests(trees, only), [])
    added = shelf.add(owner, _drawn(new, _Drawing(owner, extractor, turns)), may=may)
    return TakenIn(added, sum(len(tree.messages) for tree in new), tuple(known), read.skipped, read.notes)


def _said_by(file: TreeFile) -> list[str]:
    # JPEG drawn anew is another file each time.
    kept = file.picture and not file.picture.startswith(b"\xff\xd8")
    return [file.name, file.text, *([hashlib.sha256(file.picture).hexdigest()] if kept else [])]


class _Drawing:
    """Draws pictures, a stretch at a time while others wait for their turn."""

    def __init__(self, owner: str, extractor: Extractor, turns: Turns) -> None:
        self._owner, self._extractor, self._turns = owner, extractor, turns
        self._read: Read | None = None
        self._began = self._drew_s = 0.0
        self._left_bytes = MOST_PICTURE_BYTES

    def all_of(self, trees: Sequence[Tree], most_s: float) -> list[Tree]:
        """`trees` with their pictures drawn anew, but for those that would be drawn after `most_s`, or would be more
        than a conversation holds: drawn anew a file may be a hundred times as large. Raises Busy.
        """
        with ExitStack() as held:

            def draw(name: str, data: bytes, *, most_side: int = MAX_PICTURE_SIDE) -> Extracted:
                read = self._in_turn(held)
                if self._drew_s + time.monotonic() - self._began > most_s:
                    raise BadAttachment("The pictures of this file take too long.")
                taken = read(name, data, most_side=most_side)
                if len(taken.picture) > self._left_bytes:
                    raise BadAttachment("The pictures of this file are too large.")
                self._left_bytes -= len(taken.picture)
                return taken

            return [drawn(tree, draw) for tree in trees]

    def _in_turn(self, held: ExitStack) -> Read:
        now = time.monotonic()
        if self._read is not None and self._turns.wanted and now - self._began > STRETCH_S:
            self._drew_s += now - self._began
            held.close()
            self._read = None
        if self._read is None:
            held.enter_context(self._turns.turn(self._owner))
            self._read = held.enter_context(self._extractor.several())
            self._began = time.monotonic()
        return self._read


def _drawn(trees: Sequence[Tree], drawing: _Drawing) -> list[Tree]:
    if not any(file.kind == "picture" for tree in trees for message in tree.messages for file in message.attachments):
        return list(trees)
    size_bytes = sum(len(file.picture) for tree in trees for message in tree.messages for file in message.attachments)
    return drawing.all_of(trees, DRAW_S + size_bytes / MB)


def digest(tree: Tree) -> str:
    """The same for conversations that say the same: messages, versions, files; not title, folder, times, figures."""
    said = [
        [message.parent, message.role, message.content, [_said_by(file) for file in message.attachments]]
        for message in tree.messages
    ]
    whole = json.dumps([tree.system_prompt, tree.setup.character, said])
    return hashlib.sha256(whole.encode()).hexdigest()[:_DIGEST_SIGNS]


def _new(shelf: Shelf, owner: str, trees: Iterable[Tree]) -> tuple[list[Tree], list[Known]]:
    """Those that are not in the list yet, nor twice among themselves, and the others."""
    candidates = shelf.alike(owner)
    sizes: dict[str, int] = {}
    digests: dict[str, str] = {}
    new: list[Tree] = []
    known: list[Known] = []
    seen: set[str] = set()
    for tree in trees:
        mark, size = digest(tree), _size(tree)
        for ident in candidates.get(outline(tree), ()):
            if ident not in sizes:
                sizes[ident] = shelf.size(owner, ident)
            if sizes[ident] == size and ident not in digests:
                digests[ident] = digest(shelf.tree(owner, ident))
            if digests.get(ident) == mark:
                seen.add(mark)
        if mark in seen:
            known.append(Known(mark, tree.title))
        else:
            new.append(tree)
            seen.add(mark)
    return new, known


def _size(tree: Tree) -> int:
    """Bytes of what is said in it, as Shelf.size tells them."""
    return sum(len(message.content.encode("utf-8", "surrogatepass")) for message in tree.messages)


def outline(tree: Tree) -> Outline:
    """What is quickly known of a conversation, as Shelf.alike tells it: how many messages, how they begin and end."""
    texts = [message.content for message in tree.messages]
    return Shelf.outline(len(texts), texts[0] if texts else "", texts[-1] if texts else "")


def _of_digests(trees: Iterable[Tree], digests: Sequence[str]) -> list[Tree]:
    left = Counter(digests)
    found = []
    for tree in trees:
        mark = digest(tree)
        if left[mark] > 0:
            left[mark] -= 1
            found.append(tree)
    return found
