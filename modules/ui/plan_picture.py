"""The picture of a plan: one bar a device, drawn on all that the device has, stacked by what the bytes are for.

From left to right stand the model's own bytes; a line marks what is free, what other programs use lies behind it, and
what goes beyond the line is red. Where the model is small beside its device, a lens below the bar shows it larger.
Values in, HTML out: nothing here asks a machine or a model for anything.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from modules.engine.base import EngineStats, ModelInfo
from modules.errors import SnugError
from modules.hardware import Device, Inventory
from modules.memory.budget import PURPOSE_TITLES, Budget, Figure, Method
from modules.memory.formulas import formula_text
from modules.memory.planner import Plan
from modules.ui.picture import device_title, layers_html
from modules.units import format_size

LENS_BELOW = 0.25  # of the bar: models smaller than that are shown larger below it
LENS_ROOM = 1.04  # what the lens shows, over the largest forecast
_KINDS = (*PURPOSE_TITLES, "loading")
_METHODS: dict[Method, str] = {
    "exact": "exact: counted byte by byte",
    "dry-run": "dry run: the model's own steps, played without weights",
    "formula": "formula: an estimate",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of a bar: `kind` is a purpose of the budget, or "loading" for what only the load takes."""

    kind: str
    title: str
    start: int
    bytes: int
    figure: Figure


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes that a loaded model really takes on one device: its weights, and all of its process just now."""

    weights: int
    now: int


@dataclass(frozen=True, slots=True)
class Bar:
    """One device with the forecast for it and, once loaded, the truth."""

    device: Device
    budget: Budget
    measured: Measured | None = None

    @property
    def span(self) -> int:
        """The bytes that the bar's whole width stands for: the device, or the forecast where that is more."""
        return max(self.device.total_bytes, round(self.budget.high * 1.02), 1)

    @property
    def over(self) -> int:
        """Bytes beyond what is free. A disk's are the model's own files, most of which lie there already."""
        return 0 if self.device.kind == "disk" else max(0, self.budget.total - self.device.free_bytes)

    @property
    def lens_span(self) -> int:
        """The bytes that the lens's width stands for; 0 where none is needed."""
        needed = max(self.budget.high, self.measured.now if self.measured else 0)
        worth = len(self.parts()) > 1 or self.measured is not None
        return round(needed * LENS_ROOM) if worth and 0 < needed < LENS_BELOW * self.span else 0

    def parts(self) -> list[Part]:
        """The stretches from left to right; they sum to the forecast's total."""
        parts, start = [], 0
        for purpose, size in self.budget.parts():
            parts.append(Part(purpose, capital(PURPOSE_TITLES[purpose]), start, size, self.budget.figures[purpose]))
            start += size
        if start < self.budget.total:
            rest = self.budget.total - start
            formula = f"{format_size(self.budget.load_peak)} while loading, {format_size(start)} of them counted here"
            parts.append(Part("loading", "More while loading", start, rest, Figure(rest, "formula", formula)))
        return parts


def bars_of(plan: Plan, inventory: Inventory, measured: Mapping[str, Measured] | None = None) -> list[Bar]:
    """A bar for every device that the plan puts something on, GPUs first, disk last."""
    devices = (*inventory.gpus, inventory.cpu, inventory.disk)
    found = measured or {}
    return [
        Bar(device, _explained(plan, plan.budgets[device.id]), found.get(device.id))
        for device in devices
        if device.id in plan.budgets and plan.budgets[device.id].total
    ]


def _explained(plan: Plan, budget: Budget) -> Budget:
    """The budget with formulas for figures that bring none of their own."""
    figures = {
        purpose: replace(figure, formula=figure.formula or formula_text(purpose, plan.spec, plan.run, figure.bytes))
        for purpose, figure in budget.figures.items()
    }
    return replace(budget, figures=figures)


def measured_by_device(info: ModelInfo, stats: EngineStats) -> dict[str, Measured]:
    """What a loaded model takes: weights as its loader counted them, and its process's memory at the moment."""
    now = {"cpu": stats.rss_bytes, **stats.gpu_bytes}
    return {
        device: Measured(info.placement.get(device, 0), max(now.get(device, 0), info.placement.get(device, 0)))
        for device in dict.fromkeys((*info.placement, *stats.gpu_bytes, "cpu"))
        if now.get(device, 0) or info.placement.get(device, 0)
    }


def plan_html(
    plan: Plan,
    inventory: Inventory,
    *,
    fits_tokens: int,
    context_chosen: bool,
    measured: Mapping[str, Measured] | None = None,
    refusal: SnugError | None = None,
) -> str:
    """The whole picture: the verdict, the bars, where the layers are.

    `fits_tokens` is the longest context that fits; `context_chosen` tells whether Snug chose the length, `refusal`
    what to change where the plan does not fit.
    """
    total = sum(budget.total for budget in plan.budgets.values())
    facts = [f"{format_size(total)} in all", f"{plan.run.context_tokens:,} tokens of context"]
    if plan.tokens_per_s[1]:
        facts.append(f"about {speed_text(plan.tokens_per_s)}")
    context = {
        "tokens": plan.run.context_tokens,
        "most": plan.spec.max_context,
        "fits": fits_tokens,
        "chosen": context_chosen,
    }
    loaded = " as it is loaded now" if measured else ""
    kind, verdict = ("ok", f"It fits{loaded}") if plan.fits else ("bad", "It does not fit")
    remedy = f"<p>{html.escape(refusal.remedy)}</p>" if refusal else ""
    split = len(set(plan.placement.values())) > 1
    return (
        f'<div class="plan" data-context="{html.escape(json.dumps(context))}"><div class="plan-head">'
        f'<div class="verdict {kind}"><span class="dot"></span><strong>{verdict}</strong>'
        f"<span>{html.escape(plan.title)}</span></div>"
        f"<p>{html.escape(' · '.join(facts))}</p>{remedy}</div>"
        f"{bars_html(bars_of(plan, inventory, measured))}"
        f"{layers_html(plan.placement, plan.spec.layers) if split else ''}</div>"
    )


def speed_text(tokens_per_s: tuple[float, float]) -> str:
    """`12–18 tokens/s`; below a token in ten seconds `50–83 s a token`; a dash where nothing is known."""
    low, high = tokens_per_s
    if high <= 0:
        return "–"
    if low > 0 and high < 0.1:
        return f"{_range(1 / high, 1 / low)} s a token"
    return f"{_range(low, high)} tokens/s"


def _range(low: float, high: float) -> str:
    first, last = (f"{value:.2g}" if value < 10 else f"{float(f'{value:.2g}'):.0f}" for value in (low, high))
    return first if first == last else f"{first}–{last}"


def bars_html(bars: Iterable[Bar]) -> str:
    """The bars with one legend below them; nothing for a plan that DeepSpeed alone knows."""
    drawn = list(bars)
    if not drawn:
        return ""
    return f'<div class="plan-bars">{"".join(map(_bar_html, drawn))}</div>{_legend_html(drawn)}{numbers_html(drawn)}'


def _bar_html(bar: Bar) -> str:
    device, lens = bar.device, bar.lens_span
    model = f"{html.escape(device.name)}, " if device.kind == "cuda" else ""
    name = f'<span class="plan-device-name">{model}{format_size(device.total_bytes)}</span>'
    scaled = _scaled_html(bar, bar.span, places=True, small=bool(lens))
    if lens:
        share = 100 * lens / bar.span
        edge = f'<div class="plan-beam" style="--to:{share:.3f}%" aria-hidden="true"></div>'
        scaled += edge + _scaled_html(bar, lens, places=False, small=False)
    return (
        f'<section class="plan-device{" over" if bar.over else ""}" data-device="{html.escape(device.id)}">'
        f"<header><strong>{device_title(device.id)}</strong>{name}{_sum_html(bar)}</header>"
        f"{scaled}{_measured_html(bar, lens or bar.span)}</section>"
    )


def _sum_html(bar: Bar) -> str:
    """`7.9 GiB of 8.7 GiB free`, with what lacks; a disk is read from, not filled."""
    size, free = format_size(bar.budget.total), format_size(bar.device.free_bytes)
    if bar.device.kind == "disk":
        return f'<span class="plan-sum"><strong>{size}</strong> there, {free} free</span>'
    lacks = f' <em class="plan-lacks">{format_size(bar.over)} too much</em>' if bar.over else ""
    return f'<span class="plan-sum"><strong>{size}</strong> of {free} free{lacks}</span>'


def _scaled_html(bar: Bar, span: int, *, places: bool, small: bool) -> str:
    """The stack, `span` bytes wide; with `places`, on the device with its free and used parts."""
    device, budget = bar.device, bar.budget
    inner = []
    if places:
        used = max(0, device.total_bytes - device.free_bytes)
        inner.append(f'<div class="plan-room" style="width:{_share(device.total_bytes, span)}"></div>')
        if used:
            inner.append(
                f'<div class="plan-others" style="left:{_share(device.free_bytes, span)};width:{_share(used, span)}"'
                f"{_tip(others_title(device), used, '', '')}></div>"
            )
    # What is not there keeps its place: the page glides stretches of the same purpose from one plan to the next.
    parts = {part.kind: part for part in bar.parts()}
    for kind in _KINDS:
        part = parts.get(kind)
        cut = part is not None and bar.over and part.start + part.bytes > device.free_bytes
        inner.append(_part_html(part, span, tip=not small, label=not cut) if part else "<i></i>")
    if places and bar.over:
        left, width = _share(device.free_bytes, span), _share(bar.over, span)
        inner.append(f'<div class="plan-over" style="left:{left};width:{width}"></div>')
    if places:
        inner.append(f'<div class="plan-free" style="left:{_share(device.free_bytes, span)}"></div>')
    if budget.margin and not small:
        low, width = _share(budget.low, span), _share(budget.high - budget.low, span)
        said = f"between {format_size(budget.low)} and {format_size(budget.high)}"
        inner.append(f'<div class="plan-whisker" style="left:{low};width:{width}" title="{said}"></div>')
    kind = "plan-bar small" if small else "plan-bar" if places else "plan-bar lens"
    return f'<div class="{kind}">{"".join(inner)}</div>'


def _part_html(part: Part, span: int, *, tip: bool, label: bool) -> str:
    """One stretch; its label shows where there is room for it (plan.css)."""
    first = "" if part.start else " first"
    style = f'style="left:{_share(part.start, span)};width:{_share(part.bytes, span)}"'
    if not tip:
        return f'<div class="plan-part {part.kind}{first}" {style}></div>'
    figure = part.figure
    text = f'<span class="plan-label"><b>{html.escape(part.title)}</b> {format_size(part.bytes)}</span>'
    told = _tip(part.title, part.bytes, _METHODS[figure.method], figure.formula)
    return f'<div class="plan-part {part.kind}{first}" {style}{told}>{text if label else ""}</div>'


def _tip(title: str, size: int, method: str, formula: str) -> str:
    """What plan.js shows for a stretch that is pointed at, focused or tapped; screen readers hear the same."""
    shown = format_size(size)
    said = ". ".join(filter(None, (f"{title}: {shown}", method, formula)))
    fields = {"tip": title, "size": f"{shown} = {size:,} bytes", "method": method, "formula": formula}
    data = "".join(f' data-{name}="{html.escape(text)}"' for name, text in fields.items())
    return f'{data} tabindex="0" role="img" aria-label="{html.escape(said)}"'


def _measured_html(bar: Bar, span: int) -> str:
    """A thin bar under the forecast: weights, and the whole process as it is now, with the ratios."""
    found, budget = bar.measured, bar.budget
    if found is None:
        return ""
    told = [f"<strong>{format_size(found.now)}</strong> measured now, {ratio(found.now, budget.total)} of the forecast"]
    forecast = budget.weights + budget.quant_meta
    if found.weights and forecast:
        told.append(f"weights {format_size(found.weights)}, {ratio(found.weights, forecast)}")
    return (
        f'<div class="plan-measured"><div class="plan-now" style="width:{_share(found.now, span)}"></div>'
        f'<div class="plan-weighed" style="width:{_share(found.weights, span)}"></div></div>'
        f'<p class="plan-truth">{" · ".join(told)}</p>'
    )


def ratio(measured: int, forecast: int) -> str:
    """`× 1.002`, to the digits that matter."""
    value = measured / max(1, forecast)
    return f"× {value:.3f}" if 0.9 < value < 1.1 else f"× {value:.2f}"


def _legend_html(bars: list[Bar]) -> str:
    """Each kind of stretch with its bytes over all devices, in drawing order, then the marks."""
    sizes: dict[tuple[str, str], int] = {}
    for bar in bars:
        for part in bar.parts():
            sizes[part.kind, part.title] = sizes.get((part.kind, part.title), 0) + part.bytes
    shown = sorted(sizes.items(), key=lambda item: _KINDS.index(item[0][0]))
    items = [
        f'<li><i class="plan-part {kind}"></i>{html.escape(title)} <b>{format_size(size)}</b></li>'
        for (kind, title), size in shown
    ]
    used = [bar.device for bar in bars if bar.device.total_bytes > bar.device.free_bytes]
    items += [f'<li><i class="plan-others"></i>{others_title(device)}</li>' for device in used[:1]]
    items.append('<li><i class="plan-free"></i>free now</li>')
    if any(bar.budget.margin for bar in bars):
        items.append('<li><i class="plan-whisker"></i>may be off by this</li>')
    if any(bar.over for bar in bars):
        items.append('<li><i class="plan-over"></i>too much</li>')
    return f'<ul class="plan-legend">{"".join(items)}</ul>'


def numbers_html(bars: Iterable[Bar]) -> str:
    """Everything that the picture knows as a table, folded away: for those who want to check the sums."""
    rows = "".join(
        f"<tr><th>{device_title(bar.device.id)}</th><td>{html.escape(part.title)}</td>"
        f'<td class="plan-bytes">{part.bytes:,}</td><td>{part.figure.method}</td>'
        f"<td>{html.escape(part.figure.formula)}</td></tr>"
        for bar in bars
        for part in bar.parts()
    )
    return (
        '<details class="plan-numbers"><summary>All numbers and formulas</summary><div class="plan-scroll"><table>'
        f"<thead><tr><th></th><th>For</th><th>Bytes</th><th>Method</th><th>Formula</th></tr></thead>{rows}"
        "</table></div></details>"
    )


def others_title(device: Device) -> str:
    """Who fills what is not free."""
    return "Other files" if device.kind == "disk" else "Other programs"


def capital(title: str) -> str:
    """With a capital first letter, the rest as it is."""
    return title[:1].upper() + title[1:]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}%"
