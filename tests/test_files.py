"""Names from outside stay inside their folder; files are whole or absent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules import files
from modules.characters.library import Library
from modules.chat.presets import Presets
from modules.errors import BadName
from modules.files import atomic_write, can_be_written, check_name, forget_aside, put_aside, safe_path

ROOT = Path(__file__).parent.parent
HOSTILE = [
    "..", ".", "", " ", "/abs", "a/../../b", "a\\b", "nul\0byte", "x" * 5000, "CON", "con.txt", "lpt1", "dot.",
    "space ", " lead", "%2e%2e", "~", "~root", "line\nbreak", "-rf", "tab\t", "C:", "a:b", "what?", "star*", "pipe|",
    "\u202eevil", "\ud83d", ".hidden", "..\u2215x\x00", "<html>", '"quoted"',
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_hostile_names_are_refused_without_touching_the_disk(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadName):
        safe_path(tmp_path / "never-made", name)


@pytest.mark.parametrize("name", ["SmolLM2-135M-Instruct", "model.gguf", "Älter 3", "日本語", "a..b", "x_y (2)"])
def test_ordinary_names_in_any_language_pass(name: str, tmp_path: Path) -> None:
    if not can_be_written(name):
        pytest.skip("this locale's file names cannot hold it")
    assert safe_path(tmp_path, name) == tmp_path / name


@given(st.text(max_size=50))
def test_every_accepted_name_is_a_direct_child(name: str) -> None:
    root = Path("/somewhere/models")
    try:
        path = safe_path(root, name)
    except BadName:
        return
    assert path.parent == root and path.name == name


def test_a_link_that_leaves_the_folder_is_refused_and_one_that_stays_passes(tmp_path: Path) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (tmp_path / "outside").mkdir()
    (root / "inside").mkdir()
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "in").symlink_to(root / "inside")
    with pytest.raises(BadName, match="leads out"):
        safe_path(root, "out")
    assert safe_path(root, "in").resolve() == root / "inside"


def test_the_suffix_is_added_after_the_check(tmp_path: Path) -> None:
    assert safe_path(tmp_path, "mine", ".yaml") == tmp_path / "mine.yaml"
    with pytest.raises(BadName):
        check_name("../mine")


def test_a_failed_write_keeps_the_old_content_and_leaves_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    atomic_write(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new" and [file.name for file in tmp_path.iterdir()] == ["settings.yaml"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    atomic_write(path, "0" * 200_000)
    program = (
        "import sys; from pathlib import Path; from modules.files import atomic_write\n"
        "print('go', flush=True)\n"
        "for n in range(10**6): atomic_write(Path(sys.argv[1]), str(n % 10) * 200_000)"
    )
    for _ in range(10):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout is not None and writer.stdout.readline()
        before = path.read_bytes()
        while path.read_bytes() == before:
            pass
        writer.kill()
        writer.wait(timeout=30)
        content = path.read_text()
        assert len(content) == 200_000 and len(set(content)) == 1


def test_what_was_put_aside_can_be_had_back_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside, old = tmp_path / ".deleted", tmp_path / "old.yaml"
    forget_aside(aside)  # there is none
    old.write_text("written a month ago", encoding="utf-8")
    os.utime(old, (0, 0))
    put_aside(old, aside)
    forget_aside(aside)
    assert [path.name for path in aside.iterdir()] == ["old.yaml"]
    monkeypatch.setattr(files, "ASIDE_S", -1.0)
    forget_aside(aside)
    assert list(aside.iterdir()) == []


@pytest.mark.parametrize("kind", ["characters", "personas", "presets"])
def test_what_was_deleted_a_day_ago_has_left_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / kind).mkdir()
    (tmp_path / kind / "Secret.yaml").write_text("name: my secret\n", encoding="utf-8")
    library, presets = Library.of(tmp_path / "shipped", tmp_path), Presets(tmp_path / "shipped", tmp_path / "presets")
    delete = {"characters": library.characters.delete, "personas": library.personas.delete, "presets": presets.delete}
    delete[kind]("Secret")

    def look() -> list[Path]:
        library.characters.list()
        library.personas.list()
        presets.names()
        return [path for path in tmp_path.rglob("*.yaml") if "my secret" in path.read_text(encoding="utf-8")]

    assert look() == [tmp_path / kind / ".deleted" / "Secret.yaml"]
    later = time.time() + files.ASIDE_S + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert look() == []
