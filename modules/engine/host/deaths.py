"""Was it memory? Watches an engine process, so that its sudden end can be laid to the kernel or not.

The kernel counts the processes that it kills for want of memory (oom_kill in /proc/vmstat, those under a cgroup's limit
included). Where nothing counts, what was free when the engine was last seen has to do. It decides nothing else.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from modules.hardware import CGROUP_ROOT, cgroup_room
from modules.units import MiB, format_size

VMSTAT = Path("/proc/vmstat")
# With less than this, or this share of all memory, free at the last look, a process that grows may be the next victim.
FEW_BYTES = 512 * MiB
FEW_SHARE = 0.05


class MemoryWatch:
    """Looks at one process from its start; `look` again and again, then `was_memory` when it was killed."""

    def __init__(self, pid: int | None, *, vmstat: Path = VMSTAT) -> None:
        """`pid` None: a thread of this process, which nobody kills alone."""
        self._vmstat = vmstat
        self._kills = count_kills(vmstat)
        self._process = _find(pid)
        self._cgroup = _cgroup_of(pid)
        self.peak_bytes = 0
        self.free_bytes: int | None = None

    def look(self) -> None:
        """Note what the process takes and what is left beside it."""
        if self._process is None:
            return
        try:
            self.peak_bytes = max(self.peak_bytes, int(self._process.memory_info().rss))
        except psutil.Error:
            return  # it is gone; what was free before that counts
        free = int(psutil.virtual_memory().available)
        room = cgroup_room(CGROUP_ROOT, self._cgroup)
        self.free_bytes = free if room is None else min(free, room[1])

    def was_memory(self) -> bool:
        """Whether memory is the likely cause of a death by SIGKILL."""
        kills = count_kills(self._vmstat)
        if kills is not None and self._kills is not None and kills > self._kills:
            return True
        few = max(FEW_BYTES, int(psutil.virtual_memory().total * FEW_SHARE))
        return self.free_bytes is not None and self.free_bytes < few

    def evidence(self) -> str:
        """What was seen, in words: `it took 3.1 GiB, 0.2 GiB were free`; "" where nothing was."""
        if self.free_bytes is None or not self.peak_bytes:
            return ""
        return f"it took up to {format_size(self.peak_bytes)}, {format_size(self.free_bytes)} were free"


def count_kills(vmstat: Path = VMSTAT) -> int | None:
    """How many processes the kernel has killed for want of memory since it started; None where it does not say."""
    try:
        lines = vmstat.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _find(pid: int | None) -> psutil.Process | None:
    try:
        return None if pid is None else psutil.Process(pid)
    except psutil.Error:
        return None


def _cgroup_of(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8") if pid is not None else ""
    except OSError:
        return ""
