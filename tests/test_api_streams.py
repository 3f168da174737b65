"""Tests of the API's streams: their protocol, their errors, and clients that leave or stop reading."""

from __future__ import annotations

import contextlib
import json
import random
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from modules.api.app import Patience
from modules.settings import Settings
from tests.api_desk import (
    CHAT,
    COMPLETION,
    FOX,
    desk_with,
    error_of,
    served,
    streaming,
)
from tests.fakes import Script


@dataclass
class Parsed:
    """A stream taken apart: texts and finish reasons by index; exactly one of `usage`, `error`, done may come last."""

    texts: dict[int, str]
    reasons: dict[int, str]
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False


def parse_stream(body: bytes, *, chat: bool) -> Parsed:
    """A strict reader of OpenAI's streams: any event out of its turn fails."""
    parsed = Parsed({}, {})
    identity: set[tuple[str, str, int]] = set()
    text = body.decode("utf-8")
    assert text.endswith("\n\n")
    for event in text[:-2].split("\n\n"):
        if event.startswith(":"):
            continue
        assert event.startswith("data: ")
        assert "\n" not in event
        assert not parsed.done, "nothing after [DONE]"
        assert parsed.error is None, "nothing after an error"
        if event == "data: [DONE]":
            assert set(parsed.reasons) == set(parsed.texts)
            parsed.done = True
            continue
        data = json.loads(event[6:])
        if "error" in data:
            parsed.error = data["error"]
            continue
        identity.add((data["id"], data["object"], data["created"]))
        assert len(identity) == 1
        assert parsed.usage is None, "the usage comes last"
        if not data["choices"]:
            parsed.usage = data["usage"]
            continue
        read_choice(parsed, data["choices"][0], chat=chat)
        assert "usage" not in data, "clients of llama-server's take a chunk with it, null too, for the last"
    return parsed


def read_choice(parsed: Parsed, choice: dict[str, Any], *, chat: bool) -> None:
    index = choice["index"]
    assert index not in parsed.reasons, "nothing after the finish reason"
    if index not in parsed.texts:
        parsed.texts[index] = ""
        if chat:
            assert choice["delta"] == {"role": "assistant", "content": ""}, "the role comes first"
    elif chat:
        assert "role" not in choice["delta"]
    parsed.texts[index] += (choice["delta"].get("content", "") if chat else choice["text"]) or ""
    if choice["finish_reason"] is not None:
        parsed.reasons[index] = choice["finish_reason"]


EMOJI = "Zürich 👩‍👩‍👧‍👦🇨🇭 日本語 e\u0301 \u2028 \\n\n\r\n data: [DONE] 𝕬"


async def test_every_stream_keeps_to_the_protocol(settings: Settings) -> None:
    chance = random.Random(7)
    with desk_with(settings, Script(reply=EMOJI)) as desk:
        async with desk.client() as client:
            for round_number in range(150):
                chat = chance.random() < 0.6
                count, usage = chance.choice((1, 1, 2, 3)), chance.random() < 0.5
                body = (CHAT if chat else COMPLETION) | {
                    "n": count,
                    "max_tokens": chance.randint(1, 80),
                    "stream": True,
                }
                body |= {"stream_options": {"include_usage": usage}} if usage else {}
                body |= {"logprobs": True if chat else 1} if chance.random() < 0.3 else {}
                path = "/v1/chat/completions" if chat else "/v1/completions"
                response = await client.post(path, json=body)
                assert response.headers["content-type"].startswith("text/event-stream")
                parsed = parse_stream(response.content, chat=chat)
                whole = (await client.post(path, json=body | {"stream": False, "stream_options": None})).json()
                assert parsed.done, round_number
                assert (parsed.usage == whole["usage"]) if usage else (parsed.usage is None)
                for choice in whole["choices"]:
                    text = choice["message"]["content"] if chat else choice["text"]
                    assert parsed.texts[choice["index"]] == text
                    assert parsed.reasons[choice["index"]] == choice["finish_reason"]


@pytest.mark.parametrize("fault_at", [0, 1, 10])
@pytest.mark.parametrize(
    ("fault", "status", "code"), [("raise", 500, "generation_failed"), ("oom", 507, "out_of_memory")]
)
async def test_an_engine_that_fails_at_a_token_ends_the_stream_with_its_error(
    settings: Settings, fault: Any, fault_at: int, status: int, code: str
) -> None:
    with desk_with(settings, Script(fault=fault, fault_at=fault_at)) as desk:
        async with desk.client() as client:
            for body in (CHAT, CHAT | {"n": 3}):
                streamed = await client.post("/v1/chat/completions", json=body | {"stream": True})
                assert streamed.status_code == 200
                parsed = parse_stream(streamed.content, chat=True)
                assert parsed.error is not None
                assert parsed.error["code"] == code
                assert not parsed.done
                whole = await client.post("/v1/chat/completions", json=body)
                assert whole.status_code == status
                assert error_of(whole)["code"] == code
            assert desk.idle_within(1)
            desk.engine.script = Script()
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


def test_unloading_during_a_stream_ends_it_with_an_error(settings: Settings) -> None:
    script = Script(endless=True, tokens_per_s=100)
    body = CHAT | {"stream": True, "max_tokens": 100_000}
    with desk_with(settings, script) as desk, served(desk.app) as port, streaming(port, body) as stream:
        stream.read_event()
        desk.models.unload()
        rest = stream.read_all()
    last = rest.decode().strip().split("\n\n")[-1]
    assert "error" in json.loads(last.removeprefix("data: "))


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_is_idle_within_a_second_of_any_departure(settings: Settings, stream: bool) -> None:
    chance = random.Random(11)
    script = Script(endless=True, tokens_per_s=500, prefill_s=0.005)
    with desk_with(settings, script) as desk, served(desk.app) as port:
        for round_number in range(100):
            body = CHAT | {"stream": stream, "max_tokens": 100_000, "n": chance.choice((1, 1, 3))}
            with streaming(port, body) as client:
                how = chance.choice(("close", "reset", "half"))
                if stream and chance.random() < 0.7:
                    client.read_event()
                elif chance.random() < 0.7:
                    desk.wait_until_taken(body["n"])
                client.leave(how)
                assert desk.idle_within(1), (round_number, how)
            desk.engine.requests.clear()
        desk.engine.script = Script()
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == FOX
        assert desk.engine.stats().active == 0


def test_a_client_that_never_reads_is_dropped_and_others_are_served(settings: Settings) -> None:
    script = Script(endless=True)
    patience = Patience(send_timeout_s=0.5)
    with desk_with(settings, script, patience) as desk, served(desk.app, sndbuf=8192) as port:
        body = CHAT | {"stream": True, "max_tokens": 200_000, "logprobs": True, "top_logprobs": 5}
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(streaming(port, body, rcvbuf=2048)).read_event()
            other = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT | {"max_tokens": 5})
            assert other.status_code == 200
            assert desk.idle_within(30)
