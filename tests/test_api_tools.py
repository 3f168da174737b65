"""Tools through OpenAI's API: what reaches model and engine, what comes back whole and streamed, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from modules.settings import Settings
from tests.api_desk import CHAT, COMPLETION, MODEL, USER, desk_with, error_of, sdk
from tests.fakes import Script
from tests.tool_templates import TOOL_FAMILIES

HERMES = TOOL_FAMILIES["hermes"]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OTHER = {"type": "function", "function": {"name": "other"}}
ASK = CHAT | {"tools": [TOOL]}
OSLO = {"city": "Oslo"}
DEEP = json.loads('{"a":' * 70 + "1" + "}" * 70)
HALF = "\ud83d"
JSON = {"Content-Type": "application/json"}


def asked(**function: Any) -> dict[str, Any]:
    """One tool with something wrong in it."""
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


def allowing(*names: str, mode: str = "auto") -> dict[str, Any]:
    """A tool_choice of those tools."""
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def calling(text: str, **more: Any) -> Script:
    """A model of the Hermes kind that says `text`."""
    return Script(reply=text, chat_template=HERMES.template, **more)


def test_the_openai_client_gets_tool_calls_whole_and_streamed_and_answers_them(settings: Settings) -> None:
    with desk_with(settings, calling("I look it up.\n" + HERMES.two, tokens_per_s=100)) as desk, sdk(desk) as client:
        reply = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL])  # type: ignore[list-item]
        choice = reply.choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look it up.")
        calls: Any = choice.message.tool_calls
        assert [(call.type, call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("function", "get_weather", OSLO), ("function", "get_weather", OSLO),
        ]  # fmt: skip
        assert len({call.id for call in calls}) == 2
        with client.chat.completions.stream(model=MODEL, messages=USER, tools=[TOOL]) as stream:  # type: ignore[list-item]
            events = list(stream)
            final: Any = stream.get_final_completion().choices[0]
        pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
        assert len(pieces) > 4, "arguments come as they are written"
        assert [json.loads(call.function.arguments) for call in final.message.tool_calls] == [OSLO, OSLO]
        assert (final.finish_reason, final.message.content) == ("tool_calls", "I look it up.")
        messages: Any = [
            *USER, choice.message.model_dump(exclude_none=True),
            *({"role": "tool", "tool_call_id": call.id, "content": f"rain {n}"} for n, call in enumerate(calls)),
        ]  # fmt: skip
        client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL])  # type: ignore[list-item]
        prompt = desk.engine.decode(desk.engine.requests[-1].prompt_ids)
        assert "<tool_response>\nrain 0\n</tool_response>" in prompt and "rain 1" in prompt
        assert prompt.count('{"name": "get_weather", "arguments": {"city": "Oslo"}}') == 2
        plain = client.chat.completions.create(model=MODEL, messages=messages)
        assert plain.choices[0].message.tool_calls is None, "without tools nothing is a call"


@pytest.mark.parametrize("stream", [False, True])
async def test_one_call_at_a_time_ends_the_generation_with_it(settings: Settings, stream: bool) -> None:
    script = calling(HERMES.one + "\n", endless=True, tokens_per_s=2000)
    with desk_with(settings, script) as desk:
        async with desk.client() as client:
            body = ASK | {"parallel_tool_calls": False, "stream": stream, "max_tokens": 100_000}
            text = (await client.post("/v1/chat/completions", json=body)).text
        assert text.count("call_") == 1
        assert '"finish_reason":"tool_calls"' in text
        assert desk.idle_within(10)


async def test_what_has_to_be_a_call_is_held_to_its_form_by_the_engine(settings: Settings) -> None:
    with desk_with(settings, calling(HERMES.one)) as desk:
        async with desk.client() as client:

            async def sent(**more: Any) -> Any:
                response = await client.post("/v1/chat/completions", json=ASK | {"tools": [TOOL, OTHER]} | more)
                assert response.status_code == 200, response.text
                return desk.engine.requests[-1]

            for free in ("none", "auto", None):
                assert (await sent(tool_choice=free)).shape is None
            required = await sent(tool_choice="required")
            assert len(required.shape.calls) == 2 and required.shape.several
            assert not (await sent(tool_choice="required", parallel_tool_calls=False)).shape.several
            assert (await sent(tool_choice="any")).shape == required.shape, "Mistral's word"
            named = await sent(tool_choice={"type": "function", "function": {"name": "other"}})
            assert [call.before for call in named.shape.calls] == ['{"name": "other", "arguments": ']
            assert "get_weather" not in desk.engine.decode(named.prompt_ids), "what may not be called is not told"
            allowed = await sent(tool_choice=allowing("other", mode="required"))
            assert [call.before for call in allowed.shape.calls] == ['{"name": "other", "arguments": ']
            free = await sent(tool_choice=allowing("other"))
            told = desk.engine.decode(free.prompt_ids)
            assert free.shape is None and "other" in told and "get_weather" not in told
            none = await sent(tool_choice="none")
            assert "get_weather" not in desk.engine.decode(none.prompt_ids)
            auto = await sent(response_format={"type": "json_object"})
            assert auto.shape is not None and auto.params.json_schema == '{"type": "object"}', "either of both"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [{}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 129}}]}, "tools[0].function.name"),
        ({"tools": [OTHER | {"type": "retrieval"}]}, "tools[0].type"),
        ({"tools": [OTHER, OTHER]}, "tools"),
        ({"tools": [OTHER] * 129}, "tools"),
        (asked(parameters={"a": "x" * 70_000}), "tools[0].function.parameters"),
        (asked(parameters=DEEP), "tools[0].function.parameters"),
        (asked(parameters={"a": HALF}), "tools[0].function.parameters"),
        (asked(parameters={"a": float("inf")}), "tools[0].function.parameters"),
        (asked(description=HALF), "tools[0].function.description"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": HALF}}}}, "response_format"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [OTHER], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"reasoning_effort": "heroic"}, "reasoning_effort"),
        ({"enable_thinking": "yes"}, "enable_thinking"),
        ({"chat_template_kwargs": {"enable_thinking": "yes"}}, "chat_template_kwargs.enable_thinking"),
        ({"tools": [OTHER], "tool_choice": allowing("f")}, "tool_choice"),
        ({"tools": [OTHER], "tool_choice": allowing()}, "tool_choice.allowed_tools.tools"),
        (asked(description="x" * 70_000), "tools[0].function.description"),
    ],
)
async def test_tools_that_make_no_sense_are_refused_by_place(
    settings: Settings, extra: dict[str, Any], param: str
) -> None:
    with desk_with(settings, calling("")) as desk:
        async with desk.client() as client:
            response = await client.post("/v1/chat/completions", content=json.dumps(CHAT | extra), headers=JSON)
        assert response.status_code == 400
        assert error_of(response)["param"] == param
        assert desk.engine.requests == []


async def test_a_thought_is_told_apart_from_the_answer(settings: Settings) -> None:
    with desk_with(settings, Script(reply="<think>\nHm, well.\n</think>\n\nYes.")) as desk:
        async with desk.client() as client:
            body = CHAT | {"logprobs": True, "max_tokens": 100}
            whole = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]
            lines = (await client.post("/v1/chat/completions", json=body | {"stream": True})).text.splitlines()
    message = whole["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, well.", "Yes.")
    choices = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for choice in choices]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, well."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert len(told) == len(whole["logprobs"]["content"]) > len("Hm, well.Yes.")


async def test_a_bias_reaches_the_engine(settings: Settings) -> None:
    with desk_with(settings, Script()) as desk:
        async with desk.client() as client:
            for path, body in (("chat/completions", CHAT), ("completions", COMPLETION)):
                await client.post(f"/v1/{path}", json=body | {"logit_bias": {"65": -100, "66": 2.5}})
                assert desk.engine.requests[-1].params.logit_bias == ((65, -100.0), (66, 2.5))


async def test_the_likeliest_of_several_replies_are_returned(settings: Settings) -> None:
    with desk_with(settings, Script()) as desk:
        async with desk.client() as client:
            body = COMPLETION | {"best_of": 3, "n": 2, "max_tokens": 4, "prompt": ["a", "b"], "echo": True}
            reply = (await client.post("/v1/completions", json=body)).json()
        assert [choice["text"] for choice in reply["choices"]] == ["aThe ", "aThe ", "bThe ", "bThe "]
        assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
        assert reply["choices"][0]["logprobs"] is None, "nobody asked"
        assert (len(desk.engine.requests), reply["usage"]["completion_tokens"]) == (6, 24)


async def test_a_gap_is_filled_by_a_model_that_knows_how(settings: Settings) -> None:
    with desk_with(settings, Script()) as desk:
        async with desk.client() as client:
            response = await client.post("/v1/completions", json=COMPLETION | {"suffix": "end"})
            assert error_of(response)["param"] == "suffix"
            assert (await client.post("/v1/completions", json=COMPLETION | {"suffix": ""})).status_code == 200


class Person(BaseModel):
    """What a client parses replies into."""

    name: str
    age: int


def test_the_openai_client_parses_a_reply_into_its_own_model(settings: Settings) -> None:
    with desk_with(settings, Script(reply='{"name": "Ada", "age": 36}')) as desk, sdk(desk) as client:
        parsed = client.chat.completions.parse(model=MODEL, messages=USER, response_format=Person)
        assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
        sent = json.loads(desk.engine.requests[-1].params.json_schema)
    assert sent["required"] == ["name", "age"]


def test_a_tool_that_was_not_offered_is_not_called(settings: Settings) -> None:
    stranger = HERMES.one.replace("get_weather", "format_disk")
    with desk_with(settings, calling(stranger)) as desk, sdk(desk) as client:
        choice = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL]).choices[0]  # type: ignore[list-item]
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")
    assert choice.message.content == stranger


def test_errors_in_the_midst_of_a_call_end_the_stream_with_them(settings: Settings) -> None:
    broken = replace(calling(HERMES.one), fault="raise", fault_at=45)
    with desk_with(settings, broken) as desk, sdk(desk) as client:
        stream = client.chat.completions.create(model=MODEL, messages=USER, tools=[TOOL], stream=True)  # type: ignore[list-item]
        with pytest.raises(openai.APIError) as caught:
            list(stream)
    assert caught.value.code == "generation_failed"
