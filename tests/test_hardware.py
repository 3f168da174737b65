"""The machine: GPUs as CUDA will number them, memory within cgroup limits, disk of folders that do not exist yet."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from modules.hardware import cgroup_room, read_cpu_features, read_gpus, read_inventory, visible_names
from modules.units import GiB, MiB


class NvmlError(Exception):
    """NVML's own error."""


@dataclass(frozen=True)
class Memory:
    """As nvmlDeviceGetMemoryInfo gives it."""

    total: int
    free: int


@dataclass(frozen=True)
class Running:
    """As nvmlDeviceGetComputeRunningProcesses gives it."""

    pid: int
    usedGpuMemory: int | None


@dataclass
class DriverWith:
    """An NVML with GPUs of the given sizes, of which one may not be told; it may hide their processes."""

    free: list[int | None]
    processes: list[Running] = field(default_factory=list)
    hides_processes: bool = False
    NVMLError = NvmlError

    def nvmlDeviceGetCount(self) -> int:
        return len(self.free)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        if uuid != "GPU-b":
            raise NvmlError
        return 1

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:
        free = self.free[handle]
        if free is None:
            raise NvmlError
        return Memory(24 * GiB, free)

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return f"card {handle}".encode()

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Running]:
        if self.hides_processes:
            raise NvmlError
        return self.processes


def test_a_machine_without_a_driver_has_no_gpus_but_memory_cores_and_a_disk(tmp_path: Path) -> None:
    inventory = read_inventory(tmp_path / "not" / "there", {"CUDA_VISIBLE_DEVICES": ""})
    assert inventory.gpus == ()
    assert 0 < inventory.cpu.free_bytes <= inventory.cpu.total_bytes <= psutil.virtual_memory().total
    assert 0 < inventory.disk.free_bytes <= inventory.disk.total_bytes
    assert inventory.disk.name == str(tmp_path)
    assert inventory.physical_cores >= 1


def test_gpus_carry_free_memory_and_who_uses_it() -> None:
    driver = DriverWith([20 * GiB, 5 * GiB], [Running(2**22 + 1, 3 * GiB), Running(2**22 + 2, None)])
    first, second = read_gpus(driver, None)
    assert (first.id, first.name, first.total_bytes, first.free_bytes) == ("cuda:0", "card 0", 24 * GiB, 20 * GiB)
    assert second.id == "cuda:1"
    assert [(p.name, p.used_bytes) for p in first.processes] == [("unknown", 3 * GiB), ("unknown", 0)]


def test_a_driver_that_hides_processes_still_shows_memory() -> None:
    (gpu,) = read_gpus(DriverWith([GiB], hides_processes=True), None)
    assert gpu.free_bytes == GiB
    assert gpu.processes == ()


def test_a_gpu_whose_memory_is_not_told_is_left_out_and_the_others_keep_their_numbers() -> None:
    gpus = read_gpus(DriverWith(free=[20 * GiB, None, 22 * GiB]), None)
    assert [(gpu.id, gpu.free_bytes) for gpu in gpus] == [("cuda:0", 20 * GiB), ("cuda:2", 22 * GiB)]


def test_a_hidden_gpu_is_not_counted_and_the_visible_one_becomes_cuda_0() -> None:
    (gpu,) = read_gpus(DriverWith([1 * GiB, 2 * GiB]), "GPU-b")
    assert (gpu.id, gpu.free_bytes) == ("cuda:0", 2 * GiB)
    assert read_gpus(DriverWith([1 * GiB, 2 * GiB]), "GPU-unknown") == ()


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("1,7,0", [1]),
        ("1, 1", [1]),
        ("GPU-x,0", ["GPU-x", 0]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(visible: str | None, names: list[int | str]) -> None:
    assert visible_names(visible, 3) == names


def _write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_a_cgroup_2_limit_counts_less_what_is_used_and_more_what_can_be_dropped(tmp_path: Path) -> None:
    stat = f"anon 5\ninactive_file {100 * MiB}\n"
    _write(tmp_path / "box", memory__max=1 * GiB, memory__current=600 * MiB, memory__stat=stat)
    assert cgroup_room(tmp_path, "0::/box\n") == (GiB, 1 * GiB - 500 * MiB)


def test_the_tightest_ancestor_counts(tmp_path: Path) -> None:
    _write(tmp_path / "a", memory__max=1 * GiB, memory__current=900 * MiB, memory__stat="")
    _write(tmp_path / "a" / "b", memory__max="max", memory__current=10 * MiB, memory__stat="")
    assert cgroup_room(tmp_path, "0::/a/b\n") == (GiB, GiB - 900 * MiB)


def test_a_cgroup_1_limit_is_found_at_the_mount_where_a_container_sees_only_its_own(tmp_path: Path) -> None:
    stat = f"total_inactive_file {MiB}"
    _write(tmp_path / "memory", memory__limit_in_bytes=GiB, memory__usage_in_bytes=2 * MiB, memory__stat=stat)
    assert cgroup_room(tmp_path, "9:memory:/docker/abc\n3:cpu:/docker/abc\n") == (GiB, GiB - MiB)


def test_no_limit_is_none(tmp_path: Path) -> None:
    _write(tmp_path / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=5, memory__stat="")
    assert cgroup_room(tmp_path, "9:memory:/\n") is None
    assert cgroup_room(tmp_path, "") is None


def test_the_cpus_features_are_read_once_and_a_system_without_such_a_file_has_none(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\nflags\t\t: fpu\n", encoding="utf-8")
    assert read_cpu_features(path) == {"fpu", "avx2", "avx512f"}
    assert read_cpu_features(tmp_path / "absent") == frozenset()
    path.write_bytes(b"\xff\x00")
    assert read_cpu_features(path) == frozenset()
