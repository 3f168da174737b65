"""Stacked bars as SVG, one bar a line, light and dark; the colours are those of the Model tab's picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from modules.memory.forecasting.budget import PURPOSE_TITLES, Budget, Purpose
from modules.units import GiB, format_size

_WIDTH, _LEFT, _RIGHT = 860, 176, 96
_BAR, _STEP, _TOP = 30, 50, 64
_LEGEND_COLUMNS, _LEGEND_ROW = 3, 22
_KINDS: dict[Purpose, str] = {"allocator": "peak", "prefill_peak": "peak", "decode_peak": "peak",
                                   "activations": "peak", "dequant_buffer": "peak"}  # fmt: skip
"""What comes and goes has one colour, hatched."""
_KIND_TITLES = {"peak": "comes and goes: activations, buffers"}
_LIGHT = {
    "weights": "#1d6b58", "quant_meta": "#58a08c", "kv_cache": "#8fc1e8", "offload_buffer": "#8a6fc0",
    "peak": "#e2ad45", "stripe": "#f4d79b", "gradients": "#a8506f", "optimizer": "#d493aa", "context": "#8b938e",
    "ink": "#1d211f", "quiet": "#5f6763", "line": "#dcdcd6", "over": "#c62f22", "paper": "#ffffff",
}  # fmt: skip
_DARK = {
    "weights": "#58b89b", "quant_meta": "#2f7863", "kv_cache": "#3d74a6", "offload_buffer": "#a78be0",
    "peak": "#c89a44", "stripe": "#7b602c", "gradients": "#c76c8c", "optimizer": "#7d4257", "context": "#6f7873",
    "ink": "#e6e9e7", "quiet": "#a2aaa6", "line": "#343a37", "over": "#f0705f", "paper": "#161918",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: a name, what it stands for in a second line, and its parts."""

    title: str
    budget: Budget
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """A vertical line: what a card holds."""

    title: str
    bytes: int


def draw(title: str, bars: Sequence[Bar], lines: Sequence[Line], *, overrun_of: Line | None = None) -> str:
    """An SVG of `bars` over one scale in GiB; totals beyond `overrun_of` are red."""
    most = max([bar.budget.total for bar in bars] + [line.bytes for line in lines]) * 1.02
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    kinds = _kinds(bars)
    bottom = _TOP + _STEP * len(bars)
    height = bottom + 18 + _LEGEND_ROW * -(-len(kinds) // _LEGEND_COLUMNS)
    parts = [_head(title, height), *(_card(line, scale, bottom) for line in lines)]
    for row, bar in enumerate(bars):
        over = overrun_of is not None and bar.budget.total > overrun_of.bytes
        parts.append(_bar(bar, _TOP + row * _STEP, scale, over))
    parts += [_legend(kind, index, bottom + 22) for index, kind in enumerate(kinds)]
    return "\n".join([*parts, "</svg>", ""])


def _kinds(bars: Sequence[Bar]) -> list[str]:
    """The kinds of parts that the bars have, in drawing order."""
    found = {_kind(purpose) for bar in bars for purpose, _ in bar.budget.parts()}
    return [kind for kind in dict.fromkeys(map(_kind, PURPOSE_TITLES)) if kind in found]


def _kind(purpose: Purpose) -> str:
    return _KINDS.get(purpose, purpose)


def _head(title: str, height: int) -> str:
    def rules(colors: dict[str, str]) -> str:
        fills = [f".{name}{{fill:{color}}}" for name, color in colors.items() if name not in ("line", "peak")]
        strokes = f".card{{stroke:{colors['line']}}}.halo{{stroke:{colors['paper']}}}.back{{fill:{colors['peak']}}}"
        return "".join([*fills, strokes])

    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>\n'
        "text{font:13px system-ui,-apple-system,'Segoe UI',sans-serif}.big{font-size:16px;font-weight:600}"
        ".small{font-size:12px}.strong{font-weight:600}.halo{paint-order:stroke;stroke-width:5}"
        ".card{stroke-width:1.5;stroke-dasharray:3 3}"
        f".peak{{fill:url(#hatch)}}\n{rules(_LIGHT)}\n@media(prefers-color-scheme:dark){{{rules(_DARK)}}}\n</style>\n"
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect class="back" width="7" height="7"/><rect class="stripe" width="3" height="7"/></pattern></defs>\n'
        f'<rect class="paper" width="{_WIDTH}" height="{height}" rx="10"/>\n'
        f'<text class="ink big" x="18" y="28">{escape(title)}</text>'
    )


def _card(line: Line, scale: float, bottom: int) -> str:
    x = _LEFT + line.bytes * scale
    return (
        f'<line class="card" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 10}" y2="{bottom - 6}"/>'
        f'<text class="quiet small" x="{x:.1f}" y="{_TOP - 15}" text-anchor="middle">{escape(line.title)}</text>'
    )


def _bar(bar: Bar, y: int, scale: float, over: bool) -> str:
    shown = [
        f'<text class="ink strong" x="18" y="{y + 13}">{escape(bar.title)}</text>',
        f'<text class="quiet small" x="18" y="{y + 29}">{escape(bar.note)}</text>',
    ]
    x = float(_LEFT)
    for purpose, size in bar.budget.parts():
        width = size * scale
        told = f"{PURPOSE_TITLES[purpose]}: {format_size(size)}"
        shown.append(
            f'<rect class="{_kind(purpose)}" x="{x:.1f}" y="{y}" width="{max(width, 0.8):.1f}" height="{_BAR}">'
            f"<title>{escape(told)}</title></rect>"
        )
        x += width
    color = "over" if over else "ink"
    total = f"{bar.budget.total / GiB:.1f} GiB"
    shown.append(f'<text class="{color} strong halo" x="{x + 8:.1f}" y="{y + 20}">{total}</text>')
    return "".join(shown)


def _legend(kind: str, index: int, y: int) -> str:
    x = 18 + index % _LEGEND_COLUMNS * 270
    y += index // _LEGEND_COLUMNS * _LEGEND_ROW
    title = _KIND_TITLES.get(kind) or next(name for purpose, name in PURPOSE_TITLES.items() if purpose == kind)
    return (
        f'<rect class="{kind}" x="{x}" y="{y - 10}" width="12" height="12" rx="2"/>'
        f'<text class="quiet small" x="{x + 18}" y="{y}">{escape(title)}</text>'
    )
