"""Speeds are measured once, when nothing else runs, and kept for this machine only."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from modules.machine_speeds import MachineSpeeds, measure
from tests.shapes import machine

FOUND = {"cpu": {"read_Bps": 5e9, "flops": 1e11}, "cuda:0": {"read_Bps": 3e11, "from_cpu_Bps": 1.2e10}}


def measured(path: Path) -> MachineSpeeds:
    """Speeds measured at once into `path`."""
    speeds = MachineSpeeds(path, measure=lambda _stop: FOUND)
    speeds.measure_soon(lambda: machine(1, 24), lambda: True, every_s=0).join(10)
    return speeds


def test_what_was_measured_is_used_and_found_again_by_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    assert not MachineSpeeds(path).speeds(machine(1, 24)).measured
    for speeds in (measured(path), MachineSpeeds(path)):
        known = speeds.speeds(machine(1, 24))
        assert known.measured
        assert (known.cpu_read_Bps, known.gpus["cuda:0"].from_cpu_Bps) == (5e9, 1.2e10)


def test_another_machine_gets_guesses(tmp_path: Path) -> None:
    speeds = measured(tmp_path / "machine.json")
    assert not speeds.speeds(machine(2, 24)).measured


def test_a_busy_machine_is_measured_only_when_it_is_idle(tmp_path: Path) -> None:
    asked = []

    def is_idle() -> bool:
        asked.append(True)
        return len(asked) > 3

    speeds = MachineSpeeds(tmp_path / "machine.json", measure=lambda _stop: FOUND)
    speeds.measure_soon(lambda: machine(1, 24), is_idle, every_s=0).join(10)
    assert len(asked) == 4
    assert speeds.speeds(machine(1, 24)).measured


def test_closing_ends_what_measures(tmp_path: Path) -> None:
    begun = threading.Event()

    def measure(stop: threading.Event) -> dict[str, dict[str, float]]:
        begun.set()
        assert stop.wait(10)
        return {}

    speeds = MachineSpeeds(tmp_path / "machine.json", measure=measure)
    thread = speeds.measure_soon(lambda: machine(), lambda: True, every_s=0)
    assert begun.wait(10)
    speeds.close()
    assert not thread.is_alive()


def test_the_measuring_program_is_killed_when_it_must_stop() -> None:
    stop = threading.Event()
    stop.set()
    assert measure(stop) == {}


def test_a_measurement_that_fails_leaves_the_guesses(tmp_path: Path) -> None:
    speeds = MachineSpeeds(tmp_path / "machine.json", measure=lambda _stop: {})
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
