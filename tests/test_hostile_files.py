"""Files of conversations in bad faith: counts beyond reason, halves of characters, ids that look like paths; and traces
of what was meant to leave none.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from modules.chat.exporting import to_json
from modules.chat.importing import read_file
from modules.chat.store import Store
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings
from modules.ui.chat_tab import ChatDoors, Open, Pulse, Send
from tests.fakes import Script
from tests.page_rig import parts_of

MANY = 30_000


def test_a_conversation_of_very_many_messages_is_taken_whole_and_shown_by_its_end(tmp_path: Path) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": str(n)} for n in range(MANY)]
    read = read_file(json.dumps({"title": "Many", "messages": turns}))
    assert read.skipped == () and len(read.trees[0].messages) == MANY
    with closing(Store(tmp_path / "snug.db")) as store:
        (chat,) = store.shelf.add("", read.trees)
        started = time.thread_time()
        end = store.excerpt("", chat.id, least=200)
        assert time.thread_time() - started < 3
        assert (end.earlier, end.messages[-1].content) == (MANY - 200, str(MANY - 1))


def test_very_many_conversations_in_a_file_are_all_taken_or_named(tmp_path: Path) -> None:
    good = {"title": "x", "messages": [{"role": "user", "content": "y"}]}
    read = read_file(json.dumps([good, {"title": "bad", "messages": 3}] * 2000))
    assert (len(read.trees), len(read.skipped)) == (2000, 2000)
    with closing(Store(tmp_path / "snug.db")) as store:
        store.shelf.add("", read.trees)
        assert len(store.list("", limit=10_000)) == 2000


@pytest.mark.parametrize(
    "text",
    [
        "\ud83d",
        "\udc00\ud800",
        "\x00",
        "\ufeff",
        "../../etc/passwd",
        "<script>alert(1)</script>",
        "{{7*7}}",
        "a" * 10**6,
    ],
    ids=ascii,
)
def test_odd_texts_come_in_and_go_out_as_they_are_in_every_place_of_a_file(text: str, tmp_path: Path) -> None:
    own = {
        "id": text, "title": text, "system_prompt": text, "folder": text, "head": 0,
        "messages": [{"role": "user", "content": text, "id": text, "conversation_id": text}],
    }  # fmt: skip
    read = read_file(json.dumps({"snug": 1, "conversations": [own]}))
    assert read.skipped == ()
    with closing(Store(tmp_path / "snug.db")) as store:
        (chat,) = store.shelf.add("", read.trees)
        assert chat.id != text and store.path("", chat.id)[0].id != text
        assert store.path("", chat.id)[0].content == text
        assert store.get("", chat.id).system_prompt == text
        again = read_file(to_json([store.shelf.tree("", chat.id)]))
        assert again.trees[0].messages[0].content == text
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} <= {"snug.db", "backups"}


def test_of_an_incognito_chat_nothing_is_in_any_folder_nor_in_the_log(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    caplog.set_level(logging.DEBUG)
    with ExitStack() as parts:
        services = parts_of(settings, parts, Script(reply="Understood, dearconfidant.", fault="raise", fault_at=20))
        services.models.load(LoadOptions.model_validate({"model": "tiny"}))
        doors = ChatDoors(services)
        secret = Send(
            text="myhiddenplan", op_id="operation-1", incognito=True, system_prompt="silentprompt",
            params=GenerationParams(max_new_tokens=100),
        )  # fmt: skip
        chat = doors.send("", secret)["conversation"]["id"]
        while doors.open("", Open(id=chat))["running"]:
            pass
        assert "Understood" in doors.open("", Open(id=chat))["messages"][-1]["text"]
        doors.pulse("", Pulse(id=chat))
        services.store.backup_if_due()
        assert traces(settings.user_data_dir) == traces(temporary) == []
    assert not has_trace(caplog.text.encode())
    assert traces(settings.user_data_dir) == traces(temporary) == []


def traces(folder: Path) -> list[Path]:
    """Files with something of the chat in them."""
    return [path for path in folder.rglob("*") if path.is_file() and has_trace(path.read_bytes())]


def has_trace(content: bytes) -> bool:
    return any(word in content for word in (b"myhiddenplan", b"silentprompt", b"Understood", b"dearconf"))
