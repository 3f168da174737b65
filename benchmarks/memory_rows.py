"""Rows that hold a forecast of memory against what really was allocated: shown, summed up, kept family by family.

A part's results are one file. A run may stop between two families and go on later; families keep their order there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from benchmarks.common import RESULTS, keep, machine

_MACHINE = ("cpu", "torch", "transformers", "bitsandbytes")


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; bytes. `ratio` is forecast / real."""

    what: str
    family: str
    way: str
    tokens: int
    forecast: int
    real: int

    @property
    def ratio(self) -> float:
        """1 where the forecast is exact."""
        return self.forecast / max(1, self.real)


class Results:
    """The rows of one part, as results/memory-PART.json has them."""

    def __init__(self, part: str, order: Sequence[str], *, resume: bool) -> None:
        """`order`: the part's families. Without `resume`, or from another machine or thread count: no rows yet."""
        self._name = f"memory-{part}"
        self._order = list(order)
        self._rows = _kept_rows(self._name) if resume else []

    @property
    def families(self) -> set[str]:
        """Those that have their rows."""
        return {row.family for row in self._rows}

    @property
    def missing(self) -> list[str]:
        """Those of the part that have none."""
        return [family for family in self._order if family not in self.families]

    def replace(self, family: str, rows: Iterable[Row]) -> None:
        """Print a family's rows as they come; once all are there, keep them instead of its earlier ones."""
        shown = [_shown(row) for row in rows]
        others = [row for row in self._rows if row.family != family]
        self._rows = sorted([*others, *shown], key=lambda row: self._order.index(row.family))
        kept = [{**asdict(row), "ratio": round(row.ratio, 4)} for row in self._rows]
        result = {"threads": torch.get_num_threads(), "missing": self.missing, "summary": summary(self._rows)}
        keep(self._name, {**result, "rows": kept})

    def show_summary(self) -> None:
        """Print how far off the forecasts of each kind are."""
        for line in summary(self._rows):
            print(line)


def _kept_rows(name: str) -> list[Row]:
    """The rows that an earlier run kept, if it was here and with as many threads."""
    try:
        record = json.loads((RESULTS / f"{name}.json").read_text())
        then, now = record["machine"], machine()
        if record["threads"] != torch.get_num_threads() or any(then[what] != now[what] for what in _MACHINE):
            return []
        return [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in record["rows"]]
    except (OSError, ValueError, KeyError):
        return []


def _shown(row: Row) -> Row:
    error = abs(row.ratio - 1)
    mark = "  <-- beyond 2 %" if error > 0.02 else "  <-- beyond 0.5 %" if error > 0.005 else ""
    print(
        f"{row.what:16} {row.family:12} {row.way:34} {row.tokens:5} forecast {row.forecast:>12,} "
        f"real {row.real:>12,}  {row.ratio:.4f}{mark}",
        flush=True,
    )
    return row


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per kind of comparison: how many families are within 0.5 %, 2 % and 3 % everywhere, and the worst row."""
    lines = []
    for what in dict.fromkeys(row.what for row in rows):
        mine = [row for row in rows if row.what == what]
        worst_of = {
            family: max(abs(row.ratio - 1) for row in mine if row.family == family)
            for family in {row.family for row in mine}
        }
        worst = max(mine, key=lambda row: abs(row.ratio - 1))
        lines.append(
            {"what": what, "rows": len(mine), "families": len(worst_of),
             "families_within_half_percent": sum(error <= 0.005 for error in worst_of.values()),
             "families_within_two_percent": sum(error <= 0.02 for error in worst_of.values()),
             "families_within_three_percent": sum(error <= 0.03 for error in worst_of.values()),
             "rows_beyond_two_percent": sum(abs(row.ratio - 1) > 0.02 for row in mine),
             "worst": f"{worst.family} {worst.way} {worst.tokens}", "worst_ratio": round(worst.ratio, 4)}
        )  # fmt: skip
    return lines
