"""Where a model's layers are, one cell a layer, and what a loaded model says of itself, as HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from modules.engine.base import ModelInfo
from modules.ui.words import format_duration, format_size, t, tn, told

_LAYER = re.compile(r"(?:^|\.)(\d+)$")


def device_title(device: str) -> str:
    """`cuda:0` → `GPU 0`."""
    kind, _, number = device.partition(":")
    return {"cuda": f"GPU {number or 0}", "cpu": t("CPU memory"), "disk": t("Disk")}.get(kind, device)


def device_place(device: str) -> str:
    """`cuda:0` → `on GPU 0`."""
    return {"cpu": t("in CPU memory"), "disk": t("on disk")}.get(device, t("on {device}", device=device_title(device)))


def _device_class(device: str) -> str:
    kind, _, number = device.partition(":")
    return f"gpu{int(number or 0) % 4}" if kind == "cuda" else kind if kind in ("cpu", "disk") else "other"


def layers_html(placement: Mapping[str, str], layers: int) -> str:
    """A strip with one cell a layer, coloured by the device that holds it, in the order of the layers."""
    cells = layer_devices(placement, layers)
    if not cells:
        return ""
    strip = "".join(
        f'<i class="cell {_device_class(device)}" title="{html.escape(_layer_title(number, device))}"></i>'
        for number, device in enumerate(cells)
    )
    counts = {device: cells.count(device) for device in dict.fromkeys(cells)}
    legend = "".join(
        f'<span><i class="seg {_device_class(device)}"></i>{html.escape(device_title(device))}: '
        f"{tn('{count} layer', '{count} layers', count)}</span>"
        for device, count in counts.items()
    )
    return (
        f'<div class="where"><h3>{t("Layers")}</h3>'
        f'<div class="layers" role="img" aria-label="{t("Where each layer is")}">{strip}</div>'
        f'<div class="legend">{legend}</div></div>'
    )


def _layer_title(number: int, device: str) -> str:
    return t("Layer {number}: {device}", number=number, device=device_title(device))


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


def info_html(info: ModelInfo) -> str:
    """The loaded model: what it is, how it runs, and where its weights went."""
    weights = ", ".join(
        f"{format_size(size)} {device_place(device)}" for device, size in info.placement.items() if size
    )
    facts: Sequence[tuple[str, str]] = (
        (t("Weights"), weights),
        (t("Precision"), info.quantization if info.quantization not in ("", "none") else info.dtype),
        (t("LoRA adapters"), ", ".join(info.adapters)),
        (
            t("Context"),
            tn("{count} token", "{count} tokens", info.context_tokens) if info.context_tokens else t("not told"),
        ),
        (t("Peak memory"), t("{size} while loading", size=format_size(info.peak_bytes)) if info.peak_bytes else ""),
        (t("Loaded in"), format_duration(info.load_s)),
        (t("Architecture"), info.architecture),
        (t("Generation"), f"{told(info.loop)}: {told(info.loop_reason)}" if info.loop_reason else told(info.loop)),
    )
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts if value)
    warnings = "".join(f"<li>{html.escape(told(text))}</li>" for text in info.warnings)
    return f'<dl class="facts">{rows}</dl>' + (f'<ul class="reasons">{warnings}</ul>' if warnings else "")
