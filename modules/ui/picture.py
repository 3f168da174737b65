"""Where a model's bytes and layers are, as HTML: one bar a device, one cell a layer."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from modules.engine.base import ModelInfo
from modules.memory.budget import PURPOSE_TITLES, Budget
from modules.memory.planner import Plan
from modules.units import format_duration, format_size

_LAYER = re.compile(r"(?:^|\.)(\d+)$")


def plan_html(plan: Plan) -> str:
    """What loading would do: whether it fits, a bar of bytes per device, and the reasons in words."""
    verdict = ("ok", "It fits") if plan.fits else ("bad", "It does not fit")
    total = sum(budget.total for budget in plan.budgets.values())
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in plan.reasons)
    return (
        f'<div class="plan"><div class="verdict {verdict[0]}"><span class="dot"></span><strong>{verdict[1]}</strong>'
        f"<span>{format_size(total)} in all · {_precision(plan)} · "
        f"{plan.run.context_tokens} tokens of context</span></div>"
        f"{budgets_html(plan.budgets)}{layers_html(plan.placement, plan.spec.layers)}"
        f'<ul class="reasons">{reasons}</ul></div>'
    )


def _precision(plan: Plan) -> str:
    quantization = {"none": "", "int8": "8-bit", "nf4": "4-bit nf4", "fp4": "4-bit fp4"}[plan.run.quantization]
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
    return quantization or short[plan.run.dtype]


def budgets_html(budgets: Mapping[str, Budget]) -> str:
    """One bar a device, scaled to the fullest, split by what the bytes are for; a legend below."""
    longest = max((budget.total for budget in budgets.values()), default=0)
    if not longest:
        return ""
    rows, used = [], set()
    for device, budget in budgets.items():
        parts = budget.parts()
        used |= {name for name, _ in parts}
        segments = "".join(
            f'<span class="seg {name}" style="width:{100 * size / longest:.2f}%" '
            f'title="{_capital(PURPOSE_TITLES[name])}: {format_size(size)}"></span>'
            for name, size in parts
        )
        rows.append(_device_row(device, segments, format_size(budget.total)))
    legend = "".join(
        f'<span><i class="seg {name}"></i>{_capital(title)}</span>'
        for name, title in PURPOSE_TITLES.items()
        if name in used
    )
    return f'<div class="devices">{"".join(rows)}</div><div class="legend">{legend}</div>'


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _device_row(device: str, segments: str, size: str) -> str:
    return (
        f'<div class="device"><span class="device-name">{html.escape(_device_title(device))}</span>'
        f'<span class="device-bar">{segments}</span><span class="device-size">{size}</span></div>'
    )


def _device_title(device: str) -> str:
    kind, _, number = device.partition(":")
    return {"cuda": f"GPU {number or 0}", "cpu": "CPU", "disk": "Disk"}.get(kind, device)


def _device_class(device: str) -> str:
    kind, _, number = device.partition(":")
    return f"gpu{int(number or 0) % 4}" if kind == "cuda" else kind if kind in ("cpu", "disk") else "other"


def layers_html(placement: Mapping[str, str], layers: int) -> str:
    """A strip with one cell a layer, coloured by the device that holds it, in the order of the layers."""
    cells = layer_devices(placement, layers)
    if not cells:
        return ""
    strip = "".join(
        f'<i class="cell {_device_class(device)}" title="Layer {number}: {html.escape(_device_title(device))}"></i>'
        for number, device in enumerate(cells)
    )
    counts = {device: cells.count(device) for device in dict.fromkeys(cells)}
    legend = "".join(
        f'<span><i class="seg {_device_class(device)}"></i>{html.escape(_device_title(device))}: {count} '
        f"layer{'s' if count > 1 else ''}</span>"
        for device, count in counts.items()
    )
    return (
        f'<div class="layers" role="img" aria-label="Where each layer is">{strip}</div>'
        f'<div class="legend">{legend}</div>'
    )


def layer_devices(placement: Mapping[str, str], layers: int) -> list[str]:
    """The device of each layer. `placement` maps module names to devices, longest prefix wins."""
    numbered = {name: device for name, device in placement.items() if _LAYER.search(name)}
    if numbered:
        order = sorted(numbered, key=_natural)
        return [numbered[name] for name in order]
    device = placement.get("") or next(iter(placement.values()), "")
    return [device] * layers if device else []


def _natural(name: str) -> tuple[str, int]:
    match = _LAYER.search(name)
    return (name[: match.start()], int(match.group(1))) if match else (name, -1)


def info_html(info: ModelInfo, layers: int) -> str:
    """The loaded model: what it is, how it runs, and where its weights went."""
    facts: Sequence[tuple[str, str]] = (
        ("Architecture", info.architecture),
        ("Precision", info.quantization if info.quantization not in ("", "none") else info.dtype),
        ("Context", f"{info.context_tokens} tokens"),
        ("Generation", f"{info.loop}: {info.loop_reason}" if info.loop_reason else info.loop),
        ("Loaded in", format_duration(info.load_s)),
        ("Peak memory", format_size(info.peak_bytes)),
    )
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts)
    longest = max(info.placement.values(), default=0) or 1
    bars = "".join(
        _device_row(
            device,
            f'<span class="seg {_device_class(device)}" style="width:{100 * size / longest:.2f}%"></span>',
            format_size(size),
        )
        for device, size in info.placement.items()
    )
    warnings = "".join(f"<li>{html.escape(text)}</li>" for text in info.warnings)
    return f'<div class="devices">{bars}</div>{layers_html(info.modules, layers)}<dl class="facts">{rows}</dl>' + (
        f'<ul class="reasons">{warnings}</ul>' if warnings else ""
    )
