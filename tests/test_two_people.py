"""Two people in one Snug: nothing of one's can be read, changed, stopped or taken by the other (U4)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from modules.accounts.command import run_users
from modules.accounts.directory import FILE, Accounts
from modules.api.doors import staying
from modules.chat.trees import Tree
from modules.engine.base import GenerationRequest
from modules.engine.host.generation import Generation
from modules.engine.host.host import EngineHost
from modules.ui import side
from tests.fakes import Script
from tests.household import HERE, Household, household_below

CANARY = "the canary sings at dawn"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    with household_below(
        tmp_path_factory.mktemp("home"), Script(reply="and so on ", endless=True, tokens_per_s=40)
    ) as made:
        yield made


async def begin(home: Household, client: httpx.AsyncClient) -> dict[str, Any]:
    """A conversation whose reply is being written."""
    answer: dict[str, Any] = await home.ask(
        client, "send", {"text": CANARY, "op_id": f"operation {anyio.current_time()}"}
    )
    assert answer["accepted"], answer
    return answer


async def test_no_door_opens_anothers_conversation(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        begun = await begin(home, ana)
        ident, question, reply = begun["conversation"]["id"], begun["messages"][0]["id"], begun["running"]
        uploaded = await ana.post("/attachments", params={"name": "secret.txt"}, content=CANARY.encode())
        file = uploaded.json()["id"]
        folder = (await home.ask(ana, "name_folder", {"name": CANARY}))["folder"]
        before = await home.ask(ana, "open", {"id": ident})
        touch, pick = {"id": ident, "message": question}, {"id": ident}
        tries: list[tuple[str, dict[str, Any]]] = [
            ("open", pick), ("open", touch),
            ("send", {"id": ident, "parent": reply, "text": "x", "op_id": "operation"}),
            ("regenerate", touch), ("go_on", {"id": ident, "message": reply}), ("show_version", touch),
            ("edit", touch | {"text": "x"}), ("delete_last", pick), ("delete", touch), ("undelete", touch),
            ("branch", touch), ("stop", {"id": reply}), ("set_system_prompt", pick | {"text": "x"}),
            ("files_waiting", {"ids": [file]}), ("file_text", {"id": file}), ("discard_file", {"id": file}),
            ("pulse", pick), ("rename", pick | {"title": "x"}), ("pin", pick | {"pinned": True}),
            ("move", pick | {"folder": None}), ("name_folder", {"id": folder, "name": "x"}),
            ("remove_folder", {"id": folder}), ("remove", pick), ("restore", pick), ("erase", pick),
            ("export", {"ids": [ident]}), ("export", {"ids": None}), ("conversations", {"query": "canary"}),
            ("conversations", {"incognito": [ident]}), ("set_setup", pick | {"setup": {}}), ("template", pick),
            ("gauge", pick), ("preview", pick), ("impersonate", pick | {"parent": question}),
            ("stop_impersonation", pick), ("send", {"text": "x", "op_id": "operation 2", "attachments": [file]}),
            ("load_text", {}), ("markdown", {}), ("account", {}),
        ]  # fmt: skip
        for name, body in tries:
            answer = str(await home.ask(ben, name, body))
            assert CANARY not in answer, (name, body)
            assert "secret.txt" not in answer, (name, body)
            assert ident not in answer.replace(str(body), ""), (name, body)
        assert home.services.chat.running("", ident) is not None, "still being written"
        after = await home.ask(ana, "open", {"id": ident})
        assert [message["id"] for message in after["messages"]] == [message["id"] for message in before["messages"]]
        assert after["conversation"]["title"] == before["conversation"]["title"]
        waiting = await home.ask(ana, "files_waiting", {"ids": [file]})
        assert [one["id"] for one in waiting["files"]] == [file]
        await home.ask(ana, "stop", {"id": reply})


async def test_incognito_conversations_are_ones_own_too(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        begun = await home.ask(ana, "send", {"text": CANARY, "op_id": "operation in", "incognito": True})
        ident = begun["conversation"]["id"]
        assert (await home.ask(ben, "open", {"id": ident}))["problem"]["code"] == "not_found"
        listed = await home.ask(ben, "conversations", {"incognito": [ident]})
        assert ident not in str(listed)
        await home.ask(ana, "stop", {"id": begun["running"]})


async def test_notebooks_are_ones_own(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        page = await home.ask(ana, "load_text", {})
        await home.ask(ana, "save_text", {"text": CANARY, "revision": page["revision"]})
        theirs = await home.ask(ben, "load_text", {})
        assert CANARY not in str(theirs)
        await home.ask(ben, "save_text", {"text": "mine", "revision": theirs["revision"]})
        assert CANARY in str(await home.ask(ana, "load_text", {}))


async def join(home: Household, client: httpx.AsyncClient, ident: str, session: str = "shared") -> httpx.Response:
    """Follow a reply, as the page does it."""
    follow = next(
        number for number, event in home.page.fns.items()
        if event.name == "follow" and "ChatDoors" in getattr(event.fn, "__qualname__", "")
    )  # fmt: skip
    body = {"data": [], "event_data": {"id": ident}, "fn_index": follow, "session_hash": session, "trigger_id": None}
    return await client.post("/gradio_api/queue/join", json=body)


async def read_stream(client: httpx.AsyncClient, session: str) -> str:
    return (await client.get("/gradio_api/queue/data", params={"session_hash": session})).text


async def test_a_stream_cannot_be_read_or_ended_by_who_knows_its_session_and_event(home: Household) -> None:
    async with home.at_work(), home.client("Ana") as ana, home.client("Ben") as ben:
        begun = await begin(home, ana)
        ident = begun["conversation"]["id"]
        joined = await join(home, ana, ident)
        assert joined.status_code == 200, joined.text
        event = joined.json()["event_id"]
        stolen = await ben.get("/gradio_api/queue/data", params={"session_hash": "shared"})
        assert "and so on" not in stolen.text
        for body in (
            {"session_hash": "shared", "fn_index": 0, "event_id": event},
            {"session_hash": "other", "fn_index": 0, "event_id": event},
        ):
            assert (await ben.post("/gradio_api/cancel", json=body)).status_code == 404
        listening = asyncio.create_task(read_stream(ana, "shared"))
        running = home.services.chat.running(home.accounts.named("Ana").person.owner, ident)
        assert running is not None
        with anyio.fail_after(30):
            async for view in running.updates():
                if "and so on" in view.text:
                    break
        await home.ask(ana, "stop", {"id": begun["running"]})
        with anyio.fail_after(30):
            told = await listening
        assert event in told, "it went on to its end, for whom it was meant"
        assert "process_completed" in told
        begun = await begin(home, ana)
        assert (await join(home, ben, begun["conversation"]["id"], "bens")).status_code == 200
        with anyio.fail_after(30):
            told = await read_stream(ben, "bens")
        assert "process_completed" in told
        assert "and so on" not in told, "nothing of a conversation that is another's"
        assert CANARY not in told
        await home.ask(ana, "stop", {"id": begun["running"]})


async def until_written(home: Household, ident: str, more: int) -> str:
    """The reply's text once it is that much longer than nothing."""
    running = home.services.chat.running(home.accounts.named("Ana").person.owner, ident)
    assert running is not None
    with anyio.fail_after(30):
        async for view in running.updates():
            if len(view.text) >= more:
                return view.text
    raise AssertionError("it ended by itself")


async def test_who_logs_out_reads_nothing_further_and_the_reply_goes_on_and_is_kept(home: Household) -> None:
    async with home.at_work(), home.client("Ana") as page, home.client("Ana") as other, home.client() as same:
        same.cookies.update(page.cookies)
        begun = await begin(home, page)
        ident = begun["conversation"]["id"]
        for client, session in ((page, "leaving"), (other, "staying")):
            assert (await join(home, client, ident, session)).status_code == 200
        streams = [asyncio.create_task(read_stream(*one)) for one in ((page, "leaving"), (other, "staying"))]
        await until_written(home, ident, 1)
        assert (await same.post("/logout", headers={"origin": HERE})).status_code == 303
        with anyio.fail_after(10):
            told = await streams[0]
        written = await until_written(home, ident, 0)
        assert "process_completed" not in told, "it was cut off"
        assert (await page.get("/gradio_api/queue/data", params={"session_hash": "leaving"})).status_code == 401
        assert len(await until_written(home, ident, len(written) + 40)) >= len(written) + 40, "nobody stopped it"
        assert not streams[1].done(), "another browser of hers goes on"
        await home.ask(other, "stop", {"id": begun["running"]})
        with anyio.fail_after(30):
            assert "process_completed" in await streams[1]
        kept = (await home.ask(other, "open", {"id": ident}))["messages"]
        assert written in str(kept), "and is there when she comes back"


class Hearing(httpx.ASGITransport):
    """Tells what has been sent so far."""

    heard = b""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        app = self.app

        async def listening(scope: Scope, receive: Receive, send: Send) -> None:
            async def hear(message: Message) -> None:
                self.heard += message.get("body", b"")
                await send(message)

            await app(scope, receive, hear)

        self.app = listening
        return await super().handle_async_request(request)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_program_whose_key_is_revoked_reads_nothing_further_and_what_ran_for_it_ends(
    home: Household, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staying, "WAITING_S", 0.05)
    ana, models = home.accounts.named("Ana"), home.services.models
    key, secret = home.accounts.make_key(ana.id, "short-lived")
    asked = {"messages": [{"role": "user", "content": CANARY}], "stream": stream, "max_tokens": 100_000}
    ear = Hearing(home.app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(transport=ear, base_url=HERE, headers=headers, timeout=30) as program:
        answer = asyncio.create_task(program.post("/v1/chat/completions", json=asked))
        with anyio.fail_after(30):
            while not (ear.heard.count(b"data:") > 3 if stream else models.stats().active):
                await anyio.sleep(0.01)
            home.accounts.revoke_key(key.id)
            if stream:
                cut = await answer
                assert cut.status_code == 200 and "[DONE]" not in cut.text
            else:
                assert (await answer).status_code == 401, "what was written for it is not told"
    assert models.engine().wait_idle(10)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("page.html", "text/html"),
        ("picture.svg", "image/svg+xml"),
        ("code.js", "text/javascript"),
        ("paper.pdf", "application/pdf"),
        ("page.xhtml", "application/xhtml+xml"),
        ("page.png", "text/html"),
    ],
)
async def test_an_uploaded_file_that_is_opened_directly_is_saved_and_does_nothing(
    home: Household, name: str, kind: str
) -> None:
    async with home.client("Ana") as ana:
        own = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
        path = (await ana.post("/gradio_api/upload", files={"files": (name, own, kind)})).json()[0]
        opened = await ana.get(f"/gradio_api/file={path}", headers={"sec-fetch-dest": "document"})
        assert opened.status_code == 200 and opened.content == own
        assert opened.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in opened.headers["content-security-policy"]
        saved = opened.headers.get("content-disposition", "").startswith("attachment")
        assert saved or opened.headers["content-type"] == "image/png", "a picture by name is shown as one, or not"
        attached = (await ana.post("/attachments", content=own, params={"name": name})).json()
        assert "problem" in attached or attached["kind"] != "picture"
        if "id" in attached:
            assert (await ana.get(f"/attachments/{attached['id']}/picture")).status_code == 404


async def test_an_uploaded_file_is_its_uploaders(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        files = {"files": ("page.html", b"<script>alert(1)</script>", "text/html")}
        path = (await ana.post("/gradio_api/upload", files=files)).json()[0]
        own = await ana.get(f"/gradio_api/file={path}")
        assert own.status_code == 200
        assert own.headers["content-disposition"].startswith("attachment")
        assert own.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in own.headers["content-security-policy"]
        assert (await ben.get(f"/gradio_api/file={path}")).status_code == 404
        for spelling in (path.replace("/", "//", 1), f"/.{path}", path.replace("page", "%70age")):
            assert b"alert" not in (await ben.get(f"/gradio_api/file={spelling}")).content, spelling


@pytest.mark.parametrize("handler", ["start", "stop", "forget"])
async def test_the_pages_own_events_ask_for_the_right_too(home: Household, handler: str) -> None:
    number = next(
        number for number, event in home.page.fns.items()
        if event.name == handler and "model_tab" in getattr(event.fn, "__module__", "")
    )  # fmt: skip
    async with home.client("Ben") as ben:
        for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/api/predict"):
            for fn_index, status in ((number, 403), (str(number), 400), (float(number), 400), (None, 400)):
                body: dict[str, Any] = {"data": [], "fn_index": fn_index, "session_hash": "s"}
                assert (await ben.post(path, json=body)).status_code == status, (path, fn_index)
    assert home.services.models.state.status == "ready"


async def test_doors_for_administrators_say_so(home: Household) -> None:
    async with home.client("Ben") as ben:
        for name, body in (
            ("look", {"text": "org/model"}), ("cancel", {"id": "x"}), ("begin", {"text": "org/model"}), ("halt", {}),
            ("switch", {"id": "x", "on": False}), ("add_person", {"name": "Eve", "password": "battery staple"}),
            ("set_right", {"id": "x", "admin": True}), ("give_password", {"id": "x", "password": "battery staple"}),
        ):  # fmt: skip
            holders = home.holders(name)
            assert holders, name
            refused = 0
            for holder in holders:
                answer = await home.ask(ben, name, body, holder=holder)
                refused += "problem" in answer and answer["problem"]["code"] == "forbidden"
            assert refused, name
    assert [account.name for account in home.accounts.people()] == ["Ana", "Ben"]


async def test_one_sees_ones_own_keys_and_an_administrator_all(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        mine = await home.ask(ben, "account", {})
        assert mine["people"] == []
        assert {key["person"] for key in mine["keys"]} == {"Ben"}
        everybodys = await home.ask(ana, "account", {})
        assert {key["person"] for key in everybodys["keys"]} == {"Ana", "Ben"}
        theirs = next(key["id"] for key in everybodys["keys"] if key["person"] == "Ana")
        assert (await home.ask(ben, "revoke_key", {"id": theirs}))["problem"]["code"] == "not_found"
        assert (await home.ask(ben, "make_key", {"name": "x", "admin": True}))["problem"]["code"] == "forbidden"
        made = await home.ask(ben, "make_key", {"name": "new"})
        async with home.program(made["secret"]) as program:
            assert (await program.get("/account")).json() == {"name": "Ben", "admin": False}
        new = next(key["id"] for key in made["keys"] if key["name"] == "new")
        async with home.program(home.keys["Ana"]) as limited:  # an administrator's key without that right
            for asked in ({"name": "more", "admin": True}, {"name": "endless"}):
                assert (await home.ask(limited, "make_key", asked))["problem"]["code"] == "forbidden"
        await home.ask(ben, "revoke_key", {"id": new})


async def test_a_key_of_an_administrator_lets_nobody_in(home: Household) -> None:
    ben = home.accounts.named("Ben").id
    async with home.program(home.keys["admin"]) as program:
        for name, body in (
            ("add_person", {"name": "Eve", "password": "evening primrose", "admin": True}),
            ("set_right", {"id": ben, "admin": True}),
            ("give_password", {"id": ben, "password": "evening primrose"}),
            ("restore_person", {"id": ben}),
        ):
            refused = await home.ask(program, name, body)
            assert refused["problem"]["code"] == "forbidden", name
    assert [account.admin for account in home.accounts.people()] == [True, False]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"not json", "application/json"), (b"[]", "application/json"), (b'{"session_hash": 5}', "application/json"),
        (b'{"session_hash": "a/b"}', "application/json"), (b'{"session_hash": ""}', "application/json"),
        (b"[" * 200_000, "application/json"), (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "application/json"),
        (b"{}", "text/plain"), (b"--b--", "multipart/form-data; boundary=b"), (b"\xff\xfe", "application/json"),
    ],
)  # fmt: skip
async def test_a_broken_request_of_the_page_is_refused(home: Household, content: bytes, kind: str) -> None:
    async with home.client("Ben") as ben:
        for path in ("/gradio_api/component_server", "/gradio_api/queue/join", "/gradio_api/cancel"):
            answer = await ben.post(path, content=content, headers={"content-type": kind})
            assert 400 <= answer.status_code < 500, (path, answer.text)


SHUT = (
    "/gradio_api/proxy=http://evil.example/", "/gradio_api/file=http://evil.example/", "/gradio_api/file/etc/passwd",
    "/gradio_api/file=https:%2f%2fevil.example/", "/gradio_api/token", "/monitoring", "/monitoring/summary",
    "/gradio_api/deep_link?session_hash=a", "/gradio_api/run-history/buckets", "/gradio_api/runs", "/docs", "/redoc",
    "/gradio_api/openapi.json", "/gradio_api/call/x/y", "/gradio_api/stream/a/b/c/playlist.m3u8", "/gradio_api/mcp",
    "/gradio_api/dev/reload", "/gradio_api/vibe-code", "/custom_component/x", "/pwa_icon",
)  # fmt: skip


@pytest.mark.parametrize("path", SHUT)
async def test_what_the_page_does_not_use_of_gradio_is_shut(home: Household, path: str) -> None:
    async with home.client("Ana") as ana:
        assert (await ana.get(path)).status_code == 404


async def test_characters_personas_and_presets_are_ones_own(home: Household) -> None:
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        person = {"fields": {"name": "Canary", "description": CANARY}, "persona": True}
        saved = await home.ask(ana, "save_person", person)
        made = await home.ask(ana, "save_person", {"fields": {"name": "Canary", "first_mes": CANARY}})
        holder = next(iter(home.holders("take_in")[1:]), home.holders("look")[0])
        presets = next(number for number in home.holders("chosen"))
        kept = await home.ask(ana, "save", {"name": "Anas own", "params": {"temperature": 0.3}}, holder=presets)
        assert kept["name"] == "Anas own", (kept, holder)
        assert CANARY not in str(await home.ask(ben, "people", {}))
        assert "Anas own" not in str(await home.ask(ben, "look", {}, holder=presets))
        character = {"id": made["saved"]}
        for name, body in (
            ("character", character),
            ("delete_person", character),
            ("export_card", character | {"kind": "json"}),
        ):
            assert (await home.ask(ben, name, body))["problem"]["code"] == "not_found", name
        assert (await home.ask(ben, "talk", character))["problem"]["code"] == "not_found"
        assert CANARY in str(await home.ask(ana, "character", character))
        assert CANARY in str(await home.ask(ana, "people", {})), saved
        await home.ask(ben, "save_person", {"fields": {"name": "Bens own"}})
        assert "Bens own" in str(await home.ask(ben, "people", {}))
        assert "Bens own" not in str(await home.ask(ana, "people", {}))
        talking = await home.ask(ana, "talk", character)
        assert "conversation" in talking


async def test_an_export_ends_where_one_answer_would_grow_too_large_and_goes_on_with_the_next(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = home.accounts.named("Ana").person.owner
    ids = [home.services.store.create(owner, title=f"T{number}").id for number in range(5)]
    async with home.client("Ana") as ana:
        whole = await home.ask(ana, "export", {"ids": [*ids, "gone"]})
        assert (len(whole["pieces"]), whole["done"]) == (5, 6)
        monkeypatch.setattr(side, "MOST_EXPORTED", len(whole["pieces"][0]) + 1)
        first = await home.ask(ana, "export", {"ids": ids})
        assert (first["pieces"], first["done"]) == (whole["pieces"][:2], 2)


async def test_exports_of_one_person_are_made_one_at_a_time_and_another_does_not_wait(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners = {name: home.accounts.named(name).person.owner for name in ("Ana", "Ben")}
    ids = {name: [home.services.store.create(owner, title=name).id] for name, owner in owners.items()}
    making: list[str] = []
    together: set[tuple[str, ...]] = set()

    def piece(tree: Tree) -> str:
        making.append(tree.title)
        for _ in range(100):
            together.add(tuple(sorted(making)))
            if len(set(making)) == 2 or ("Ana", "Ben") in together:
                break
            time.sleep(0.01)
        time.sleep(0.02)
        making.remove(tree.title)
        return "{}"

    monkeypatch.setattr(side, "json_piece", piece)
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        people = [(ana, "Ana"), (ana, "Ana"), (ben, "Ben"), (ana, "Ana")]
        answers = await asyncio.gather(*(home.ask(who, "export", {"ids": ids[name]}) for who, name in people))
    assert [answer["pieces"] for answer in answers] == [["{}"]] * 4
    assert ("Ana", "Ben") in together
    assert not any(names.count("Ana") > 1 for names in together)


async def test_searches_of_one_person_are_made_one_at_a_time_and_another_does_not_wait(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {home.accounts.named(name).person.owner: name for name in ("Ana", "Ben")}
    searching: list[str] = []
    together: set[tuple[str, ...]] = set()

    def look(owner: str, query: str = "", *narrower: Any) -> list[Any]:
        assert query == "word"
        searching.append(named[owner])
        for _ in range(100):
            together.add(tuple(sorted(searching)))
            if ("Ana", "Ben") in together:
                break
            time.sleep(0.01)
        time.sleep(0.02)
        searching.remove(named[owner])
        return []

    monkeypatch.setattr(home.services.store.shelf, "list", look)
    async with home.client("Ana") as ana, home.client("Ben") as ben:
        people = [ana, ana, ben, ana]
        await asyncio.gather(*(home.ask(who, "conversations", {"query": " word "}) for who in people))
    assert ("Ana", "Ben") in together
    assert not any(names.count("Ana") > 1 for names in together)


async def test_every_request_to_the_engine_says_whose_it_is(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[GenerationRequest] = []
    submit = EngineHost.submit

    def heard(host: EngineHost, request: GenerationRequest) -> Generation:
        asked.append(request)
        return submit(host, request)

    async def heard_of(count: int) -> None:
        async with asyncio.timeout(20):
            while len(asked) < count:
                await asyncio.sleep(0.01)

    monkeypatch.setattr(EngineHost, "submit", heard)
    turn = [{"role": "user", "content": "Hello"}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"messages": turn, "max_tokens": 2}),
        ("completions", {"prompt": "Hello", "max_tokens": 2}),
        ("messages", {"messages": turn, "max_tokens": 2, "model": "tiny"}),
        ("responses", {"input": "Hello", "max_output_tokens": 16}),
        ("internal/logits", {"prompt": "Hello"}),
    ]
    for name, owner in (("Ana", ""), ("Ben", home.accounts.named("Ben").owner)):
        async with home.program(home.keys[name]) as program:
            for path, body in bodies:
                assert (await program.post(f"/v1/{path}", json=body)).status_code == 200, path
            salted = bodies[0][1] | {"cache_salt": "a guest"}
            assert (await program.post("/v1/chat/completions", json=salted)).status_code == 200
        async with home.client(name) as browser:
            begun = await begin(home, browser)
            await heard_of(7)
            await home.ask(browser, "stop", {"id": begun["conversation"]["id"]})
            page = await home.ask(browser, "load_text", {})
            text = {"revision": page["revision"], "before": "Once", "params": {"max_new_tokens": 2}}
            assert "running" in await home.ask(browser, "complete", text)
            await heard_of(8)
        assert [one.whose for one in asked] == [owner] * 5 + [f"{owner} a guest"] + [owner] * 2
        asked.clear()


@pytest.mark.parametrize("number", [-1, 9_999_999, 10**30])
async def test_numbers_of_no_event_and_of_no_component_are_told_so_and_leave_no_page_in_the_log(
    home: Household, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    event = {"data": [], "fn_index": number, "session_hash": "s"}
    part = {"data": {}, "component_id": number, "fn_name": "who", "session_hash": "s"}
    for name in ("Ana", "Ben"):
        async with home.client(name) as browser:
            for path in ("run/predict", "queue/join"):
                assert (await browser.post(f"/gradio_api/{path}", json=event)).status_code == 404
            assert (await browser.post("/gradio_api/component_server", json=part)).status_code == 404
    assert not caplog.records


@pytest.mark.parametrize("place", ["page", "terminal"])
@pytest.mark.parametrize("ending", ["removed", "no administrator"])
async def test_a_body_that_is_whole_too_late_does_nothing(
    home: Household, ending: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Accounts(home.services.settings.user_data_dir / FILE)  # as another process has it
    accounts = terminal if place == "terminal" else home.accounts
    cyd = home.accounts.add(f"Cyd, {ending}, {place}", "a password of hers", admin=True)
    _, key = home.accounts.make_key(cyd.id, "slow", admin=True)
    monkeypatch.setattr(home.services.models, "load", lambda *_: pytest.fail("it was loaded"))

    async def slowly(body: bytes) -> AsyncIterator[bytes]:
        yield body[:10]
        if ending == "removed":
            accounts.remove(cyd.id)
        else:
            accounts.set_admin(cyd.id, admin=False)
        terminal.close()
        yield body[10:]

    deeds = {
        "removed": ("/conversations", b'[{"conversations": [{"from": "human", "value": "a"}]}]'),
        "no administrator": ("/v1/internal/model/load", b'{"model_name": "tiny"}'),
    }
    path, body = deeds[ending]
    async with home.program(key) as client:
        answer = await client.post(path, content=slowly(body), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert home.services.store.list(cyd.person.owner) == []


@pytest.mark.parametrize("road", ["route", "door"])
async def test_an_import_under_way_leaves_nothing_of_who_is_forgotten_meanwhile(
    home: Household, road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cyd, folder = home.accounts.add(f"Cyd of the {road}", "a password of hers"), home.services.settings.user_data_dir
    text = '[{"conversations": [{"from": "human", "value": "a"}], "folder": "Letters"}]'
    alike = home.services.store.shelf.alike

    def slowly(owner: str) -> Any:
        """All of the file is here by now."""
        home.accounts.remove(cyd.id)
        run_users(["forget", cyd.name, "--yes", "--user-data-dir", str(folder)])
        return alike(owner)

    async with home.client(cyd.name) as browser:
        monkeypatch.setattr(home.services.store.shelf, "alike", slowly)
        if road == "route":
            answer = (await browser.post("/conversations", content=text)).json()["error"]
        else:
            answer = await home.ask(browser, "take_in", {"text": text}, holder=home.holders("conversations")[0])
    assert "code" in str(answer) and "imported" not in answer
    assert home.services.store.list(cyd.owner) == [] and home.services.store.shelf.folders(cyd.owner) == ()
