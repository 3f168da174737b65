"""The picture of a plan: one bar a device, drawn on all that the device has, stacked by what the bytes are for.

From left to right stand the model's own bytes; a line marks what is free, what other programs use lies behind it, and
what goes beyond the line is red. Where the model is small beside its device, a lens below the bar shows it larger.
Values in, HTML out: nothing here asks a machine or a model for anything.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping

from modules.errors import SnugError
from modules.hardware import Device, Inventory
from modules.memory.planning.planner import Plan
from modules.ui.labels import METHODS
from modules.ui.picture import device_title, layers_html
from modules.ui.plan_legend import legend_html, numbers_html, others_title, tip
from modules.ui.plan_values import KINDS, Bar, Measured, Part, bars_of
from modules.ui.words import format_rate, format_size, number, t, tn, told


def plan_html(
    plan: Plan,
    inventory: Inventory,
    *,
    fits_tokens: int,
    context_chosen: bool,
    measured: Mapping[str, Measured] | None = None,
    refusal: SnugError | None = None,
    instead: Plan | None = None,
) -> str:
    """The whole picture: the verdict, the bars, where the layers are.

    `fits_tokens` is the longest context that fits; `context_chosen` tells whether Snug chose the length, `refusal`
    what to change where the plan does not fit, and `instead` is a way that does.
    """
    context = {
        "tokens": plan.run.context_tokens,
        "most": plan.spec.max_context,
        "fits": fits_tokens,
        "chosen": context_chosen,
    }
    split = len(set(plan.placement.values())) > 1
    return (
        f'<div class="plan" data-context="{html.escape(json.dumps(context))}">'
        f"{_head_html(plan, loaded=bool(measured), refusal=refusal, instead=instead)}"
        f"{bars_html(bars_of(plan, inventory, measured, idle_gpus=True))}"
        f"{layers_html(plan.placement, plan.spec.layers) if split else ''}</div>"
    )


def _head_html(plan: Plan, *, loaded: bool, refusal: SnugError | None, instead: Plan | None) -> str:
    """Does it fit, how much, how fast; where it does not, what would, and a button that takes it."""
    total = sum(budget.total for budget in plan.budgets.values())
    facts = [
        t("{size} in all", size=format_size(total)),
        _length_text(plan),
    ]
    if plan.tokens_per_s[1]:
        facts.append(t("about {speed}", speed=speed_text(plan.tokens_per_s)))
    facts_html = " · ".join(f'<span class="fact">{html.escape(fact)}</span>' for fact in facts)
    fits = t("It fits as it is loaded now") if loaded else t("It fits")
    kind, verdict = ("ok", fits) if plan.fits else ("bad", t("It does not fit"))
    remedy = f"<p>{html.escape(told(refusal.remedy))}</p>" if refusal else ""
    if instead is not None:
        flags = html.escape(json.dumps(list(instead.flags)))
        remedy += (
            f'<p><button type="button" class="plain-button" data-take="{flags}">'
            f"{html.escape(t('Show {way}', way=told(instead.title)))}</button></p>"
        )
    return (
        f'<div class="plan-head"><div class="verdict {kind}"><span class="dot"></span><strong>{verdict}</strong>'
        f"<span>{html.escape(told(plan.title))}</span></div><p>{facts_html}</p>{remedy}</div>"
    )


def _length_text(plan: Plan) -> str:
    """How long a conversation may be; of a model that embeds, a text."""
    if plan.spec.embedder is not None:
        return tn("texts of {count} token", "texts of up to {count} tokens", plan.run.context_tokens)
    return tn("{count} token of context", "{count} tokens of context", plan.run.context_tokens)


def speed_text(tokens_per_s: tuple[float, float], *, short: bool = False) -> str:
    """`12–18 tokens/s`; below a token in ten seconds `50–83 s a token`; a dash where nothing is known.

    `short`: under the heading "Tokens/s".
    """
    low, high = tokens_per_s
    if high <= 0:
        return "–"
    if low > 0 and high < 0.1:
        seconds = _range(1 / high, 1 / low)
        return t("{seconds} s each", seconds=seconds) if short else t("{seconds} s a token", seconds=seconds)
    rate = _range(low, high)
    return rate if short else t("{rate} tokens/s", rate=rate)


def _range(low: float, high: float) -> str:
    first, last = format_rate(low), format_rate(high)
    return first if first == last else f"{first}–{last}"


def bars_html(bars: Iterable[Bar]) -> str:
    """The bars with one legend below them; nothing where there are none."""
    drawn = list(bars)
    if not drawn:
        return ""
    return f'<div class="plan-bars">{"".join(map(_bar_html, drawn))}</div>{legend_html(drawn)}{numbers_html(drawn)}'


def _bar_html(bar: Bar) -> str:
    device, lens = bar.device, bar.lens_span
    model = f"{html.escape(device.name)}, " if device.kind == "cuda" else ""
    name = f'<span class="plan-device-name">{model}{format_size(device.total_bytes)}</span>'
    scaled = _scaled_html(bar, bar.span, places=True, small=bool(lens) or bar.idle)
    if lens:
        share = 100 * lens / bar.span
        edge = f'<div class="plan-beam" style="--to:{share:.3f}%" aria-hidden="true"></div>'
        scaled += edge + _scaled_html(bar, lens, places=False, small=False)
    kind = "plan-device over" if bar.over else "plan-device idle" if bar.idle else "plan-device"
    return (
        f'<section class="{kind}" data-device="{html.escape(device.id)}">'
        f"<header><strong>{device_title(device.id)}</strong>{name}{_sum_html(bar)}</header>"
        f"{scaled}{_measured_html(bar, lens or bar.span)}</section>"
    )


def _sum_html(bar: Bar) -> str:
    """`7.9 GiB of 8.7 GiB free`, with what lacks; a disk is read from, not filled."""
    size, free = format_size(bar.budget.total), format_size(bar.device.free_bytes)
    if bar.idle:
        return f'<span class="plan-sum">{t("not used, {free} free", free=free)}</span>'
    if bar.device.kind == "disk":
        return f'<span class="plan-sum">{t("<strong>{size}</strong> there, {free} free", size=size, free=free)}</span>'
    short = t("lacks {size}", size=format_size(bar.lacks, up=True))
    lacks = f' <em class="plan-lacks">{short}</em>' if bar.lacks else ""
    return f'<span class="plan-sum">{t("<strong>{size}</strong> of {free} free", size=size, free=free)}{lacks}</span>'


def _scaled_html(bar: Bar, span: int, *, places: bool, small: bool) -> str:
    """The stack, `span` bytes wide; with `places`, on the device with its free and used parts."""
    device, budget = bar.device, bar.budget
    inner = []
    if places:
        inner.append(f'<div class="plan-room" style="width:{_share(device.total_bytes, span)}"></div>')
    # What is not there keeps its place: the page glides stretches of the same purpose from one plan to the next.
    parts = {part.kind: part for part in bar.parts()}
    for kind in KINDS:
        part = parts.get(kind)
        inner.append(_part_html(part, span, tells=not small, clear=_clear_until(bar)) if part else "<i></i>")
    if places:
        inner.append(_others_html(device, span, own=budget.total if device.kind == "disk" else 0))
    if places and bar.over:
        left, width = _share(device.free_bytes, span), _share(bar.over, span)
        inner.append(f'<div class="plan-over" style="left:{left};width:{width}"></div>')
    if places and device.kind != "disk":
        inner.append(f'<div class="plan-free" style="left:{_share(device.free_bytes, span)}"></div>')
    if budget.margin and not small:
        low, width = _share(budget.low, span), _share(budget.high - budget.low, span)
        inner.append(f'<div class="plan-whisker" style="left:{low};width:{width}"></div>')
    kind = "plan-bar small" if small else "plan-bar" if places else "plan-bar lens"
    return f'<div class="{kind}">{"".join(inner)}</div>'


def _clear_until(bar: Bar) -> int:
    """The first byte that the whisker or what overruns covers: labels end before it."""
    low = bar.budget.low if bar.budget.margin else bar.budget.total
    return min(low, bar.device.free_bytes) if bar.over else low


def _others_html(device: Device, span: int, *, own: int = 0) -> str:
    """What others hold, at the right end; on a disk the model's `own` files are among what is there, at the left."""
    used = max(0, device.total_bytes - device.free_bytes - own)
    if not used:
        return ""
    left = own or device.free_bytes
    place = f'style="left:{_share(left, span)};width:{_share(used, span)}"'
    return f'<div class="plan-others" {place}{tip("others", others_title(device), used, focus=True)}></div>'


def _part_html(part: Part, span: int, *, tells: bool, clear: int) -> str:
    """One stretch; its label shows where there is room for it before the byte `clear` (plan.css)."""
    kind = f"plan-part {part.kind}{'' if part.start else ' first'}"
    style = f'style="left:{_share(part.start, span)};width:{_share(part.bytes, span)}"'
    if not tells:
        return f'<div class="{kind}" {style}></div>'
    covered = min(max(0, part.start + part.bytes - clear), part.bytes)
    label = (
        f'<span class="plan-label" style="right:{_share(covered, part.bytes)}">'
        f"<span><b>{html.escape(part.title)}</b> {format_size(part.bytes)}</span></span>"
    )
    about = (t(METHODS[part.figure.method]), told(part.figure.formula))
    note = tip(part.kind, part.title, part.bytes, *about, focus=True)
    return f'<div class="{kind}" {style}{note}>{label}</div>'


def _measured_html(bar: Bar, span: int) -> str:
    """A thin bar under the forecast: weights, and the whole process as it is now, with the ratios."""
    found, budget = bar.measured, bar.budget
    if found is None:
        return ""
    now = t("<strong>{size}</strong> measured now", size=format_size(found.now))
    share = t("{ratio} of the forecast for a full context", ratio=ratio(found.now, budget.total))
    facts = [f'<span class="fact">{now}{f", {share}" if budget.total else ""}</span>']
    forecast = budget.weights + budget.quant_meta
    if found.weights and forecast:
        weighed = t("weights {size}", size=format_size(found.weights)) + f", {ratio(found.weights, forecast)}"
        facts.append(f'<span class="fact">{weighed}</span>')
    return (
        f'<div class="plan-measured"><div class="plan-now" style="width:{_share(min(found.now, span), span)}"></div>'
        f'<div class="plan-weighed" style="width:{_share(min(found.weights, span), span)}"></div></div>'
        f'<p class="plan-truth">{" · ".join(facts)}</p>'
    )


def ratio(measured: int, forecast: int) -> str:
    """`× 1.002`, to the digits that matter."""
    value = measured / max(1, forecast)
    return f"× {number(value, 3 if 0.9 < value < 1.1 else 2)}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3f}%"
