"""Pictures from strangers: checked before they are decoded, and always drawn anew before they are kept or shown."""

from __future__ import annotations

import hashlib
import io
from typing import NoReturn

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from modules.errors import BadCharacter
from modules.pictures import Unreadable, opened, reading, turn_of
from modules.units import MiB, format_size

MAX_PICTURE_BYTES = 7 * MiB  # as base64 it must fit into one request
MAX_PIXELS = 16_000_000
KEPT_SIDE = 1024
SHOWN_SIDE = 384
_INKS = ("#3f6f5f", "#5b6b8c", "#8a6a4f", "#7a5a7a", "#4f7a86", "#85704a")


def open_picture(data: bytes, where: str) -> Image.Image:
    """The first frame of a PNG, JPEG or WebP, decoded. Raises BadCharacter for anything else or too much of it."""
    if len(data) > MAX_PICTURE_BYTES:
        _refuse(where, f"is larger than {format_size(MAX_PICTURE_BYTES)}")
    try:
        with reading():
            image = opened(data)
            if image.width * image.height > MAX_PIXELS:
                _refuse(where, f"has {image.width:,} × {image.height:,} pixels; Snug takes {MAX_PIXELS:,} in all")
            image.load()
    except Unreadable as error:
        raise BadCharacter(
            f"{where} is no picture that Snug can read: {error}.", remedy="Use a PNG, JPEG or WebP file."
        ) from error
    return image


def kept_picture(data: bytes, where: str) -> bytes:
    """The picture as a PNG of ours, at most KEPT_SIDE pixels a side. Raises BadCharacter."""
    return as_png(open_picture(data, where), None)


def shown_picture(data: bytes, where: str) -> bytes:
    """The picture as a small WebP for the page. Raises BadCharacter."""
    image = _upright(open_picture(data, where))
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE * 3 // 2))
    sink = io.BytesIO()
    image.save(sink, "WEBP", quality=84)
    return sink.getvalue()


def as_png(image: Image.Image, info: PngInfo | None) -> bytes:
    """`image` as PNG with no other metadata than `info`."""
    image = _upright(image)
    image.thumbnail((KEPT_SIDE, KEPT_SIDE))
    sink = io.BytesIO()
    image.save(sink, "PNG", pnginfo=info, optimize=image.width * image.height < 300_000)
    return sink.getvalue()


def placeholder(name: str) -> Image.Image:
    """A picture for a character that has none: the first letter on a colour that follows from the name."""
    number = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=2).digest()[0]
    image = Image.new("RGB", (400, 600), _INKS[number % len(_INKS)])
    letter = next((character for character in name if character.isalnum()), "?").upper()
    ImageDraw.Draw(image).text((200, 290), letter, fill="#ffffff", font=ImageFont.load_default(220), anchor="mm")
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF says, without EXIF, in colours that PNG and WebP have."""
    turn = turn_of(image)
    turned = image if turn is None else image.transpose(turn)
    plain = turned.convert("RGBA" if "A" in turned.getbands() or "transparency" in turned.info else "RGB")
    plain.info = {}
    return plain


def _refuse(where: str, what: str) -> NoReturn:
    raise BadCharacter(f"{where} {what}.", remedy="Make it smaller.")
