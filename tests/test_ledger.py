"""The ledger keeps what was forecast beside what was measured, and never stops anything."""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from modules.memory.planning import ledger
from modules.memory.planning.ledger import Entry, Ledger, summarize
from modules.units import GiB

ENTRY = Entry(
    model="Tiny", family="llama", loader="transformers", quantization="none", way="16-bit on the CPU", device="cpu",
    device_name="x86_64", moment="use", forecast_bytes=GiB, measured_bytes=GiB, context_used=0.5, version="1",
)  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def used(ratio: float, **changes: object) -> Entry:
    return replace(ENTRY, measured_bytes=int(ENTRY.forecast_bytes * ratio), **changes)  # type: ignore[arg-type]


def observed(kept: Ledger, **changes: str) -> float:
    """The error of loads like ENTRY but for `changes`."""
    alike = {"family": "llama", "device_name": "x86_64", "loader": "transformers", "quantization": "none"}
    return kept.observed_error(**alike | changes)


def test_what_is_recorded_is_there_again_in_order(kept: Ledger) -> None:
    first, second = used(0.9), used(1.1, device="cuda:0", moment="weights")
    kept.record([first])
    kept.record([second])
    assert Ledger(kept.path).entries() == [first, second]
    assert second.ratio == pytest.approx(1.1)


def test_asking_makes_no_file(kept: Ledger) -> None:
    assert kept.entries() == []
    assert observed(kept) == 1.0
    assert not kept.path.exists()


def test_too_few_records_say_nothing(kept: Ledger) -> None:
    kept.record([used(1.2)] * (ledger.LEAST_RECORDS - 1))
    assert observed(kept) == 1.0
    kept.record([used(1.2)])
    assert observed(kept) == pytest.approx(1.2)


def test_the_observed_error_is_the_95th_percentile_of_peaks_in_use(kept: Ledger) -> None:
    kept.record([used(1 + step / 100) for step in range(101)])
    kept.record([used(9.0, moment="weights")] * 101)
    assert observed(kept) == pytest.approx(1.95)


def test_the_observed_error_is_that_of_the_same_kind_of_run(kept: Ledger) -> None:
    kept.record([used(1.0)] * 5 + [used(1.5, device_name="card")] * 5 + [used(2.0, quantization="nf4")] * 5)
    kept.record([used(3.0, loader="llamacpp")] * 5)
    assert observed(kept) == pytest.approx(1.0)
    assert observed(kept, device_name="card") == pytest.approx(1.5)
    assert observed(kept, quantization="nf4") == pytest.approx(2.0)
    assert observed(kept, loader="llamacpp") == pytest.approx(3.0)
    assert observed(kept, family="gpt2") == 1.0


@pytest.mark.parametrize("content", [b"no database at all " * 100, b"SQLite format 3\x00" + b"\x00" * 5000])
def test_a_damaged_file_is_put_aside_with_a_word(
    kept: Ledger, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    kept.path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        kept.record([ENTRY])
    assert kept.entries() == [ENTRY]
    (aside,) = kept.path.parent.glob("ledger-put-aside-*.db")
    assert aside.read_bytes() == content
    assert aside.name in caplog.text


def test_a_file_of_another_version_is_put_aside_too(kept: Ledger) -> None:
    with closing(sqlite3.connect(kept.path)) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("CREATE TABLE entries (other)")
        connection.commit()
    kept.record([ENTRY])
    assert kept.entries() == [ENTRY]


def test_a_locked_file_costs_the_record_and_nothing_else(
    kept: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kept.record([ENTRY])
    monkeypatch.setattr(ledger, "_LOCK_WAIT_S", 0.05)
    with closing(sqlite3.connect(kept.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        kept.record([ENTRY])
        other.rollback()
    assert "locked" in caplog.text
    assert kept.entries() == [ENTRY]
    assert list(kept.path.parent.iterdir()) == [kept.path]


def test_a_folder_that_cannot_be_written_costs_the_record_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    kept = Ledger(tmp_path / "file" / "ledger.db")
    kept.record([ENTRY])
    assert kept.entries() == []


def test_only_the_last_records_are_kept(kept: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "ROWS_KEPT", 10)
    for number in range(5):
        kept.record([used(1.0, model=f"m{number}")] * 4)
    assert [entry.model for entry in kept.entries()] == ["m2"] * 2 + ["m3"] * 4 + ["m4"] * 4


def test_threads_may_record_at_once(kept: Ledger) -> None:
    kept.record([ENTRY])
    threads = [threading.Thread(target=kept.record, args=([ENTRY],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(kept.entries()) == 9


def test_a_report_sums_up_each_model_way_and_device_with_the_middle_and_the_worst() -> None:
    calm, off = used(1), used(2)
    other = replace(calm, model="another", device="cuda:0", moment="weights")
    first, second = summarize([calm, other, calm, off])
    assert (first.model, first.device, first.ratios) == ("another", "cuda:0", {"weights": 1.0})
    assert (second.count, second.ratios, second.worst) == (3, {"use": 1.0}, 2.0)
    assert summarize([]) == []
