"""Pictures from strangers: drawn anew, upright and in size, or refused with what to do instead."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from modules.attachments.extracting import Extractor
from modules.attachments.picture import MAX_PIXELS, read_picture
from modules.attachments.reading import read
from modules.characters.pictures import kept_picture
from modules.errors import BadAttachment
from modules.pictures import MOST_SCANS
from tests.small_files import endless_jpeg

RED, BLUE = (255, 0, 0), (0, 0, 255)


def halves(width: int = 400, height: int = 200, mode: str = "RGB") -> Image.Image:
    """Blue on the left, red on the right."""
    image = Image.new(mode, (width, height), RED if mode != "RGBA" else (*RED, 255))
    image.paste(BLUE if mode != "RGBA" else (*BLUE, 0), (0, 0, width // 2, height))
    return image


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def near(found: Any, wanted: tuple[int, int, int]) -> bool:
    return all(abs(one - other) < 12 for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("form", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg"), ("WEBP", "image/png")])
def test_a_picture_is_taken_by_what_it_holds_and_drawn_anew(form: str, media_type: str) -> None:
    taken = read(saved(halves(), form), "notes.txt", most_side=1000)
    assert (taken.kind, taken.text, taken.cut) == ("picture", "", "")
    assert (taken.width, taken.height, taken.media_type) == (400, 200, media_type)
    with Image.open(io.BytesIO(taken.picture)) as image:
        assert image.size == (400, 200) and image.mode == "RGB"
        assert near(image.getpixel((10, 100)), BLUE) and near(image.getpixel((390, 100)), RED)


def test_too_large_ones_are_scaled_and_say_so() -> None:
    taken = read_picture(saved(halves(), "PNG"), "a.png", most_side=100)
    assert (taken.width, taken.height) == (100, 50)
    assert taken.cut == "Scaled from 400 × 200 to 100 × 50 pixels."


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_it_and_is_not_kept(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = turn, "where I live"
    taken = read_picture(saved(halves(), "JPEG", exif=exif, comment=b"my name"), "a.jpg", most_side=100)
    assert b"where I live" not in taken.picture and b"my name" not in taken.picture
    with Image.open(io.BytesIO(taken.picture)) as image:
        assert not image.getexif()
        assert image.size == ((50, 100) if turn > 4 else (100, 50))
        blue = {1: (10, 25), 2: (90, 25), 3: (90, 25), 4: (10, 25), 5: (25, 10), 6: (25, 10), 7: (25, 90), 8: (25, 90)}
        assert near(image.getpixel(blue[turn]), BLUE)
    if turn > 4:
        assert taken.cut == "Scaled from 200 × 400 to 50 × 100 pixels."


def directory(entries: int, size: int) -> bytes:
    """EXIF of `size` bytes in which each of `entries` says that all the rest is its own."""
    each = b"".join(struct.pack("<HHII", 0x8000 + number, 1, size - 8, 8) for number in range(entries))
    return (b"II*\0" + struct.pack("<IH", 8, entries) + each).ljust(size, b"\0")


def jpeg_with(segments: list[bytes]) -> bytes:
    plain = saved(halves(), "JPEG")[20:]  # without what says its resolution, for which EXIF is asked else
    return b"\xff\xd8" + b"".join(struct.pack(">HH", 0xFFE1, len(one) + 2) + one for one in segments) + plain


@pytest.mark.parametrize("draw", [kept_picture, lambda data, where: read_picture(data, where, most_side=100)])
def test_exif_that_points_at_itself_a_thousand_times_costs_nothing(draw: Callable[[bytes, str], Any]) -> None:
    exif = directory(1000, 1_000_000)
    pieces = [b"Exif\0\0" + exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    tracemalloc.start()
    try:
        for data in (saved(halves(), "PNG", exif=exif), saved(halves(), "WEBP", exif=exif), jpeg_with(pieces)):
            draw(data, "a")
        assert tracemalloc.get_traced_memory()[1] < 30_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_characters_are_turned_too(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(kept_picture(saved(halves(), form, exif=exif), "a"))) as image:
        assert image.size == (200, 400)
        assert near(image.getpixel((100, 50)), BLUE)


def test_what_is_see_through_lies_on_white_and_other_modes_become_rgb() -> None:
    for image, wanted in (
        (halves(mode="RGBA"), (255, 255, 255)), (halves().convert("P"), BLUE), (halves().convert("L"), (29, 29, 29)),
        (Image.new("I;16", (400, 200), 65535), (255, 255, 255)),
        (halves().convert("1", dither=Image.Dither.NONE), (0, 0, 0)),
    ):  # fmt: skip
        taken = read_picture(saved(image, "PNG"), "a.png", most_side=500)
        with Image.open(io.BytesIO(taken.picture)) as drawn:
            assert drawn.mode == "RGB" and near(drawn.getpixel((10, 100)), wanted), image.mode


def bomb(width: int, height: int) -> bytes:
    """A PNG that says that it has so many pixels, and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 99)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bomb(60_000, 60_000), "pixels"),
        (bomb(MAX_PIXELS, 2), "pixels"),
        (bomb(20_000, 10), "too narrow"),
        (bomb(500, 500), "damaged picture"),
        (b"\x89PNG\r\n\x1a\n", "damaged picture"),
        (endless_jpeg(100_000), "drawn over"),
        (b"\xff\xd8\xff\xe0" + b"x" * 50, "damaged picture"),
        (b"RIFF\x00\x00\x00\x00WEBP", "damaged picture"),
        (saved(Image.effect_noise((400, 200), 90), "PNG")[:-900], "damaged picture"),
        (saved(halves(), "GIF"), "Save it as PNG"),
        (saved(halves(), "BMP"), "Save it as PNG"),
        (saved(halves(), "TIFF"), "Save it as PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", ""),
    ],
)
def test_bombs_and_ruins_are_refused_with_a_remedy_and_svg_stays_text(data: bytes, said: str) -> None:
    if not said:
        assert read(data, "a.svg").kind == "text"
        return
    with pytest.raises(BadAttachment) as refused:
        read(data, "a.png", most_side=1000)
    assert said in f"{refused.value.message} {refused.value.remedy}" and refused.value.remedy


def test_a_jpeg_in_a_few_passes_is_an_ordinary_one() -> None:
    image = Image.effect_noise((640, 480), 60).convert("RGB")
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=95, progressive=True)
    assert read_picture(sink.getvalue(), "a.jpg", most_side=500).kind == "picture"
    assert read_picture(endless_jpeg(MOST_SCANS - 1), "a.jpg", most_side=500).width == 64


def test_animations_show_their_first_frame() -> None:
    frames = [Image.new("RGB", (80, 60), BLUE), Image.new("RGB", (80, 60), RED)]
    film = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    taken = read_picture(film, "a.webp", most_side=100)
    with Image.open(io.BytesIO(taken.picture)) as image:
        assert near(image.getpixel((40, 30)), BLUE)


def test_a_picture_is_read_in_a_process_of_its_own() -> None:
    extractor = Extractor()
    try:
        taken = extractor.extract("a.png", saved(halves(), "PNG"), most_side=64)
        assert taken.as_picture().data == taken.picture != b""
        assert (taken.width, taken.height) == (64, 32)
        with pytest.raises(BadAttachment, match="damaged"):
            extractor.extract("b.png", bomb(4_000, 4_000), most_side=64)
    finally:
        extractor.close()
