"""What this machine has: GPUs, RAM (and the cgroup's limit), disk. Read now, never assumed.

Reading is thin and calculation pure: `read_gpus` takes the NVML module, `cgroup_room` a cgroup tree, so both can be
shown any machine. Nothing here imports torch or starts a CUDA context.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
import pynvml

DeviceKind = Literal["cuda", "cpu", "disk"]
CGROUP_ROOT = Path("/sys/fs/cgroup")
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """Another program's share of a GPU."""

    pid: int
    name: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Device:
    """A place for bytes: `id` is "cuda:0", "cpu" or "disk"."""

    id: str
    kind: DeviceKind
    name: str
    total_bytes: int
    free_bytes: int
    processes: tuple[GpuProcess, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """A machine at one moment. `cpu_features` as Linux names them ("avx2", "avx512_bf16"); empty where unknown."""

    gpus: tuple[Device, ...]
    cpu: Device
    disk: Device
    physical_cores: int
    cpu_features: frozenset[str] = frozenset()


def read_inventory(disk_folder: Path, environment: Mapping[str, str] = os.environ) -> Inventory:
    """This machine now. `disk` is the file system that holds `disk_folder`, which need not exist yet."""
    return Inventory(
        gpus=_read_nvidia(environment.get("CUDA_VISIBLE_DEVICES")),
        cpu=_read_cpu(),
        disk=_read_disk(disk_folder),
        physical_cores=_physical_cores(),
        cpu_features=read_cpu_features(CPU_INFO),
    )


def _read_nvidia(visible: str | None) -> tuple[Device, ...]:
    """The GPUs that the driver shows; none where there is no driver or it does not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        return read_gpus(pynvml, visible)
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def read_gpus(nvml: Any, visible: str | None) -> tuple[Device, ...]:
    """The GPUs of an initialised NVML, numbered as CUDA will number them under CUDA_DEVICE_ORDER=PCI_BUS_ID.

    `visible` is CUDA_VISIBLE_DEVICES: indices or UUIDs; as in CUDA, the first that does not exist ends the list. One
    whose memory the driver does not tell (it is the CPU's own, or the GPU is lost) is left out; the others keep their
    numbers.
    """
    handles: list[Any] = []
    for name in visible_names(visible, nvml.nvmlDeviceGetCount()):
        try:
            by_index = isinstance(name, int)
            handles.append(nvml.nvmlDeviceGetHandleByIndex(name) if by_index else nvml.nvmlDeviceGetHandleByUUID(name))
        except nvml.NVMLError:
            break
    devices = []
    for index, handle in enumerate(handles):
        try:
            memory, name = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetName(handle)
        except nvml.NVMLError:
            continue
        devices.append(
            Device(
                id=f"cuda:{index}",
                kind="cuda",
                name=_text(name),
                total_bytes=int(memory.total),
                free_bytes=int(memory.free),
                processes=_gpu_processes(nvml, handle),
            )
        )
    return tuple(devices)


def visible_names(visible: str | None, count: int) -> list[int | str]:
    """CUDA_VISIBLE_DEVICES as indices below `count` and UUIDs. None: all. A bad or repeated entry ends the list."""
    if visible is None:
        return list(range(count))
    names: list[int | str] = []
    for word in visible.split(","):
        word = word.strip()
        name: int | str = int(word) if word.isdecimal() else word
        known = name < count if isinstance(name, int) else name.startswith(("GPU-", "MIG-"))
        if not known or name in names:
            break
        names.append(name)
    return names


def _gpu_processes(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
    """Who uses this GPU; empty where the driver does not tell (containers, WSL)."""
    try:
        running = nvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except nvml.NVMLError:
        return ()
    return tuple(GpuProcess(p.pid, _process_name(p.pid), int(p.usedGpuMemory or 0)) for p in running)


def _process_name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.Error:
        return "unknown"


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _read_cpu() -> Device:
    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    room = cgroup_room(CGROUP_ROOT, _own_cgroups())
    if room is not None:
        total, free = min(total, room[0]), min(free, room[1])
    return Device("cpu", "cpu", platform.processor() or platform.machine(), total, free)


def _own_cgroups() -> str:
    path = Path("/proc/self/cgroup")
    return path.read_text(encoding="utf-8") if path.exists() else ""


def cgroup_room(root: Path, own: str) -> tuple[int, int] | None:
    """(limit, free) bytes under the tightest memory limit of a cgroup tree, v1 or v2; None where there is no limit.

    `own` is the text of /proc/self/cgroup. Every ancestor counts. Inactive page cache is free: the kernel drops it
    before it kills. A limit of 2⁶⁰ bytes or more is none (v1 writes 2⁶³ for "no limit").
    """
    rooms = [room for folder, version in _memory_cgroups(root, own) if (room := _room(folder, version)) is not None]
    return (min(limit for limit, _ in rooms), min(free for _, free in rooms)) if rooms else None


def _memory_cgroups(root: Path, own: str) -> list[tuple[Path, int]]:
    """Every folder, own group first, that can hold a memory limit, with its cgroup version."""
    folders: list[tuple[Path, int]] = []
    for line in own.splitlines():
        _, controllers, path = [*line.split(":", 2), "", "", ""][:3]
        version = 2 if controllers == "" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        base = root if version == 2 else root / "memory"
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        folders += [(base.joinpath(*parts[:depth]), version) for depth in range(len(parts), -1, -1)]
    return folders


def _room(folder: Path, version: int) -> tuple[int, int] | None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    try:
        limit_text, used_text = ((folder / name).read_text(encoding="utf-8").strip() for name in names)
        statistics = (folder / "memory.stat").read_text(encoding="utf-8").split()
    except OSError:
        return None
    if limit_text == "max" or int(limit_text) >= 2**60:
        return None
    key = "inactive_file" if version == 2 else "total_inactive_file"
    reclaimable = int(statistics[statistics.index(key) + 1]) if key in statistics else 0
    limit = int(limit_text)
    return limit, max(0, min(limit, limit - int(used_text) + reclaimable))


def _read_disk(folder: Path) -> Device:
    """The file system of the nearest parent of `folder` that exists."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = psutil.disk_usage(str(existing))
    return Device("disk", "disk", str(existing), int(usage.total), int(usage.free))


def read_cpu_features(path: Path) -> frozenset[str]:
    """The first core's flags in a file like /proc/cpuinfo; none where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, "").split())


def _physical_cores() -> int:
    """Cores that this process may really use: physical ones, within its CPU affinity."""
    physical = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else physical
    return max(1, min(physical, allowed))
