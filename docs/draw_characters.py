"""Draw the pictures of the characters that come with Snug: `python -m docs.draw_characters` writes characters/*.png."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

FOLDER = Path(__file__).parent.parent / "characters"
WIDTH, HEIGHT, FINER = 384, 480, 4
COLOURS = 96

Point = tuple[float, float]


class Canvas:
    """A picture in units of 384 × 480, drawn four times finer and scaled down."""

    def __init__(self, top: str, bottom: str) -> None:
        self.image = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER), top)
        fade = Image.linear_gradient("L").resize(self.image.size)
        self.image.paste(Image.new("RGB", self.image.size, bottom), mask=fade)
        self.draw = ImageDraw.Draw(self.image)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: str, turn: float = 0.0) -> None:
        """An ellipse around (x, y), turned by `turn` degrees."""
        cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        steps = [2 * math.pi * n / 120 for n in range(120)]
        self.shape([(x + rx * math.cos(a) * cos - ry * math.sin(a) * sin,
                     y + rx * math.cos(a) * sin + ry * math.sin(a) * cos) for a in steps], fill)  # fmt: skip

    def shape(self, points: list[Point], fill: str) -> None:
        """A filled polygon."""
        self.draw.polygon([(x * FINER, y * FINER) for x, y in points], fill=fill)

    def line(self, points: list[Point], fill: str, width: float) -> None:
        """A line with round joints and ends."""
        fine = [(x * FINER, y * FINER) for x, y in points]
        self.draw.line(fine, fill=fill, width=round(width * FINER), joint="curve")
        for x, y in (fine[0], fine[-1]):
            half = width * FINER / 2
            self.draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)

    def ring(self, x: float, y: float, radius: float, fill: str, width: float) -> None:
        """A circle's outline."""
        box = tuple(FINER * value for value in (x - radius, y - radius, x + radius, y + radius))
        self.draw.ellipse(box, outline=fill, width=round(width * FINER))

    def glow(self, points: list[Point], colour: str, strength: int, blur: float) -> None:
        """A soft light in the form of a polygon."""
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon([(x * FINER, y * FINER) for x, y in points], fill=strength)
        mask = mask.filter(ImageFilter.GaussianBlur(blur * FINER))
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=mask)
        self.draw = ImageDraw.Draw(self.image)

    def save(self, name: str) -> None:
        """The picture in few colours, so that it stays small."""
        small = self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        few = small.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(FOLDER / f"{name}.png", optimize=True)


def wren() -> None:
    """A small bird with round glasses on a twig, before a morning sun."""
    c = Canvas("#f6e7c8", "#cfe3d6")
    c.oval(262, 150, 96, 96, "#f9d98f")
    for x, y, r in ((40, 470, 130), (210, 500, 150), (370, 480, 120)):
        c.oval(x, y, r, r * 0.75, "#a9cdb6")
    c.line([(0, 392), (130, 380), (250, 384), (384, 362)], "#6b4f3a", 13)
    for x, y, turn in ((52, 368, -38), (338, 345, -30), (318, 392, 30)):
        c.oval(x, y, 24, 10, "#5c9a78", turn)
    c.shape([(84, 232), (22, 128), (62, 118), (132, 222)], "#7d5639")  # the tail stands up
    c.line([(46, 128), (102, 224)], "#65442c", 5)
    c.oval(184, 284, 108, 94, "#94684a", 8)
    c.oval(206, 312, 82, 68, "#f1dcc0", 10)
    c.oval(234, 204, 74, 68, "#94684a")
    c.oval(256, 224, 50, 44, "#f1dcc0")
    c.oval(134, 284, 66, 44, "#7d5639", 28)
    for n in range(3):
        c.line([(98 + 9 * n, 278 + 15 * n), (150 + 9 * n, 302 + 13 * n)], "#65442c", 5)
    c.shape([(300, 204), (350, 218), (300, 234)], "#d88d3a")
    c.line([(304, 219), (338, 219)], "#b8722a", 3)
    for x in (224, 276):
        c.oval(x, 198, 24, 24, "#fff9ec")
        c.oval(x + 3, 200, 10, 11, "#2c2520")
        c.oval(x + 7, 195, 3.5, 3.5, "#ffffff")
        c.ring(x, 198, 27, "#33413a", 5)
    c.line([(198, 194), (168, 184)], "#33413a", 5)
    for x in (176, 214):
        c.line([(x, 368), (x + 4, 388)], "#c07a34", 7)
    c.save("Wren")


def otto() -> None:
    """A lighthouse at night, its beam over the sea."""
    c = Canvas("#18263f", "#4a6a86")
    for n in range(46):
        x, y = (n * 97 + 31) % 384, (n * 53 + 17) % 250
        c.oval(x, y, 1.1 + n % 3 * 0.6, 1.1 + n % 3 * 0.6, "#dfe8f2")
    c.oval(78, 78, 34, 34, "#f3e9cd")
    c.oval(64, 70, 30, 30, "#1d2d48")
    c.glow([(206, 146), (400, 84), (400, 214)], "#ffe9a8", 190, 7)
    c.glow([(186, 146), (-20, 190), (-20, 112)], "#ffe9a8", 90, 9)
    for row in range(6):
        y = 366 + 20 * row
        colour = ("#2e5371", "#284a66", "#22415b", "#1d3850", "#182f45", "#14283b")[row]
        wave = [(x, y + 7 * math.sin(x / 34 + row * 1.7)) for x in range(-6, 392, 6)]
        c.shape([*wave, (392, 490), (-6, 490)], colour)
    c.shape([(84, 410), (112, 366), (166, 348), (240, 346), (290, 372), (316, 412), (262, 434), (130, 434)], "#2a2d33")
    c.shape([(112, 366), (166, 348), (240, 346), (250, 362), (176, 372)], "#3b4048")
    body = [(166, 176), (226, 176), (246, 362), (146, 362)]
    c.shape(body, "#f2ece0")
    for low, high in ((214, 258), (302, 344)):
        left, right = (lambda y: 166 - 20 * (y - 176) / 186), (lambda y: 226 + 20 * (y - 176) / 186)
        c.shape([(left(low), low), (right(low), low), (right(high), high), (left(high), high)], "#b9473c")
    c.shape([(206, 176), (226, 176), (246, 362), (214, 362)], "#d9cfbe")
    for low, high in ((214, 258), (302, 344)):
        right = lambda y: 226 + 20 * (y - 176) / 186  # noqa: E731
        mid = lambda y: 206 + 8 * (y - 176) / 186  # noqa: E731
        c.shape([(mid(low), low), (right(low), low), (right(high), high), (mid(high), high)], "#9a392f")
    c.shape([(152, 166), (240, 166), (234, 180), (158, 180)], "#2b3440")
    c.shape([(172, 120), (220, 120), (220, 166), (172, 166)], "#ffe7a0")
    c.oval(196, 144, 15, 17, "#fffbe6")
    for x in (172, 196, 220):
        c.line([(x, 120), (x, 166)], "#2b3440", 4)
    c.shape([(160, 122), (232, 122), (196, 84)], "#b9473c")
    c.oval(196, 82, 6, 6, "#2b3440")
    c.shape([(184, 326), (208, 326), (208, 362), (184, 362)], "#3d4a58")
    c.oval(196, 326, 12, 12, "#3d4a58")
    c.oval(196, 282, 9, 11, "#ffd982")
    c.save("Otto")


def mira() -> None:
    """A fox with a pencil behind the ear, and paper."""
    c = Canvas("#e9ddea", "#c9cfe6")
    c.oval(192, 210, 168, 168, "#f5eef4")
    c.shape([(64, 480), (92, 398), (148, 368), (236, 368), (292, 398), (320, 480)], "#3f5f6f")
    c.shape([(158, 364), (226, 364), (192, 430)], "#f7f3ee")
    c.shape([(86, 222), (76, 74), (182, 140)], "#c8653a")
    c.shape([(298, 222), (308, 74), (202, 140)], "#c8653a")
    c.shape([(100, 178), (94, 106), (148, 142)], "#4a2f2a")
    c.shape([(284, 178), (290, 106), (236, 142)], "#4a2f2a")
    c.oval(192, 236, 118, 104, "#d9743f")
    c.shape([(70, 246), (46, 310), (140, 334)], "#d9743f")
    c.shape([(314, 246), (338, 310), (244, 334)], "#d9743f")
    c.shape([(46, 310), (92, 268), (152, 262), (192, 316), (192, 372), (128, 346)], "#fbf4ea")
    c.shape([(338, 310), (292, 268), (232, 262), (192, 316), (192, 372), (256, 346)], "#fbf4ea")
    c.oval(192, 336, 46, 40, "#fbf4ea")
    c.oval(192, 322, 17, 12, "#33262a")
    c.oval(187, 317, 5, 3, "#6b5960")
    c.line([(192, 334), (192, 349), (182, 355), (168, 348)], "#33262a", 4)
    c.line([(192, 349), (202, 355), (216, 348)], "#33262a", 4)
    for x in (142, 242):
        c.oval(x, 246, 17, 19, "#33262a")
        c.oval(x + 6, 239, 5.5, 5.5, "#ffffff")
    c.line([(122, 208), (140, 202), (158, 206)], "#a84f2b", 6)
    c.line([(262, 208), (244, 202), (226, 206)], "#a84f2b", 6)
    c.line([(262, 152), (352, 96)], "#e8b93c", 15)
    c.line([(268, 156), (350, 104)], "#cf9c22", 4)
    c.shape([(256, 148), (266, 164), (242, 166)], "#f3dcb4")
    c.shape([(249, 157), (253, 164), (242, 166)], "#33262a")
    c.line([(346, 100), (362, 90)], "#d98a96", 15)
    c.shape([(214, 410), (330, 396), (344, 484), (228, 492)], "#fffdf8")
    for n in range(4):
        c.line([(234, 428 + 14 * n), (316 - 18 * (n % 2), 418 + 14 * n)], "#b9b4c4", 4)
    c.line([(250, 440), (300, 434)], "#c8484f", 4)
    c.save("Mira")


if __name__ == "__main__":
    wren()
    otto()
    mira()
