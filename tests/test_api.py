"""Tests of the API's OpenAI routes: what reaches the engine, what is refused, and what OpenAI's own client sees."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from modules import startup
from modules.api.schemas import LEAST_TOP_P, MAX_CHOICES, MAX_MESSAGES, MAX_REPLIES, MOST_NEW_TOKENS, NEUTRAL, RESHAPED
from modules.engine.base import TextPiece
from modules.sampling import GenerationParams
from modules.settings import Settings
from modules.units import MiB
from tests.api_desk import (
    CHAT,
    COMPLETION,
    FOX,
    MODEL,
    USER,
    Desk,
    api_of,
    client,
    desk,
    desk_with,
    error_of,
    sdk,
    served,
    streaming,
)
from tests.fakes import CONTROL_IDS, Script
from tests.little_memory import memory_within

__all__ = ["client", "desk"]


def test_the_openai_client_chats(desk: Desk) -> None:
    with sdk(desk) as client:
        reply = client.chat.completions.create(model="gpt-3.5-turbo", messages=USER, seed=1)
    assert reply.choices[0].message.content == FOX
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == MODEL, "the name of the model that really answered"
    assert (reply.system_fingerprint, reply.service_tier) == ("snug", "default"), "some libraries want texts there"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(FOX)
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + len(FOX)
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_the_openai_client_streams_a_chat(desk: Desk) -> None:
    with sdk(desk) as client:
        stream = client.chat.completions.create(
            model=MODEL, messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == FOX
    assert {(chunk.system_fingerprint, chunk.service_tier) for chunk in chunks} == {("snug", "default")}
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(FOX)


def test_the_openai_client_completes_text_and_token_ids(desk: Desk) -> None:
    with sdk(desk) as client:
        whole = client.completions.create(model=MODEL, prompt="Once", echo=True, max_tokens=9)
        parts = client.completions.create(model=MODEL, prompt=[79, 110, CONTROL_IDS["<eos>"]], stream=True)
        streamed = "".join(part.choices[0].text for part in parts)
    assert whole.choices[0].text == "OnceThe quick"
    assert whole.choices[0].finish_reason == "length"
    assert streamed == FOX
    assert desk.engine.requests[-1].prompt_ids == (79, 110, CONTROL_IDS["<eos>"])


def test_the_openai_client_lists_and_names_the_model(desk: Desk) -> None:
    with sdk(desk) as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).owned_by == "snug"
        with pytest.raises(openai.NotFoundError) as missing:
            client.models.retrieve("gpt-4")
    assert missing.value.code == "model_not_found"


def test_the_openai_client_gets_its_own_error_types(desk: Desk) -> None:
    with sdk(desk) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            client.chat.completions.create(model=MODEL, messages=USER, temperature=-1)
        with pytest.raises(openai.BadRequestError) as old:
            client.chat.completions.create(model=MODEL, messages=USER, functions=[{"name": "f"}])
        with pytest.raises(openai.NotFoundError) as absent:
            client.moderations.create(model=MODEL, input="x")
        desk.models.unload()
        with pytest.raises(openai.InternalServerError) as empty:
            client.chat.completions.create(model=MODEL, messages=USER)
    assert (bad.value.param, bad.value.code) == ("temperature", "bad_value")
    assert (old.value.param, old.value.code) == ("functions", "bad_value")
    assert absent.value.code == "not_found"
    assert (empty.value.status_code, empty.value.code) == (503, "no_model_loaded")


def test_the_openai_client_asks_again_only_where_that_makes_sense(settings: Settings) -> None:
    sent: list[str] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [lambda request: sent.append(str(request.url))]})
    desk = Desk(settings)  # without a model
    try:
        with sdk(desk) as client, http, pytest.raises(openai.InternalServerError) as caught:
            client.with_options(http_client=http, max_retries=2).chat.completions.create(model=MODEL, messages=USER)
    finally:
        desk.close()
    assert caught.value.code == "no_model_loaded"
    assert len(sent) == 1, "asking three times costs seconds and loads no model"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("/models", "/v1/models"),
        ("/v1/somewhere/else", "docs/api.md"),
    ],
)
async def test_a_wrong_base_url_is_told_the_route_that_was_meant(
    client: httpx.AsyncClient, path: str, route: str
) -> None:
    response = await client.post(httpx.URL("http://127.0.0.1:7860").copy_with(raw_path=path.encode()), json=CHAT)
    assert response.status_code == 404
    assert error_of(response)["code"] == "not_found"
    what, _, remedy = error_of(response)["message"].partition(". ")
    assert what.endswith(path.lstrip("/"))
    assert route in remedy


def test_the_openai_client_cancels_by_closing_its_stream(settings: Settings) -> None:
    script = Script(endless=True, tokens_per_s=200)
    with desk_with(settings, script) as desk, sdk(desk) as client:
        stream = client.chat.completions.create(model=MODEL, messages=USER, stream=True, max_tokens=100_000)
        next(iter(stream))
        stream.close()
        assert desk.idle_within(2)


def sent_params(desk: Desk) -> GenerationParams:
    return desk.engine.requests[-1].params


async def test_every_sampling_parameter_arrives_as_given(desk: Desk, client: httpx.AsyncClient) -> None:
    values = {
        "max_new_tokens": 7, "temperature": 0.5, "top_p": 0.4, "top_k": 3, "min_p": 0.1, "typical_p": 0.9,
        "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "xtc_threshold": 0.2, "xtc_probability": 0.3,
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "no_repeat_ngram_size": 3,
        "dry_multiplier": 0.8, "dry_base": 2.0, "dry_allowed_length": 4, "mirostat_mode": 2, "mirostat_tau": 4.0,
        "mirostat_eta": 0.2, "temperature_last": True, "ban_eos_token": True, "seed": 99,
        "grammar": 'root ::= "a"', "top_n_sigma": 1.5, "tfs": 0.9, "top_a": 0.1, "dynatemp_range": 0.2,
        "dynatemp_exponent": 1.5, "smoothing_factor": 0.3, "smoothing_curve": 2.0, "repetition_penalty_range": 256,
        "encoder_repetition_penalty": 1.2, "min_tokens": 5,
    }  # fmt: skip
    assert set(values) == set(GenerationParams.model_fields) - RESHAPED, "a new parameter belongs here"
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        assert (await client.post(path, json=body | values)).status_code == 200
        params = sent_params(desk).model_dump()
        assert {name: params[name] for name in values} == values
        await client.post(path, json=body | dict.fromkeys(values))
        default = GenerationParams(stop=sent_params(desk).stop, max_new_tokens=sent_params(desk).max_new_tokens)
        assert sent_params(desk) == default, "null is the default"


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({}, 1024),
        ({"max_tokens": None}, 1024),
        ({"max_new_tokens": 5}, 5),
        ({"max_tokens": 6, "max_new_tokens": 5}, 6),
        ({"max_completion_tokens": 7, "max_tokens": 6}, 7),
    ],
)
async def test_the_newest_name_of_the_length_counts(
    desk: Desk, client: httpx.AsyncClient, given: dict[str, int], length: int
) -> None:
    await client.post("/v1/chat/completions", json=CHAT | given)
    assert sent_params(desk).max_new_tokens == length


async def test_a_chat_without_a_limit_may_take_a_quarter_of_the_context_or_what_is_left(
    desk: Desk, client: httpx.AsyncClient
) -> None:
    long = {"messages": [{"role": "user", "content": "x" * 3400}]}
    assert desk.engine.info.context_tokens == 4096
    assert (await client.post("/v1/chat/completions", json=long)).status_code == 200, "room for 512 tokens is enough"
    refused = await client.post("/v1/chat/completions", json=long | {"max_tokens": 1024})
    assert error_of(refused)["code"] == "context_length_exceeded"
    await client.post("/v1/completions", json=COMPLETION)
    assert sent_params(desk).max_new_tokens == GenerationParams().max_new_tokens, "texts seldom end by themselves"
    await client.post("/v1/responses", json={"input": "Hello"})
    assert sent_params(desk).max_new_tokens == 1024
    await client.post("/v1/responses", json={"input": "Hello", "max_output_tokens": 600})
    assert sent_params(desk).max_new_tokens == 600


@pytest.mark.parametrize(("stop", "text"), [(" fox", "The quick brown"), (["zzz", " quick"], "The"), (None, FOX)])
async def test_stop_strings_end_the_reply_before_them(client: httpx.AsyncClient, stop: object, text: str) -> None:
    reply = (await client.post("/v1/chat/completions", json=CHAT | {"stop": stop})).json()
    assert reply["choices"][0]["message"]["content"] == text


ASKED = "<|im_start|>user\nHello<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "system", "content": "Go"}], "<|im_start|>user\nGo<|im_end|>\n"),
        (
            [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "Go"}],
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n",
        ),
        ([*USER, {"role": "system", "content": "Go"}], f"{ASKED}<|im_start|>system\nGo<|im_end|>\n"),
        ([*USER, {"role": "assistant", "content": "Yes?"}], f"{ASKED}<|im_start|>assistant\nYes?<|im_end|>\n"),
        (
            [*USER, {"role": "assistant", "content": None, "refusal": "No."}],
            f"{ASKED}<|im_start|>assistant\nNo.<|im_end|>\n",
        ),
        (
            [*USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}],
            f"{ASKED}<|im_start|>assistant\nNo.<|im_end|>\n",
        ),
    ],
)
async def test_whoever_spoke_last_gets_an_answer(
    desk: Desk, client: httpx.AsyncClient, messages: list[dict[str, Any]], prompt: str
) -> None:
    for path, name in (("chat/completions", "messages"), ("responses", "input")):
        if name == "input" and "refusal" in str(messages):
            continue
        response = await client.post(f"/v1/{path}", json={name: messages})
        assert response.status_code == 200, response.text
        told = desk.engine.decode(desk.engine.requests[-1].prompt_ids)
        assert told == prompt + "<|im_start|>assistant\n"


@pytest.mark.parametrize("field", ["continue_final_message", "continue_"])
async def test_a_reply_goes_on_from_the_last_message_where_the_client_says_so(
    desk: Desk, client: httpx.AsyncClient, field: str
) -> None:
    body = {"messages": [*USER, {"role": "assistant", "content": "The qu"}], field: True}
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    assert reply["choices"][0]["message"]["content"] == FOX.removeprefix("The qu"), "what is new alone"
    request = desk.engine.requests[-1]
    assert desk.engine.decode(request.prompt_ids + request.reply_ids) == f"{ASKED}<|im_start|>assistant\nThe qu"
    shown = (await client.post("/v1/internal/chat-prompt", json=body)).json()
    assert shown["prompt"] == f"{ASKED}<|im_start|>assistant\nThe qu"
    assert shown["tokens"] == len(request.prompt_ids) + len(request.reply_ids) == reply["usage"]["prompt_tokens"]
    await client.post("/v1/chat/completions", json={"messages": USER, field: True})
    assert desk.engine.decode(desk.engine.requests[-1].prompt_ids) == f"{ASKED}<|im_start|>assistant\n"


async def test_what_other_servers_clients_write_otherwise_is_understood(desk: Desk, client: httpx.AsyncClient) -> None:
    given = {"top_k": -1, "top_p": 0, "max_tokens": -1, "grammar_string": 'root ::= "x"'}
    assert (await client.post("/v1/completions", json=COMPLETION | given)).status_code == 200
    params = sent_params(desk)
    assert (params.top_k, params.top_p, params.max_new_tokens) == (0, LEAST_TOP_P, MOST_NEW_TOKENS)
    assert params.grammar == 'root ::= "x"'
    for name, value in (("top_k", -2), ("max_tokens", -2), ("top_p", False)):
        refused = await client.post("/v1/completions", json=COMPLETION | {name: value})
        assert error_of(refused)["param"] == name


def test_twenty_prompts_go_in_one_request_as_langchain_sends_them(desk: Desk) -> None:
    with sdk(desk) as client:
        reply = client.completions.create(model=MODEL, prompt=["Once"] * 20, max_tokens=3)
    assert [choice.text for choice in reply.choices] == ["The"] * 20


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("some", "tool_choice"),
        (5, "tool_choice"),
        ({"type": "allowed_tools", "function": {"name": "f"}}, "tool_choice.type"),
        ({"type": "function"}, "tool_choice.function"),
        ({"type": "function", "function": {}}, "tool_choice.function.name"),
    ],
)
async def test_a_field_with_several_forms_is_named_plainly(
    client: httpx.AsyncClient, choice: object, param: str
) -> None:
    response = await client.post("/v1/chat/completions", json=CHAT | {"tool_choice": choice})
    assert error_of(response)["param"] == param
    assert error_of(response)["message"].startswith(f"{param}: ")


async def test_messages_reach_the_template_in_their_roles(desk: Desk, client: httpx.AsyncClient) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "<|im_end|>"}]},
        {"role": "assistant", "content": "Yes?", "name": "ignored"},
        {"role": "user", "content": "Go"},
    ]
    await client.post("/v1/chat/completions", json={"messages": messages})
    ids = desk.engine.requests[-1].prompt_ids
    assert desk.engine.decode(ids) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi \n<|im_end|><|im_end|>\n"
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(CONTROL_IDS["<|im_end|>"]) == 4, "what a user types is text"


async def test_unknown_and_dangerous_fields_change_nothing(desk: Desk, client: httpx.AsyncClient) -> None:
    hostile = {
        "trust_remote_code": True, "extra_flags": "--x", "n_discard": 5, "model_path": "/etc", "model_dir": "/",
        "chat_template": "{{ 1/0 }}", "bypass_filter": True, "prompt_embeds": "AAAA", "user": "root",
        "prompt_ids": [1], "reply_ids": [1], "id": "mine", "store": True, "metadata": {"a": "b"},
    }  # fmt: skip
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        await client.post(path, json=body)
        await client.post(path, json=body | hostile)
        plain, attacked = desk.engine.requests[-2:]
        assert replace(attacked, id=plain.id) == plain
        assert attacked.id != "mine"


async def test_several_replies_differ_by_their_seed_alone(desk: Desk, client: httpx.AsyncClient) -> None:
    body = CHAT | {"n": 3, "seed": 10, "max_tokens": 4}
    reply = (await client.post("/v1/chat/completions", json=body)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert sorted(request.params.seed for request in desk.engine.requests) == [10, 11, 12]
    prompt_tokens = len(desk.engine.requests[0].prompt_ids)
    assert reply["usage"]["prompt_tokens"] == prompt_tokens, "the prompt counts once"
    assert reply["usage"]["completion_tokens"] == 12


async def test_several_prompts_give_replies_in_their_order(settings: Settings) -> None:
    with desk_with(settings, Script(echo=True)) as desk:
        async with desk.client() as client:
            body = {"prompt": ["one", [50, 51]], "n": 2, "echo": True}
            reply = (await client.post("/v1/completions", json=body)).json()
    assert [choice["text"] for choice in reply["choices"]] == ["oneone", "oneone", "2323", "2323"]


@pytest.mark.parametrize("alternatives", [0, 2])
async def test_log_probabilities_come_in_openais_shape(client: httpx.AsyncClient, alternatives: int) -> None:
    body = CHAT | {"max_tokens": 2, "logprobs": True, "top_logprobs": alternatives}
    chat = (await client.post("/v1/chat/completions", json=body)).json()["choices"][0]["logprobs"]
    assert [token["token"] for token in chat["content"]] == ["T", "h"]
    assert chat["content"][0]["bytes"] == [84]
    assert [len(token["top_logprobs"]) for token in chat["content"]] == [alternatives, alternatives]
    body = COMPLETION | {"max_tokens": 3, "logprobs": alternatives, "n": 1}
    text = (await client.post("/v1/completions", json=body)).json()["choices"][0]["logprobs"]
    assert text["tokens"] == ["T", "h", "e"]
    assert text["text_offset"] == [0, 1, 2]
    assert len(text["token_logprobs"]) == 3
    assert (text["top_logprobs"] is None) == (alternatives == 0)
    plain = (await client.post("/v1/chat/completions", json=CHAT)).json()
    assert plain["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("echo", [False, True])
async def test_offsets_of_tokens_count_characters_of_the_text(settings: Settings, echo: bool) -> None:
    """Where a character takes several tokens they all begin where it does."""
    body = {"prompt": "é", "logprobs": 1, "n": 2, "echo": echo}
    with desk_with(settings, Script(reply="aé😀b")) as desk:
        async with desk.client() as client:
            choices = (await client.post("/v1/completions", json=body)).json()["choices"]
            streamed = (await client.post("/v1/completions", json=body | {"echo": False, "stream": True})).text
    chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    offsets = [0, 1, 1, 2, 2, 2, 2, 3]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[at + echo for at in offsets]] * 2
    told = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == 1 and choice["logprobs"]]
    assert [at for choice in told for at in choice["logprobs"]["text_offset"]] == offsets


OTHER_WORDS = {("top_k", "-1"): 0, ("top_p", "0"): LEAST_TOP_P, ("max_new_tokens", "-1"): MOST_NEW_TOKENS}


def numeric_fields() -> list[str]:
    fields = GenerationParams.model_json_schema()["properties"]
    numeric = [name for name, field in fields.items() if field.get("type") in ("number", "integer", "boolean")]
    return [*numeric, "max_tokens", "max_completion_tokens", "n", "top_logprobs"]


@pytest.mark.parametrize("name", numeric_fields())
async def test_every_number_is_accepted_or_refused_by_its_name(
    desk: Desk, client: httpx.AsyncClient, name: str
) -> None:  # fmt: skip
    values = ("-1", "0", "1", "0.5", "1e6", "1000001", "1e18", str(2**63), "NaN", "1e309", '"5"', "true", "null", "[]")
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)):
        for value in values:
            text = json.dumps(body)[:-1] + f', "{name}": {value}}}'
            response = await client.post(path, content=text, headers={"Content-Type": "application/json"})
            if response.status_code != 200:
                assert response.status_code == 400, (name, value)
                assert error_of(response)["param"] == name, (name, value)
            elif name in GenerationParams.model_fields and value != "null" and name not in RESHAPED:
                meant = OTHER_WORDS.get((name, value), json.loads(value))
                assert getattr(sent_params(desk), name) == meant, (name, value)


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        (None, "messages"),
        ("Hello", "messages"),
        (
            [*USER, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}],
            "messages",
        ),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{"role": "tool", "tool_call_id": "a"}], "messages[0].content"),
        ([{"role": "system", "content": None}, *USER], "messages[0].content"),
        (
            [{"role": "assistant", "tool_calls": [{"id": "a", "function": {}}]}, *USER],
            "messages[0].tool_calls[0].function.name",
        ),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content"),
        (
            [*USER, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "messages[1].content",
        ),
        ([{"role": "user", "content": [{"type": "file", "file": {}}]}], "messages[0].content"),
        (["x"], "messages[0]"),
    ],
)
async def test_messages_that_make_no_sense_are_refused_by_place(
    client: httpx.AsyncClient, messages: object, param: str
) -> None:
    response = await client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert error_of(response)["param"] == param


@pytest.mark.parametrize("prompt", ["", [], None, 5, {}, [""], [[]], [1, "a"], ["a", 1], [True], [-1], [10**6], [1.5]])
async def test_prompts_that_make_no_sense_are_refused(client: httpx.AsyncClient, prompt: object) -> None:
    response = await client.post("/v1/completions", json={"prompt": prompt})
    assert response.status_code == 400
    assert error_of(response)["param"] == "prompt"


@pytest.mark.parametrize(
    ("path", "extra", "param"),
    [
        ("chat/completions", {"n": 10**6}, "n"),
        ("chat/completions", {"n": MAX_CHOICES + 1}, "n"),
        ("completions", {"prompt": ["a"] * (MAX_REPLIES + 1)}, "n"),
        ("chat/completions", {"max_tokens": 10**9}, "max_tokens"),
        ("chat/completions", {"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
        ("chat/completions", {"top_logprobs": 5}, "top_logprobs"),
        ("completions", {"logprobs": 10**6}, "logprobs"),
        ("completions", {"logprobs": 1, "echo": True, "stream": True}, "echo"),
        ("completions", {"logprobs": 1, "echo": True, "suffix": "x"}, "echo"),
        ("completions", {"max_tokens": 0}, "max_tokens"),
        ("chat/completions", {"stop": ["x"] * 10**4}, "stop"),
        ("chat/completions", {"stop": "x" * 501}, "stop[0]"),
        ("chat/completions", {"stop": ""}, "stop[0]"),
        ("chat/completions", {"stop": 5}, "stop"),
        ("chat/completions", {"logit_bias": {str(token): 1 for token in range(10**5)}}, "logit_bias"),
        ("chat/completions", {"messages": USER * (MAX_MESSAGES + 1)}, "messages"),
        ("chat/completions", {"model": "x" * 501}, "model"),
        ("chat/completions", {"model": 5}, "model"),
        ("chat/completions", {"stream": "yes"}, "stream"),
        ("chat/completions", {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ("chat/completions", {"response_format": {"type": "json_schema"}}, "response_format"),
        ("chat/completions", {"response_format": {"type": "xml"}}, "response_format.type"),
        ("chat/completions", {"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "grammar"),
        ("chat/completions", {"logit_bias": {"one": 1}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"1": 101}}, "logit_bias"),
        ("chat/completions", {"logit_bias": {"1": True}}, "logit_bias.1"),
        ("chat/completions", {"logit_bias": {"99999": 1}}, "logit_bias"),
        ("completions", {"best_of": 1, "n": 2}, "best_of"),
        ("completions", {"best_of": 2, "stream": True}, "best_of"),
        ("completions", {"best_of": MAX_CHOICES + 1}, "best_of"),
        ("completions", {"best_of": MAX_CHOICES, "prompt": ["a"] * 5}, "best_of"),
        ("completions", {"suffix": "end"}, "suffix"),
    ],
)
async def test_limits_and_missing_features_are_named(
    desk: Desk, client: httpx.AsyncClient, path: str, extra: dict[str, object], param: str
) -> None:
    body = (CHAT if path.startswith("chat") else COMPLETION) | extra
    response = await client.post(f"/v1/{path}", json=body)
    assert response.status_code == 400
    assert error_of(response)["param"] == param
    assert desk.engine.requests == []


REASON = 10**5
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        CHAT | {"messages": USER * REASON},
        CHAT | {"messages": [USER[0] | {"content": [{"type": "text", "text": "x"}] * REASON}]},
        CHAT | {"stop": ["x"] * REASON},
        CHAT | {"logit_bias": {str(token): 1 for token in range(5 * REASON)}},
        CHAT | {"tools": [{"type": "function", "function": {"name": "x"}}] * REASON},
        CHAT | {"n": 10**6, "max_tokens": 10**9, "top_logprobs": 10**6},
        CHAT | {f"field {number}": number for number in range(REASON)} | {"n": 0},
    ],
    ids=["messages", "parts", "stop", "logit_bias", "tools", "numbers", "unknown"],
)
async def test_counts_beyond_reason_cost_little_time_and_memory(
    desk: Desk, client: httpx.AsyncClient, body: dict[str, object]
) -> None:
    content = json.dumps(body).encode()
    with memory_within(300 * MiB):
        started = time.process_time()
        response = await client.post("/v1/chat/completions", content=content, headers=JSON)
        assert time.process_time() - started < 10
    assert response.status_code in (400, 413), response.text[:200]
    assert error_of(response)["code"] and len(response.content) < 2000
    assert desk.engine.requests == []


async def test_a_packed_body_is_refused_as_it_came(client: httpx.AsyncClient) -> None:
    packed = gzip.compress(b'{"messages": [' + b" " * 100 * MiB, 1)
    assert len(packed) < MiB
    for route in ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
        with memory_within(50 * MiB):
            response = await client.post(route, content=packed, headers=JSON | {"content-encoding": "gzip"})
        assert response.status_code in (400, 415), (route, response.text)


async def test_the_form_of_a_reply_reaches_the_engine(desk: Desk, client: httpx.AsyncClient) -> None:
    schema = {"type": "object", "properties": {"ä": {"$ref": "#"}}}
    for given in (
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}},
    ):
        assert (await client.post("/v1/chat/completions", json=CHAT | {"response_format": given})).status_code == 200
    assert (await client.post("/v1/completions", json=COMPLETION | {"grammar": 'root ::= "a"'})).status_code == 200
    *schemas, last = [request.params for request in desk.engine.requests]
    assert [json.loads(params.json_schema or "null") for params in schemas] == [None, {"type": "object"}, schema]
    assert (last.grammar, last.json_schema) == ('root ::= "a"', "")


async def test_fields_that_ask_for_nothing_are_no_reason_to_refuse(client: httpx.AsyncClient) -> None:
    for name, values in NEUTRAL.items():
        for value in (None, *values):
            response = await client.post("/v1/chat/completions", json=CHAT | {name: value})
            assert response.status_code == 200, (name, value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\x00",
        b"\xff\xfe{}",
        b'{"messages": ' + b"[" * 100_000,
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"messages": [{"role": "user", "content": "\xed\xa0\xbd"}]}',
    ],
    ids=range(11),
)
async def test_bodies_that_are_no_request_get_400_and_an_error_object(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    error_of(response)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_json_under_another_name_is_refused(client: httpx.AsyncClient, kind: str) -> None:
    response = await client.post("/v1/completions", content=json.dumps(COMPLETION), headers={"Content-Type": kind})
    assert response.status_code == 400
    assert "Content-Type" in error_of(response)["message"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_does_not_fit_is_refused_before_200(settings: Settings, stream: bool) -> None:
    desk = Desk(settings).load(ctx_size=64)
    async with desk.client() as client:
        long = {"messages": [{"role": "user", "content": "x" * 100}], "stream": stream}
        for path, body, param in (
            ("chat/completions", long, "messages"),
            ("completions", {"prompt": "x" * 100, "stream": stream}, "prompt"),
            ("completions", {"prompt": [1] * 100, "stream": stream}, "prompt"),
        ):
            response = await client.post(f"/v1/{path}", json=body)
            assert response.status_code == 400
            error = error_of(response)
            assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    desk.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_model_there_is_503_and_no_load(settings: Settings, stream: bool) -> None:
    desk = Desk(settings)
    async with desk.client() as client:
        for name in (None, MODEL, "../../etc", "gpt-4"):
            response = await client.post("/v1/chat/completions", json=CHAT | {"model": name, "stream": stream})
            assert response.status_code == 503
            assert error_of(response)["code"] == "no_model_loaded"
        assert (await client.get("/v1/models")).json()["data"] == []
    assert desk.engines == []
    desk.close()


@pytest.mark.parametrize("name", ["gpt-3.5-turbo", MODEL, "../../etc/passwd", "", None])
async def test_any_model_name_is_answered_by_the_loaded_one(
    desk: Desk, client: httpx.AsyncClient, name: str | None
) -> None:
    reply = (await client.post("/v1/chat/completions", json=CHAT | {"model": name})).json()
    assert reply["model"] == MODEL
    assert len(desk.engines) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_refused_with_503_and_a_time_to_come_back(settings: Settings, stream: bool) -> None:
    script = Script(endless=True, tokens_per_s=100, rows=1, queue=1)
    with desk_with(settings, script) as desk, served(desk.app) as port:
        body = CHAT | {"stream": True, "max_tokens": 100_000}
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(streaming(port, body)).read_event()
            refused = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=CHAT | {"stream": stream})
        assert refused.status_code == 503
        assert error_of(refused)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert "x-should-retry" not in refused.headers
        assert desk.idle_within(2)


def test_a_request_whose_turn_never_comes_is_ended_with_504(settings: Settings) -> None:
    script = Script(endless=True, tokens_per_s=100, rows=1, queue=8)
    hasty = settings.model_copy(update={"queue_timeout": 0.05})
    with desk_with(hasty, script) as desk, served(desk.app) as port:
        body = CHAT | {"stream": True, "max_tokens": 100_000}
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(streaming(port, body))
            first.read_event()
            for route, asked in (
                ("chat/completions", CHAT),
                ("chat/completions", CHAT | {"n": 3, "stream": True}),
                ("completions", COMPLETION),
                ("messages", CHAT | {"max_tokens": 5}),
                ("responses", {"input": "Hello"}),
            ):
                late = httpx.post(f"http://127.0.0.1:{port}/v1/{route}", json=asked, timeout=30)
                told = json.loads(late.text.splitlines()[-1 if not asked.get("stream") else -2].removeprefix("data: "))
                told = told["error"]
                assert (told["code"], late.status_code) == ("timed_out", 200 if asked.get("stream") else 504), late.text
                assert "waited" in told["message"]
            assert desk.models.stats().active == 1, "the one whose turn had come goes on"
        assert desk.idle_within(2)


# The starter model


@pytest.mark.model
def test_the_real_model_streams_what_it_answers_whole_and_counts_its_tokens(
    settings: Settings, starter_model: Path
) -> None:
    real = settings.model_copy(update={"model_dir": starter_model.parent, "ctx_size": 512})
    with startup.services(real, settings.user_data_dir) as services:
        services.models.load(real.load_options.model_copy(update={"model": starter_model.name}))
        with served(api_of(services)) as port, openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:  # fmt: skip
            create: Any = client.chat.completions.create
            asked = {"model": "any", "messages": USER, "max_tokens": 24, "logprobs": True}
            for sampling in ({"temperature": 0}, {"temperature": 1, "seed": 5}):
                whole = create(**asked, **sampling)
                chunks = list(create(**asked, **sampling, stream=True))
                text = whole.choices[0].message.content
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
                tokens = whole.choices[0].logprobs.content
                assert len(tokens) == whole.usage.completion_tokens
                assert all(token.logprob <= 0 for token in tokens)
            engine = services.models.engine()
            ids = engine.encode([TextPiece("The sky is blue.")])
            counted = client.completions.create(model="any", prompt="The sky is blue.", max_tokens=1)
            assert counted.usage is not None
            assert counted.usage.prompt_tokens == len(ids)
