"""Names that lead elsewhere, at every door that takes one (R1, M8), and 40 spellings of files of nobody (B7)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

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
    ]


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name[:12]) for name in NAMES])
async def test_no_name_leads_out_of_its_folder(home: Household, name: str) -> None:
    before = state_of(home)
    async with home.client("Ana") as ana, home.program(home.keys["admin"]) as program:
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
    assert state_of(home) == before


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
