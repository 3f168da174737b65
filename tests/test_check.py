"""The machine test: which modes it tries where, and that it tells pass from fail."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modules.check import Outcome, _summary, _table, modes_for
from tests.fakes import fake_inventory

ROOT = Path(__file__).parent.parent


def missing(names: dict[str, str]) -> set[str]:
    return {name for name, reason in names.items() if reason}


def table_of(gpus_gib: tuple[float, ...], *, has_deepspeed: bool = True, has_libaio: bool = True) -> dict[str, str]:
    modes = modes_for(fake_inventory(gpus_gib), has_deepspeed=has_deepspeed, has_libaio=has_libaio)
    return {mode.name: mode.missing for mode in modes}


def test_without_a_gpu_only_what_needs_one_is_left_out_with_the_reason() -> None:
    assert missing(table_of(())) == {"16-bit (fp16)", "GPU + CPU", "bf16 on the CPU"}
    assert table_of(())["GPU + CPU"] == "no GPU here"


def test_with_a_gpu_everything_is_tried() -> None:
    assert missing(table_of((24,))) == set()


def test_what_is_not_installed_is_named() -> None:
    assert "deepspeed" in table_of((), has_deepspeed=False)["ZeRO-3"]
    assert "libaio" in table_of((), has_libaio=False)["ZeRO-3, NVMe"]
    assert not table_of((), has_libaio=False)["ZeRO-3"]


def test_the_summary_counts_and_the_table_has_a_row_a_mode() -> None:
    outcomes = [Outcome("a", "pass", tokens_per_s=3), Outcome("b", "fail", "broken"), Outcome("c", "skip", "no GPU")]
    assert _summary(outcomes) == "1 passed, 1 failed, 1 cannot run here"
    assert _table("m", outcomes).row_count == 3


@pytest.mark.model
@pytest.mark.slow
def test_every_mode_that_should_work_here_does() -> None:
    done = subprocess.run(
        [sys.executable, "server.py", "--check", "--json"], cwd=ROOT, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["ok"], result["modes"]
    passed = {mode["mode"] for mode in result["modes"] if mode["status"] == "pass"}
    assert {"16-bit (bf16)", "32-bit (fp32)", "8-bit (int8)", "4-bit (nf4)", "CPU + disk", "ZeRO-3"} <= passed
    assert all(
        mode["tokens_per_s"] > 0 and mode["peak_bytes"] > 2**27 for mode in result["modes"] if mode["mode"] in passed
    )
    assert result["bandwidth"]["cpu"]["read_Bps"] > 10**8


def test_an_unknown_model_is_an_error_of_every_mode_not_a_crash(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "server.py", "--check", "--json", "--model", "absent", "--model-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "absent" in done.stdout + done.stderr and "Traceback" not in done.stderr
