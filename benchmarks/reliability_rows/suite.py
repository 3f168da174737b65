"""Figures of the suite itself: how long the tests of every submission take."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

from benchmarks.common import ROOT
from benchmarks.reliability_rows.outcome import Outcome, Scale

ASKED = "CI: tests of every submission within 12 minutes, at most 1 flake in 500 runs"
MOST_MIN = 12.0
EVERY_SUBMISSION = "not model and not browser and not slow"
"""Markers of the tests that need no model, no browser and no minutes."""


def every_submission(scale: Scale) -> Outcome:
    """Their time, by the clock and by the processor, which other programs on the machine lengthen less."""
    if scale.quick:
        return Outcome(ASKED, "a quick run does not run the suite", None)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-m", EVERY_SUBMISSION]
    started, before = time.monotonic(), os.times()
    run = subprocess.run([*command, "-p", "no:cacheprovider"], cwd=ROOT, capture_output=True, text=True, check=False)
    minutes, after = (time.monotonic() - started) / 60, os.times()
    used = (after.children_user + after.children_system - before.children_user - before.children_system) / 60
    counts = counted(run.stdout)
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    return Outcome(
        ASKED,
        f"{counts.get('passed', 0):,} tests that need neither model nor browser passed, {failed} failed, in "
        f"{minutes:.0f} minutes ({used:.0f} of processor); flakes would need 500 runs of it",
        bool(counts.get("passed")) and not failed and minutes <= MOST_MIN,
        False,  # one run tells nothing of flakes
        {
            "minutes": minutes,
            "processor_minutes": used,
            "passed": counts.get("passed", 0),
            "failed": failed,
            "failures": re.findall(r"^(?:FAILED|ERROR) (\S+)", run.stdout, re.MULTILINE),
        },
    )


def counted(output: str) -> dict[str, int]:
    """What pytest's last line counts."""
    last = (output.strip().splitlines() or [""])[-1]
    return {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}
