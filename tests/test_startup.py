"""What a start does around serving: what it says to someone who started it that way."""

from __future__ import annotations

import os
from pathlib import Path

import gradio.utils
import pytest

from modules import startup
from modules.check import run_check
from modules.compiled import COMPILED, compiling_apart
from modules.engine.zero3.doors import follow
from modules.errors import StoreFailed
from modules.settings_reading import read_settings


def test_deepspeed_without_its_launcher_says_how_to_start_it() -> None:
    alone = startup.hints(read_settings(["--deepspeed"], {}), {})
    assert len(alone) == 1 and "deepspeed --num_gpus=N server.py --deepspeed" in alone[0]
    assert startup.hints(read_settings(["--deepspeed"], {}), {"WORLD_SIZE": "1"}) == []
    assert startup.hints(read_settings([], {}), {}) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has a temporary folder for each user")
def test_what_gradio_and_torch_keep_lies_where_no_other_user_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (startup.GRADIO_FILES, COMPILED):
        monkeypatch.delenv(name, raising=False)
    old = tmp_path / "cache" / "page" / "upload.txt"
    old.parent.mkdir(parents=True)
    old.parent.chmod(0o777)
    old.write_text("of the last start", encoding="utf-8")
    with startup.own_temporary_files(tmp_path / "cache"):
        page, compiled = Path(gradio.utils.get_upload_folder()), Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        assert page == old.parent and not old.exists() and compiled.parent == page.parent
        assert [folder.stat().st_mode & 0o777 for folder in (page, compiled)] == [0o700, 0o700]
    assert startup.GRADIO_FILES not in os.environ and COMPILED not in os.environ
    monkeypatch.setenv(startup.GRADIO_FILES, "/elsewhere")
    with startup.own_temporary_files(tmp_path / "cache"):
        assert os.environ[startup.GRADIO_FILES] == "/elsewhere"


@pytest.mark.skipif(os.name == "nt", reason="Windows has a temporary folder for each user")
def test_nobody_else_puts_another_folder_in_their_place_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (startup.GRADIO_FILES, COMPILED):
        monkeypatch.delenv(name, raising=False)
    before = os.umask(0)
    try:
        with startup.own_temporary_files(tmp_path / "cache"):
            assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)


def test_what_holds_no_user_data_compiles_in_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine test, and ranks above 0."""
    monkeypatch.delenv(COMPILED, raising=False)
    with compiling_apart():
        folder = Path(os.environ[COMPILED])
        assert folder.stat().st_mode & 0o777 == 0o700
    assert COMPILED not in os.environ and not folder.exists()
    monkeypatch.setenv(COMPILED, "/elsewhere")
    with compiling_apart():
        assert os.environ[COMPILED] == "/elsewhere"
    assert all(hasattr(program, "__wrapped__") for program in (run_check, follow))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(startup.GRADIO_FILES, raising=False)
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(StoreFailed, match="cannot be written"), startup.own_temporary_files(tmp_path / "cache"):
        pass
