"""modules/heap.py: what a load frees goes back to the system, a step's buffers stay."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc is Linux's")

# 40 tensors of 8 MiB, every second of which is freed as halves of a conversion are; then a buffer of a step.
CHILD = """
import resource
import sys
from pathlib import Path
import torch
from modules.heap import prepare_load, prepare_run
def anon():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
def make():
    return torch.ones(2**21)
if "prepared" in sys.argv:
    prepare_load()
del_first = make(); del del_first  # without preparation glibc keeps blocks of this size from here on
before = anon()
kept, freed = [], []
for _ in range(20):
    kept.append(make()); freed.append(make())
freed.clear()
held = anon() - before
if "prepared" in sys.argv:
    prepare_run()
buffer = make(); del buffer
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
buffer = torch.ones(2**20); del buffer
print(held // 2**20, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults)
"""


def held_mib(*arguments: str) -> tuple[int, int]:
    """MiB that a child holds for 160 MiB of tensors, and pages it gets anew for a buffer half as large as the last."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    held, pages = map(int, done.stdout.split())
    return held, pages


def test_what_a_load_frees_goes_back_at_once() -> None:
    held, _ = held_mib("prepared")
    assert 158 <= held <= 164
    assert held_mib()[0] >= 300  # else this test would pass without the preparation


def test_a_steps_buffer_stays_for_the_next_step() -> None:
    assert held_mib("prepared")[1] < 200  # of the 1,024 of its 4 MiB
