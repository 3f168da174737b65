"""Pictures through Anthropic's API and OpenAI's Responses API: what the model gets of them, and what is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from modules.api.sent import BELOW, RETURNED, Sent, shown_by_users
from modules.messages import ChatMessage
from modules.settings import Settings
from tests.api_desk import Desk, client, desk_with, real_api
from tests.fakes import CONTROL_IDS, IMAGE_TOKEN, Script
from tests.test_api_images import ELSEWHERE, PNG, SEEING, url
from tests.test_pictures import bomb, halves, saved
from tests.tiny_seeing import picture, tiny_seeing

__all__ = ["client"]

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
PLACE = CONTROL_IDS[IMAGE_TOKEN]

TALL = saved(halves(100, 200), "JPEG")


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with desk_with(settings, SEEING) as desk:
        yield desk


def image(data: bytes = PNG, kind: str = "image/png") -> dict[str, Any]:
    source = {"type": "base64", "media_type": kind, "data": base64.b64encode(data).decode()}
    return {"type": "image", "source": source}


def linked(address: object) -> dict[str, Any]:
    return {"type": "image", "source": {"type": "url", "url": address}}


def told(*blocks: dict[str, Any], role: str = "user") -> dict[str, Any]:
    """A body for Anthropic's route."""
    said = [{"role": role, "content": [*blocks, {"type": "text", "text": "What is it?"}]}]
    return {"max_tokens": 50, "messages": said if role == "user" else [*said, {"role": "user", "content": "Go on."}]}


def put(*addresses: object, role: str = "user") -> dict[str, Any]:
    """A body for OpenAI's."""
    parts = [{"type": "input_image", "image_url": address, "detail": "auto"} for address in addresses]
    said = [{"role": role, "content": [{"type": "input_text", "text": "What is it?"}, *parts]}]
    return {"input": said if role == "user" else [*said, {"role": "user", "content": "Go on."}]}


SENT = [
    (MESSAGES, told(image(), image(TALL, "image/jpeg"))),
    (MESSAGES, told(linked(url()), linked(url(TALL, "image/jpeg")))),
    (RESPONSES, put(url(), url(TALL, "image/jpeg"))),
]


async def test_pictures_reach_the_model_as_those_of_chat_completions_do(desk: Desk, client: httpx.AsyncClient) -> None:
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in (url(), url(TALL, "image/jpeg"))]
    chat = {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]}
    await client.post("/v1/chat/completions", json=chat)
    theirs = desk.engine.requests[-1]
    assert [(one.width, one.height) for one in theirs.pictures] == [(400, 200), (100, 200)]
    for path, body in SENT:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        ours = desk.engine.requests[-1]
        assert ours.pictures == theirs.pictures and ours.prompt_ids == theirs.prompt_ids
        assert answer.json()["usage"]["input_tokens"] == len(ours.prompt_ids)
    counted = await client.post(f"{MESSAGES}/count_tokens", json=SENT[0][1])
    assert counted.json() == {"input_tokens": len(theirs.prompt_ids)}


CALLED = [
    {"type": "tool_use", "id": "1", "name": "look", "input": {}},
    {"type": "tool_use", "id": "2", "name": "read", "input": {}},
]


def result(call_id: str, *content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": call_id, "content": list(content)}


async def test_pictures_that_tools_return_stand_in_the_users_message_after_all_results(
    desk: Desk, client: httpx.AsyncClient
) -> None:
    results = [result("1", image()), result("2", {"type": "text", "text": "It is red."}, image(TALL, "image/jpeg"))]
    turns = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": CALLED}]
    body = {"max_tokens": 50, "messages": [*turns, {"role": "user", "content": results}]}
    answer = await client.post(MESSAGES, json=body)
    assert answer.status_code == 200, answer.text
    items = [
        {"role": "user", "content": "Look."},
        {"type": "function_call", "call_id": "1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "read", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": url()}]},
        {
            "type": "function_call_output",
            "call_id": "2",
            "output": [
                {"type": "input_text", "text": "It is red."},
                {"type": "input_image", "image_url": url(TALL, "image/jpeg")},
            ],
        },
    ]
    answer = await client.post(RESPONSES, json={"input": items})
    assert answer.status_code == 200, answer.text
    ours, theirs = desk.engine.requests
    assert ours.prompt_ids == theirs.prompt_ids and ours.pictures == theirs.pictures
    assert [(one.width, one.height) for one in ours.pictures] == [(400, 200), (100, 200)]
    text = desk.engine.decode(tuple(token for token in ours.prompt_ids if token != PLACE))
    assert text.index(BELOW) < text.index("It is red.") < text.index(RETURNED)
    counted = await client.post(f"{MESSAGES}/count_tokens", json=body)
    assert counted.json() == {"input_tokens": len(ours.prompt_ids)}


def test_a_users_own_message_takes_the_pictures_of_results_before_it_and_a_reply_does_not() -> None:
    seen = Sent(ChatMessage("tool", "", call_id="1"), (b"1",))
    said = Sent(ChatMessage("user", "And now?"), (b"2",))
    assert shown_by_users([seen, said])[1:] == [Sent(said.turn, (b"1", b"2"))]
    reply = Sent(ChatMessage("assistant", "Done."))
    assert shown_by_users([seen, reply, said])[1:] == [Sent(ChatMessage("user", RETURNED), (b"1",)), reply, said]
    assert shown_by_users([said, reply]) == [said, reply]


async def test_nothing_is_fetched_for_either_dialect(desk: Desk, client: httpx.AsyncClient) -> None:
    for address in ELSEWHERE:
        for path, body, field in (
            (MESSAGES, told(linked(address)), "messages[0].content"),
            (MESSAGES, told(result("1", linked(address))), "messages[0].content"),
            (f"{MESSAGES}/count_tokens", told(linked(address)), "messages[0].content"),
            (RESPONSES, put(address), "input"),
        ):
            answer = await client.post(path, json=body)
            assert answer.status_code == 400, (path, address)
            error = answer.json()["error"]
            assert "fetches nothing" in error["message"] and error["param"] == field
    assert desk.engine.requests == []


BAD = [
    (MESSAGES, told({"type": "image", "source": {"type": "file", "file_id": "f"}}), "needs a source"),
    (MESSAGES, told({"type": "image", "source": {"type": "base64", "data": "%%%"}}), "no base64"),
    (MESSAGES, told({"type": "image", "source": {"type": "base64"}}), '"data"'),
    (MESSAGES, told(linked(None)), '"url"'),
    (MESSAGES, told(image(), role="assistant"), "only the user's messages"),
    (MESSAGES, told(image(b"plain text")), "holds text"),
    (MESSAGES, told(image(bomb(60_000, 60_000))), "pixels"),
    (MESSAGES, told(*[image(saved(halves(8, 8), "PNG"))] * 17), "more than 16"),
    (MESSAGES, told(result("1", result("2"))), "neither text, image nor tool_reference"),
    (MESSAGES, told() | {"system": [image()]}, "text blocks only"),
    (RESPONSES, put(None), "keeps no files"),
    (RESPONSES, put("data:image/png;base64,%%%"), "no base64"),
    (RESPONSES, put(url(), role="assistant"), "only the user's messages"),
    (RESPONSES, put(url(b"plain text")), "holds text"),
    (RESPONSES, put(*[url(saved(halves(8, 8), "PNG"))] * 17), "more than 16"),
]


async def test_bad_pictures_are_refused_before_any_token(desk: Desk, client: httpx.AsyncClient) -> None:
    for path, body, said in BAD:
        answer = await client.post(path, json=body)
        assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text
    assert desk.engine.requests == []


async def test_a_model_that_reads_text_says_so_in_either_dialect(settings: Settings) -> None:
    with desk_with(settings, Script()) as desk:
        async with desk.client() as client:
            for path, body in (
                (MESSAGES, told(image())),
                (f"{MESSAGES}/count_tokens", told(image())),
                (RESPONSES, put(url())),
            ):
                error = (await client.post(path, json=body)).json()["error"]
                assert error["code"] == "not_available_here" and "cannot see" in error["message"]


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API over a real model that sees, as small as they get."""
    folder = tiny_seeing("llava", tmp_path_factory.getbasetemp().parent / "tiny seeing")
    with real_api(folder, tmp_path_factory.mktemp("data"), dtype="fp32", cpu=True, ctx_size=1024) as base:
        yield base


def test_the_official_clients_show_a_real_model_the_same_picture(seeing: str) -> None:
    shown = base64.b64encode(picture(1).data).decode()
    other = base64.b64encode(picture(2).data).decode()
    address = f"data:image/png;base64,{shown}"
    greedy = {"temperature": 0}

    def block(data: str) -> Any:
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}

    def asked(data: str) -> Any:
        return [{"role": "user", "content": [block(data), {"type": "text", "text": "What is it?"}]}]

    with anthropic.Anthropic(base_url=seeing.removesuffix("/v1"), api_key="x", max_retries=0, timeout=60) as client:
        message = client.messages.create(model="x", max_tokens=12, messages=asked(shown), extra_body=greedy)
        differs = client.messages.create(model="x", max_tokens=12, messages=asked(other), extra_body=greedy)
        counted = client.messages.count_tokens(model="x", messages=asked(shown))
        blind = client.messages.count_tokens(model="x", messages=[{"role": "user", "content": "What is it?"}])
    with openai.OpenAI(base_url=seeing, api_key="x", max_retries=0, timeout=60) as client_:
        parts: Any = [
            {"type": "input_image", "image_url": address, "detail": "auto"},
            {"type": "input_text", "text": "What is it?"},
        ]
        response = client_.responses.create(
            model="x", input=[{"role": "user", "content": parts}], max_output_tokens=12, extra_body=greedy
        )
        content: Any = [
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "text", "text": "What is it?"},
        ]
        chat = client_.chat.completions.create(
            model="x", messages=[{"role": "user", "content": content}], max_tokens=12, extra_body=greedy
        )
    text = message.content[0].to_dict()["text"]
    assert text and text == response.output_text == chat.choices[0].message.content
    assert text != differs.content[0].to_dict()["text"]
    assert chat.usage is not None and response.usage is not None
    sizes = {counted.input_tokens, chat.usage.prompt_tokens, response.usage.input_tokens}
    sizes.add(message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0))
    assert sizes == {blind.input_tokens + 16}
