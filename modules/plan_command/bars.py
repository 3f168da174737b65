"""The picture of a plan in a terminal: one bar a device, stacked by what the bytes are for, a mark at what is free.

Each purpose has a sign of its own, so that a bar reads without colour too, and in ASCII where the terminal has no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from modules.ui.picture import device_title
from modules.ui.plan_values import Bar, Part
from modules.units import format_size

_SMALL = 0.15  # of its device: below it a bar is drawn larger than the device's scale
_SIGNS = {
    "weights": ("█", "#", "blue"), "quant_meta": ("▙", "q", "bright_blue"), "kv_cache": ("▓", "k", "cyan"),
    "idle_cache": ("▖", "i", "bright_cyan"), "draft": ("▛", "m", "bright_magenta"),
    "adapters": ("▟", "r", "magenta"), "embeddings": ("▥", "e", "yellow"),
    "gradients": ("▚", "g", "magenta"), "optimizer": ("▞", "o", "bright_magenta"),
    "offload_buffer": ("▦", "b", "bright_cyan"), "prefill_peak": ("▒", "p", "yellow"),
    "decode_peak": ("▒", "p", "yellow"), "picture_peak": ("▒", "p", "yellow"), "activations": ("▒", "p", "yellow"),
    "dequant_buffer": ("▤", "d", "bright_yellow"), "allocator": ("░", "a", "green"),
    "context": ("▄", "c", "bright_black"), "loading": ("▁", "l", "white"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Signs:
    """What the parts and marks of a bar are drawn with."""

    ascii_only: bool = False

    def part(self, kind: str) -> tuple[str, str]:
        """(sign, colour) of a purpose."""
        block, letter, colour = _SIGNS[kind]
        return (letter if self.ascii_only else block), colour

    @property
    def free(self) -> str:
        """Where what is free ends."""
        return "|" if self.ascii_only else "┃"

    @property
    def others(self) -> str:
        """What other programs hold."""
        return "-" if self.ascii_only else "╌"

    @property
    def more(self) -> str:
        """Where the bar ends and its device goes on."""
        return "..." if self.ascii_only else "…"

    @property
    def room(self) -> str:
        """What stays free."""
        return "." if self.ascii_only else "·"


def draw(bars: Sequence[Bar], width: int, signs: Signs) -> list[Text]:
    """The lines of all bars, `width` cells wide, with what the marks mean below."""
    lines = [line for bar in bars for line in (*_bar_lines(bar, width, signs), Text())]
    marks = [f"{signs.room} stays free", f"{signs.free} free up to here"]
    if any(bar.device.free_bytes < bar.device.total_bytes for bar in bars):
        marks.append(f"{signs.others} other programs, the system")
    return [*lines, Text("   ".join(marks), style="dim")] if bars else []


def _bar_lines(bar: Bar, width: int, signs: Signs) -> list[Text]:
    """A device: its name and sum, the bar, and what its parts are."""
    head = Text.assemble((device_title(bar.device.id), "bold"))
    if bar.device.kind == "cuda":
        head.append(f", {bar.device.name}")
    head.append(f": {_sum(bar)}", style="red" if bar.lacks else "")
    return [head, _stack(bar, width, signs), *_legend(bar, width, signs)]


def _legend(bar: Bar, width: int, signs: Signs) -> list[Text]:
    """What the parts are, with their bytes, each kept in one line."""
    lines = [Text()]
    for part in bar.parts():
        sign, colour = signs.part(part.kind)
        item = Text.assemble((sign, colour), f" {part.title} {format_size(part.bytes)}   ")
        if len(lines[-1]) + len(item.plain.rstrip()) > width:
            lines.append(Text())
        lines[-1].append_text(item)
    return lines


def _sum(bar: Bar) -> str:
    """`9.3 GiB of 11.8 GiB free (9.1 GiB to 9.5 GiB)`."""
    budget = bar.budget
    if bar.device.kind == "disk":
        return f"{format_size(budget.total)} are read there, {format_size(bar.device.free_bytes)} stay free"
    told = f"{format_size(budget.total)} of {format_size(bar.device.free_bytes)} free"
    if budget.margin:
        told += f" ({format_size(budget.low)} to {format_size(budget.high)})"
    return f"{told}: lacks {format_size(bar.lacks, up=True)}" if bar.lacks else told


def _stack(bar: Bar, width: int, signs: Signs) -> Text:
    """The bar itself. Where the model is small beside its device, the bar's end stands for a part of that alone."""
    total, device = bar.budget.total, bar.device
    if device.kind == "disk":
        return _files(bar, width, signs)
    small = total < _SMALL * device.total_bytes
    end = f" {signs.more} {format_size(device.total_bytes)}" if small else ""
    cells = width - len(end)
    span = 2 * max(1, total) if small else max(device.total_bytes, total)
    line = Text()
    parts = bar.parts()
    for part, count in zip(parts, _cells(parts, span, cells), strict=True):
        sign, colour = signs.part(part.kind)
        line.append(sign * count, style=colour)
    taken = len(line)
    free = cells if small else min(cells, round(device.free_bytes / span * cells))
    if bar.over:
        line.stylize("red", free)
    line.append(signs.room * (free - taken), style="dim")
    line.append(signs.others * (cells - len(line)), style="dim")
    if free < cells:
        line = Text.assemble(line[:free], (signs.free, "bold"), line[free + 1 :])
    return line.append(end, style="dim")


def _files(bar: Bar, width: int, signs: Signs) -> Text:
    """A disk: the model's own files are among what is there already, and fill nothing that is free."""
    device, line = bar.device, Text()
    span = max(device.total_bytes, bar.budget.total, 1)
    parts = bar.parts()
    for part, count in zip(parts, _cells(parts, span, width), strict=True):
        sign, colour = signs.part(part.kind)
        line.append(sign * count, style=colour)
    room = round(min(device.free_bytes, span - bar.budget.total) / span * width)
    line.append(signs.others * (width - len(line) - room), style="dim")
    return line.append(signs.room * room, style="dim")


def _cells(parts: Sequence[Part], span: int, cells: int) -> list[int]:
    """How many cells each part gets: its share of `span`, rounded so that the sum is right; none vanishes."""
    counts: list[int] = []
    for part in parts:
        end = round((part.start + part.bytes) / span * cells)
        counts.append(max(1, end - sum(counts)))
    while sum(counts) > cells and max(counts, default=0) > 1:
        counts[counts.index(max(counts))] -= 1
    return counts
