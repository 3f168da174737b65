"""Tests of /v1/responses: what OpenAI's own client sees, the events of a stream, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from modules.settings import Settings
from tests.api_desk import FOX, MODEL, Desk, client, desk, desk_with, error_of, sdk, served, streaming
from tests.fakes import Script

__all__ = ["client", "desk"]

PATH = "/v1/responses"
ASK: dict[str, Any] = {"input": "Hello"}
THOUGHT = "<think>\nThe user greets.\n</think>\n\nHello!"


def test_the_openai_client_gets_responses_whole_and_as_events(desk: Desk) -> None:
    with sdk(desk) as client:
        whole = client.responses.create(model="gpt-5", input="Hello", instructions="Be brief.")
        with client.responses.stream(model=MODEL, input="Hello", instructions="Be brief.") as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_response()
        with pytest.raises(openai.BadRequestError) as bad:
            client.responses.create(model=MODEL, input="Hello", previous_response_id="resp_1")
    assert (whole.output_text, whole.status, whole.model) == (FOX, "completed", MODEL)
    assert whole.usage is not None
    assert whole.usage.output_tokens == len(FOX)
    assert whole.usage.total_tokens == whole.usage.input_tokens + len(FOX)
    assert streamed.output_text == FOX
    assert streamed.usage == whole.usage
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") > 5
    assert (bad.value.param, bad.value.code) == ("previous_response_id", "bad_value")
    told = desk.engine.decode(desk.engine.requests[0].prompt_ids)
    assert told.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello")


async def test_a_response_tells_when_it_was_completed_and_its_penalties(client: httpx.AsyncClient) -> None:
    asked = {"input": "Hello", "presence_penalty": 0.5}
    whole = (await client.post(PATH, json=asked)).json()
    assert whole["completed_at"] >= whole["created_at"]
    assert (whole["presence_penalty"], whole["frequency_penalty"]) == (0.5, 0.0), "OpenRouter's library wants both"
    cut = (await client.post(PATH, json=asked | {"max_output_tokens": 3})).json()
    assert cut["completed_at"] is None
    begun, *_, ended = events_of(await client.post(PATH, json=asked | {"stream": True}))
    assert begun["response"]["completed_at"] is None
    assert ended["response"]["completed_at"] >= ended["response"]["created_at"]


def test_the_openai_client_cancels_a_response_by_closing_its_stream(settings: Settings) -> None:
    with desk_with(settings, Script(endless=True, tokens_per_s=200)) as desk, sdk(desk) as client:
        stream = client.responses.create(model=MODEL, input="Hello", stream=True, max_output_tokens=100_000)
        for event in stream:
            if event.type == "response.output_text.delta":
                break
        stream.close()
        assert desk.idle_within(5)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, their names held against their data, their numbers without a gap."""
    events = []
    for text in response.text[:-2].split("\n\n"):
        name, _, data = text.partition("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


@pytest.mark.parametrize("reply", [FOX, THOUGHT, "", "<think>never ends"])
async def test_the_events_tell_the_same_as_the_whole(client: httpx.AsyncClient, desk: Desk, reply: str) -> None:
    desk.engine.script = Script(reply=reply)
    whole = (await client.post(PATH, json=ASK)).json()
    events = events_of(await client.post(PATH, json=ASK | {"stream": True}))
    end = events[-1]["response"]
    texts: dict[int, str] = {}
    open_item = None
    for event in events[2:-1]:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert open_item is None
            open_item = event["item"]["id"]
            assert event["output_index"] == len(texts)
            texts[event["output_index"]] = ""
        elif kind == "output_item.done":
            assert event["item"]["content"][0]["text"] == texts[event["output_index"]]
            assert event["item"] == end["output"][event["output_index"]]
            open_item = None
        else:
            assert event["item_id"] == open_item
            texts[event["output_index"]] += event.get("delta", "")
    assert open_item is None

    def shown(response: dict[str, Any]) -> list[tuple[str, str]]:
        return [(item["type"], item["content"][0]["text"]) for item in response["output"]]

    assert shown(end) == shown(whole)
    assert (end["status"], end["usage"]) == (whole["status"], whole["usage"])
    if reply == THOUGHT:
        assert shown(whole) == [("reasoning", "The user greets."), ("message", "Hello!")]
        assert 0 < whole["usage"]["output_tokens_details"]["reasoning_tokens"] < whole["usage"]["output_tokens"]


async def test_items_of_every_kind_reach_the_template(client: httpx.AsyncClient, desk: Desk) -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "id": "msg_1", "content": [{"type": "output_text", "text": "Two"}]},
        {"role": "user", "content": "Three"},
    ]
    body = {"input": items, "max_output_tokens": 7, "min_p": 0.2, "stop": ["x"], "metadata": {"a": "b"}}
    reply = (await client.post(PATH, json=body | {"text": {"format": {"type": "json_object"}}})).json()
    request = desk.engine.requests[-1]
    assert desk.engine.decode(request.prompt_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne<|im_end|>\n"
        "<|im_start|>assistant\nTwo<|im_end|>\n<|im_start|>user\nThree<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (request.params.max_new_tokens, request.params.min_p, request.params.stop[0]) == (7, 0.2, "x")
    assert json.loads(request.params.json_schema) == {"type": "object"}
    assert (reply["status"], reply["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (reply["metadata"], reply["store"]) == ({"a": "b"}, False)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"role": "user"}]}, "input"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input"),
        ({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}]}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": "\ud83d"}, "input"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"background": True}, "background"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"reasoning": {"effort": "much"}}, "reasoning.effort"),
        ({"truncation": "some"}, "truncation"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"include": "message.output_text.logprobs"}, "include"),
        ({"stream": 1}, "stream"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name(
    client: httpx.AsyncClient, desk: Desk, extra: dict[str, Any], param: str
) -> None:
    response = await client.post(
        PATH, content=json.dumps(ASK | extra), headers={"Content-Type": "application/json"}
    )  # fmt: skip
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert desk.engine.requests == []


async def test_a_response_that_fails_in_the_midst_says_so(settings: Settings) -> None:
    with desk_with(settings, Script(fault="oom", fault_at=3)) as desk:
        async with desk.client() as client:
            events = events_of(await client.post(PATH, json=ASK | {"stream": True}))
            whole = await client.post(PATH, json=ASK)
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"]["code"] == "out_of_memory"
    text = events[-1]["response"]["output"][0]["content"][0]["text"]
    assert text
    assert FOX.startswith(text)
    assert (whole.status_code, error_of(whole)["code"]) == (507, "out_of_memory")


async def test_what_does_not_fit_is_refused_unless_it_may_be_cut(settings: Settings) -> None:
    desk = Desk(settings).load(ctx_size=128)
    turns = [{"role": role, "content": "x" * 20} for role in ("user", "assistant") * 3] + [
        {"role": "user", "content": "y"}
    ]
    async with desk.client() as client:
        refused = await client.post(PATH, json={"input": turns, "stream": True})
        cut = await client.post(PATH, json={"input": turns, "truncation": "auto"})
    desk.close()
    assert error_of(refused)["code"] == "context_length_exceeded"
    assert cut.json()["output"][0]["content"][0]["text"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_is_idle_soon_after_any_departure(settings: Settings, stream: bool) -> None:
    with desk_with(settings, Script(endless=True, tokens_per_s=500)) as desk, served(desk.app) as port:
        for how in ("close", "reset", "half") * 3:
            body = ASK | {"stream": stream, "max_output_tokens": 100_000}
            with streaming(port, body, path=PATH) as client:
                desk.wait_until_taken(1)
                if stream:
                    client.read_event()
                client.leave(how)
                assert desk.idle_within(5), how
            desk.engine.requests.clear()
