"""Names that lead elsewhere, at every door that takes one (R1, M8, C11), and 40 spellings of files of nobody (B7).

Python tells of every file that it touches: what lies outside of Snug's own folders must not be among them.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.constants import HF_TOKEN_PATH

from modules.settings import Settings
from tests.household import Household, household

NAMES = (
    "..",
    ".",
    "",
    " ",
    "/etc/passwd",
    "a/../../b",
    "../secret",
    "..\\secret",
    "a\x00b",
    "x" * 5000,
    "CON",
    "nul.txt",
    "x.",
    "%2e%2e",
    "%2e%2e%2fsecret",
    "~",
    "~root",
    "a\nb",
    "-rf",
    "C:\\x",
    "\\\\host\\share",
    "a:b",
    "*",
    "?",
    "|",
    "<x>",
    '"',
    ".hidden",
    "secret.txt/",
    "file:///etc/passwd",
    "\ud83d",
    "\u202etxt",
)


TOUCHING = ("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "sqlite3.connect")
touched: list[str] | None = None


def _note(event: str, values: tuple[Any, ...]) -> None:
    if touched is not None and event in TOUCHING:
        touched.extend(os.fsdecode(value) for value in values[:2] if isinstance(value, str | bytes | os.PathLike))


@contextmanager
def watched() -> Iterator[list[str]]:
    """The paths that Python touches meanwhile. A hook cannot be taken away again; it is idle outside of this."""
    global touched
    if not hasattr(sys, "_snug_hostile_names"):
        sys.addaudithook(_note)
        sys._snug_hostile_names = True  # type: ignore[attr-defined]
    seen: list[str] = []
    touched = seen
    try:
        yield seen
    finally:
        touched = None


def outside(paths: list[str], home: Household) -> set[str]:
    """Those that are neither the program's nor in the folders of models and user data."""
    settings, program = home.services.settings, Path(__file__).parent.parent
    own = (settings.model_dir, settings.user_data_dir, program, Path(sys.prefix), Path(sys.base_prefix))
    system = ("/proc", "/sys/", "/dev/null", "/dev/urandom", "file:", ":memory:", HF_TOKEN_PATH)
    found = {os.path.normpath(Path.cwd() / path) for path in paths if not path.startswith(system)}
    return {path for path in found if not any(Path(path).is_relative_to(folder) for folder in own)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    folder: Path = tmp_path_factory.mktemp("house")
    for name in ("models", "user_data"):
        (folder / name).mkdir()
    (folder / "secret.txt").write_text("the canary", encoding="utf-8")
    settings = Settings.model_validate({"model_dir": folder / "models", "user_data_dir": folder / "user_data"})
    with household(settings) as made:
        yield made


def state_of(home: Household) -> dict[str, str]:
    """All files but those that a running Snug writes by itself."""
    root = home.services.settings.user_data_dir.parent
    kept = [path for path in root.rglob("*") if path.is_file() and ".db" not in path.name and "cache" not in path.parts]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def tries(name: str) -> list[tuple[str, dict[str, Any]]]:
    """What can be asked of the page's doors with a name."""
    fields = {"name": name, "description": "x"}
    return [
        ("save", {"name": name, "params": {}, "replace": True}),
        ("rename", {"name": name, "new": name}),
        ("remove", {"name": name}),
        ("restore", {"name": name}),
        ("text", {"name": name}),
        ("chosen", {"name": name}),
        ("rename", {"name": "Balanced", "new": name}),
        ("character", {"id": name}),
        ("export_card", {"id": name, "kind": "json"}),
        ("delete_person", {"id": name}),
        ("restore_person", {"id": name}),
        ("delete_person", {"id": name, "persona": True}),
        ("save_person", {"id": name, "fields": fields}),
        ("save_person", {"id": name, "fields": fields, "persona": True}),
        ("talk", {"id": name, "persona": name}),
        ("switch", {"id": name, "on": True}),
        ("open", {"id": name}),
        ("remove", {"id": name}),
        ("file_text", {"id": name}),
        ("erase", {"id": name}),
        ("pause", {"id": name}),
        ("cancel", {"id": name}),
        *((door, {"id": name} | more) for door, more in CONVERSATION_DOORS if name in NAMES[::3]),
        ("send", {"id": None, "parent": name, "text": "x", "op_id": "12345678", "folder": name}),
        ("send", {"id": None, "text": "x", "op_id": "12345678", "attachments": [name]}),
        ("export", {"ids": [name]}),
        ("name_folder", {"id": name, "name": "x"}),
        ("files_waiting", {"ids": [name]}),
        ("export_card", {"id": name, "kind": "png"}),
    ]


CONVERSATION_DOORS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("send", {"text": "x", "op_id": "12345678"}),
    ("regenerate", {"message": "x"}),
    ("go_on", {"message": "x"}),
    ("show_version", {"message": "x"}),
    ("edit", {"message": "x", "text": "x"}),
    ("delete_last", {}),
    ("delete", {"message": "x"}),
    ("undelete", {"message": "x"}),
    ("branch", {"message": "x"}),
    ("stop", {}),
    ("pulse", {}),
    ("set_system_prompt", {"text": "x"}),
    ("set_setup", {"setup": {}}),
    ("preview", {}),
    ("discard_file", {}),
    ("rename", {"title": "x"}),
    ("pin", {"pinned": True}),
    ("move", {"folder": None}),
    ("remove_folder", {}),
)


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name[:12]) for name in NAMES])
async def test_no_name_leads_out_of_its_folder(home: Household, name: str) -> None:
    before = state_of(home)
    async with home.client("Ana") as ana, home.program(home.keys["admin"]) as program:
        assert all(home.holders(door) for door, _ in tries(name)), "every door is there"
        with watched() as seen:
            Path(__file__).read_bytes()
            await knock(home, ana, program, name)
    assert __file__ in seen, "the watch sees"
    assert outside(seen, home) == set()
    assert state_of(home) == before


async def knock(home: Household, ana: httpx.AsyncClient, program: httpx.AsyncClient, name: str) -> None:
    """Ask for `name` at every door, and hear no more than that there is no such thing."""
    for door, body in tries(name):
        for holder in home.holders(door):
            answer = await home.ask(ana, door, body, holder=holder)
            assert "the canary" not in str(answer), (door, body)
            assert isinstance(answer, dict), (door, answer)
            problem = answer.get("problem", {})
            assert problem.get("message") != "Something went wrong.", (door, body)
    for path, field in (("/v1/internal/model/load", "model"), ("/v1/internal/downloads", "name")):
        refused = await program.post(
            path, content=home.json({field: name}), headers={"content-type": "application/json"}
        )
        assert 400 <= refused.status_code < 500, (path, refused.text)


SPELLINGS = (
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    "/proc/self/cmdline",
    "../../etc/passwd",
    "..%2f..%2fetc/passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "....//....//etc/passwd",
    "/etc/passwd%00.png",
    "/etc/passwd%20",
    "file:///etc/passwd",
    "{data}/users.db",
    "{data}/snug.db",
    "{data}/../secret.txt",
    "{data}/%2e%2e/secret.txt",
    "{data}//users.db",
    "{data}/./users.db",
    "{data}/USERS.DB",
    "{data}\\users.db",
    "{models}/tiny/config.json",
    "{models}/../secret.txt",
    "users.db",
    "user_data/users.db",
    "server.py",
    "./server.py",
    "modules/api/doors/guard.py",
    ".git/config",
    "requirements.txt",
    "~/.ssh/id_rsa",
    "$HOME",
    "C:/Windows/win.ini",
    "\\\\host\\share\\x",
    "",
    "/",
    ".",
    "..",
    "%",
    "%zz",
    "a" * 3000,
    "/dev/zero",
    "/dev/stdin",
)


async def test_no_spelling_of_a_file_is_served_and_all_are_answered_alike(home: Household) -> None:
    settings, found = home.services.settings, set()
    assert len(SPELLINGS) >= 40
    async with home.client("Ana") as ana:
        for spelling in SPELLINGS:
            path = spelling.format(data=settings.user_data_dir, models=settings.model_dir)
            for route in (
                "/gradio_api/file=",
                "/file=",
                "/gradio_api/file/",
                "/static/",
                "/assets/",
                "/svelte/",
                "/pictures/characters/",
            ):
                answer = await ana.get(route + path)
                if answer.request.url.path == "/":
                    continue  # the client has walked up by itself
                assert answer.status_code in (400, 403, 404, 307), (route, path, answer.status_code)
                assert not any(told in answer.text for told in ("the canary", "root:", "SQLite", "import ")), (
                    route,
                    path,
                )
                if route == "/gradio_api/file=" and spelling not in ("", "%"):
                    found.add(answer.status_code)
    assert len(found - {400}) <= 2
