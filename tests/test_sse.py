"""Tests of modules/api/sse.py: what goes over the wire, when 200 is said, and what a departing client ends."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Send

from modules.api.sse import DONE, EventStream, Write, event, unless_disconnected
from modules.errors import QueueFull


class Client:
    """One end of an ASGI connection: keeps what is sent, leaves when told, reads as slowly as told."""

    def __init__(self, *, reads: bool = True) -> None:
        self.messages: list[Message] = []
        self.left = anyio.Event()
        self.got_body = anyio.Event()
        self._reads = reads

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)
        if message.get("body"):
            self.got_body.set()
            if not self._reads:
                await anyio.sleep_forever()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


async def run(produce: Callable[[Write], Awaitable[None]], client: Client, **waits: Any) -> None:
    with anyio.fail_after(10):
        await EventStream(produce, **waits)({"type": "http"}, client.receive, client.send)


def test_an_event_is_one_line_of_json_in_utf8() -> None:
    line = event({"text": "a\nb \u2028 é 👋"})
    assert line.startswith(b"data: ")
    assert line.endswith(b"\n\n")
    assert line.count(b"\n") == 2
    assert json.loads(line[6:]) == {"text": "a\nb \u2028 é 👋"}


async def test_events_arrive_in_order_behind_one_status_200() -> None:
    async def produce(write: Write) -> None:
        await write(event({"n": 1}))
        await write(event({"n": 2}))
        await write(DONE)

    client = Client()
    await run(produce, client)
    assert [message["type"] for message in client.messages].count("http.response.start") == 1
    assert client.messages[0]["status"] == 200
    assert client.body == b'data: {"n":1}\n\ndata: {"n":2}\n\ndata: [DONE]\n\n'
    assert client.complete


async def test_an_error_before_the_first_byte_is_raised_and_nothing_is_sent() -> None:
    async def produce(write: Write) -> None:
        raise QueueFull("Too many wait.")

    client = Client()
    with pytest.raises(QueueFull):
        await run(produce, client)
    assert client.messages == []


@pytest.mark.parametrize(
    ("error", "code"), [(QueueFull("Too many wait."), "queue_full"), (ValueError("/home/me"), "internal_error")]
)
async def test_an_error_after_it_is_the_last_event(error: Exception, code: str) -> None:
    async def produce(write: Write) -> None:
        await write(event({"n": 1}))
        raise error

    client = Client()
    await run(produce, client)
    last = client.body.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert b"/home/me" not in client.body
    assert client.complete


async def test_a_client_that_leaves_cancels_the_producer() -> None:
    cleaned_up = anyio.Event()

    async def produce(write: Write) -> None:
        try:
            await write(event({"n": 1}))
            client.left.set()
            await anyio.sleep_forever()
        finally:
            cleaned_up.set()

    client = Client()
    await run(produce, client)
    assert cleaned_up.is_set()


async def test_a_client_that_left_before_the_first_byte_cancels_too() -> None:
    async def produce(write: Write) -> None:
        await anyio.sleep_forever()

    client = Client()
    client.left.set()
    await run(produce, client)
    assert client.messages == []


async def test_a_client_that_stops_reading_is_dropped_at_the_send_timeout() -> None:
    cleaned_up = anyio.Event()

    async def produce(write: Write) -> None:
        try:
            while True:
                await write(event({"n": 1}))
        finally:
            cleaned_up.set()

    client = Client(reads=False)
    await run(produce, client, send_timeout_s=0.05)
    assert cleaned_up.is_set()
    assert not client.complete


async def test_silence_is_filled_with_comments_and_begins_the_stream() -> None:
    async def produce(write: Write) -> None:
        await client.got_body.wait()
        await write(DONE)

    client = Client()
    await run(produce, client, keep_alive_s=0.01)
    assert client.body.startswith(b": keep-alive\n\n")
    assert client.body.endswith(DONE)


def request_from(receive: Receive) -> Request:
    async def send(message: Message) -> None:
        raise AssertionError(message)

    sender: Send = send
    return Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, sender)


async def test_work_for_a_client_that_stays_gives_its_result_or_its_own_error() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise QueueFull("Too many wait.")

    assert await unless_disconnected(request_from(Client().receive), answer) == 7
    with pytest.raises(QueueFull):
        await unless_disconnected(request_from(Client().receive), fail)


async def test_work_for_a_client_that_leaves_is_cancelled() -> None:
    client, cleaned_up = Client(), anyio.Event()

    async def work() -> int:
        client.left.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned_up.set()
        return 0

    with anyio.fail_after(10), pytest.raises(ClientDisconnect):
        await unless_disconnected(request_from(client.receive), work)
    assert cleaned_up.is_set()
