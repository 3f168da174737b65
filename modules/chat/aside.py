"""Pictures of a large file of conversations, left where they lie until they are wanted.

A conversation is text of some megabytes with pictures of hundreds. `set_aside` gives the text, in which references
stand for the pictures, so that only the text is parsed; `Aside` finds them again. Whether a picture is one is not
known here.
"""

from __future__ import annotations

import base64
import mmap
import re
from dataclasses import replace
from typing import IO

from modules.attachments.picture import MAX_KEPT_BYTES
from modules.chat.trees import Tree, TreeFile

MOST_BASE64 = MAX_KEPT_BYTES * 4 // 3 + 4
_LEAST_BASE64 = 2**14  # shorter ones do no harm in the text
_PICTURE = re.compile(rb'"picture": ?"([A-Za-z0-9+/=]{%d,%d})"' % (_LEAST_BASE64, MOST_BASE64))
_REFERENCE = re.compile(r"@\d{1,15}")


def is_reference(picture: str) -> bool:
    """Whether a picture's text may stand for one that was set aside."""
    return _REFERENCE.fullmatch(picture) is not None


class Aside:
    """The pictures that stand in a file, by reference. Each is given out once: a file may repeat a reference."""

    def __init__(self, file: IO[bytes], places: dict[bytes, tuple[int, int]]) -> None:
        """`file` stays open as long as this is used."""
        self._file = file
        self._places = places

    def filled(self, tree: Tree) -> Tree:
        """`tree` with its pictures in the places of their references."""
        messages = tuple(
            replace(message, attachments=tuple(map(self._filled, message.attachments)))
            if message.attachments
            else message
            for message in tree.messages
        )
        return replace(tree, messages=messages)

    def _filled(self, file: TreeFile) -> TreeFile:
        place = self._places.pop(file.picture, None)
        if place is None:
            return file
        self._file.seek(place[0])
        text = self._file.read(place[1] - place[0])
        try:
            return replace(file, picture=base64.b64decode(text, validate=True))
        except ValueError:
            return replace(file, picture=b"")


def set_aside(file: IO[bytes]) -> tuple[bytes, Aside]:
    """The text of a file on the disk without its large pictures, and those."""
    file.seek(0, 2)
    if not file.tell():
        return b"", Aside(file, {})
    text, places, at = bytearray(), {}, 0
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        for found in _PICTURE.finditer(whole):
            reference = b"@%d" % found.start(1)
            places[reference] = found.span(1)
            text += whole[at : found.start(1)] + reference
            at = found.end(1)
        text += whole[at:]
    return bytes(text), Aside(file, places)
