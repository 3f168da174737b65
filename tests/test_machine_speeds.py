"""Speeds are measured when nothing else runs, until two measurements agree, and kept for this machine only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modules.machine_speeds import Bandwidths, MachineSpeeds, measure
from modules.memory.planning.speed import defaults
from tests.shapes import machine

FOUND = {"cpu": {"read_Bps": 5e9, "flops": 1e11}, "cuda:0": {"read_Bps": 3e11, "from_cpu_Bps": 1.2e10}}


def measured(path: Path, *results: Bandwidths, is_busy: Callable[[], bool] = lambda: False) -> MachineSpeeds:
    """Speeds measured at once into `path`: these results in turn, the last one again and again."""
    left = list(results or (FOUND,))
    speeds = MachineSpeeds(path, measure=lambda _stop: left.pop(0) if len(left) > 1 else left[0], is_busy=is_busy)
    thread = speeds.measure_soon(lambda: machine(1, 24), lambda: True, every_s=0)
    thread.join(10)
    assert not thread.is_alive()
    return speeds


def rates(read_Bps: float) -> Bandwidths:
    return {"cpu": {"read_Bps": read_Bps, "flops": 1e11}}


def kept(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_measurement_that_others_disturbed_is_repeated_and_the_best_counts(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    speeds = measured(path, rates(3e9), rates(9e9), rates(6e9), rates(9.5e9))
    assert speeds.speeds(machine(1, 24)).cpu_read_Bps == 9.5e9
    assert (kept(path)["measurements"], kept(path)["settled"]) == (4, True)


def test_speeds_that_never_agree_are_given_up_and_the_best_serves(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    wild = [rates(2.0**step * 1e9) for step in range(9)]
    assert measured(path, *wild).speeds(machine(1, 24)).cpu_read_Bps == 32e9
    assert (kept(path)["measurements"], kept(path)["settled"]) == (6, False)


def test_a_start_goes_on_where_the_last_one_was_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    one = MachineSpeeds(path, measure=lambda _stop: rates(5e9), is_busy=lambda: False)
    looks = []

    def is_idle() -> bool:
        looks.append(True)
        if len(looks) == 2:
            one._closing.set()
        return len(looks) == 1

    one.measure_soon(lambda: machine(1, 24), is_idle, every_s=0).join(10)
    assert kept(path)["measurements"] == 1
    assert measured(path, rates(4.9e9)).speeds(machine(1, 24)).cpu_read_Bps == 5e9
    assert kept(path)["settled"]


def test_a_machine_that_other_programs_keep_busy_is_not_measured(tmp_path: Path) -> None:
    looks = []

    def is_busy() -> bool:
        looks.append(True)
        return len(looks) < 3

    measured(tmp_path / "machine.json", is_busy=is_busy)
    assert len(looks) == 4  # two busy looks, two measurements that agree


def test_what_was_measured_is_used_and_found_again_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert not MachineSpeeds(path).speeds(machine(1, 24)).measured
    for speeds in (measured(path), MachineSpeeds(path)):
        known = speeds.speeds(machine(1, 24))
        assert known.measured
        assert (known.cpu_read_Bps, known.gpus["cuda:0"].from_cpu_Bps) == (5e9, 1.2e10)


def test_what_is_not_of_this_machine_is_guessed_and_the_rest_is_as_measured(tmp_path: Path) -> None:
    speeds = measured(tmp_path / "machine.json")
    more = speeds.speeds(machine(2, 24))
    assert not more.measured
    assert (more.cpu_read_Bps, more.gpus["cuda:0"].read_Bps) == (5e9, 3e11)
    assert more.gpus["cuda:1"] == defaults(machine(2, 24)).gpus["cuda:1"]
    other_cpu = replace(machine(1, 24), physical_cores=64)
    assert speeds.speeds(other_cpu) == defaults(other_cpu)
    imagined = machine(1, 24)
    imagined = replace(imagined, gpus=(replace(imagined.gpus[0], name="RTX 4090"),))
    assert speeds.speeds(imagined).gpus == defaults(imagined).gpus
    assert speeds.speeds(imagined).cpu_read_Bps == 5e9


def test_a_busy_machine_is_measured_only_when_it_is_idle(tmp_path: Path) -> None:
    asked = []

    def is_idle() -> bool:
        asked.append(True)
        return len(asked) > 3

    speeds = MachineSpeeds(tmp_path / "machine.json", measure=lambda _stop: FOUND, is_busy=lambda: False)
    speeds.measure_soon(lambda: machine(1, 24), is_idle, every_s=0).join(10)
    assert len(asked) == 5
    assert speeds.speeds(machine(1, 24)).measured


def test_closing_ends_what_measures(tmp_path: Path) -> None:
    begun = threading.Event()

    def measure(stop: threading.Event) -> dict[str, dict[str, float]]:
        begun.set()
        assert stop.wait(10)
        return {}

    speeds = MachineSpeeds(tmp_path / "machine.json", measure=measure, is_busy=lambda: False)
    thread = speeds.measure_soon(lambda: machine(), lambda: True, every_s=0)
    assert begun.wait(10)
    speeds.close()
    assert not thread.is_alive()


def test_the_measuring_program_is_killed_when_it_must_stop() -> None:
    stop = threading.Event()
    stop.set()
    assert measure(stop) == {}


def test_a_measurement_that_fails_leaves_the_guesses(tmp_path: Path) -> None:
    speeds = MachineSpeeds(tmp_path / "machine.json", measure=lambda _stop: {}, is_busy=lambda: False)
    speeds.measure_soon(lambda: machine(), lambda: True, every_s=0).join(10)
    assert not speeds.speeds(machine()).measured
    assert not (tmp_path / "machine.json").exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"bandwidths": {"cpu": {"read_Bps": 0}}}', '{"bandwidths": {"cpu": 3}}', "\x00"]
)
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(content, encoding="utf-8")
    assert not MachineSpeeds(path).speeds(machine()).measured
    measured(path)
    assert json.loads(path.read_text(encoding="utf-8"))["bandwidths"] == FOUND
