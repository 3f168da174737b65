"""The pictures of characters and personas over HTTP: WebP of ours, an error where there is none, nothing else."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import httpx
import pytest
from PIL import Image

from modules.settings import Settings
from tests.api_desk import Desk, error_of


@pytest.fixture
async def client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    desk = Desk(settings)
    folder = settings.user_data_dir / "characters"
    folder.mkdir(parents=True)
    (folder / "Plain.yaml").write_text("name: Plain\n")
    (folder / "Broken.yaml").write_text("name: Broken\n")
    (folder / "Broken.png").write_bytes(b"<svg onload='x()'/>")
    async with desk.client() as client:
        yield client
    desk.close()


async def test_a_picture_is_served_as_webp_that_may_be_kept(client: httpx.AsyncClient) -> None:
    answer = await client.get("/pictures/characters/Wren?v=1")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "max-age" in answer.headers["cache-control"]
    assert Image.open(io.BytesIO(answer.content)).width == 384


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/pictures/characters/Plain", 404, "not_found"),
        ("/pictures/characters/Broken", 400, "bad_character"),
        ("/pictures/characters/Nobody", 404, "not_found"),
        ("/pictures/personas/Nobody", 404, "not_found"),
        ("/pictures/characters/..", 404, None),
        ("/pictures/characters/%2e%2e%2fsnug.db", 404, None),
        ("/pictures/characters/con", 400, "bad_name"),
    ],
)
async def test_what_is_no_picture_is_an_error(
    path: str, status: int, code: str | None, client: httpx.AsyncClient
) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    if code is not None:
        assert error_of(answer)["code"] == code
