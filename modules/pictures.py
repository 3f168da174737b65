"""Pictures from strangers, opened: without what their files can do to Pillow, and which way up they are.

That is the one thing that a picture's EXIF is asked, and all of it that is read: Pillow's own reader copies what every
entry of the directory points at, and a thousand entries may point at the same megabytes.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from PIL import Image

from modules.units import KiB

MOST_SCANS = 128
"""How often a JPEG may be drawn over. Progressive files of cameras, sites and programs have about ten scans."""
_FORMATS = ("PNG", "JPEG", "WEBP")
_SCAN = b"\xff\xda"
_MARK, _HIDDEN = b"Exif\0\0", b"hidden"
_SEVERAL = re.compile(rb"(\xff\xe2..)MPF\0", re.DOTALL)  # a directory too: of other pictures in the same file
_JPEG = b"\xff\xd8\xff"
_ORDERS: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
_ORIENTATION, _SHORT = 0x0112, 3
_ENTRY_BYTES = 12
_MOST_ENTRIES = 1000
_MOST_BYTES = 64 * KiB  # what one segment of a JPEG holds
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Unreadable(Exception):
    """Why a file is no picture that Snug reads, in words."""


@contextmanager
def reading() -> Iterator[None]:
    """Where a picture is opened, decoded and drawn anew: what Pillow says of a damaged one becomes Unreadable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (
        OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise Unreadable(" ".join(str(error).split())[:120].rstrip(".") or type(error).__name__) from error


def opened(data: bytes) -> Image.Image:
    """What `Image.open` makes of a PNG, JPEG or WebP, not yet decoded.

    Its EXIF is left as bytes nobody has read: of a JPEG's, Pillow reads it at once. Raises Unreadable for a JPEG that
    would be decoded for minutes or hours, and what `Image.open` raises.
    """
    if not data.startswith(_JPEG):
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    if data.count(_SCAN) > MOST_SCANS:  # in the compressed data itself the mark never stands
        raise Unreadable("it is a JPEG that is drawn over more often than any real one")
    image = Image.open(io.BytesIO(_SEVERAL.sub(rb"\1none", data.replace(_MARK, _HIDDEN))), formats=_FORMATS)
    _, _, exif = data.partition(_MARK)
    image.info["exif"] = exif[:_MOST_BYTES]
    return image


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """How a picture that is loaded (a PNG's EXIF may come last) is to be turned; None if not at all."""
    exif = image.info.get("exif")
    return _TURNS.get(_orientation(exif.removeprefix(_MARK))) if isinstance(exif, bytes) else None


def lies(turn: Image.Transpose | None) -> bool:
    """Whether that turn makes width of height."""
    return turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])


def _orientation(exif: bytes) -> int:
    """Its tag 0x0112; 0 where there is none, or none that can be read."""
    if exif[:4] not in _ORDERS:
        return 0
    order = _ORDERS[exif[:4]]

    def number(at: int, size: int) -> int:
        return int.from_bytes(exif[at : at + size], order)

    directory = number(4, 4)
    for entry in range(min(number(directory, 2), _MOST_ENTRIES)):
        at = directory + 2 + entry * _ENTRY_BYTES
        if number(at, 2) == _ORIENTATION:
            return number(at + 8, 2) if number(at + 2, 2) == _SHORT else 0
    return 0
