"""What every dialect has in common: sampling parameters, limits on bodies, errors, signs of who is answered."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from modules.api.schemas import RESHAPED
from modules.sampling import GenerationParams
from tests.api_desk import CHAT, COMPLETION, MODEL, USER, Desk, all_codes, client, desk

__all__ = ["client", "desk"]

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/messages": {"messages": USER, "max_tokens": 513},
    "/v1/responses": {"input": "Hello"},
}
BROKEN = [
    b"", b"{", b"[]", b"null", b'"x"', b"\x00", b"\xff\xfe{}", b'{"messages": ' + b"[" * 100_000,
    b'{"max_tokens": ' + b"9" * 5000 + b"}", b'{"input": "\xed\xa0\xbd"}',
]  # fmt: skip


def unusual() -> dict[str, Any]:
    """A value for every sampling parameter that is allowed and not its default."""
    values: dict[str, Any] = {}
    for name, schema in GenerationParams.model_json_schema()["properties"].items():
        default = schema["default"]
        if name in RESHAPED:
            continue
        if "enum" in schema:
            values[name] = next(value for value in schema["enum"] if value != default)
        elif schema["type"] == "boolean":
            values[name] = not default
        elif schema["type"] == "string":
            values[name] = 'root ::= "a"'
        else:
            step = 1 if schema["type"] == "integer" else 0.05
            values[name] = default + step if default + step <= schema.get("maximum", 1e9) else default - step
    return values


@pytest.mark.parametrize("path", BODIES)
async def test_every_sampling_parameter_is_a_field_of_every_dialect(
    client: httpx.AsyncClient, desk: Desk, path: str
) -> None:
    values = unusual()
    answer = await client.post(path, json=BODIES[path] | values)
    assert answer.status_code == 200, answer.text
    params = desk.engine.requests[-1].params.model_dump()
    assert {name: params[name] for name in values} == values
    wrong = await client.post(path, json=BODIES[path] | {"min_p": 2})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "min_p")


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_no_request_gets_an_error_of_the_dialect(client: httpx.AsyncClient, path: str) -> None:
    for body in BROKEN:
        answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, body[:40]
        assert answer.json()["error"]["code"] in all_codes()
        assert ("type" in answer.json()) == (path == "/v1/messages")
    plain = await client.post(path, content=json.dumps(BODIES[path]), headers={"Content-Type": "text/plain"})
    assert plain.status_code == 400


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("name", ["gpt-4o", "claude-opus-4", "../../etc/passwd", "", None])
async def test_any_model_name_is_answered_by_the_loaded_one(
    client: httpx.AsyncClient, desk: Desk, path: str, name: str | None
) -> None:
    answer = await client.post(path, json=BODIES[path] | {"model": name})
    assert answer.json()["model"] == MODEL
    assert len(desk.engines) == 1


@pytest.mark.parametrize("path", BODIES)
async def test_fields_of_nobodys_reach_no_engine(client: httpx.AsyncClient, desk: Desk, path: str) -> None:
    hostile = {
        "trust_remote_code": True, "model_path": "/etc", "chat_template": "{{ 1/0 }}", "prompt_ids": [1], "id": "mine",
        "user": "root", "sampled_logprobs": True, "words": {"text": "x"}, "embed": True, "shape": {},
    }  # fmt: skip
    await client.post(path, json=BODIES[path])
    await client.post(path, json=BODIES[path] | hostile)
    plain, attacked = desk.engine.requests
    assert (plain.prompt_ids, plain.params, plain.user) == (attacked.prompt_ids, attacked.params, attacked.user)
    assert not attacked.embed
    assert attacked.shape is None


FORMS: dict[str, Callable[[Any], Any]] = {
    "/v1/chat/completions": lambda schema: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    },
    "/v1/messages": lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
    "/v1/responses": lambda schema: {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema}}},
}


@pytest.mark.parametrize("path", FORMS)
@pytest.mark.parametrize("schema", [{"const": "a" * 70_000}, {"const": "\ud800"}], ids=["large", "half a character"])
async def test_a_schema_that_no_engine_could_hold_is_refused_by_name(
    client: httpx.AsyncClient, path: str, schema: dict[str, Any]
) -> None:
    body = json.dumps(BODIES[path] | FORMS[path](schema)).encode("ascii")
    answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert "schema" in answer.json()["error"]["message"]
