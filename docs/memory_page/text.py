"""Bytes and tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modules.units import GiB


def gb(size_bytes: float) -> str:
    """`13.48 GB`: 10⁹ bytes, as makers and most tables count."""
    return f"{gb_number(size_bytes)} GB"


def gb_number(size_bytes: float) -> str:
    """`13.48`: in GB."""
    size = size_bytes / 1e9
    return f"{size:.2f}" if size < 100 else f"{size:.1f}"


def gib(size_bytes: float) -> str:
    """`12.55 GiB`: 2³⁰ bytes, as drivers and Snug count."""
    return f"{gib_number(size_bytes)} GiB"


def gib_number(size_bytes: float) -> str:
    """`12.55`: in GiB."""
    size = size_bytes / GiB
    return f"{size:.2f}" if size < 100 else f"{size:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; columns whose head ends with `:` are right-aligned."""
    names = [name.removesuffix(":") for name in head]
    lines = [names, ["---:" if name.endswith(":") else "---" for name in head], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
