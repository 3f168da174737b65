"""One server per user data folder; a killed server's folder is free again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modules.chat.database import Database
from modules.errors import StoreFailed, UserDataInUse
from modules.user_data import lock_user_data

HOLD = """
import sys
from pathlib import Path
from modules.user_data import lock_user_data
lock = lock_user_data(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_server_is_refused_with_the_pid_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "user data é"
    holder = hold(folder)
    try:
        with pytest.raises(UserDataInUse, match=f"in use by pid {holder.pid}"):
            lock_user_data(folder)
    finally:
        holder.kill()
        holder.communicate()
    with lock_user_data(folder):
        pass


def test_a_released_folder_can_be_held_again(tmp_path: Path) -> None:
    lock = lock_user_data(tmp_path)
    lock.release()
    lock.release()
    with lock_user_data(tmp_path):
        pass


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreFailed, match="cannot be written") as caught:
        lock_user_data(tmp_path / name)
    assert "--user-data-dir" in caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="rights are given otherwise there")
def test_nobody_else_on_the_machine_reads_what_is_kept_nor_what_an_older_version_left(tmp_path: Path) -> None:
    def open_to_others() -> list[str]:
        return [
            path.name for path in (folder, *folder.rglob("*")) if path.suffix != ".pid" and path.stat().st_mode & 0o77
        ]

    folder = tmp_path / "user_data"
    before = os.umask(0o022)
    try:
        with lock_user_data(folder):
            (folder / ".lock").chmod(0o600)
            database = Database(folder / "snug.db")
            with database.write() as file:
                file.execute("INSERT INTO folders VALUES ('a', '', 'diary', 0)")
            assert {path.name for path in folder.glob("snug.db*")} == {"snug.db", "snug.db-wal", "snug.db-shm"}
            assert not open_to_others()
            for path in (*folder.glob("snug.db*"), *folder.glob("backups/*.db")):
                path.chmod(0o644)
            Database(folder / "snug.db").close()
            assert not open_to_others()
            database.close()
    finally:
        os.umask(before)
