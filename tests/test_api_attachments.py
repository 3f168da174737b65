"""Files that the page sends: read and kept, or refused in words, and never more than the guard lets in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from modules.chat.store import Store
from modules.settings import Settings
from tests.api_desk import Desk
from tests.small_files import docx


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    opened = Store(settings.user_data_dir / "snug.db")
    yield opened
    opened.close()


@pytest.fixture
async def client(settings: Settings, store: Store) -> AsyncIterator[httpx.AsyncClient]:
    desk = Desk(settings, store=store)
    async with desk.client() as client:
        yield client
    desk.close()


async def test_a_file_is_read_and_waits_for_its_message(store: Store, client: httpx.AsyncClient) -> None:
    answer = await client.post("/attachments", params={"name": "C:\\x\\a.docx"}, content=docx("Hello."))
    file = answer.json()
    assert answer.status_code == 200
    assert (file["name"], file["kind"], file["characters"], file["about"]) == ("a.docx", "docx", 6, "Word document")
    assert store.attached.text("", file["id"])[1] == "Hello."
    secret = (await client.post("/attachments?name=a.txt&incognito=true", content=b"hush")).json()
    assert secret["id"].startswith("incognito-")


async def test_what_cannot_be_read_is_told_with_a_remedy(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/attachments?name=a.pdf", content=b"\x00\x01")).json()
    assert answer["problem"]["code"] == "bad_attachment"
    assert answer["problem"]["message"] == "a.pdf holds no text." and answer["problem"]["remedy"]


async def test_other_sites_and_endless_bodies_do_not_get_in(client: httpx.AsyncClient) -> None:
    foreign = await client.post("/attachments?name=a", content=b"x", headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403
    huge = await client.post("/attachments?name=a", content=b"x", headers={"content-length": str(60 * 1024**2)})
    assert huge.status_code == 413
    assert (await client.post("/attachments", content=b"x")).status_code == 400
    assert (await client.get("/attachments?name=a")).status_code == 405


async def test_a_page_that_is_closed_lets_its_unsent_files_go(store: Store, client: httpx.AsyncClient) -> None:
    ids = [(await client.post("/attachments?name=a.txt&incognito=true", content=b"hush")).json()["id"] for _ in "ab"]
    assert (await client.post("/attachments/discard", params={"ids": [*ids, "none such"]})).status_code == 204
    assert store.attached.waiting("", ids) == ()
    assert (await client.post("/attachments/discard", params={"ids": ["x"] * 11})).status_code == 400
