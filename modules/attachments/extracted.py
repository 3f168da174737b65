"""What Snug takes of a file that people attach: values and limits. It keeps text or a new picture, never the file."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from modules.errors import BadAttachment
from modules.messages import FileKind, Picture, PictureType
from modules.units import MiB

MAX_FILE_BYTES = 32 * MiB
MAX_CHARACTERS = 500_000  # of one file's text, some 125,000 tokens
MAX_PICTURE_SIDE = 8192
MAX_FILES = 10  # with one message
MAX_NAME_CHARACTERS = 120
MAX_ABOUT_CHARACTERS = 400
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\ufffe\uffff\ud800-\udfff]")
_TERMINAL_COLOURS = re.compile("\x1b\\[[0-9;?]*[A-Za-z]")
_BLANKS = re.compile(r"(?<![ \t])[ \t]+\n")  # from a run's first blank only: else quadratic
_EMPTY_LINES = re.compile(r"\n{4,}")


@dataclass(frozen=True, slots=True)
class Extracted:
    """A file's text. `about` says what it was read as, `cut` in a sentence what was left out, "" for nothing.

    Of a picture there is no text but `picture`, a new file of `media_type` with the size `width` × `height`.
    """

    kind: FileKind
    text: str
    about: str
    cut: str = ""
    picture: bytes = field(default=b"", repr=False)
    media_type: PictureType | Literal[""] = ""
    width: int = 0
    height: int = 0

    def as_picture(self) -> Picture:
        """What a model that sees gets of a picture."""
        return Picture(self.width, self.height, self.media_type or "image/png", self.picture)


def refuse(message: str, remedy: str) -> NoReturn:
    """Raise BadAttachment."""
    raise BadAttachment(message, remedy=remedy)


def clean_name(name: str) -> str:
    """A file's name as it is shown, stored and told to the model: one line of printable text, never a path."""
    last = re.split(r"[/\\]", name)[-1]
    shown = "".join(" " if unicodedata.category(sign)[0] in "CZ" else sign for sign in last)
    plain = " ".join(shown.split())
    if len(plain) <= MAX_NAME_CHARACTERS:
        return plain or "file"
    stem, dot, ending = plain.rpartition(".")
    ending = f"{dot}{ending}" if stem and len(ending) <= 10 else ""
    return f"{plain[: MAX_NAME_CHARACTERS - 1 - len(ending)]}…{ending}"


def clean_text(text: str) -> str:
    """`text` with plain line ends, without control characters, trailing blanks and runs of empty lines."""
    lines = _TERMINAL_COLOURS.sub("", text).replace("\r\n", "\n").replace("\r", "\n").replace("\x0c", "\n")
    return _EMPTY_LINES.sub("\n\n\n", _BLANKS.sub("\n", _UNPRINTABLE.sub("", lines))).strip("\n\ufeff")


def shortened(text: str) -> tuple[str, str]:
    """The text up to MAX_CHARACTERS, at a line's end if one is near, and a sentence about what was cut."""
    if len(text) <= MAX_CHARACTERS:
        return text, ""
    kept = cut_at_line(text, MAX_CHARACTERS)
    return kept, first_of(len(kept), len(text))


def cut_at_line(text: str, characters: int) -> str:
    """At most so many characters of `text`, to the last line's end if that is not far."""
    kept = text[:characters]
    end = kept.rfind("\n")
    return kept[:end] if end > len(kept) * 0.9 else kept


def first_of(kept: int, whole: int) -> str:
    """The sentence about a text that was cut."""
    return f"Only the first {kept:,} of {whole:,} characters were taken."
