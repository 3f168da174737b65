"""The live strip: shares that sum up, one reading for many pages, and a real machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

from modules.hardware import GpuProcess
from modules.ui.strip import FRESH_S, ProcessMemory, Strip, own_processes, split_memory
from modules.units import GiB
from tests.fakes import fake_inventory

HALF = fake_inventory((24,), ram_gib=16, free_share=0.5)


def test_memory_is_shared_out_among_snug_others_and_nobody() -> None:
    ram, _ = split_memory(HALF, [ProcessMemory(1, 3 * GiB, 0)])
    assert (ram.snug_bytes, ram.others_bytes, ram.free_bytes) == (3 * GiB, 5 * GiB, 8 * GiB)


def test_pages_of_files_are_snugs_though_the_system_calls_them_free() -> None:
    ram, _ = split_memory(HALF, [ProcessMemory(1, 3 * GiB, 2 * GiB)])
    assert (ram.snug_bytes, ram.others_bytes, ram.free_bytes) == (3 * GiB, 7 * GiB, 6 * GiB)


def test_a_gpus_bytes_are_snugs_by_the_ids_of_its_processes() -> None:
    gpu = replace(HALF.gpus[0], processes=(GpuProcess(7, "python", 9 * GiB), GpuProcess(8, "game", 2 * GiB)))
    _, seen = split_memory(replace(HALF, gpus=(gpu,)), [ProcessMemory(7, GiB, 0)])
    assert (seen.snug_bytes, seen.others_bytes, seen.free_bytes) == (9 * GiB, 3 * GiB, 12 * GiB)


def test_figures_that_contradict_each_other_still_sum_to_the_total() -> None:
    for processes in ([ProcessMemory(1, 40 * GiB, 0)], [ProcessMemory(1, 40 * GiB, 39 * GiB)], []):
        for memory in split_memory(HALF, processes):
            assert memory.snug_bytes + memory.others_bytes + memory.free_bytes == memory.device.total_bytes
            assert min(memory.snug_bytes, memory.others_bytes, memory.free_bytes) >= 0


def test_one_reading_serves_all_pages_for_a_while() -> None:
    now, readings = [0.0], []

    def read() -> list[ProcessMemory]:
        readings.append(now[0])
        return [ProcessMemory(1, GiB, 0)]

    strip = Strip(lambda: HALF, read_processes=read, clock=lambda: now[0])
    first = strip.view()
    assert strip.view() == first
    now[0] = FRESH_S
    strip.view()
    assert readings == [0.0, FRESH_S]
    assert [entry["title"] for entry in first] == ["RAM", "GPU 0"]
    assert (first[0]["used"], first[0]["total"], first[0]["snug"]) == ("8.00 GiB", "16.0 GiB", "1.00 GiB")


def test_the_processes_that_snug_has_started_are_its_own() -> None:
    command = "import sys; print('up', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        found = {process.pid: process for process in own_processes()}
        child.stdin.close()
    assert {os.getpid(), child.pid} <= found.keys()
    assert found[child.pid].rss_bytes > found[child.pid].file_bytes >= 0
