"""Figures of what is stored: kills, tabs, full disks, and loads that fail."""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import closing
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from benchmarks.reliability_rows.outcome import Outcome, Scale
from modules.chat.store import Store
from modules.engine.host.host import Patience
from modules.errors import SnugError
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from tests.fakes import Script, ScriptedLoad, fake_inventory, fake_request, make_model_folder
from tests.test_disk_faults import TELL, full, mood, run
from tests.test_kills import survive
from tests.test_store import TwoTabs, kill_a_writer, writers_of


def kills(scale: Scale) -> Outcome:
    """kill -9 of a process that writes messages, and of one that imports, renames, deletes and undoes."""
    rounds, changes = scale.of(200, 30), scale.of(60, 8)
    chance, saved_in_all, lost, unreadable, slowest_s = random.Random(rounds), 0, 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snug.db"
        with writers_of(path) as writers:
            for _ in range(rounds):
                saved, journalled = kill_a_writer(writers, chance)
                saved_in_all += len(saved)
                started = time.perf_counter()
                with closing(Store(path)) as store, store._database.read() as connection:
                    slowest_s = max(slowest_s, time.perf_counter() - started)
                    unreadable += connection.execute("PRAGMA quick_check").fetchone() != ("ok",)
                    rows = {row[0]: row[1] for row in connection.execute("SELECT id, content FROM messages")}
                lost += len(saved - rows.keys())
                lost += sum(len(rows.get(ident, "")) < length for ident, length in journalled.items())
        told = survive(Path(folder) / "changes.db", changes)
    return Outcome(
        "200 kill -9: 0 acknowledged messages lost, 0 unreadable stores, restart within 3 s",
        f"{rounds} kills: {lost} of {saved_in_all:,} messages lost, {unreadable} unreadable, the store open again "
        f"after at most {slowest_s:.2f} s; {changes} kills in imports, renames, deletions, undos: "
        f"{told} changes, none half",
        lost == unreadable == 0 and slowest_s <= 3,
        not scale.quick,
        {"rounds": rounds, "saved": saved_in_all, "lost": lost, "unreadable": unreadable, "restart_s": slowest_s},
    )


def tabs(scale: Scale) -> Outcome:
    """Random histories of four clients on one conversation, held against a list of what must be there."""
    histories = scale.of(500, 40)
    with tempfile.TemporaryDirectory() as folder:
        TwoTabs.folder = Path(folder)
        wanted = settings(
            max_examples=histories, stateful_step_count=30, deadline=None, derandomize=False, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        fault = ""
        try:
            run_state_machine_as_test(TwoTabs, settings=wanted)
        except AssertionError as error:
            fault = " ".join(str(error).split())[:200]
    return Outcome(
        "500 random two-tab histories of 30 steps: 0 lost or doubled messages",
        f"{histories} histories of up to 30 steps, 4 clients: "
        + (f"a fault: {fault}" if fault else "0 lost, 0 doubled"),
        not fault,
        not scale.quick,
        {"histories": histories, "fault": fault},
    )


def full_disks(scale: Scale) -> Outcome:
    """Every writer below user_data/ at many limits of a file's size; whole files are checked after each."""
    step = scale.of(150, 1500)
    with tempfile.TemporaryDirectory() as folder:
        attempts = run(mood(Path(folder)), full(f"[*range(0, 24_000, {step}), least]"))
    limited = attempts[1:-2]
    failed = sum(len(attempt) for attempt in limited)
    told = sum(code == "not_saved" for attempt in limited for code in attempt.values())
    return Outcome(
        "full disk at every write point: 0 half files, 0 lost old data, the message shown 100 %",
        f"{len(limited)} limits × {len(TELL) + 1} writers: 0 half files, nothing old lost, {told} of {failed} failures "
        "told",
        failed > 0 and told == failed and attempts[0] == attempts[-1] == {},
        not scale.quick,
        {"limits": len(limited), "failures": failed, "told": told},
    )


FAULTS = ("truncated", "raise", "oom", "exit", "kill", "hang")
PATIENCE = Patience(load_s=3.0, reply_s=10.0, cancel_s=0.5, call_s=10.0, close_s=1.0)


def failed_loads(_: Scale) -> Outcome:
    """Each fault of a load while another model answers."""
    kept, slowest_s = 0, 0.0
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            models = Path(folder)
            make_model_folder(models, "a", Script(reply="still here"))
            broken = make_model_folder(models, "b", Script(load_fault=fault if fault != "truncated" else ""))  # type: ignore[arg-type]
            if fault == "truncated":
                weights = broken / "model.safetensors"
                weights.write_bytes(weights.read_bytes()[:-100])
            chosen = Settings.model_validate({"model_dir": models, "user_data_dir": models})
            manager = ModelManager(
                chosen, loaders={"transformers": ScriptedLoad()}, read_inventory=lambda _: fake_inventory(),
                patience=PATIENCE,
            )  # fmt: skip
            try:
                kept += _is_kept(manager)
                started = time.monotonic()
                kept += manager.engine().submit(fake_request()).result(20)[0] == "still here"
                slowest_s = max(slowest_s, time.monotonic() - started)
            finally:
                manager.close()
    return Outcome(
        "failed load keeps the old model: 100 % of 6 fault kinds, next answer within 2 s",
        f"{kept // 2} of {len(FAULTS)} faults ({', '.join(FAULTS)}); the next answer after at most {slowest_s:.2f} s",
        kept == 2 * len(FAULTS) and slowest_s <= 2,
        figures={"kept": kept // 2, "answer_s": slowest_s},
    )


def _is_kept(manager: ModelManager) -> bool:
    """Load a, then fail to load b: whether that is told as a failure and a is still there."""
    manager.load(LoadOptions.model_validate({"model": "a"}))
    try:
        manager.load(LoadOptions.model_validate({"model": "b"}))
    except SnugError:
        return manager.state.info is not None and manager.state.info.name == "a"
    return False
