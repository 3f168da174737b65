"""Bytes and seconds between machines and people. Every size inside Snug is an int of bytes."""

from __future__ import annotations

import math
import re

KiB, MiB, GiB, TiB = 1024, 1024**2, 1024**3, 1024**4

_UNITS = {
    "b": 1,
    "kib": KiB, "mib": MiB, "gib": GiB, "tib": TiB,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")


def parse_size(text: str | int | float) -> int:
    """Bytes of `10` (GiB), `8722MiB`, `10GiB` or `10GB` (10⁹). Raises ValueError on anything else, 0 included."""
    match = _SIZE.fullmatch(str(text))
    unit = _UNITS.get(match.group(2).lower() or "gib") if match else None
    if match is None or unit is None:
        raise ValueError(f"{text!r} is not a size. Write 10 (GiB), 8722MiB, 10GiB or 10GB")
    value = float(match.group(1)) * unit
    if not math.isfinite(value) or value < 1 or value > 2**53:
        raise ValueError(f"{text!r} is not a usable size. Write 10 (GiB), 8722MiB, 10GiB or 10GB")
    return int(value)


def format_size(size_bytes: int | float, *, up: bool = False) -> str:
    """`8.20 GiB`, `417 MiB`, `12.0 KiB`, `3 B`: three significant digits, binary units.

    `up`: rounded up, for what has to be enough.
    """
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    for unit, name in ((TiB, "TiB"), (GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size >= unit * 0.9995:
            value = size / unit
            digits = 2 if value < 10 else 1 if value < 100 else 0
            shown = math.ceil(value * 10**digits) / 10**digits if up else value
            return f"{sign}{shown:.{digits}f} {name}"
    return f"{sign}{int(size)} B"


def exact_size(size_bytes: int) -> str:
    """`10GiB`, `8722MiB`, `1000B`: no byte is lost, unlike in format_size."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"


def format_rate(rate: float) -> str:
    """`140`, `41`, `5.2`, `0.3`, `0.0074`: two digits that matter, never with an exponent."""
    if rate <= 0:
        return "0"
    if rate >= 10:
        return f"{float(f'{rate:.2g}'):,.0f}"
    text = f"{rate:.{max(1, 1 - math.floor(math.log10(rate)))}f}"
    return text.rstrip("0").rstrip(".") if rate < 1 else text


def format_duration(seconds: float) -> str:
    """`0.42 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
