"""modules/engine/process/mappings.py: pages of weight files are let go, and nothing is lost by it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from modules.engine.process.mappings import MappedFiles, _mappings, let_go_of_zeros
from modules.units import MiB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is mapped")


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """A tensor of 32 MiB that lies in a mapped file, read once."""
    save_file({"a": torch.arange(8 * MiB, dtype=torch.float32)}, tmp_path / "unlike.safetensors")
    with safe_open(tmp_path / "unlike.safetensors", framework="pt") as file:
        tensor: torch.Tensor = file.get_slice("a")[...]
    assert float(tensor.sum()) > 0
    return tensor


def resident() -> int:
    found = _mappings(Path("/proc/self/smaps").read_text(), "unlike.safetensors")
    return sum(resident for _, _, resident, _ in found)


def test_pages_that_were_read_are_let_go_and_come_back_unchanged(mapped: torch.Tensor) -> None:
    assert resident() >= 32 * MiB
    assert MappedFiles("unlike.safetensors").let_go() >= 32 * MiB
    assert resident() == 0
    assert torch.equal(mapped, torch.arange(8 * MiB, dtype=torch.float32))


def test_a_file_that_was_written_to_in_memory_keeps_its_pages(mapped: torch.Tensor) -> None:
    mapped[5] = -1.0
    assert MappedFiles("unlike.safetensors").let_go() == 0
    assert float(mapped[5]) == -1.0


def test_files_of_other_names_are_not_touched(mapped: torch.Tensor) -> None:
    assert MappedFiles("other.safetensors").let_go() == 0
    assert resident() >= 32 * MiB


def test_a_load_lets_go_at_most_once_every_32nd(mapped: torch.Tensor) -> None:
    files = MappedFiles("unlike.safetensors")
    files.let_go_at(0.0)
    assert resident() == 0
    mapped.sum()
    files.let_go_at(0.02)
    assert resident() >= 32 * MiB
    files.let_go_at(0.04)
    assert resident() == 0


def test_during_a_load_that_tells_nothing_pages_are_let_go_and_so_are_the_last(mapped: torch.Tensor) -> None:
    with MappedFiles("unlike.safetensors").letting_go([mapped]):
        deadline = time.monotonic() + 20
        while resident() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert resident() == 0
        mapped.sum()
    assert resident() == 0


def test_a_file_whose_pages_are_let_go_stays_mapped_and_others_are_not_touched(
    mapped: torch.Tensor, tmp_path: Path
) -> None:
    """What another thread unmaps between a look and what follows from it has left its addresses to other memory."""
    save_file({"b": torch.ones(8 * MiB)}, tmp_path / "second-unlike.safetensors")
    with safe_open(tmp_path / "second-unlike.safetensors", framework="pt") as file:
        second = file.get_slice("b")[...]
    second.sum()
    both = resident()
    tensors = [second, torch.empty(3, device="meta")]
    with MappedFiles("unlike.safetensors").letting_go(tensors):
        tensors.clear()
        del second, file
        assert len(_mappings(Path("/proc/self/smaps").read_text(), "second-unlike.safetensors")) == 1
    assert not _mappings(Path("/proc/self/smaps").read_text(), "second-unlike.safetensors")
    assert both >= 64 * MiB and resident() >= 32 * MiB


def test_zeros_take_no_memory_until_they_are_written_to() -> None:
    before = psutil.Process().memory_info().rss
    zeros = torch.zeros(64 * MiB, dtype=torch.uint8)
    let_go_of_zeros(zeros)
    assert psutil.Process().memory_info().rss - before < 8 * MiB
    zeros[5 * MiB] = 7
    assert int(zeros.sum()) == 7
