"""What stands under the bars of a plan: the legend, the table of all numbers, and the notes of single stretches."""

from __future__ import annotations

import html
from collections.abc import Iterable

from modules.hardware import Device
from modules.ui.labels import METHODS
from modules.ui.picture import device_title
from modules.ui.plan_values import KINDS, Bar, Part
from modules.ui.words import format_size, number, t, told


def tip(kind: str, title: str, size: int, method: str = "", formula: str = "", *, focus: bool = False) -> str:
    """The attributes from which plan.js shows a note to mouse and finger; with `focus`, to keys and screen readers."""
    shown = format_size(size)
    fields = {
        "kind": kind,
        "tip": title,
        "size": t("{size} = {bytes} bytes", size=shown, bytes=size),
        "method": method,
        "formula": formula,
    }
    data = "".join(f' data-{name}="{html.escape(text)}"' for name, text in fields.items())
    if not focus:
        return data
    said = ". ".join(filter(None, (f"{title}: {shown}", method, formula)))
    return f'{data} tabindex="0" role="img" aria-label="{html.escape(said)}"'


def legend_html(bars: list[Bar]) -> str:
    """Each kind of stretch with its bytes over all devices, in drawing order, then the marks."""
    found: dict[str, list[tuple[Bar, Part]]] = {}
    for bar in bars:
        for part in bar.parts():
            found.setdefault(part.kind, []).append((bar, part))
    items = [_item_html(found[kind]) for kind in KINDS if kind in found]
    used = [bar.device for bar in bars if bar.device.total_bytes > bar.device.free_bytes]
    items += [f'<li data-kind="others"><i class="plan-others"></i>{others_title(device)}</li>' for device in used[:1]]
    items.append(f'<li><i class="plan-free"></i>{t("free now")}</li>')
    margins = [bar.budget.margin for bar in bars if bar.budget.margin]
    if margins:
        one = t("may be off by ± {size}", size=format_size(margins[0]))
        items.append(
            f'<li><i class="plan-whisker"></i>{one if len(margins) == 1 else t("may be off by this much")}</li>'
        )
    if any(bar.over for bar in bars):
        items.append(f'<li><i class="plan-over"></i>{t("too much")}</li>')
    return f'<ul class="plan-legend">{"".join(items)}</ul>'


def _item_html(parts: list[tuple[Bar, Part]]) -> str:
    """One entry: what it says when it is pointed at is the stretch's own note, or the sum over the devices."""
    part = parts[0][1]
    size = sum(one.bytes for _, one in parts)
    formula = told(part.figure.formula)
    if len(parts) > 1:
        formula = " + ".join(f"{format_size(one.bytes)} ({device_title(bar.device.id)})" for bar, one in parts)
    note = tip(part.kind, part.title, size, t(METHODS[part.figure.method]), formula)
    return (
        f'<li{note}><i class="plan-part {part.kind}"></i>'
        f"<span>{html.escape(part.title)} <b>{format_size(size)}</b></span></li>"
    )


def numbers_html(bars: Iterable[Bar]) -> str:
    """Everything that the picture knows as a table, folded away: for those who want to check the sums."""
    rows = "".join(
        f"<tr><th>{device_title(bar.device.id)}</th><td>{html.escape(part.title)}</td>"
        f'<td class="plan-bytes">{number(part.bytes)}</td><td>{t(part.figure.method)}</td>'
        f"<td>{html.escape(told(part.figure.formula))}</td></tr>"
        for bar in bars
        for part in bar.parts()
    )
    return (
        f'<details class="plan-numbers"><summary>{t("All numbers and formulas")}</summary>'
        '<div class="plan-scroll"><table>'
        f"<thead><tr><th>{t('Device')}</th><th>{t('For')}</th><th>{t('Bytes')}</th>"
        f"<th>{t('Method')}</th><th>{t('Formula')}</th></tr></thead>{rows}"
        "</table></div></details>"
    )


def others_title(device: Device) -> str:
    """Who fills what is not free."""
    return t("Other files") if device.kind == "disk" else t("Other programs")
