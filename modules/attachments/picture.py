"""A picture from a stranger → the same picture drawn anew: upright, in size, without anything beside its pixels.

PNG, JPEG and WebP alone, told by what they hold. What comes out is JPEG for photographs, PNG for what came without
loss or see-through. Runs in the process that reads one attached file (worker.py).
"""

from __future__ import annotations

import io

from PIL import Image

from modules.attachments.extracted import Extracted, refuse
from modules.messages import PictureType
from modules.pictures import Unreadable, lies, opened, reading, turn_of
from modules.units import MiB

MAX_PIXELS = 50_000_000
MAX_SIDE = 30_000
MAX_KEPT_BYTES = 12 * MiB
_JPEG_QUALITIES = (92, 75, 50, 25, 10)  # the first that gives a file of MAX_KEPT_BYTES
_BACKGROUND = (255, 255, 255)
_BEGINNINGS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
_REMEDY = "Open it in a program for pictures and save it as PNG or JPEG."


def is_picture(data: bytes) -> bool:
    """Whether bytes begin as those of a picture that Snug reads."""
    return data.startswith(_BEGINNINGS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def read_picture(data: bytes, name: str, *, most_side: int) -> Extracted:
    """The first frame of a picture, no side longer than `most_side` pixels.

    Raises BadAttachment for one that is damaged, has too many pixels or a form that no model could see.
    """
    try:
        with reading():
            image = opened(data)
            _check(image, name)
            came, lossy = image.size, image.format == "JPEG"
            image.draft("RGB", (2 * most_side, 2 * most_side))  # a JPEG decodes to a fraction by itself
            image.load()
            turn = turn_of(image)
            drawn = _drawn(image, most_side, turn)
    except Unreadable as error:
        refuse(f"{name} is a damaged picture: {error}.", _REMEDY)
    cut = ""
    if lies(turn):
        came = came[::-1]
    if max(came) > most_side:
        cut = f"Scaled from {came[0]} × {came[1]} to {drawn.width} × {drawn.height} pixels."
    kept, media_type = _saved(drawn, lossy=lossy)
    return Extracted(
        "picture", "", f"picture, {drawn.width} × {drawn.height}", cut,
        picture=kept, media_type=media_type, width=drawn.width, height=drawn.height,
    )  # fmt: skip


def _check(image: Image.Image, name: str) -> None:
    """Raise BadAttachment by what the header says; nothing is decoded yet."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        refuse(
            f"{name} has {image.width:,} × {image.height:,} pixels; Snug takes {MAX_PIXELS:,} in all.",
            "Make it smaller first.",
        )
    if min(image.size) < 1 or max(image.size) > 100 * min(image.size):
        refuse(f"{name} has {image.width:,} × {image.height:,} pixels: it is too narrow to see.", "Cut out a part.")


def _drawn(image: Image.Image, most_side: int, turn: Image.Transpose | None) -> Image.Image:
    """In size, upright, in RGB; what is see-through lies on white, as most models were shown it."""
    plain = image
    if image.mode.startswith(("I", "F")):  # 16 bits a colour, which would be cut at 255
        plain = image.convert("I").point(lambda value: value / 257).convert("L")
    elif "A" in image.getbands() or "transparency" in image.info:
        plain = image.convert("RGBA")
    elif image.mode != "L":
        plain = image.convert("RGB")
    plain.thumbnail((most_side, most_side), Image.Resampling.LANCZOS)  # first, for it saves memory
    if plain.mode == "RGBA":
        whole = Image.new("RGBA", plain.size, (*_BACKGROUND, 255))
        whole.alpha_composite(plain)
        plain = whole
    plain = plain.convert("RGB") if turn is None else plain.convert("RGB").transpose(turn)
    plain.info = {}
    return plain


def _saved(image: Image.Image, *, lossy: bool) -> tuple[bytes, PictureType]:
    """A file of it; a PNG that grows too large becomes a JPEG, and that one of less quality."""
    if not lossy:
        sink = io.BytesIO()
        image.save(sink, "PNG")
        if sink.tell() <= MAX_KEPT_BYTES:
            return sink.getvalue(), "image/png"
    for quality in _JPEG_QUALITIES:
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=quality, exif=b"")
        if sink.tell() <= MAX_KEPT_BYTES:
            break
    return sink.getvalue(), "image/jpeg"
