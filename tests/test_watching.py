"""Tests of what Snug tells of itself: metrics, numbers of requests, the log."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modules.errors import GenerationFailed
from modules.logs import ACCESS_LOG, JsonLines, TextLines, is_no_parting
from modules.settings import Settings
from tests.api_desk import CHAT, FOX, MODEL, USER, Desk, client, desk, desk_with
from tests.fakes import Script

__all__ = ["client", "desk"]

SECRET = "what nobody may read"


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of /metrics, as Prometheus' own parser reads it."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def total(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    return sum(
        value for (own, theirs), value in found.items() if own == name and labels.items() <= dict(theirs).items()
    )


async def test_what_happened_is_in_the_metrics(client: httpx.AsyncClient, desk: Desk) -> None:
    await client.post("/v1/chat/completions", json=CHAT)
    await client.post("/v1/messages", json={"messages": USER, "max_tokens": 5})
    await client.post("/v1/chat/completions", json={})
    await client.get("/v1/models/some/made-up/name")
    await client.get("/v1/made-up-route")
    await client.get("/made-up-page")
    await client.get("/v1/models", headers={"Host": "evil.example"})
    found = await samples(client)
    requests = desk.engine.requests
    assert total(found, "snug_http_requests_total", route="/v1/chat/completions", status="200", method="POST") == 1
    assert total(found, "snug_http_requests_total", route="/v1/chat/completions", status="400") == 1
    assert total(found, "snug_http_requests_total", route="/v1/models/{name:path}", status="404") == 1
    assert total(found, "snug_http_requests_total", route="(unknown)", status="404") == 1
    assert total(found, "snug_http_requests_total", route="/v1/models", status="421") == 1
    assert total(found, "snug_http_request_seconds_count", route="/v1/messages") == 1
    assert total(found, "snug_http_requests_open") == 1, "this one"
    assert total(found, "snug_replies_total", reason="stop") == 1
    assert total(found, "snug_replies_total", reason="length") == 1
    assert total(found, "snug_prompt_tokens_total") == sum(len(request.prompt_ids) for request in requests)
    assert total(found, "snug_reply_tokens_total") == len(FOX) + 5
    assert total(found, "snug_first_token_seconds_count") == 2
    assert total(found, "snug_between_tokens_seconds_count") >= len(FOX) // 2
    assert total(found, "snug_loads_total", result="ok") == 1
    assert total(found, "snug_ready") == 1
    assert total(found, "snug_model_info", model=MODEL) == 1
    for kind in ("measured", "forecast"):
        assert total(found, "snug_memory_bytes", device="cpu", kind=kind) > 0
    assert not any("made-up" in value for _, labels in found for _, value in labels)


async def test_failures_are_counted_by_what_they_were(settings: Settings) -> None:
    with desk_with(settings, Script(fault="raise", fault_at=2)) as desk:
        async with desk.client() as client:
            await client.post("/v1/chat/completions", json=CHAT)
            desk.script = Script(load_fault="refuse")
            await client.post("/v1/internal/model/load", json={"model": MODEL})
            desk.models.unload()
            found = await samples(client)
    assert total(found, "snug_replies_total", reason="error") == 1
    assert total(found, "snug_loads_total", result="load_failed") == 1
    assert total(found, "snug_ready") == 0


async def test_openmetrics_is_spoken_to_who_asks_for_it(client: httpx.AsyncClient) -> None:
    response = await client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("my-id_1.2:3", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("two words", False),
        ('"><script>', False),
        ("ä", False),
    ],
)
async def test_a_request_keeps_its_number_if_that_is_plain(client: httpx.AsyncClient, given: str, kept: bool) -> None:
    response = await client.get("/v1/models", headers=[(b"X-Request-Id", given.encode())])
    told = response.headers["x-request-id"]
    assert (told == given) == kept
    assert kept or told.startswith("req_")


async def test_every_answer_has_a_number_and_anthropics_in_its_errors_too(client: httpx.AsyncClient) -> None:
    refused = await client.post("/v1/messages", json={}, headers={"X-Request-Id": "r-7"})
    assert refused.json()["request_id"] == refused.headers["request-id"] == "r-7"
    unknown, host = await client.get("/nowhere"), await client.get("/", headers={"Host": "evil.example"})
    assert unknown.headers["x-request-id"] != host.headers["x-request-id"]


@pytest.fixture
def json_log() -> Iterator[io.StringIO]:
    """What the log of requests says as JSON, while it is told."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger(ACCESS_LOG)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield written
    logger.removeHandler(handler)
    logger.setLevel(before)


async def test_the_log_tells_of_requests_and_never_what_they_said(
    client: httpx.AsyncClient, json_log: io.StringIO
) -> None:
    chat = {"messages": [{"role": "user", "content": SECRET}], "model": SECRET}
    await client.post("/v1/chat/completions", json=chat, headers={"X-Request-Id": "r-1", "x-api-key": SECRET})
    await client.post(f"/v1/{SECRET}", json={"messages": SECRET})
    await client.get(f"/v1/models/{SECRET}?token={SECRET}")
    text = json_log.getvalue()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["status"] for line in lines] == [200, 404, 404]
    assert {name: lines[0][name] for name in ("level", "request_id", "route", "method")} == {
        "level": "info", "request_id": "r-1", "route": "/v1/chat/completions", "method": "POST",
    }  # fmt: skip
    assert lines[0]["message"].startswith("POST /v1/chat/completions 200 ")
    assert 0 <= lines[0]["first_byte_s"] <= lines[0]["seconds"]
    assert SECRET not in text
    assert FOX not in text


def test_what_a_log_holds_gives_a_terminal_no_orders() -> None:
    told = "bad token '\x1b]0;title\x07\x9b2J'\r\tof\nm\u00fcde"
    record = logging.LogRecord("snug", logging.WARNING, "", 1, "%s", (told,), None)
    expected = "bad token '\\x1b]0;title\\x07\\x9b2J'\\x0d\tof\nm\u00fcde"
    assert TextLines("%(message)s").format(record) == expected


def test_a_line_of_the_log_holds_neither_folders_nor_what_an_exception_says() -> None:
    try:
        raise GenerationFailed(SECRET)
    except GenerationFailed:
        record = logging.LogRecord(
            "snug", logging.ERROR, "x.py", 1, "cannot read %s", ("/home/anna/models/x.gguf",), sys.exc_info()
        )
    text = JsonLines().format(record)
    line = json.loads(text)
    assert line["message"] == "cannot read …/x.gguf"
    assert line["exception"] == "GenerationFailed"
    assert line["where"][-1].startswith("test_watching.py:")
    assert SECRET not in text
    assert "anna" not in text
    assert "\n" not in text


def test_pages_that_are_open_as_the_server_ends_are_no_errors_in_the_log() -> None:
    def record(message: str, error: BaseException | None = None) -> logging.LogRecord:
        told = (type(error), error, None) if error else None
        return logging.LogRecord("uvicorn.error", logging.ERROR, "", 0, message, (), told)

    cancelled = asyncio.CancelledError("Task cancelled, timeout graceful shutdown exceeded")
    assert not is_no_parting(record("Exception in ASGI application\n", cancelled))
    assert not is_no_parting(record("Cancel 3 running task(s), timeout graceful shutdown exceeded"))
    assert is_no_parting(record("Exception in ASGI application\n", ValueError("timeout")))
    assert is_no_parting(record("another"))
