"""Gradio's sessions come and go; nothing of a conversation is in them, and they do not pile up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import gradio as gr
import httpx
import pytest
from gradio.utils import get_upload_folder

from modules.accounts.person import Person
from modules.errors import BadValue, NotFound
from modules.services import Services
from modules.settings import LoadOptions, Settings
from modules.ui.app import SESSIONS_KEPT
from modules.ui.sessions import OwnSessions
from tests.api_desk import served
from tests.fakes import Script
from tests.page_doors import PageDoors
from tests.page_rig import app_of, parts_of


@dataclass
class Paged:
    """A server with the page, and where Gradio keeps its sessions."""

    base: str
    services: Services
    sessions: Any


@pytest.fixture
def paged(settings: Settings) -> Iterator[Paged]:
    with ExitStack() as parts:
        services = parts_of(settings, parts, Script(reply="Fine."))
        services.models.load(LoadOptions.model_validate({"model": "tiny"}))
        app = app_of(services)
        mounted: list[Any] = [getattr(route, "app", None) for route in app.routes]
        (page,) = [inner for inner in mounted if hasattr(inner, "state_holder")]
        port = parts.enter_context(served(app))
        yield Paged(f"http://127.0.0.1:{port}", services, page.state_holder)


def test_what_gradio_keeps_for_a_session_is_no_text_of_anybodys(paged: Paged) -> None:
    blocks = paged.sessions.blocks.blocks.values()
    assert [block.value for block in blocks if isinstance(block, gr.State)] == ["", ""]  # two models' names


def wait_for_reply(page: PageDoors, chat: str) -> list[dict[str, Any]]:
    """The messages once no reply is being written."""
    while (thread := page.ask("open", id=chat))["running"]:
        pass
    messages: list[dict[str, Any]] = thread["messages"]
    return messages


def test_a_page_whose_session_was_forgotten_goes_on_as_if_nothing_had_been(paged: Paged) -> None:
    page = PageDoors(paged.base)

    def ask(name: str, **body: Any) -> dict[str, Any]:
        paged.sessions.session_data.clear()
        answer = page.ask(name, **body)
        assert "problem" not in answer, answer
        return answer

    chat = ask("send", text="One", op_id="operation-1")["conversation"]["id"]
    messages = wait_for_reply(page, chat)
    ask("send", id=chat, parent=messages[-1]["id"], text="Two", op_id="operation-2")
    messages = wait_for_reply(page, chat)
    ask("edit", id=chat, message=messages[0]["id"], text="One, edited")
    ask("regenerate", id=chat, message=messages[-1]["id"])
    messages = wait_for_reply(page, chat)
    assert len(messages[-1]["versions"]) == 2
    gone = ask("delete_last", id=chat)
    assert len(gone["messages"]) == 2
    back = ask("undelete", id=chat, message=gone["deleted"])
    assert [message["text"] for message in back["messages"]] == ["One, edited", "Fine.", "Two", "Fine."]
    ask("rename", id=chat, title="Renamed")
    assert paged.services.store.get("", chat).title == "Renamed"


def test_pages_that_were_opened_and_left_are_forgotten(paged: Paged) -> None:
    page = PageDoors(paged.base)
    page.ask("pulse")
    first = next(iter(paged.sessions.session_data.values()))
    left = [f"left {number}" for number in range(SESSIONS_KEPT - 1)]
    paged.sessions.session_data.update(dict.fromkeys(left, first))
    for _ in range(5):
        page.new_session()
        page.ask("pulse")
    there = list(paged.sessions.session_data)
    assert len(there) == SESSIONS_KEPT
    assert not set(there) & set(left[:4])


def own_sessions(files: Path) -> OwnSessions:
    """In front of nothing, with one event and one part."""
    return OwnSessions(
        lambda *_: None,  # type: ignore[arg-type]
        session_of=lambda _: None, files=files, events={0}, parts={1}, admin_events=(),
    )  # fmt: skip


def test_a_file_that_a_request_names_is_an_upload_and_nobody_elses(tmp_path: Path) -> None:
    ana, ben = (Person(id=name, name=name, owner=name, admin=False) for name in ("ana", "ben"))
    own, kept, url = own_sessions(tmp_path / "page"), tmp_path / "page" / "1" / "a.png", "https://example.com/a.png"
    own._note(ana, json.dumps([str(kept)]).encode())

    def names(person: Person, path: object) -> bytes:
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"session_hash": "a", "fn_index": 0, "data": [[{"value": file}]]}
        return own._check_body(person, "/gradio_api/queue/join", json.dumps(body).encode())

    assert names(ana, str(kept))
    outside = (
        tmp_path / "users.db",
        tmp_path / "page" / ".." / "users.db",
        tmp_path / "page-2" / "a.png",
        "a.png",
        url,
    )
    for person, path in ((ben, kept), *((ana, path) for path in outside)):
        with pytest.raises(NotFound):
            names(person, str(path))
    with pytest.raises(NotFound):
        names(ana, None)


def test_a_file_of_this_machine_that_an_event_names_is_copied_nowhere(paged: Paged, tmp_path: Path) -> None:
    """Nor for who may ask everything: Gradio looks where a file lies only if it takes the page for launched."""
    secret = tmp_path / f"{uuid4().hex}.txt"  # Gradio's folder keeps what earlier runs left
    secret.write_text("secret")
    page = paged.sessions.blocks
    event = next(number for number, one in page.fns.items() if one.inputs and not one.preprocess)
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"session_hash": "a", "fn_index": event, "data": [file for _ in page.fns[event].inputs]}
    answer = httpx.post(f"{paged.base}/gradio_api/run/predict", json=body, timeout=30)
    assert answer.status_code == 500 and secret.name not in answer.text
    assert not [*Path(get_upload_folder()).glob(f"*/{secret.name}")]


def test_a_request_of_millions_of_parts_never_reaches_gradio() -> None:
    person = Person(id="ben", name="Ben", owner="ben", admin=False)
    own = own_sessions(Path("/uploads"))
    body = b'{"session_hash": "a", "fn_index": 0, "data": [%s0]}'
    assert own._check_body(person, "/gradio_api/queue/join", body % (b"[]," * 1000))
    with pytest.raises(BadValue, match="too many parts"):
        own._check_body(person, "/gradio_api/queue/join", body % (b"[]," * 300_000))
