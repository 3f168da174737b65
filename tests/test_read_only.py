"""`--read-only`: what is there is shown, people can chat, and not a byte of the folder changes (S4, C9)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from modules.chat.store import Store
from modules.errors import StoreFailed, UserDataInUse
from modules.read_only import copied
from modules.settings import Settings
from modules.user_data import lock_user_data
from tests.fakes import Script
from tests.household import household

ROOT = Path(__file__).parent.parent


def settings_of(folder: Path) -> Settings:
    (folder.parent / "models").mkdir(exist_ok=True)
    options = {"user_data_dir": folder, "model_dir": folder.parent / "models", "read_only": True}
    return Settings.model_validate(options)


def lived_in(folder: Path) -> Path:
    """User data with a conversation, a preset, and what is no part of a copy."""
    for name in ("presets", "cache", "backups"):
        (folder / name).mkdir(parents=True)
        (folder / name / "mine.yaml").write_text("temperature: 1\n")
    with closing(Store(folder / "snug.db")) as store:
        chat = store.create("", title="Kept")
        store.append("", chat.id, None, "user", "said before", op_id="1")
    return folder


def state_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }


def titles(folder: Path) -> list[str]:
    with closing(Store(folder / "snug.db")) as store:
        return [chat.title for chat in store.list("")]


def test_a_copy_has_everything_and_what_is_done_to_it_is_gone(tmp_path: Path) -> None:
    folder = lived_in(tmp_path / "data")
    before = state_of(folder)
    with copied(settings_of(folder)) as settings:
        copy = settings.user_data_dir
        assert copy != folder and copy.parent.stat().st_mode & 0o077 == 0, "nobody else may look"
        assert not (copy / "cache").exists() and (copy / "presets" / "mine.yaml").exists()
        with lock_user_data(copy), closing(Store(copy / "snug.db")) as store:
            (chat,) = store.list("")
            assert store.path("", chat.id)[-1].content == "said before"
            store.create("", title="Soon gone")
        assert titles(copy) == ["Soon gone", "Kept"]
    assert not copy.parent.exists()
    assert state_of(folder) == before
    with copied(settings.model_copy(update={"read_only": False})) as same:
        assert same.user_data_dir == copy, "without the flag nothing is copied"


def test_of_a_damaged_file_the_last_backup_that_opens_is_shown_and_the_file_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = lived_in(tmp_path / "data")
    for path in (folder / "backups").iterdir():
        path.unlink()
    sound = (folder / "snug.db").read_bytes()
    (folder / "snug.db").write_bytes(b"no database at all" * 400)
    for left in folder.glob("snug.db-*"):
        left.unlink()
    with pytest.raises(StoreFailed, match="is no database"), copied(settings_of(folder)):
        pass
    (folder / "backups" / "snug-2026-01-01.db").write_bytes(sound)
    (folder / "backups" / "snug-2026-01-02.db").write_bytes(b"broken too")
    with pytest.raises(StoreFailed) as refused, closing(Store(folder / "snug.db")):
        pass
    assert "--read-only" in refused.value.remedy
    before = state_of(folder)
    with copied(settings_of(folder)) as settings:
        assert titles(settings.user_data_dir) == ["Kept"]
    assert "snug-2026-01-01.db" in caplog.text
    assert state_of(folder) == before


def test_what_cannot_be_copied_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lived_in(tmp_path / "data")
    with lock_user_data(folder), pytest.raises(UserDataInUse, match=str(os.getpid())), copied(settings_of(folder)):
        pass
    os.mkfifo(folder / "pipe")
    with pytest.raises(StoreFailed, match="cannot be read whole"), copied(settings_of(folder)):
        pass
    (folder / "pipe").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StoreFailed, match="are needed"), copied(settings_of(folder)):
        pass
    with copied(settings_of(tmp_path / "none")) as settings:
        assert settings.user_data_dir.is_dir()
    assert not (tmp_path / "none").exists()


START = """
import sys
from pathlib import Path
from modules import startup
from modules.errors import SnugError
from modules.read_only import copied
from modules.settings import Settings
folder = Path(sys.argv[1])
for read_only in (False, True):
    settings = Settings.model_validate({"user_data_dir": folder, "model_dir": folder, "read_only": read_only})
    try:
        with (
            copied(settings) as settings, startup.user_data(settings) as data,
            startup.services(settings, data) as services,
        ):
            store = services.store
            (chat,) = store.list("")
            store.append("", chat.id, store.path("", chat.id)[-1].id, "user", "new", op_id="2")
            print([message.content for message in store.path("", chat.id)])
    except SnugError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="rights are Unix's")
def test_in_a_folder_without_rights_the_refusal_names_it_and_with_it_people_can_chat(tmp_path: Path) -> None:
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # root is stopped by rights only so
    if os.geteuid() == 0 and not shutil.which(without[0]):
        pytest.skip("root without setpriv: rights stop nobody")
    folder = lived_in(tmp_path / "data")
    before = state_of(folder)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o500)
    try:
        done = subprocess.run(
            [*(without if os.geteuid() == 0 else ()), sys.executable, "-c", START, str(folder)],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    finally:
        for path in folders:
            path.chmod(0o700)
    assert done.returncode == 0, done.stderr
    refused, said = done.stdout.splitlines()
    assert str(folder) in refused and "--read-only" in refused
    assert said == str(["said before", "new"])
    assert state_of(folder) == before


async def test_the_page_says_that_nothing_is_kept(settings: Settings) -> None:
    told = {}
    with household(settings.model_copy(update={"read_only": True}), Script(), loaded=False) as home:
        async with home.client("Ana") as ana:
            told = await home.ask(ana, "pulse", {})
            page = (await ana.get("/")).text
    assert told["kept"] is False
    assert "nothing of it is kept" in json.dumps(page)
