"""Gradio's sessions come and go; nothing of a conversation is in them, and they do not pile up."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import gradio as gr
import httpx
import pytest
from gradio.routes import file_upload_statuses
from gradio.server_messages import ProcessGeneratingMessage
from gradio.utils import get_upload_folder

from modules.accounts.person import Person
from modules.errors import BadValue, BodyTooLarge, NotFound, QueueFull
from modules.services import Services
from modules.settings import LoadOptions, Settings
from modules.ui.app import SESSIONS_KEPT
from modules.ui.sessions import OwnSessions
from modules.ui.streams import MOST_UNREAD, STREAMS_AT_ONCE, Streams
from modules.ui.uploads import MOST_PARTS, plain_upload
from modules.units import KiB
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


def queue_of(**events: str) -> SimpleNamespace:
    """Gradio's queue with these events under way, each of the session that is named."""
    return SimpleNamespace(
        event_ids_to_events={name: SimpleNamespace(session_hash=session) for name, session in events.items()},
        pending_messages_per_session=dict.fromkeys(events.values()),
        pending_event_ids_session={session: {name} for name, session in events.items()},
        send_message=None,
    )


def own_sessions(files: Path) -> OwnSessions:
    """In front of nothing, with one event and one part."""
    return OwnSessions(
        lambda *_: None,  # type: ignore[arg-type]
        streams=Streams(queue_of()), files=files, events={0}, parts={1}, admin_events=(),
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
    relative = Path(os.path.relpath(kept))
    for person, path in ((ben, kept), (ben, relative), *((ana, path) for path in outside)):
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
    with pytest.raises(BodyTooLarge, match="256 KiB"):
        own._check_body(person, "/gradio_api/queue/join", body % (b" " * 256 * KiB))
    admin = replace(person, admin=True)
    assert own._check_body(admin, "/gradio_api/queue/join", body % (b" " * 256 * KiB))
    assert own._check_body(person, "/gradio_api/queue/join", body % (b"[]," * 1000))
    with pytest.raises(BadValue, match="too many parts"):
        own._check_body(person, "/gradio_api/component_server", body % (b"[]," * 300_000))


def test_streams_of_one_person_leave_room_for_others() -> None:
    names = [f"e{number}" for number in range(STREAMS_AT_ONCE)]
    queue = queue_of(ana="ana-1", **{name: f"ben-{name}" for name in names})
    streams = Streams(queue)
    with pytest.raises(QueueFull):
        streams.make_room("ben-")
    streams.make_room("ana-")
    for name in names[1:]:  # they ended, and nobody read what they said
        del queue.event_ids_to_events[name]
    streams.make_room("ben-")
    assert len(queue.pending_messages_per_session) == STREAMS_AT_ONCE  # one of Ana's
    assert list(queue.pending_messages_per_session)[:3] == ["ana-1", "ben-e0", "ben-e2"], "the oldest that ended went"
    assert queue.pending_event_ids_session.keys() == queue.pending_messages_per_session.keys()


def test_a_page_may_have_as_many_streams_as_there_are_people_and_more(paged: Paged) -> None:
    assert paged.sessions.blocks._queue.max_thread_count > 10 * STREAMS_AT_ONCE
    assert len(paged.sessions.blocks._queue.active_jobs) > 10 * STREAMS_AT_ONCE


def test_what_controls_hold_is_not_kept_for_links_that_nobody_can_make(paged: Paged) -> None:
    page = paged.sessions.blocks
    event = next(number for number, one in page.fns.items() if any(isinstance(part, gr.Textbox) for part in one.inputs))
    typed = uuid4().hex
    body = {"session_hash": "typed", "fn_index": event, "data": [typed for _ in page.fns[event].inputs]}
    httpx.post(f"{paged.base}/gradio_api/run/predict", json=body, timeout=30)
    assert typed not in str(paged.sessions["typed"].config_values)


def upload(paged: Paged, parts: list[tuple[str, bytes]], charset: str = "") -> httpx.Response:
    """A form with these parts, each with its header's end."""
    body = b"".join(
        b'--X\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (n.encode(), t) for n, t in parts
    )
    headers = {"content-type": f"multipart/form-data{charset}; boundary=X{charset}"}
    return httpx.post(
        f"{paged.base}/gradio_api/upload?upload_id=1", content=body + b"--X--", headers=headers, timeout=30
    )


def test_an_upload_is_read_in_no_character_set_of_its_own(paged: Paged) -> None:
    """Punycode takes time with the square of a text's length, while nobody's request moves; this name is none in it."""
    assert upload(paged, [("f", b"x")], "; charset=punycode").json() == []
    odd = b'multipart/form-data; charset=punycode; boundary="X"; a=b'
    scope = {"headers": [(b"content-type", odd)], "query_string": b""}
    plain_upload(scope, None)  # type: ignore[arg-type]
    assert scope["headers"] == [(b"content-type", b"multipart/form-data; boundary=X")]


def test_an_upload_has_a_few_files_and_its_progress_is_nobodys(paged: Paged) -> None:
    folder = Path(get_upload_folder())
    before = len([*folder.glob("*")])
    file = ('files"; filename="a.txt', b"x")
    assert len(upload(paged, [file] * MOST_PARTS).json()) == MOST_PARTS
    refused = upload(paged, [file] * (MOST_PARTS + 1))
    assert refused.status_code == 413 and "64 files" in refused.text
    assert len([*folder.glob("*")]) <= before + 1, "one file, and none that was begun"
    assert not file_upload_statuses._statuses
    assert httpx.get(f"{paged.base}/gradio_api/upload_progress?upload_id=2", timeout=30).status_code == 404
    assert not file_upload_statuses._signals


async def test_marks_between_parts_are_counted_wherever_they_are_cut() -> None:
    body = b"".join(b"--X-Y\r\n\r\na\r\n" for _ in range(MOST_PARTS + 1)) + b"--X-Y--"
    for size in (1, 2, 3, 7, len(body)):
        cut = iter([body[start : start + size] for start in range(0, len(body), size)])

        async def receive(cut: Iterator[bytes] = cut) -> dict[str, Any]:
            return {"type": "http.request", "body": next(cut, b""), "more_body": True}

        scope = {"headers": [(b"content-type", b'multipart/form-data; boundary="X-Y"')], "query_string": b""}
        few = plain_upload(scope, receive)
        with pytest.raises(BodyTooLarge):
            for _ in range(len(body) // size + 1):
                await few()


def test_the_answer_with_a_part_of_a_file_has_no_headers_of_the_request(paged: Paged) -> None:
    (path,) = upload(paged, [('files"; filename="a.txt', b"hello")]).json()
    asked = {"range": "bytes=1-3", "cookie": "a=secret", "set-cookie": "b=c"}
    answer = httpx.get(f"{paged.base}/gradio_api/file={path}", headers=asked, timeout=30)
    assert answer.content == b"ell"
    assert not {"cookie", "set-cookie", "user-agent"} & set(answer.headers)


def test_a_page_that_is_none_is_not_found(paged: Paged) -> None:
    assert httpx.get(f"{paged.base}/?page=x", timeout=30).status_code == 404
    assert httpx.get(f"{paged.base}/?a=b", timeout=30).status_code == 200


def test_who_asks_first_does_not_say_where_this_server_is(paged: Paged) -> None:
    httpx.get(f"{paged.base}/gradio_api/info", headers={"x-gradio-server": "http://evil.example"}, timeout=30)
    assert "evil" not in httpx.get(f"{paged.base}/gradio_api/info", timeout=30).text


def test_nobody_starts_the_queue_a_second_time(paged: Paged) -> None:
    assert httpx.get(f"{paged.base}/gradio_api/startup-events", timeout=30).status_code == 404


def test_a_stream_that_nobody_reads_ends_and_keeps_its_end_alone() -> None:
    queue = gr.Blocks()._queue
    Streams(queue)
    event: Any = SimpleNamespace(_id="e", session_hash="ben-1", alive=True)
    queue.pending_messages_per_session["ben-1"] = asyncio.Queue()
    for _ in range(MOST_UNREAD + 3):
        queue.send_message(event, ProcessGeneratingMessage(output={}, success=True))
    assert not event.alive
    (end,) = queue.pending_messages_per_session["ben-1"]._queue
    assert end.msg == "process_completed" and end.event_id == "e"
    gone: Any = SimpleNamespace(_id="f", session_hash="ben-2", alive=True)
    queue.send_message(gone, ProcessGeneratingMessage(output={}, success=True))
    assert not gone.alive
