"""Pictures through OpenAI's API: as data: addresses, to models that see, and never from other machines."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL.PngImagePlugin import PngInfo

from modules.chat.store import Store
from modules.settings import Settings
from tests.api_desk import Desk, client, desk_with, error_of, sdk
from tests.fakes import CONTROL_IDS, IMAGE_TOKEN, Script
from tests.test_pictures import bomb, halves, saved

__all__ = ["client"]

SECRET = PngInfo()
SECRET.add_text("Author", "where I live")
PNG = saved(halves(), "PNG", pnginfo=SECRET)
SEEING = Script(sees=True, reply="A picture.")


def url(data: bytes = PNG, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def asked(*urls: Any, text: str = "What is it?", role: str = "user") -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": one}} for one in urls]
    said = [{"role": role, "content": [{"type": "text", "text": text}, *parts]}]
    return {"messages": said if role == "user" else [*said, {"role": "user", "content": "Go on."}]}


@pytest.fixture
def desk(settings: Settings) -> Iterator[Desk]:
    with desk_with(settings, SEEING) as desk:
        yield desk


async def test_a_picture_reaches_the_model_drawn_anew_and_its_tokens_are_counted(
    desk: Desk, client: httpx.AsyncClient
) -> None:
    answer = await client.post("/v1/chat/completions", json=asked(url(), url(saved(halves(), "JPEG"), "image/jpeg")))
    assert answer.status_code == 200, answer.text
    taken = desk.engine.requests[-1]
    assert [(one.width, one.height, one.media_type) for one in taken.pictures] == [
        (400, 200, "image/png"), (400, 200, "image/jpeg"),
    ]  # fmt: skip
    assert taken.prompt_ids.count(CONTROL_IDS[IMAGE_TOKEN]) == 2 * 13 * 7
    assert b"where I live" in PNG and b"where I live" not in taken.pictures[0].data
    assert answer.json()["usage"]["prompt_tokens"] == len(taken.prompt_ids)
    assert (await client.get("/v1/models")).json()["data"][0]["sees"] is True


async def test_the_same_history_sent_again_holds_the_same_bytes(desk: Desk, client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await client.post("/v1/chat/completions", json=asked(url()))
    first, second = desk.engine.requests[-2:]
    assert first.pictures == second.pictures and first.prompt_ids == second.prompt_ids


ELSEWHERE = ("https://example.org/a.png", "http://169.254.169.254/latest", "file:///etc/passwd", "//example.org/a.png",
             "data:text/html;base64,PGI+")  # fmt: skip


async def test_nothing_is_fetched_from_anywhere(desk: Desk, client: httpx.AsyncClient) -> None:
    for address in ELSEWHERE:
        answer = await client.post("/v1/chat/completions", json=asked(address))
        assert answer.status_code == 400, address
        error = error_of(answer)
        assert "fetches nothing" in error["message"] and "data:image/png;base64" in error["message"]
        assert error["param"] == "messages[0].content"
    assert desk.engine.requests == []


async def test_bad_pictures_are_refused_before_any_token(desk: Desk, client: httpx.AsyncClient) -> None:
    tiny = url(saved(halves(8, 8), "PNG"))
    for body, said in (
        (asked("data:image/png;base64,%%%"), "no base64"),
        (asked(url(b"plain text")), "holds text"),
        (asked(url(bomb(60_000, 60_000))), "pixels"),
        (asked(url(b"\x89PNG\r\n\x1a\n")), "damaged"),
        (asked(None), "image_url"),
        (asked(url(), role="assistant"), "only the user's messages"),
        (asked(*[tiny] * 17), "more than 16"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "every part"),
    ):
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and said in error_of(answer)["message"], answer.text
    assert desk.engine.requests == []


async def test_a_field_called_pictures_is_nobody_elses(desk: Desk, client: httpx.AsyncClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hello", "pictures": ["aGk="]}]}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    assert desk.engine.requests[-1].pictures == ()


async def test_a_model_that_reads_text_says_which_models_see(settings: Settings) -> None:
    with desk_with(settings, Script()) as desk:
        async with desk.client() as client:
            answer = await client.post("/v1/chat/completions", json=asked(url()))
            assert (await client.get("/v1/models")).json()["data"][0]["sees"] is False
    assert answer.status_code == 409 or answer.status_code == 400, answer.text
    assert "cannot see" in error_of(answer)["message"] and "Qwen2.5-VL" in error_of(answer)["message"]


def test_openais_own_client_sends_pictures(desk: Desk) -> None:
    with sdk(desk) as client:
        reply = client.chat.completions.create(model="x", messages=asked(url())["messages"])
    assert reply.choices[0].message.content == SEEING.reply


async def test_a_kept_picture_can_be_looked_at_and_an_incognito_one_is_not_cached(settings: Settings) -> None:
    store = Store(settings.user_data_dir / "snug.db")
    desk = Desk(settings, store=store)
    try:
        async with desk.client() as client:
            file = (await client.post("/attachments?name=a.png", content=PNG)).json()
            assert (file["kind"], file["width"], file["height"], file["about"]) == (
                "picture",
                400,
                200,
                "picture, 400 × 200",
            )
            shown = await client.get(f"/attachments/{file['id']}/picture")
            assert shown.headers["content-type"] == "image/png" and shown.content.startswith(b"\x89PNG")
            secret = (await client.post("/attachments?name=a.png&incognito=true", content=PNG)).json()
            hidden = await client.get(f"/attachments/{secret['id']}/picture")
            assert hidden.headers["cache-control"] == "no-store"
            assert (await client.get("/attachments/nothing/picture")).status_code == 404
            text = (await client.post("/attachments?name=a.txt", content=b"hello")).json()
            assert (await client.get(f"/attachments/{text['id']}/picture")).status_code == 404
    finally:
        desk.close()
        store.close()
