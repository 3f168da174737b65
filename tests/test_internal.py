"""Tests of Snug's own routes: tokens, prompts, probabilities, stop, plans, stats; text-generation-webui's names."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from modules import startup
from modules.api import tokens
from modules.settings import Settings
from tests.api_desk import CHAT, MODEL, USER, Desk, api_of, client, desk, desk_with, error_of, served, streaming
from tests.fakes import CONTROL_IDS, SEEING_TEMPLATE, Script
from tests.test_api_images import asked as shows
from tests.test_api_images import url as picture_url

__all__ = ["client", "desk"]

BASE = "/v1/internal"


async def test_texts_and_tokens_under_both_names(client: httpx.AsyncClient) -> None:
    text = "Hi <|im_end|> ä"
    encoded = (await client.post(f"{BASE}/encode", json={"text": text})).json()
    counted = (await client.post(f"{BASE}/token-count", json={"text": text})).json()
    ours = (await client.post(f"{BASE}/token/count", json={"pieces": [{"text": text}]})).json()
    back = (await client.post(f"{BASE}/decode", json={"tokens": encoded["tokens"]})).json()
    assert CONTROL_IDS["<|im_end|>"] in encoded["tokens"]
    assert counted["length"] == encoded["length"] == len(encoded["tokens"])
    assert ours["length"] == len(text.encode()), "what a user types is text"
    assert back == {"text": text}
    for path, body in (
        ("encode", {"text": 5}),
        ("encode", {}),
        ("decode", {"tokens": [10**9]}),
        ("decode", {"tokens": [-1]}),
    ):
        assert (await client.post(f"{BASE}/{path}", json=body)).status_code == 400


@pytest.mark.parametrize("path", ["encode", "token-count", "token/encode", "token/count"])
async def test_a_text_that_no_prompt_could_hold_is_not_given_to_the_tokenizer(
    path: str, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MOST_READ", 100)
    monkeypatch.setattr(tokens, "MOST_OF_A_TOKEN", 0)
    monkeypatch.setattr(tokens, "LONG", 10)
    assert (await client.post(f"/v1/internal/{path}", json={"text": "a" * 100})).status_code == 200
    refused = await client.post(f"/v1/internal/{path}", json={"text": "a" * 101})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "text")


async def test_the_prompt_of_a_chat_is_the_one_that_would_be_sent(client: httpx.AsyncClient, desk: Desk) -> None:
    told = (await client.post(f"{BASE}/chat-prompt", json=CHAT)).json()
    await client.post("/v1/chat/completions", json=CHAT)
    sent = desk.engine.requests[-1].prompt_ids
    assert told["prompt"] == desk.engine.decode(sent)
    assert told["tokens"] == len(sent)
    assert told["exact"]
    long = {"messages": [{"role": "user", "content": "x" * (told["context_tokens"] + 1)}]}
    assert (await client.post(f"{BASE}/chat-prompt", json=long)).json()["tokens"] > told["context_tokens"]
    assert (await client.post(f"{BASE}/chat-prompt", json={"messages": []})).status_code == 400


async def test_the_prompt_of_a_chat_has_its_pictures_and_no_thought_before_a_form(settings: Settings) -> None:
    template = SEEING_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert template != SEEING_TEMPLATE
    form = {"response_format": {"type": "json_object"}}
    with desk_with(settings, Script(sees=True, chat_template=template)) as desk:
        async with desk.client() as client:
            for body in (shows(picture_url()), CHAT | form):
                answered = await client.post(f"{BASE}/chat-prompt", json=body)
                assert answered.status_code == 200, answered.text
                told = answered.json()
                await client.post("/v1/chat/completions", json=body)
                sent = desk.engine.requests[-1].prompt_ids
                assert (told["prompt"], told["tokens"]) == (desk.engine.decode(sent), len(sent))


async def test_the_likeliest_next_tokens_come_with_their_probabilities(client: httpx.AsyncClient, desk: Desk) -> None:
    told = (await client.post(f"{BASE}/logits", json={"prompt": "Once", "top_logits": 3})).json()
    assert [token["id"] for token in told["tokens"]] == [97, 98, 99]
    assert told["logits"]["a"] == pytest.approx(math.exp(-0.1))
    raw = desk.engine.requests[-1].params
    assert (raw.max_new_tokens, raw.logprobs, raw.temperature) == (1, 3, 0)
    await client.post(f"{BASE}/logits", json={"prompt": "Once", "use_samplers": True, "temperature": 0.5, "top_k": 9})
    sampled = desk.engine.requests[-1].params
    assert (sampled.temperature, sampled.top_k, sampled.logprobs, sampled.sampled_logprobs) == (0.5, 9, 50, True)
    for body in ({}, {"prompt": ""}, {"prompt": "x", "top_logits": 10**6}, {"prompt": "x", "temperature": "hot"}):
        assert (await client.post(f"{BASE}/logits", json=body)).status_code == 400


@pytest.mark.parametrize("by", ["all", "answer", "request"])
def test_a_reply_is_stopped_and_no_other(settings: Settings, by: str) -> None:
    script = Script(endless=True, tokens_per_s=200)
    body = CHAT | {"stream": True, "max_tokens": 100_000}
    with desk_with(settings, script) as desk, served(desk.app) as port:
        with streaming(port, body) as one, streaming(port, body, request_id="mine-1") as other:
            one.read_event()
            other.read_event()
            name = {"all": None, "answer": other.answer_id, "request": "mine-1"}[by]
            stopped = httpx.post(f"http://127.0.0.1:{port}{BASE}/stop-generation", json={"id": name})
            assert stopped.json() == {"status": "OK", "stopped": 2 if by == "all" else 1}
            assert b"[DONE]" in other.read_all()
            assert desk.engine.stats().active == (0 if by == "all" else 1)
            missing = httpx.post(f"http://127.0.0.1:{port}{BASE}/stop-generation", json={"id": "nobody"})
            assert error_of(missing)["code"] == "not_found"
        assert desk.idle_within(5)


async def test_plans_for_this_machine_and_for_one_that_is_not_here(client: httpx.AsyncClient) -> None:
    here = (await client.post(f"{BASE}/plan", json={"model": MODEL})).json()
    assert not here["machine"]["imagined"]
    assert here["models"][0]["fits"]
    assert here["models"][0]["plans"][0]["chosen"]
    there = (
        await client.post(f"{BASE}/plan", json={"model": MODEL, "gpu": ["RTX 4090", "24GiB"], "ram": "64GiB"})
    ).json()
    assert there["machine"]["imagined"]
    assert [device["id"] for device in there["machine"]["devices"]] == ["cuda:0", "cuda:1", "cpu", "disk"]
    assert any(device.startswith("cuda") for device in there["models"][0]["plans"][0]["devices"])
    for body in (
        {}, {"model": "absent"}, {"model": MODEL, "gpu": ["toaster"]}, {"model": MODEL, "ram": "lots"},
        {"model": MODEL, "gpu": ["24GiB"] * 17}, {"model": MODEL, "trust_remote_code": True},
        {"model": "../../etc"}, {"model": MODEL, "ctx_size": -1},
    ):  # fmt: skip
        refused = await client.post(f"{BASE}/plan", json=body)
        assert refused.status_code in (400, 404), body
        error_of(refused)


async def test_stats_tell_memory_beside_its_forecast(client: httpx.AsyncClient) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    stats = (await client.get(f"{BASE}/stats")).json()
    assert (stats["status"], stats["model"], stats["running"], stats["waiting"]) == ("ready", MODEL, 0, 0)
    assert stats["memory"]["cpu"]["forecast_bytes"] > 0
    assert stats["memory"]["cpu"]["measured_bytes"] > 0
    assert stats["counted"]["reply_tokens"] > 0


async def test_webuis_clients_load_list_and_unload(settings: Settings) -> None:
    desk = Desk(settings)
    async with desk.client() as client:
        assert (await client.get(f"{BASE}/health")).json() == {"status": "ok"}
        assert (await client.get(f"{BASE}/model/list")).json()["model_names"] == [MODEL]
        empty = (await client.get(f"{BASE}/model/info")).json()
        assert (empty["model_name"], empty["lora_names"]) == ("None", [])
        body = {"model_name": MODEL, "args": {"ctx_size": 128}, "settings": {"truncation_length": 99}}
        loaded = await client.post(f"{BASE}/model/load", json=body)
        info = (await client.get(f"{BASE}/model/info")).json()
        assert (loaded.status_code, info["model_name"], info["model"]["context_tokens"]) == (200, MODEL, 128)
        for args in ({"extra_flags": "--x"}, {"trust_remote_code": True}, "x", {"model_dir": "/"}):
            refused = await client.post(f"{BASE}/model/load", json={"model_name": MODEL, "args": args})
            assert error_of(refused)["code"] == "bad_value"
        assert (await client.get(f"{BASE}/lora/list")).json() == {"lora_names": []}
        absent = await client.post(f"{BASE}/lora/load", json={"lora_names": ["absent"]})
        assert absent.status_code in (400, 404)
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200, "the old model stays"
        assert (await client.post(f"{BASE}/lora/unload")).json()["lora_names"] == []
        assert (await client.post(f"{BASE}/model/unload")).json()["model_name"] == "None"
        gone = await client.post(f"{BASE}/lora/load", json={"lora_names": []})
        assert error_of(gone)["code"] == "no_model_loaded"
    desk.close()


async def test_ready_says_why_not(settings: Settings) -> None:
    desk = Desk(settings, Script(load_fault="refuse"))
    async with desk.client() as client:
        assert (await client.get("/health/live")).status_code == 200
        empty = await client.get("/health/ready")
        await client.post(f"{BASE}/model/load", json={"model": MODEL})
        failed = await client.get("/health/ready")
        desk.script = Script(load_s=0.5)
        load = asyncio.create_task(client.post(f"{BASE}/model/load", json={"model": MODEL}))
        loading = await client.get("/health/ready")
        while loading.json()["state"] != "loading":
            loading = await client.get("/health/ready")
        await load
        ready = await client.get("/health/ready")
    desk.close()
    assert [empty.status_code, failed.status_code, loading.status_code, ready.status_code] == [503, 503, 503, 200]
    assert (empty.json()["state"], empty.json()["reason"]) == ("empty", "No model is loaded.")
    assert "refuses to load" in failed.json()["reason"]
    assert MODEL in loading.json()["reason"]
    assert ready.json() == {"ready": True, "state": "ready", "reason": None}


async def test_a_streamed_load_that_fails_says_so_and_leaves_the_old_model(
    client: httpx.AsyncClient, desk: Desk
) -> None:
    desk.script = Script(load_fault="refuse")
    response = await client.post(f"{BASE}/model/load", json={"model_name": MODEL, "stream": True})
    *steps, last = [json.loads(text.removeprefix("data: ")) for text in response.text.strip().split("\n\n")]
    assert all(set(step) == {"stage", "fraction"} for step in steps)
    assert steps
    assert last["error"]["code"] == "load_failed"
    info = (await client.get(f"{BASE}/model/info")).json()
    assert (info["status"], info["error"]["code"], info["model_name"]) == ("ready", "load_failed", MODEL)
    assert (await client.get("/health/ready")).status_code == 200
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_no_answer_names_a_folder_of_this_machine(client: httpx.AsyncClient, desk: Desk) -> None:
    folder = str(Path(desk.settings.model_dir).parent)
    answers = [
        await client.get(f"{BASE}/stats"),
        await client.post(f"{BASE}/plan", json={"model": MODEL}),
        await client.post(f"{BASE}/plan", json={"model": "absent"}),
        await client.post(f"{BASE}/lora/load", json={"lora_names": ["absent"]}),
        await client.get("/health/ready"),
        await client.get("/metrics"),
        await client.post("/v1/messages", json={"messages": USER}),
    ]
    for answer in answers:
        assert folder not in answer.text, answer.request.url


# The starter model


@pytest.mark.model
def test_the_real_model_counts_tells_probabilities_and_answers_in_every_dialect(
    settings: Settings, starter_model: Path
) -> None:
    real = settings.model_copy(update={"model_dir": starter_model.parent, "ctx_size": 512})
    with startup.services(real, settings.user_data_dir) as services:
        services.models.load(real.load_options.model_copy(update={"model": starter_model.name}))
        with served(api_of(services)) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:

            def ask(path: str, **body: Any) -> Any:
                response = client.post(path, json=body)
                assert response.status_code == 200, response.text
                return response.json()

            raw = ask(f"{BASE}/logits", prompt="The capital of France is", top_logits=100)["tokens"]
            assert 0.5 < sum(token["probability"] for token in raw) <= 1.001
            asked = {"prompt": "The capital of France is", "use_samplers": True, "temperature": 1, "top_p": 1}
            three = ask(f"{BASE}/logits", **asked, top_k=3)["tokens"]
            assert {token["id"] for token in three} == {token["id"] for token in raw[:3]}
            assert sum(token["probability"] for token in three) == pytest.approx(1, abs=1e-3)
            plain = {"messages": USER, "max_tokens": 12, "temperature": 0}
            chat = ask("/v1/chat/completions", **plain)
            message = ask("/v1/messages", **plain)
            response = ask("/v1/responses", input="Hello", max_output_tokens=12, temperature=0)
            text = chat["choices"][0]["message"]["content"]
            assert message["content"][0]["text"] == response["output"][0]["content"][0]["text"] == text
            prompt = ask(f"{BASE}/chat-prompt", messages=USER)
            assert prompt["tokens"] == chat["usage"]["prompt_tokens"] == response["usage"]["input_tokens"]
            assert prompt["tokens"] == ask("/v1/messages/count_tokens", messages=USER)["input_tokens"]
            read = message["usage"]["input_tokens"] + message["usage"]["cache_read_input_tokens"]
            assert read == prompt["tokens"]
            stats = client.get(f"{BASE}/stats").json()
            assert stats["counted"]["mean_between_tokens_s"] > 0
            assert 0 < stats["memory"]["cpu"]["measured_bytes"] < stats["memory"]["cpu"]["forecast_bytes"] * 1.2
