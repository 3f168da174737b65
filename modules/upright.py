"""Which way up a picture from a stranger is: the one thing that its EXIF is asked, and all of it that is read.

Pillow's own reader copies what every entry of the directory points at, and a thousand entries may point at the same
megabytes.
"""

from __future__ import annotations

import io
import re
from typing import Literal

from PIL import Image

from modules.units import KiB

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


def opened(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """What `Image.open` makes of a file, with its EXIF as bytes nobody has read: of a JPEG's, Pillow reads it at once.

    Raises what `Image.open` raises.
    """
    if not data.startswith(_JPEG):
        return Image.open(io.BytesIO(data), formats=formats)
    image = Image.open(io.BytesIO(_SEVERAL.sub(rb"\1none", data.replace(_MARK, _HIDDEN))), formats=formats)
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
