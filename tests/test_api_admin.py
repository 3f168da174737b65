"""Tests of Snug's own routes, and of docs/api.md."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from modules.api.schemas import RESHAPED
from modules.sampling import GenerationParams
from modules.settings import Settings
from tests.api_desk import CHAT, MODEL, Desk, all_codes, client, desk, error_of
from tests.fakes import Script

__all__ = ["client", "desk"]

DOCS = Path(__file__).parent.parent / "docs" / "api.md"


async def test_health_tells_alive_from_ready(settings: Settings) -> None:
    desk = Desk(settings)
    async with desk.client() as client:
        before = await client.get("/health")
        desk.load()
        after = await client.get("/health")
    desk.close()
    assert before.status_code == after.status_code == 200
    assert before.json() == {"status": "ok", "ready": False, "model": None, "state": "empty"}
    assert after.json() == {"status": "ok", "ready": True, "model": MODEL, "state": "ready"}


async def test_a_model_is_listed_loaded_shown_and_unloaded(settings: Settings) -> None:
    desk = Desk(settings)
    async with desk.client() as client:
        listed = (await client.get("/v1/internal/model/list")).json()["data"]
        assert [entry["name"] for entry in listed] == [MODEL]
        loaded = await client.post("/v1/internal/model/load", json={"model": MODEL, "ctx_size": 128})
        assert loaded.status_code == 200
        assert loaded.json()["context_tokens"] == 128
        info = (await client.get("/v1/internal/model/info")).json()
        assert (info["status"], info["name"], info["model"]["name"]) == ("ready", MODEL, MODEL)
        assert info["reasons"]
        unloaded = (await client.post("/v1/internal/model/unload")).json()
        assert (unloaded["status"], unloaded["model"]) == ("empty", None)
    desk.close()


async def test_a_load_streams_its_progress_and_ends_with_the_model(settings: Settings) -> None:
    desk = Desk(settings)
    async with desk.client() as client:
        response = await client.post("/v1/internal/model/load", json={"model": MODEL, "stream": True})
    desk.close()
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    steps = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert steps[-1]["model"]["name"] == MODEL
    fractions = [step["fraction"] for step in steps[:-1]]
    assert fractions == sorted(fractions)
    assert len(fractions) > 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "bad_value"),
        ({"model": ""}, 400, "bad_value"),
        ({"model": "absent"}, 404, "model_not_found"),
        ({"model": "../x"}, 400, "bad_name"),
        ({"model": "/etc"}, 400, "bad_name"),
        ({"model": MODEL, "trust_remote_code": True}, 400, "bad_value"),
        ({"model": MODEL, "model_dir": "/"}, 400, "bad_value"),
        ({"model": MODEL, "disk_cache_dir": "/tmp"}, 400, "bad_value"),
        ({"model": MODEL, "nvme_offload_dir": "/tmp"}, 400, "bad_value"),
        ({"model": MODEL, "user_data_dir": "/tmp"}, 400, "bad_value"),
        ({"model": MODEL, "dtype": "int4"}, 400, "bad_value"),
        ({"model": MODEL, "cpu_memory": "lots"}, 400, "bad_value"),
        ({"model": MODEL, "load_in_8bit": True, "load_in_4bit": True}, 400, "bad_flag"),
        ({"model": MODEL, "gpu_memory": ["10GiB"]}, 400, "not_available_here"),
    ],
)
async def test_a_load_that_cannot_be_is_refused_and_the_old_model_stays(
    desk: Desk, client: httpx.AsyncClient, body: dict[str, object], status: int, code: str, stream: bool
) -> None:
    response = await client.post("/v1/internal/model/load", json=body | {"stream": stream})
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert str(desk.settings.model_dir.parent) not in response.text
    assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_a_load_that_fails_says_so_plain_or_streamed(settings: Settings) -> None:
    desk = Desk(settings, Script(load_fault="refuse"))
    async with desk.client() as client:
        plain = await client.post("/v1/internal/model/load", json={"model": MODEL})
        streamed = await client.post("/v1/internal/model/load", json={"model": MODEL, "stream": True})
        state = (await client.get("/v1/internal/model/info")).json()
    desk.close()
    assert plain.status_code == 500
    assert error_of(plain)["code"] == "load_failed"
    last = streamed.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "load_failed"
    assert state["status"] == "failed"
    assert state["error"]["code"] == "load_failed"


async def test_start_up_flags_hold_unless_the_load_says_otherwise(settings: Settings) -> None:
    desk = Desk(settings.model_copy(update={"ctx_size": 256, "dtype": "fp32"}))
    async with desk.client() as client:
        first = (await client.post("/v1/internal/model/load", json={"model": MODEL})).json()
        second = (await client.post("/v1/internal/model/load", json={"model": MODEL, "ctx_size": 64})).json()
    desk.close()
    assert (first["context_tokens"], first["dtype"]) == (256, "float32")
    assert (second["context_tokens"], second["dtype"]) == (64, "float32")


async def test_unknown_routes_and_methods_get_the_error_object(client: httpx.AsyncClient) -> None:
    unknown = await client.get("/v1/nothing")
    assert unknown.status_code == 404
    assert error_of(unknown)["code"] == "not_found"
    for method, path in (("POST", "/v1/models"), ("DELETE", "/v1/chat/completions"), ("POST", "/health")):
        wrong = await client.request(method, path)
        assert wrong.status_code == 405
        assert error_of(wrong)["code"] == "method_not_allowed"


def test_the_documentation_lists_every_error_code_and_no_other() -> None:
    table = DOCS.read_text(encoding="utf-8").split("## Errors")[1]
    listed = set(re.findall(r"^\| `([a-z_]+)` \| \d{3} \|", table, re.MULTILINE))
    assert listed == all_codes()


def test_the_documentation_shows_every_route(desk: Desk) -> None:
    text = DOCS.read_text(encoding="utf-8")
    for route in iter_route_contexts(desk.app.routes):
        if getattr(route.original_route, "include_in_schema", False):
            for method in route.methods or ():
                path = re.sub(r"\{(\w+):path\}", r"{\1}", route.path or "")
                assert f"`{method} {path}`" in text, (method, path)


def sampling_table() -> str:
    """The rows that docs/api.md must have under "Sampling parameters", from the declarations."""
    rows = []
    for name, field in GenerationParams.model_fields.items():
        schema = GenerationParams.model_json_schema()["properties"][name]
        low, high = (
            schema.get("minimum", schema.get("exclusiveMinimum")),
            schema.get("maximum", schema.get("exclusiveMaximum")),
        )
        values = ", ".join(map(str, schema["enum"])) if "enum" in schema else f"{low} to {high}"
        values = {"boolean": "true, false", "string": "text"}.get(schema["type"], values)
        if name not in RESHAPED:
            rows.append(f"| `{name}` | {json.dumps(field.default)} | {values} | {field.description} |")
    return "\n".join(rows)


def test_the_documentation_holds_the_sampling_parameters_as_declared() -> None:
    assert sampling_table() in DOCS.read_text(encoding="utf-8"), sampling_table()


def curl_examples() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(curl .*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


@pytest.mark.parametrize("words", curl_examples(), ids=lambda words: " ".join(words)[:60])
async def test_every_example_in_the_documentation_works(
    desk: Desk, client: httpx.AsyncClient, words: list[str]
) -> None:  # fmt: skip
    url = next(word for word in words if word.startswith("http://localhost:7860/"))
    data = words[words.index("-d") + 1].replace("SmolLM2-135M-Instruct", MODEL) if "-d" in words else None
    headers = dict(words[place + 1].split(": ") for place, word in enumerate(words) if word == "-H")
    method = "POST" if data is not None or "POST" in words else "GET"
    path = url.removeprefix("http://localhost:7860").replace("SmolLM2-135M-Instruct", MODEL)
    response = await client.request(method, path, content=data, headers=headers)
    assert response.status_code == 200, response.text
