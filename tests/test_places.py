"""One person's requests wait for one another; nobody else's wait for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from modules.accounts.person import GUEST, STATE, THE_ONE, Person
from modules.api.asking import asker
from modules.api.doors.places import LARGE_AT_ONCE, LARGE_BYTES, OPEN_AT_ONCE, PROMPTS_AT_ONCE, Places, in_place
from modules.attachments.extracted import Extracted
from modules.attachments.extracting import EACH_AT_ONCE, Extractor
from modules.engine.base import TextPiece
from modules.engine.host.host import EngineHost
from modules.errors import QueueFull
from modules.killable import KillableWorker
from tests.household import HERE, Household, household_below

COUNT = "/v1/internal/token-count"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Household]:
    with household_below(tmp_path_factory.mktemp("home")) as made:
        yield made


class Encoder:
    """Encodes what begins with "slow" only when it may, and counts how much of that is under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go_on = threading.Event()
        self.together = self.most = 0
        self._counting = threading.Lock()
        self._encode = EngineHost.encode
        monkeypatch.setattr(EngineHost, "encode", lambda host, pieces: self.encode(host, pieces))

    def encode(self, host: EngineHost, pieces: Sequence[TextPiece]) -> list[int]:
        if not any("slow" in piece.text for piece in pieces):
            return self._encode(host, pieces)
        with self._counting:
            self.together += 1
            self.most = max(self.most, self.together)
        self.may_go_on.wait(60)
        with self._counting:
            self.together -= 1
        return [1]

    async def busy(self, count: int) -> None:
        while self.together < count:
            await asyncio.sleep(0.01)


async def test_a_flood_of_one_person_takes_no_thread_of_another(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(monkeypatch)
    async with home.program(home.keys["Ben"]) as ben, home.program(home.keys["Ana"]) as ana:
        slow = [asyncio.create_task(ben.post(COUNT, json={"text": f"slow {number}"})) for number in range(50)]
        chats = [
            asyncio.create_task(
                ben.post("/v1/completions", json={"prompt": f"slow {number}", "max_tokens": 1}, timeout=60)
            )
            for number in range(50)
        ]
        try:
            await encoder.busy(2 + PROMPTS_AT_ONCE)
            async with asyncio.timeout(20):
                assert (await ana.post(COUNT, json={"text": "quick"})).status_code == 200
                assert (await ana.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})).status_code == 200
            assert encoder.together == encoder.most == 2 + PROMPTS_AT_ONCE
            for left in chats[1:]:
                left.cancel()
        finally:
            encoder.may_go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*slow)} == {200}
        assert (await chats[0]).status_code == 200


async def test_a_slow_upload_holds_nobodys_place(home: Household) -> None:
    drips = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"a"
        await drips.wait()
        yield b"b"

    headers = {"origin": HERE, "content-type": "application/octet-stream"}
    home.accounts.add("Eve", "evening primrose")
    async with home.client("Ben") as ben, home.client("Eve") as eve, home.client("Ana") as ana:
        send = [partial(one.post, "/attachments", params={"name": "slow.txt"}, headers=headers) for one in (ben, eve)]
        slow = [asyncio.create_task(one(content=body())) for one in send * 4]
        await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(30):
                quick = await ana.post("/attachments", params={"name": "a.txt"}, headers=headers, content=b"Some text.")
            assert quick.json().get("name") == "a.txt", quick.text
        finally:
            drips.set()
        assert all(answer.json().get("name") == "slow.txt" for answer in await asyncio.gather(*slow))


async def test_who_leaves_while_it_waits_has_nothing_made() -> None:
    made: list[int] = []

    async def leave() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await in_place(lambda: made.append(1))

    await leave()
    await asyncio.sleep(0.1)
    assert not made
    assert await in_place(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        await in_place(lambda: 1 // 0)


async def test_of_one_persons_large_bodies_a_few_come_in_and_nobody_elses_wait(
    home: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder(monkeypatch)
    sent: list[int] = []

    async def body(number: int) -> AsyncIterator[bytes]:
        text = f'{{"max_tokens": 1, "prompt": "slow {number}", "metadata": "{"x" * LARGE_BYTES}'.encode()
        for piece in (text, b"x" * LARGE_BYTES, b'"}'):
            yield piece
        sent.append(number)

    def ask(client: httpx.AsyncClient, number: int) -> asyncio.Task[httpx.Response]:
        headers = {"content-type": "application/json"}
        return asyncio.create_task(client.post("/v1/completions", content=body(number), headers=headers, timeout=60))

    async with home.program(home.keys["Ben"]) as ben, home.program(home.keys["Ana"]) as ana:
        slow = [ask(ben, number) for number in range(LARGE_AT_ONCE + 6)]
        try:
            await encoder.busy(PROMPTS_AT_ONCE)
            other = ask(ana, 100)
            await encoder.busy(PROMPTS_AT_ONCE + 1)
            assert len(sent) == LARGE_AT_ONCE + 1 and 100 in sent
            small = {"prompt": "quick", "max_tokens": 1}
            async with asyncio.timeout(20):
                assert (await ben.post("/v1/internal/token-count", json={"text": "quick"})).status_code == 200
                assert (await ana.post("/v1/completions", json=small)).status_code == 200
        finally:
            encoder.may_go_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*slow, other)} == {200}


async def test_one_persons_files_leave_a_place_for_another(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, reading = threading.Event(), threading.Semaphore(0)
    read = Extractor._asked

    def asked(self: Extractor, worker: KillableWorker, name: str, data: bytes, *, most_side: int = 0) -> Extracted:
        if name.startswith("slow"):
            reading.release()
            may_go_on.wait(60)
        return read(self, worker, name, data, most_side=most_side or 1024)

    monkeypatch.setattr(Extractor, "_asked", asked)
    headers = {"origin": HERE, "content-type": "application/octet-stream"}

    def attach(client: httpx.AsyncClient, name: str) -> asyncio.Task[httpx.Response]:
        params = {"name": name}
        return asyncio.create_task(client.post("/attachments", params=params, headers=headers, content=b"Some text."))

    async with home.client("Ben") as ben, home.client("Ana") as ana:
        slow = [attach(ben, "slow.txt") for _ in range(4)]
        try:
            for _ in range(EACH_AT_ONCE):
                assert await asyncio.to_thread(reading.acquire, timeout=30)
            async with asyncio.timeout(30):
                assert (await attach(ana, "a.txt")).json().get("name") == "a.txt"
            assert not reading.acquire(blocking=False)
        finally:
            may_go_on.set()
        assert all(answer.json().get("name") == "slow.txt" for answer in await asyncio.gather(*slow))


async def test_a_person_or_a_guest_has_so_many_requests_open_and_others_have_theirs() -> None:
    may_end, answered = asyncio.Event(), list[tuple[str, int]]()

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    places = Places(app)

    def ask(ident: str, address: str = "192.0.2.1") -> asyncio.Task[None]:
        person = GUEST if ident == "guest" else Person(ident, ident, ident, admin=not ident)
        scope: Scope = {
            "type": "http", "method": "GET", "path": "/gradio_api/heartbeat/a", "headers": [],
            "client": (address, 1), "state": {STATE: person},
        }  # fmt: skip

        async def receive() -> Message:
            return {"type": "http.request", "body": b""}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered.append((ident, message["status"]))

        return asyncio.create_task(places(scope, receive, send))

    open_ones = [ask("ben") for _ in range(OPEN_AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="Too many of your requests are open"):
        await ask("ben", "192.0.2.2")
    open_ones += [ask("guest") for _ in range(OPEN_AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="Too many of your requests are open"):
        await ask("guest")
    others = [
        ask("ana"),
        ask("guest", "192.0.2.2"),
        *(ask("") for _ in range(2 * OPEN_AT_ONCE)),  # who alone is here has no limit
    ]
    await asyncio.sleep(0)
    assert not answered
    may_end.set()
    await asyncio.gather(*open_ones, *others)
    await ask("ben")
    assert answered == [*answered[:-1], ("ben", 200)] and len(answered) == 4 * OPEN_AT_ONCE + 3


def test_a_guest_has_a_line_of_their_own_at_the_address_of_the_administrator() -> None:
    scope = {"type": "http", "headers": [], "client": ("192.0.2.1", 1)}
    turns = [asker(Request(scope | {"state": {STATE: person}})).turn for person in (THE_ONE, GUEST, GUEST)]
    assert turns[0] != turns[1]
    assert turns[1] == turns[2]


async def test_who_has_too_many_open_is_told_so(home: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.api.doors.places.OPEN_AT_ONCE", 0)
    async with home.program(home.keys["Ben"]) as ben:
        told = await ben.get("/v1/models")
    assert (told.status_code, told.json()["error"]["code"]) == (503, "queue_full")
