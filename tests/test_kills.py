"""kill -9 in the midst of what changes the store, of a migration, of a load: old or new, never in between."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from modules.chat.schema import APPLICATION_ID, MIGRATIONS
from modules.chat.store import Store
from tests.fakes import make_model_folder

ROOT = Path(__file__).parent.parent
ROUNDS = 12

# Each conversation goes through STEPS; a line is printed after each, so what was printed is done.
CHANGES = """
import sys
from pathlib import Path
from modules.chat.store import Store
from modules.chat.trees import Tree, TreeMessage
store = Store(Path(sys.argv[1]))
turns = [TreeMessage(n - 1 if n else None, "assistant" if n % 2 else "user", f"text {n}") for n in range(6)]
for number in range(int(sys.argv[2]), 1_000_000):
    def told(step): print(number, step, flush=True)
    told(0)
    (chat,) = store.shelf.add("", [Tree(title=f"import {number}", messages=tuple(turns), head=5)])
    told(1)
    store.rename("", chat.id, f"title {number}")
    told(2)
    cut = store.path("", chat.id)[2].id
    store.delete_message("", cut)
    told(3)
    store.shelf.restore("", cut)
    told(4)
    folder = store.shelf.make_folder("", f"folder {number}")
    store.shelf.move("", chat.id, folder.id)
    store.shelf.remove_folder("", folder.id)
    store.delete("", chat.id)
    told(5)
    store.shelf.restore("", chat.id)
    told(6)
"""
ABSENT, GONE = ("absent", 0), ("deleted", 0)


def state_after(step: int, number: int) -> tuple[str, int]:
    """What a conversation is once `step` was told: its title, and how many messages it has."""
    named = f"title {number}"
    return [ABSENT, (f"import {number}", 6), (named, 6), (named, 2), (named, 6), GONE, (named, 6)][step]


def change_until_killed(path: Path, first: int, chance: random.Random) -> dict[int, int]:
    """Conversation → the last step that was told, of a process that was killed at random."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHANGES, str(path), str(first)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(chance.randrange(1, 40))]
    time.sleep(chance.random() * 0.01)  # no wait for anything: it moves the kill between two changes
    process.kill()
    lines += process.stdout.readlines()
    process.wait(20)
    process.stdout.close()
    whole = [line.split() for line in lines if line.endswith("\n")]
    return {int(number): int(step) for number, step in whole}


def states(path: Path) -> dict[int, tuple[str, int]]:
    """What the store holds of each conversation. Fails unless the file is sound."""
    with closing(Store(path)) as store:
        with store._database.read() as connection:
            assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        there = {}
        for chat in store.list("", limit=10_000):
            there[int(chat.title.split()[1])] = (chat.title, len(store.path("", chat.id)))
        for deleted in store.shelf.deleted(""):
            there[int(deleted.title.split()[1])] = GONE
        assert all(text.content.startswith("text ") for chat in store.list("") for text in store.path("", chat.id))
        return there


def survive(path: Path, rounds: int) -> int:
    """Kill so often; how many changes were told and held."""
    chance, first, held = random.Random(rounds), 0, 0
    for _ in range(rounds):
        told = change_until_killed(path, first, chance)
        there = states(path)
        for number, step in told.items():
            allowed = {state_after(step, number), state_after(min(step + 1, 6), number)}
            assert there.get(number, ABSENT) in allowed, (number, step, there.get(number))
        held += sum(told.values())
        first = max(told, default=first) + 1
    return held


def test_imports_renames_deletions_and_undos_are_done_or_not_done(tmp_path: Path) -> None:
    assert survive(tmp_path / "snug.db", ROUNDS) > ROUNDS


def old_store(path: Path) -> None:
    """A file of the first version with 300 conversations."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(MIGRATIONS[0])
        for number in range(300):
            connection.execute(
                "INSERT INTO conversations VALUES (?, '', ?, 1, 'chat', '', ?, 5.0, 6.0, ?)",
                (f"c{number}", f"title {number}", f"m{number}", number),
            )
            connection.execute(
                "INSERT INTO messages (id, conversation_id, owner, role, content, created_at, status, op_id)"
                " VALUES (?1, ?2, '', 'user', ?3, 5.5, 'complete', ?1)",
                (f"m{number}", f"c{number}", f"text {number} " * 50),
            )
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.commit()


OPEN = """
import sys
from pathlib import Path
from modules.chat.store import Store
print("go", flush=True)
Store(Path(sys.argv[1]))
print("open", flush=True)
"""


def test_a_kill_while_an_older_file_is_brought_up_leaves_one_that_opens_with_all_in_it(tmp_path: Path) -> None:
    old = tmp_path / "old.db"
    old_store(old)
    chance, cut_off = random.Random(3), 0
    for number in range(8):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "snug.db"
        shutil.copy(old, path)
        process = subprocess.Popen([sys.executable, "-c", OPEN, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        time.sleep(chance.random() * 0.1)
        process.kill()
        cut_off += not process.stdout.read()
        process.wait(20)
        process.stdout.close()
        found = states(path)
        assert found == {number: (f"title {number}", 1) for number in range(300)}
    assert cut_off


LOADS = """
import sys
from pathlib import Path
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from tests.fakes import ScriptedLoad, Script, fake_inventory
if __name__ == "__main__":
    folder = Path(sys.argv[1])
    settings = Settings.model_validate({"model_dir": folder / "models", "user_data_dir": folder / "user_data"})
    manager = ModelManager(settings, loaders={"transformers": ScriptedLoad(Script(load_s=0.3))},
                           read_inventory=lambda _: fake_inventory())
    manager.load(LoadOptions.model_validate({"model": "a"}))
    print(manager.engine().pid, flush=True)
    manager.start_load(LoadOptions.model_validate({"model": "b"}))
    while manager.state.progress is None: pass
    print("switching", flush=True)
    sys.stdin.read()
"""


@contextmanager
def switching(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program in the midst of a switch of models."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOADS, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert int(process.stdout.readline())
        assert process.stdout.readline() == "switching\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_kill_in_a_switch_of_models_leaves_no_process_and_the_next_start_works(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    for name in "ab":
        make_model_folder(tmp_path / "models", name)
    (tmp_path / "user_data").mkdir()
    chance = random.Random(4)
    for _ in range(15 if pytestconfig.getoption("--all") else 2):  # the second is the start after the first
        with switching(tmp_path) as process:
            time.sleep(chance.random() * 0.4)  # no wait for anything: it moves the kill within the load and past it
            engines = psutil.Process(process.pid).children(recursive=True)
            assert engines
            os.kill(process.pid, signal.SIGKILL)
            _, alive = psutil.wait_procs(engines, timeout=20)
            assert alive == []
        assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".tmp-")]
