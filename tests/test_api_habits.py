"""What programs send that were written for other servers, and agents that fill a request: taken as it is meant."""

from __future__ import annotations

import gzip
import json
import time
from typing import Any

import httpx
import pytest

from modules.settings import Settings
from tests.api_desk import CHAT, MODEL, USER, Desk, client, desk, desk_with, error_of
from tests.fakes import CHAT_TEMPLATE, Script
from tests.test_responses import events_of
from tests.tool_templates import TOOL_FAMILIES

__all__ = ["client", "desk"]
CHATS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
HERMES = TOOL_FAMILIES["hermes"]
SWITCH = "{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}" + CHAT_TEMPLATE
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {"type": "function", "name": "get_weather", "parameters": CITY}
NEVER = "refers to an earlier item"
LONG = [{"role": "user", "content": "hello there " * 2000}]
IN_OPENAIS_WORDS = ("The input exceeds the context window", "this model's maximum context length is ")


def calling(text: str) -> Script:
    """A model of the Hermes kind that says `text`."""
    return Script(reply=text, chat_template=HERMES.template)


def told(desk: Desk) -> str:
    """The prompt that the engine got last."""
    return desk.engine.decode(desk.engine.requests[-1].prompt_ids)


@pytest.mark.parametrize(
    ("extra", "begins"),
    [
        ({}, "<|im"),
        ({"chat_template_kwargs": {"enable_thinking": False, "unknown": 1}}, "[False]"),
        ({"chat_template_kwargs": {"thinking": True}}, "[True]"),
        ({"enable_thinking": False}, "[False]"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "[False]"),
        ({"chat_template_kwargs": {"reasoning_effort": "high"}}, "[True]"),
        ({"chat_template_kwargs": {}}, "<|im"),
    ],
)
async def test_thinking_is_switched_as_other_servers_let_clients_do(
    settings: Settings, extra: dict[str, Any], begins: str
) -> None:
    with desk_with(settings, Script(chat_template=SWITCH)) as desk:
        async with desk.client() as client:
            for path in (CHATS, "/v1/internal/chat-prompt"):
                answer = await client.post(path, json=CHAT | extra)
                assert answer.status_code == 200, answer.text
            assert answer.json()["prompt"].startswith(begins)
            assert told(desk).startswith(begins)


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "json_object", "schema": CITY}},
        {"response_format": {"type": "json_schema", "schema": CITY}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}},
        {"json_schema": CITY},
        {"guided_json": CITY, "response_format": None},
        {"json_schema": json.dumps(CITY)},
        {"structured_outputs": {"json": CITY, "regex": None}},
        {"structured_outputs": {"json": json.dumps(CITY)}},
        {"response_format": {"type": "json", "value": CITY}},
        {"response_format": {"type": "json_object", "value": CITY}},
    ],
)
async def test_a_schema_holds_the_reply_wherever_it_stands(
    client: httpx.AsyncClient, desk: Desk, extra: dict[str, Any]
) -> None:
    assert (await client.post(CHATS, json=CHAT | extra)).status_code == 200
    assert json.loads(desk.engine.requests[-1].params.json_schema) == CITY


async def test_a_schema_beside_a_form_does_not_take_its_place(client: httpx.AsyncClient, desk: Desk) -> None:
    await client.post(CHATS, json=CHAT | {"json_schema": CITY, "response_format": {"type": "text"}})
    assert desk.engine.requests[-1].params.json_schema == ""
    refused = await client.post(CHATS, json=CHAT | {"response_format": {"type": "json_schema"}})
    assert error_of(refused)["param"] == "response_format"


@pytest.mark.parametrize(
    ("extra", "grammar"),
    [
        ({"structured_outputs": {"choice": ["red", 'a "b"']}}, 'root ::= "red" | "a \\x22b\\x22"'),
        ({"guided_choice": ["red"]}, 'root ::= "red"'),
        ({"structured_outputs": {"regex": "[0-9]{3}"}}, "root ::= ([0-9]){3,3}"),
        ({"guided_regex": "x"}, 'root ::= "x"'),
        ({"regex": "x", "temperature": 0}, 'root ::= "x"'),
        ({"guided_grammar": 'root ::= "y"'}, 'root ::= "y"'),
        ({"ebnf": 'root ::= "y"'}, 'root ::= "y"'),
        ({"grammar": 'root ::= "z"', "guided_choice": ["red"]}, 'root ::= "z"'),
        ({"structured_outputs": {"disable_fallback": True}}, ""),
        ({"response_format": {"type": "regex", "value": "[0-9]{3}"}}, "root ::= ([0-9]){3,3}"),
    ],
)
async def test_forms_in_other_servers_words_hold_the_reply(
    client: httpx.AsyncClient, desk: Desk, extra: dict[str, Any], grammar: str
) -> None:
    for path, body in ((CHATS, CHAT), ("/v1/completions", {"prompt": "Once"})):
        answer = await client.post(path, json=body | extra)
        assert answer.status_code == 200, answer.text
        assert desk.engine.requests[-1].params.grammar == grammar


@pytest.mark.parametrize(
    ("extra", "param", "code"),
    [
        ({"guided_regex": "(?=a)b"}, "guided_regex", "bad_grammar"),
        ({"guided_regex": 5}, "guided_regex", "bad_value"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs", "bad_value"),
        ({"structured_outputs": {"choice": ["red", 1]}}, "structured_outputs", "bad_value"),
        ({"guided_choice": "red"}, "guided_choice", "bad_value"),
        ({"guided_choice": ["r" * 9000] * 8}, "guided_choice", "bad_value"),
        ({"guided_json": "{"}, "guided_json", "bad_value"),
        ({"response_format": {"type": "regex", "value": "(?=a)b"}}, "response_format.value", "bad_grammar"),
        ({"response_format": {"type": "regex", "value": 5}}, "response_format.type", "bad_value"),
    ],
)
async def test_a_form_that_cannot_be_held_is_refused_and_not_forgotten(
    client: httpx.AsyncClient, extra: dict[str, Any], param: str, code: str
) -> None:
    error = error_of(await client.post(CHATS, json=CHAT | extra))
    assert (error["param"], error["code"]) == (param, code)


async def test_parameters_in_other_servers_words_count(client: httpx.AsyncClient, desk: Desk) -> None:
    theirs = {"n_predict": 7, "repeat_penalty": 1.1, "repeat_last_n": -1, "ignore_eos": True, "seed": -7}
    assert (await client.post(CHATS, json=CHAT | theirs)).status_code == 200
    params = desk.engine.requests[-1].params
    assert (params.max_new_tokens, params.repetition_penalty, params.repetition_penalty_range) == (7, 1.1, 0)
    assert params.ban_eos_token and params.seed == 2**63 - 7
    await client.post(CHATS, json=CHAT | theirs | {"max_new_tokens": 5, "repetition_penalty": 1.3, "n_predict": -1})
    params = desk.engine.requests[-1].params
    assert (params.max_new_tokens, params.repetition_penalty) == (5, 1.3), "Snug's own words go first"
    await client.post(CHATS, json=CHAT | {"random_seed": 7})
    assert desk.engine.requests[-1].params.seed == 7


async def test_vllms_ends_of_a_reply_count(client: httpx.AsyncClient, desk: Desk) -> None:
    theirs = {"stop_token_ids": [2, 3], "min_tokens": 4}
    for path, body in ((CHATS, CHAT), ("/v1/completions", {"prompt": "Once"})):
        assert (await client.post(path, json=body | theirs)).status_code == 200
        params = desk.engine.requests[-1].params
        assert (params.stop_token_ids, params.min_tokens) == ((2, 3), 4)
        assert (await client.post(path, json=body | {"stop_token_ids": None, "min_tokens": None})).status_code == 200
        assert (
            error_of(await client.post(path, json=body | {"stop_token_ids": [2, "3"]}))["param"] == "stop_token_ids[1]"
        )
        assert error_of(await client.post(path, json=body | {"min_tokens": -1}))["param"] == "min_tokens"


async def test_no_sampling_is_the_likeliest_token(client: httpx.AsyncClient, desk: Desk) -> None:
    await client.post(CHATS, json=CHAT | {"do_sample": False, "temperature": 0.9})
    assert desk.engine.requests[-1].params.temperature == 0
    await client.post(CHATS, json=CHAT | {"do_sample": True, "temperature": 0.9})
    assert desk.engine.requests[-1].params.temperature == 0.9


@pytest.mark.parametrize(
    ("arguments", "written"), [({"city": "Oslo"}, '{"city": "Oslo"}'), ("", "{}"), (None, "{}"), ("{}", "{}")]
)
async def test_past_calls_may_hold_their_arguments_as_an_object_or_none_at_all(
    settings: Settings, arguments: object, written: str
) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    past = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "rain"}]
    with desk_with(settings, calling("Well.")) as desk:
        async with desk.client() as client:
            answer = await client.post(CHATS, json={"messages": [*USER, *past]})
            assert answer.status_code == 200, answer.text
            assert f'"arguments": {written}}}' in told(desk)


async def test_what_an_assistant_thought_or_did_not_say_stands_in_no_prompt(
    client: httpx.AsyncClient, desk: Desk
) -> None:
    thought = [{"type": "thinking", "thinking": "hidden"}, {"type": "text", "text": "Yes."}]
    messages = [*USER, {"role": "assistant", "content": thought}, {"role": "assistant", "content": None}, *USER]
    assert (await client.post(CHATS, json={"messages": messages})).status_code == 200
    assert "Yes." in told(desk) and "hidden" not in told(desk)
    users = [{"role": "user", "content": thought}]
    assert error_of(await client.post(CHATS, json={"messages": users}))["param"] == "messages[0].content"


async def test_the_model_list_says_when_the_model_was_loaded(client: httpx.AsyncClient) -> None:
    (model,) = (await client.get("/v1/models")).json()["data"]
    assert abs(model["created"] - time.time()) < 100
    assert (await client.get(f"/v1/models/{MODEL}")).json()["created"] == model["created"]
    theirs = (await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})).json()["data"][0]
    assert theirs["created_at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model["created"]))


@pytest.mark.parametrize(
    ("method", "path", "whose"),
    [
        ("GET", "/api/tags", "Ollama"), ("POST", "/api/chat", "Ollama"), ("GET", "/v1/api/tags", "Ollama"),
        ("GET", "/api/v0/models", "LM Studio"), ("GET", "/api/v1/model", "KoboldCpp"),
        ("GET", "/props", "llama-server"), ("POST", "/tokenize", "llama-server"), ("GET", "/version", "vLLM"),
        ("POST", "/generate", "text-generation-inference"),
    ],
)  # fmt: skip
async def test_who_speaks_another_servers_api_is_told_what_to_choose(
    client: httpx.AsyncClient, method: str, path: str, whose: str
) -> None:
    answer = await client.request(method, path, json={} if method == "POST" else None)
    assert (answer.status_code, error_of(answer)["code"]) == (404, "not_found")
    message = error_of(answer)["message"]
    assert f"{whose}'s own API" in message and "OpenAI-compatible" in message and "/v1" in message


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (CHATS, {"messages": LONG}, IN_OPENAIS_WORDS),
        ("/v1/responses", {"input": LONG}, IN_OPENAIS_WORDS),
        ("/v1/completions", {"prompt": LONG[0]["content"]}, IN_OPENAIS_WORDS),
        ("/v1/completions", {"prompt": [1] * 9000}, IN_OPENAIS_WORDS),
        (MESSAGES, {"messages": LONG, "max_tokens": 9}, ("prompt is too long: ",)),
    ],
)
async def test_what_is_too_long_is_called_so_in_the_words_that_agents_look_for(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], words: tuple[str, ...]
) -> None:
    for stream in (False, True):
        error = (await client.post(path, json=body | {"stream": stream})).json()["error"]
        assert error["code"] == "context_length_exceeded" and error["message"].startswith(words[0])
        assert all(word in error["message"] for word in words)


async def test_who_looks_for_an_earlier_response_hears_that_none_is_kept(client: httpx.AsyncClient) -> None:
    assert "keeps no responses" in error_of(await client.get("/v1/responses/resp_1"))["message"]


async def test_tools_are_described_at_length(settings: Settings) -> None:
    long = "word " * 10_000
    with desk_with(
        settings,
        calling("Well."),
    ) as desk:
        async with desk.client() as client:
            tool = {"name": "f", "description": long, "input_schema": {"type": "object"}}
            answer = await client.post(MESSAGES, json={"messages": USER, "max_tokens": 9, "tools": [tool]})
            assert answer.json()["error"]["code"] == "context_length_exceeded", (
                "read, and too long for this model alone"
            )


async def test_functions_in_namespaces_are_offered_and_called_by_their_names(settings: Settings) -> None:
    group = {"type": "namespace", "name": "weather", "description": "Weather.", "tools": [WEATHER]}
    other = {"type": "function", "name": "other", "parameters": {"type": "object"}}
    body = {"input": "Hello", "tools": [other, group, {"type": "web_search", "external_web_access": False}]}
    with desk_with(settings, calling(HERMES.one)) as desk:
        async with desk.client() as client:
            whole = (await client.post(RESPONSES, json=body)).json()
            streamed = events_of(await client.post(RESPONSES, json=body | {"stream": True}))
            last = streamed[-1]["response"]["output"]
            done = [event["item"] for event in streamed if event["type"] == "response.output_item.done"]
            for call in (whole["output"][-1], last[-1], done[-1]):
                assert (call["type"], call["name"], call["namespace"]) == ("function_call", "get_weather", "weather")
            assert "get_weather" in told(desk) and "web_search" not in told(desk)
            assert [tool["name"] for tool in whole["tools"]] == ["other", "get_weather"], "what was offered is told"
            assert ["namespace" in tool for tool in whole["tools"]] == [False, True]
            answered = [
                *USER, whole["output"][-1],
                {"type": "function_call_output", "call_id": whole["output"][-1]["call_id"], "output": "rain"},
            ]  # fmt: skip
            assert (await client.post(RESPONSES, json=body | {"input": answered})).status_code == 200
            assert "rain" in told(desk)


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "namespace", "name": "empty", "tools": []}, {"type": "web_search"}]},
        {"tools": [WEATHER, {"type": "namespace", "name": "n", "tools": [WEATHER]}]},
        {"tools": [{"type": "namespace", "name": "n" * 200, "tools": [WEATHER]}]},
        {"tools": [{"type": "namespace", "name": "n", "tools": [WEATHER | {"name": "a b"}]}]},
    ],
)
async def test_namespaces_and_hosted_tools_that_leave_nothing_to_offer_are_refused(
    client: httpx.AsyncClient, extra: dict[str, Any]
) -> None:
    refused = await client.post(RESPONSES, json={"input": "Hello"} | extra)
    assert refused.status_code == 400, refused.text
    assert error_of(refused)["param"].startswith("tools")


@pytest.mark.parametrize(("path", "said"), [(RESPONSES, {"input": "Hello"}), (CHATS, {"messages": USER})])
async def test_a_choice_of_a_hosted_tool_is_refused_in_words(
    client: httpx.AsyncClient, path: str, said: dict[str, Any]
) -> None:
    refused = await client.post(path, json=said | {"tool_choice": {"type": "web_search"}})
    error = error_of(refused)
    assert (refused.status_code, error["param"]) == (400, "tool_choice")
    assert "'web_search'" in error["message"] and "only tools of the client's own" in error["message"]


async def test_allowed_tools_alone_are_told_in_the_responses_api_too(settings: Settings) -> None:
    other = {"type": "function", "name": "other", "parameters": {"type": "object"}}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "get_weather"}]}
    with desk_with(settings, calling(HERMES.one)) as desk:
        async with desk.client() as client:
            body = {"input": "Hello", "tools": [WEATHER, other], "tool_choice": choice}
            answer = (await client.post(RESPONSES, json=body)).json()
            assert (answer["tool_choice"], answer["output"][-1]["name"]) == (choice, "get_weather")
            shape = desk.engine.requests[-1].shape
            assert shape is not None and len(shape.calls) == 1 and '"other"' not in told(desk)


async def test_items_of_the_responses_api_that_programs_send_back(client: httpx.AsyncClient, desk: Desk) -> None:
    refusal = {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]}
    parts = [{"type": "input_text", "text": "One"}, {"type": "input_text", "text": "two"}]
    assert (
        await client.post(RESPONSES, json={"input": [*USER, refusal, {"role": "user", "content": parts}]})
    ).is_success
    assert "I cannot." in told(desk) and "One\ntwo" in told(desk)
    oddities: tuple[Any, ...] = ({"type": ["x"]}, {"type": {}}, {"type": "refusal"}, None)
    for odd in oddities:
        message = {"role": "user", "content": [odd]}
        assert error_of(await client.post(RESPONSES, json={"input": [message]}))["param"] == "input"
    referred = await client.post(RESPONSES, json={"input": [*USER, {"type": "item_reference", "id": "msg_1"}]})
    assert NEVER in error_of(referred)["message"] and "store: false" in error_of(referred)["message"]
    earlier = await client.post(RESPONSES, json={"input": "Hello", "previous_response_id": "resp_1"})
    assert "store: false" in error_of(earlier)["message"]


async def test_a_picture_for_a_model_that_cannot_see_is_refused_by_the_field_it_came_in(
    client: httpx.AsyncClient,
) -> None:
    url = "data:image/png;base64,iVBORw0KGgo="
    part = {"type": "input_image", "image_url": url}
    refused = await client.post(RESPONSES, json={"input": [{"role": "user", "content": [part]}]})
    assert (error_of(refused)["code"], error_of(refused)["param"]) == ("not_available_here", "input")


async def test_thoughts_stand_where_a_summary_was_asked_for(settings: Settings) -> None:
    body = {"input": "Hello", "reasoning": {"summary": "auto"}}
    with desk_with(settings, Script(reply="<think>The user greets.</think>Hello!")) as desk:
        async with desk.client() as client:
            whole = (await client.post(RESPONSES, json=body)).json()
            events = events_of(await client.post(RESPONSES, json=body | {"stream": True}))
    for response in (whole, events[-1]["response"]):
        thought, said = response["output"]
        assert thought["summary"] == [{"type": "summary_text", "text": "The user greets."}]
        assert "content" not in thought and said["content"][0]["text"] == "Hello!"
        assert response["reasoning"] == {"effort": None, "summary": "auto"}
    own = [event for event in events if "summary_index" in event]
    kinds = list(dict.fromkeys(event["type"].removeprefix("response.reasoning_summary_") for event in own))
    assert kinds == ["part.added", "text.delta", "text.done", "part.done"]
    assert "".join(event.get("delta", "") for event in own) == own[-1]["part"]["text"] == "The user greets."
    assert {(event["output_index"], event["summary_index"], event["item_id"]) for event in own} == {
        (0, 0, events[-1]["response"]["output"][0]["id"])
    }


async def test_a_search_result_is_read_as_text(client: httpx.AsyncClient, desk: Desk) -> None:
    found = {
        "type": "search_result",
        "source": "handbook",
        "title": "Harbours",
        "content": [{"type": "text", "text": "Deep."}],
    }
    result = {"type": "tool_result", "tool_use_id": "a", "content": [found]}
    call = {"type": "tool_use", "id": "a", "name": "look", "input": {}}
    for content in ([found], [result]):
        messages = [*USER, {"role": "assistant", "content": [call]}, {"role": "user", "content": content}]
        answer = await client.post(MESSAGES, json={"max_tokens": 9, "messages": messages})
        assert answer.status_code == 200, answer.text
        assert "Harbours\nhandbook\n\nDeep." in told(desk)
    wrongs: list[dict[str, Any]] = [{"title": None}, {"content": []}, {"content": [call]}]
    for wrong in wrongs:
        body: dict[str, Any] = {"max_tokens": 9, "messages": [{"role": "user", "content": [found | wrong]}]}
        assert error_of_anthropic(await client.post(MESSAGES, json=body)) == "messages[0].content"


def error_of_anthropic(response: httpx.Response) -> object:
    """The field that a refusal in Anthropic's shape names."""
    assert response.status_code == 400, response.text
    return response.json()["error"]["param"]


async def test_what_a_response_shall_include_of_tools_that_are_not_here_is_nothing(client: httpx.AsyncClient) -> None:
    wishes = ["reasoning.encrypted_content", "web_search_call.action.sources", "message.input_image.image_url"]
    assert (await client.post(RESPONSES, json={"input": "Hello", "include": wishes})).status_code == 200


async def test_the_bytes_of_tokens_make_up_the_text_though_characters_are_cut(settings: Settings) -> None:
    text = "🦜 né"
    with desk_with(settings, Script(reply=text)) as desk:
        async with desk.client() as client:
            body = CHAT | {"logprobs": True, "top_logprobs": 2}
            whole = (await client.post(CHATS, json=body)).json()["choices"][0]["logprobs"]["content"]
            lines = (await client.post(CHATS, json=body | {"stream": True})).text.splitlines()
            chunks = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
            streamed = [token for chunk in chunks if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
    assert streamed == whole
    assert bytes(byte for token in whole for byte in token["bytes"]).decode() == text
    assert (whole[0]["token"], whole[0]["bytes"]) == ("\ufffd", [0xF0])
    assert [(one["token"], one["bytes"]) for one in whole[0]["top_logprobs"]] == [("a", [97]), ("b", [98])]


async def test_a_document_of_text_blocks_is_read(client: httpx.AsyncClient, desk: Desk) -> None:
    async def asked(content: object) -> httpx.Response:
        document = {"type": "document", "title": "Ports", "source": {"type": "content", "content": content}}
        messages = [{"role": "user", "content": [document]}]
        return await client.post(MESSAGES, json={"messages": messages, "max_tokens": 9})

    for content in ("A harbour.", [{"type": "text", "text": "A harbour."}]):
        assert (await asked(content)).status_code == 200
        assert "Ports\n\nA harbour." in told(desk)
    picture = {"type": "image", "source": {"type": "base64", "data": ""}}
    assert (await asked([picture])).status_code == 400


@pytest.mark.parametrize("field", ["prefix", "partial"])
async def test_a_last_message_that_is_a_prefix_is_gone_on_from(
    client: httpx.AsyncClient, desk: Desk, field: str
) -> None:
    begun = [*USER, {"role": "assistant", "content": "The quick", field: True}]
    assert (await client.post(CHATS, json={"messages": begun, "add_generation_prompt": False})).status_code == 200
    assert desk.engine.decode(desk.engine.requests[-1].reply_ids) == "The quick"
    asked = [*begun, *USER]
    assert (await client.post(CHATS, json={"messages": asked})).status_code == 200
    assert "The quick<|im_end|>" in told(desk)


async def test_a_prompt_without_who_answers_is_refused(client: httpx.AsyncClient) -> None:
    refused = await client.post(CHATS, json=CHAT | {"add_generation_prompt": False})
    assert (refused.status_code, error_of(refused)["param"]) == (400, "add_generation_prompt")
    assert (await client.post(CHATS, json=CHAT | {"add_generation_prompt": True})).status_code == 200


@pytest.mark.parametrize("path", [CHATS, MESSAGES, "/v1/internal/token/count"])
async def test_packed_bodies_are_refused_by_their_packing(client: httpx.AsyncClient, path: str) -> None:
    body = gzip.compress(json.dumps(CHAT | {"max_tokens": 3, "text": "a"}).encode())
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused = await client.post(path, content=body, headers=packed)
    assert refused.status_code == 400
    assert "Content-Encoding: gzip" in refused.json()["error"]["message"]
    assert refused.json().get("type") == ("error" if path == MESSAGES else None)
    called_something = await client.post(CHATS, json=CHAT, headers={"Content-Encoding": "UTF-8"})
    assert called_something.status_code == 200


async def test_head_answers_as_get_without_a_body(client: httpx.AsyncClient) -> None:
    for path in ("/v1/models", f"/v1/models/{MODEL}", "/v1/internal/model/info", "/health", "/health/ready"):
        got, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers["content-type"] == got.headers["content-type"]
    for path in (CHATS, MESSAGES, RESPONSES):
        refused = await client.head(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST"), path
    assert (await client.head("/v1/nothing")).status_code == 404
    assert error_of(await client.get("/v1"))["code"] == "not_found"
