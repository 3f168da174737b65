"""The live strip in the header: memory of this machine, used by Snug, used by others, free.

Every page asks with its pulse; one reading serves all pages for a few seconds. Nothing is asked of the engine: the
driver and the system say what its processes hold.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from modules.hardware import Device, Inventory
from modules.ui.views import Json
from modules.ui.words import format_size

FRESH_S = 2.5


@dataclass(frozen=True, slots=True)
class Memory:
    """Who has how many bytes of one device; the three sum to its total."""

    device: Device
    snug_bytes: int
    others_bytes: int
    free_bytes: int

    def view(self) -> Json:
        """For the page's script: shares of the total, and texts."""
        total = max(1, self.device.total_bytes)
        return {
            "id": self.device.id,
            "title": "RAM" if self.device.kind == "cpu" else f"GPU {self.device.id.partition(':')[2]}",
            "name": self.device.name if self.device.kind == "cuda" else "",
            "snug_share": self.snug_bytes / total,
            "others_share": self.others_bytes / total,
            "snug": format_size(self.snug_bytes),
            "others": format_size(self.others_bytes),
            "free": format_size(self.free_bytes),
            "used": format_size(self.snug_bytes + self.others_bytes),
            "total": format_size(self.device.total_bytes),
        }


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """One of Snug's processes: bytes in RAM, and those of them that are pages of files, which count as free."""

    pid: int
    rss_bytes: int
    file_bytes: int


def split_memory(inventory: Inventory, processes: Iterable[ProcessMemory]) -> list[Memory]:
    """RAM and every GPU, shared out among Snug's `processes`, others, and nobody."""
    own = list(processes)
    rss = sum(process.rss_bytes for process in own)
    counted = rss - sum(process.file_bytes for process in own)
    pids = {process.pid for process in own}
    gpus = [_shared_out(gpu, _on_gpu(gpu, pids), _on_gpu(gpu, pids)) for gpu in inventory.gpus]
    return [_shared_out(inventory.cpu, rss, counted), *gpus]


def _on_gpu(gpu: Device, pids: set[int]) -> int:
    return sum(process.used_bytes for process in gpu.processes if process.pid in pids)


def _shared_out(device: Device, snug_bytes: int, counted_bytes: int) -> Memory:
    """`counted_bytes` of Snug's are among what the system calls used; the rest lies in what it calls free."""
    used = max(0, device.total_bytes - device.free_bytes)
    others = max(0, used - counted_bytes)
    snug = min(snug_bytes, device.total_bytes - others)
    return Memory(device, snug, others, device.total_bytes - others - snug)


def own_processes(pid: int | None = None) -> list[ProcessMemory]:
    """This process and all that it has started; those that end meanwhile are left out."""
    found = []
    root = psutil.Process(pid or os.getpid())
    for process in (root, *root.children(recursive=True)):
        try:
            memory = process.memory_info()
        except psutil.Error:
            continue
        found.append(ProcessMemory(process.pid, memory.rss, getattr(memory, "shared", 0)))
    return found


class Strip:
    """Reads the machine at most every FRESH_S seconds, however many pages ask."""

    def __init__(
        self,
        read_machine: Callable[[], Inventory],
        *,
        read_processes: Callable[[], list[ProcessMemory]] = own_processes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read_machine = read_machine
        self._read_processes = read_processes
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: list[Memory] = []
        self._stale_at = float("-inf")

    def view(self) -> list[Json]:
        """One entry a device, RAM first."""
        with self._lock:
            if self._clock() >= self._stale_at:
                self._seen = split_memory(self._read_machine(), self._read_processes())
                self._stale_at = self._clock() + FRESH_S
            return [memory.view() for memory in self._seen]
