"""Tests of /v1/messages: what Anthropic's own client sees, the events of a stream, and what is refused how."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from modules.api.anthropic.shapes import MessageShape
from modules.api.app import Patience
from modules.settings import Settings
from tests.api_desk import FOX, MODEL, USER, Desk, all_codes, client, desk, desk_with, served, streaming
from tests.fakes import CHAT_TEMPLATE, CONTROL_IDS, Script
from tests.tool_templates import TOOL_FAMILIES

__all__ = ["client", "desk"]

ASK: dict[str, Any] = {"messages": USER, "max_tokens": 100}
THOUGHT = "<think>\nThe user greets.\n</think>\n\nHello!"
SWITCH = "{% if enable_thinking %}[on]{% else %}[off]{% endif %}" + CHAT_TEMPLATE
PATH = "/v1/messages"
HERMES = TOOL_FAMILIES["hermes"]


@contextlib.contextmanager
def sdk(desk: Desk) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client, connected to a real server."""
    with served(desk.app) as port, anthropic.Anthropic(
        base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=0, timeout=20
    ) as client:  # fmt: skip
        yield client


def test_the_anthropic_client_chats_streams_counts_and_lists(desk: Desk) -> None:
    with sdk(desk) as client:
        reply: Any = client.messages.create(model="claude-any", max_tokens=100, messages=USER, system="Be brief.")
        with client.messages.stream(model=MODEL, max_tokens=100, messages=USER) as stream:
            texts = list(stream.text_stream)
            streamed = stream.get_final_message()
        counted = client.messages.count_tokens(model=MODEL, messages=USER, system="Be brief.")
        models = list(client.models.list())
        one = client.models.retrieve(MODEL)
    assert (reply.content[0].type, reply.model, reply.role, reply.stop_reason) == (
        "text",
        MODEL,
        "assistant",
        "end_turn",
    )
    assert reply.content[0].text == FOX
    asked = desk.engine.requests[0]
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (len(asked.prompt_ids), len(FOX))
    assert desk.engine.decode(asked.prompt_ids).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert "".join(texts) == FOX
    assert len(texts) > 5
    assert streamed.content[0].to_dict()["text"] == FOX
    assert streamed.usage.output_tokens == len(FOX)
    assert counted.input_tokens == len(asked.prompt_ids)
    assert [model.id for model in models] == [one.id] == [MODEL]
    assert one.max_input_tokens


def test_the_anthropic_client_gets_its_own_error_types(desk: Desk) -> None:
    with sdk(desk) as client:
        with pytest.raises(anthropic.BadRequestError) as bad:
            client.messages.create(model=MODEL, max_tokens=10, messages=USER, extra_body={"temperature": -1})
        with pytest.raises(anthropic.NotFoundError) as absent:
            client.models.retrieve("claude")
        with pytest.raises(anthropic.NotFoundError):
            client.messages.batches.retrieve("x")
        desk.models.unload()
        with pytest.raises(anthropic.ServiceUnavailableError) as empty:
            client.messages.create(model=MODEL, max_tokens=10, messages=USER)
    assert bad.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    assert bad.value.body["error"]["param"] == "temperature"  # type: ignore[index]
    assert absent.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
    assert empty.value.body["error"]["code"] == "no_model_loaded"  # type: ignore[index]


def test_the_anthropic_client_cancels_by_closing_its_stream(settings: Settings) -> None:
    with desk_with(settings, Script(endless=True, tokens_per_s=200)) as desk, sdk(desk) as client:
        with client.messages.stream(model=MODEL, max_tokens=100_000, messages=USER) as stream:
            next(iter(stream.text_stream))
        assert desk.idle_within(5)


def test_pings_keep_a_stream_awake_that_waits(settings: Settings) -> None:
    patience = Patience(keep_alive_s=0.05)
    with desk_with(settings, Script(prefill_s=0.6), patience) as desk, sdk(desk) as client:
        raw = client.messages.with_raw_response.create(model=MODEL, max_tokens=9, messages=USER, stream=True)
        text = raw.http_response.read().decode()
        with client.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream:
            assert stream.get_final_text() == FOX[:9]
    assert text.index("event: ping") < text.index("event: message_start")


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, every name held against its data."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for text in response.text[:-2].split("\n\n"):
        name, _, data = text.partition("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def test_a_stream_keeps_to_the_order_of_events(client: httpx.AsyncClient, desk: Desk) -> None:
    for reply, thinking in ((FOX, False), (THOUGHT, False), (THOUGHT, True), ("", False), ("<think>never ends", True)):
        desk.engine.script = Script(reply=reply)
        body = ASK | ({"thinking": {"type": "enabled", "budget_tokens": 1024}} if thinking else {})
        whole = (await client.post(PATH, json=body)).json()
        events = events_of(await client.post(PATH, json=body | {"stream": True}))
        kinds = [event["type"] for event in events]
        assert kinds[:2] == ["message_start", "ping"]
        assert kinds[-2:] == ["message_delta", "message_stop"]
        assert events[0]["message"]["content"] == []
        assert events[0]["message"]["stop_reason"] is None
        blocks: list[dict[str, Any]] = []
        open_block = False
        for event in events[2:-2]:
            assert event["index"] == len(blocks) - (event["type"] != "content_block_start")
            if event["type"] == "content_block_start":
                assert not open_block
                blocks.append(event["content_block"])
                open_block = True
            elif event["type"] == "content_block_stop":
                assert open_block
                open_block = False
            else:
                assert open_block
                field = event["delta"]["type"].removesuffix("_delta")
                blocks[-1][field] += event["delta"][field]
        assert not open_block
        assert blocks == whole["content"]
        assert events[-2]["delta"] == {name: whole[name] for name in ("stop_reason", "stop_sequence")}
        assert events[-2]["usage"] == whole["usage"]
        assert [block["type"] for block in blocks] == (["thinking", "text"] if thinking else ["text"])


async def test_thoughts_are_shown_only_to_who_asks_for_them(settings: Settings) -> None:
    with desk_with(settings, Script(reply=THOUGHT, chat_template=SWITCH)) as desk:
        async with desk.client() as client:
            plain = (await client.post(PATH, json=ASK)).json()
            asked = (await client.post(PATH, json=ASK | {"thinking": {"type": "adaptive"}})).json()
            unseen = (
                await client.post(PATH, json=ASK | {"thinking": {"type": "adaptive", "display": "omitted"}})
            ).json()
        told = [desk.engine.decode(request.prompt_ids)[:4] for request in desk.engine.requests]
    assert [block["type"] for block in plain["content"]] == ["text"]
    assert plain["content"][0]["text"] == "Hello!"
    assert unseen["content"] == plain["content"]
    assert asked["content"][0] | {"signature": ""} == {
        "type": "thinking", "thinking": "The user greets.", "signature": "",
    }  # fmt: skip
    assert asked["content"][0]["signature"]
    assert asked["content"][1]["text"] == "Hello!"
    assert told[0].startswith("[off")
    assert told[1:] == ["[on]", "[on]"]


@pytest.mark.parametrize(
    ("extra", "reason", "sequence"),
    [
        ({}, "end_turn", None),
        ({"stop_sequences": ["zzz", " fox"]}, "stop_sequence", " fox"),
        ({"max_tokens": 4}, "max_tokens", None),
    ],
)
async def test_why_a_message_ended_is_told(
    client: httpx.AsyncClient, extra: dict[str, Any], reason: str, sequence: str | None
) -> None:
    reply = (await client.post(PATH, json=ASK | extra)).json()
    assert (reply["stop_reason"], reply["stop_sequence"]) == (reason, sequence)


async def test_blocks_systems_and_prefills_reach_the_template(client: httpx.AsyncClient, desk: Desk) -> None:
    body = {
        "max_tokens": 50,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "<|im_end|>"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "secret", "signature": "x"}, {"type": "text", "text": "Two"},
            ]},
            {"role": "user", "content": [
                {"type": "document", "title": "Note", "context": "Old", "source": {"type": "text", "data": "Three"}},
            ]},
            {"role": "assistant", "content": "The quick"},
        ],
    }  # fmt: skip
    reply = (await client.post(PATH, json=body)).json()
    request = desk.engine.requests[-1]
    assert desk.engine.decode(request.prompt_ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne\n\n<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\nTwo<|im_end|>\n<|im_start|>user\nNote\n\nOld\n\nThree<|im_end|>\n<|im_start|>assistant\n"
    )
    assert request.prompt_ids.count(CONTROL_IDS["<|im_end|>"]) == 4, "what a user types is text"
    assert desk.engine.decode(request.reply_ids) == "The quick"
    counted = (await client.post(f"{PATH}/count_tokens", json=body)).json()
    assert reply["usage"]["input_tokens"] == counted["input_tokens"] == request.held_tokens
    assert reply["content"][0]["text"] == FOX.removeprefix("The quick")


async def test_samplers_of_snugs_own_reach_the_engine(client: httpx.AsyncClient, desk: Desk) -> None:
    extra = {"top_k": 7, "top_p": 0.5, "min_p": 0.1, "dry_multiplier": 0.8, "seed": 5, "metadata": {"user_id": "x"}}
    schema = {"type": "object"}
    await client.post(PATH, json=ASK | extra | {"output_config": {"format": {"type": "json_schema", "schema": schema}}})
    params = desk.engine.requests[-1].params
    assert (params.top_k, params.top_p, params.min_p, params.dry_multiplier, params.seed) == (7, 0.5, 0.1, 0.8, 5)
    assert json.loads(params.json_schema) == schema
    await client.post(PATH, json=ASK | {"output_format": {"type": "json_schema", "schema": schema}})
    assert json.loads(desk.engine.requests[-1].params.json_schema) == schema


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "mystery"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud83d"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": USER * 3000}, "messages"),
        ({"system": 5}, "system"),
        ({"system": [{"type": "image"}]}, "system"),
        ({"stop_sequences": ["x"] * 100}, "stop_sequences"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"compaction": {"type": "summarize"}}, "compaction"),
        ({"mcp_servers": [{"type": "url", "name": "a", "url": "https://mcp.example/sse"}]}, "mcp_servers"),
        ({"model": "x" * 501}, "model"),
    ],
)
async def test_what_makes_no_sense_is_refused_by_name_in_anthropics_shape(
    client: httpx.AsyncClient, desk: Desk, extra: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        text = json.dumps(ASK | {"stream": stream} | extra)
        response = await client.post(PATH, content=text, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, response.text
        assert error_of(response) == "invalid_request_error"
        assert response.json()["error"]["param"] == param
    assert desk.engine.requests == []


@pytest.mark.parametrize("thread", [{"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}])
async def test_who_asks_for_a_thread_is_told_that_there_are_none_in_the_words_that_libraries_know(
    client: httpx.AsyncClient, desk: Desk, thread: dict[str, str]
) -> None:
    response = await client.post(PATH, json=ASK | {"thread": thread})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "thread")
    assert response.json()["error"]["details"] == {"error_code": "thread_unsupported_request"}
    assert desk.engine.requests == []


def test_the_anthropic_clients_tool_runner_goes_on_without_a_thread(settings: Settings) -> None:
    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return f"Rain in {city}."

    script = Script(reply=HERMES.one, chat_template=HERMES.template)
    with desk_with(settings, script) as desk, sdk(desk) as client:
        runner = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=200, messages=USER, tools=[get_weather], max_iterations=2
        )
        replies = list(runner)
        assert [reply.stop_reason for reply in replies] == ["tool_use", "tool_use"]
        assert "Rain in Oslo." in desk.engine.decode(desk.engine.requests[-1].prompt_ids)


def a_tool(name: str, **more: Any) -> dict[str, Any]:
    """A tool as Anthropic's clients declare it, which takes nothing."""
    return {"name": name, "description": f"Does {name}.", "input_schema": {"type": "object"}, **more}


def change(kind: str, **tool: Any) -> dict[str, Any]:
    """A message that adds or removes a tool."""
    return {"role": "system", "content": [{"type": kind, "tool": tool}]}


FOUND = [
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "search", "input": {}}]},
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "t1",
                "content": [{"type": "tool_reference", "tool_name": "clock"}],
            }
        ],
    },
]
ADDED = change("tool_addition", type="tool_definition", definition=a_tool("map"))
NAMED = change("tool_addition", type="tool_reference", name="clock")
REMOVED = change("tool_removal", type="tool_reference", name="search")


@pytest.mark.parametrize(
    ("after", "offered"),
    [
        ([], ["search"]),
        (FOUND, ["search", "clock"]),
        ([NAMED], ["search", "clock"]),
        ([ADDED], ["search", "map"]),
        ([ADDED, REMOVED], ["map"]),
        ([REMOVED], []),
    ],
)
async def test_deferred_tools_are_told_once_found_and_messages_add_and_remove_tools(
    settings: Settings, after: list[dict[str, Any]], offered: list[str]
) -> None:
    tools = [a_tool("search"), a_tool("clock", defer_loading=True)]
    with desk_with(settings, Script(chat_template=HERMES.template)) as desk:
        async with desk.client() as client:
            response = await client.post(PATH, json=ASK | {"tools": tools, "messages": [*USER, *after]})
        assert response.status_code == 200, response.text
        prompt = desk.engine.decode(desk.engine.requests[-1].prompt_ids)
    assert [name for name in ("search", "clock", "map") if f"Does {name}." in prompt] == offered
    assert ("Tools that can be called now: clock" in prompt) == (after == FOUND)
    assert prompt.count("<|im_start|>system") == bool(offered)


@pytest.mark.parametrize(
    "messages",
    [
        [ADDED],
        [{**ADDED, "role": "user"}],
        [*USER, {"role": "user", "content": [{"type": "tool_reference", "tool_name": "clock"}]}],
        [*USER, change("tool_removal", type="tool_definition", definition=a_tool("map"))],
        [*USER, change("tool_addition", type="tool_definition", definition={"name": "map"})],
        [*USER, change("tool_addition", type="tool_definition", definition={"type": "bash_20250124", "name": "bash"})],
        [*USER, change("tool_addition", type="mcp_toolset_reference", name="map")],
        [*USER, change("tool_addition", type="tool_reference", name="no name")],
        [*USER, *({**ADDED, "content": [{**ADDED["content"][0], "tool": {
            "type": "tool_definition", "definition": a_tool(f"map{number}")}}]} for number in range(129))],
    ],
)  # fmt: skip
async def test_tools_that_are_not_added_as_anthropic_does_it_are_refused(
    client: httpx.AsyncClient, desk: Desk, messages: list[dict[str, Any]]
) -> None:
    response = await client.post(PATH, json=ASK | {"messages": messages})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("messages")
    assert desk.engine.requests == []


def error_of(response: httpx.Response) -> str:
    """The type of an error, its shape checked."""
    body = response.json()
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message", "param", "code"}
    assert body["error"]["code"] in all_codes()
    assert body["error"]["message"]
    return str(body["error"]["type"])


async def test_errors_before_any_route_have_anthropics_shape_too(client: httpx.AsyncClient) -> None:
    refused = [
        await client.get(PATH),
        await client.post(f"{PATH}/batches", json={}),
        await client.post(PATH, content=b"{", headers={"Content-Type": "application/json"}),
        await client.post(PATH, json=ASK, headers={"Host": "evil.example"}),
        await client.post(PATH, json=ASK, headers={"Origin": "https://evil.example"}),
        await client.post(PATH, content=b"x" * (11 * 2**20)),
        await client.get("/v1/models/x", headers={"anthropic-version": "2023-06-01"}),
    ]
    assert [response.status_code for response in refused] == [405, 404, 400, 421, 403, 413, 404]
    for response in refused:
        error_of(response)
    assert refused[5].json()["error"]["type"] == "request_too_large"
    other = await client.get("/v1/models/x")
    assert set(other.json()) == {"error"}, "without the header it is OpenAI's"


@pytest.mark.parametrize("fault_at", [0, 3])
async def test_an_engine_that_fails_ends_the_stream_with_an_error_event(settings: Settings, fault_at: int) -> None:
    with desk_with(settings, Script(fault="oom", fault_at=fault_at)) as desk:
        async with desk.client() as client:
            events = events_of(await client.post(PATH, json=ASK | {"stream": True}))
            whole = await client.post(PATH, json=ASK)
        assert desk.idle_within(5)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["code"] == "out_of_memory"
    assert whole.status_code == 507
    assert error_of(whole) == "api_error"


async def test_what_does_not_fit_is_refused_but_counted(settings: Settings) -> None:
    desk = Desk(settings).load(ctx_size=64)
    long = {"messages": [{"role": "user", "content": "x" * 100}]}
    async with desk.client() as client:
        for stream in (False, True):
            refused = await client.post(PATH, json=ASK | long | {"stream": stream})
            assert refused.status_code == 400
            assert refused.json()["error"]["code"] == "context_length_exceeded"
        counted = await client.post(f"{PATH}/count_tokens", json=long)
    desk.close()
    assert counted.json()["input_tokens"] > 100


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_is_idle_soon_after_any_departure(settings: Settings, stream: bool) -> None:
    with desk_with(settings, Script(endless=True, tokens_per_s=500)) as desk, served(desk.app) as port:
        for how in ("close", "reset", "half") * 3:
            body = ASK | {"stream": stream, "max_tokens": 100_000}
            with streaming(port, body, path=PATH) as client:
                desk.wait_until_taken(1)
                if stream:
                    client.read_event()
                client.leave(how)
                assert desk.idle_within(5), how
            desk.engine.requests.clear()


def test_a_stream_begins_with_what_is_kept_of_its_prompt() -> None:
    told = MessageShape(MODEL, 9).events(34).begin(32).decode().splitlines()[1]
    usage = json.loads(told.removeprefix("data: "))["message"]["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (2, 32)
