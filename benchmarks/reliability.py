"""What must hold of Snug, measured: the goals of its study of reliability with figures, asked | measured | verdict.

`python benchmarks/reliability.py` or `python -m benchmarks.reliability`; `--quick` takes smaller counts, about three
minutes, for every day; `--only 1,5` measures these alone; `--soak MINUTES` is the length of goal 6 (60 in a whole run).
Goal 14 asks the package index; goal 15 runs the tests that need neither model nor browser. Results go to
results/reliability.json, as a table to results/reliability.md and into docs/reliability.md, in a few words into the
README. A quick run replaces no whole measurement that passed. Rows that cannot be measured here say why.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: the folder beside it must not stand in the way of libraries' names
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.common import RESULTS, ROOT, keep
from benchmarks.reliability_rows import content, crowds, requests, stored, suite
from benchmarks.reliability_rows.brief import brief_table
from benchmarks.reliability_rows.outcome import Measure, Outcome, Scale
from modules.files import atomic_write

BEGIN, END = "<!-- figures: benchmarks/reliability.py -->", "<!-- end of figures -->"
QUICK_SOAK_MIN, SOAK_MIN = 0.75, 60.0


MEASURES: dict[int, Measure] = {
    1: stored.kills, 2: requests.made_up, 3: requests.departures, 4: crowds.streams, 5: crowds.slow, 6: crowds.soak,
    7: content.scripts, 8: content.control_tokens, 9: content.broken_files, 10: requests.doors, 11: stored.tabs,
    12: stored.failed_loads, 13: stored.full_disks, 14: content.code,
    15: suite.every_submission,
}  # fmt: skip


def measured(number: int, scale: Scale) -> dict[str, Any]:
    """One goal as results keep it. A measurement that breaks is one that failed."""
    started = time.monotonic()
    try:
        outcome = MEASURES[number](scale)
    except Exception as error:  # the edge of one measurement: the others go on
        why = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        outcome = Outcome((MEASURES[number].__doc__ or "").split("\n")[0], f"it broke: {why}", False)
    row = {"goal": number, **asdict(outcome), "verdict": outcome.verdict, "on": date.today().isoformat()}
    return row | {"seconds": round(time.monotonic() - started, 1)}


def merged(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results to keep, in order."""
    rows = {row["goal"]: row for row in old}
    for row in new:
        before = rows.get(row["goal"])
        if before is not None and row["passed"] is None:  # not measured this time
            continue
        if before is None or row["whole"] or not before["whole"] or not before["passed"] or row["passed"] is False:
            rows[row["goal"]] = row
    return [rows[number] for number in sorted(rows)]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| goal | asked | measured |  |", "| --- | --- | --- | --- |"]
    lines += [f"| {row['goal']} | {row['asked']} | {row['measured']} | {row['verdict']} |" for row in rows]
    return "\n".join(lines) + "\n"


def put_into(page: Path, figures: str) -> None:
    """Replace what stands between the marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    atomic_write(page, f"{before}{BEGIN}\n{figures}{END}{after}")


def main() -> int:
    """Measure, print, keep; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="smaller counts, about three minutes")
    parser.add_argument("--only", default="", help="numbers of goals, with commas")
    parser.add_argument("--soak", type=float, default=0.0, help="minutes of goal 6")
    given = parser.parse_args()
    scale = Scale(given.quick, given.soak or (QUICK_SOAK_MIN if given.quick else SOAK_MIN))
    wanted = [int(number) for number in given.only.split(",") if number] or list(MEASURES)
    rows = []
    for number in wanted:
        row = measured(number, scale)
        rows.append(row)
        print(f"{number:2} {row['verdict']:24} {row['seconds']:6.1f} s  asked: {row['asked']}\n{'':37}measured: "
              f"{row['measured']}", flush=True)  # fmt: skip
    path = RESULTS / "reliability.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = merged(old, rows)
    keep("reliability", {"rows": kept})
    atomic_write(RESULTS / "reliability.md", table(kept))
    put_into(ROOT / "docs" / "reliability.md", table(kept))
    put_into(ROOT / "README.md", brief_table(kept))
    return int(any(row["passed"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
