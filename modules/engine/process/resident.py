"""The most memory that this process has held in RAM since a moment of one's choice."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import psutil

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak_resident() -> None:
    """Begin a new peak, where the system can: Linux ("5" resets VmHWM, man proc).

    Some containers forbid it: the peak then counts from the start of the process.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            _CLEAR_REFS.write_text("5")


def peak_resident() -> int:
    """Bytes."""
    if sys.platform == "linux":
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))
