"""The page in a language: what the HTML says, the script of words, the chosen language kept in a cookie."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from modules.accounts.person import STATE, THE_ONE
from modules.texts.spoken import CATALOGUE
from modules.ui.page_texts import PageTexts

PAGE = '<!doctype html>\n<html\n\tlang="en"\n><head><script type="module" src="x.js"></script></head></html>'


async def page(_: Request) -> Response:
    return HTMLResponse(PAGE)


async def data(_: Request) -> Response:
    return JSONResponse({"lang": '<html lang="en"'})


class LetIn:
    """The door: it lets in somebody whose name for their conversations would end a script."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[STATE] = replace(THE_ONE, owner="</script>")
        await self.app(scope, receive, send)


@pytest.fixture
def client() -> TestClient:
    app = Starlette(routes=[Route("/", page), Route("/data", data)])
    app.add_middleware(PageTexts, catalogue=CATALOGUE)
    app.add_middleware(LetIn)
    return TestClient(app)


def language_in(html: str) -> dict[str, object]:
    """What the page's script is told."""
    found = re.search(r"window\.snugLanguage = (\{.*?\});", html)
    assert found is not None
    told: dict[str, object] = json.loads(found.group(1))
    return told


def test_an_english_page_asks_for_no_words(client: TestClient) -> None:
    answer = client.get("/")
    assert '<html lang="en" dir="ltr"' in answer.text and "texts/" not in answer.text
    assert language_in(answer.text)["chosen"] == ""
    assert answer.headers["vary"] == "Cookie, Accept-Language"
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_a_page_knows_whose_it_is(client: TestClient) -> None:
    found = re.search(r"<script>window\.snugOwner = (.*?);window", client.get("/").text)
    assert found is not None and found.group(1) == '"\\u003c/script>"'


def test_a_german_page_brings_a_script_that_is_kept_for_good(client: TestClient) -> None:
    answer = client.get("/", headers={"accept-language": "de-CH, en;q=0.5"})
    assert '<html lang="de" dir="ltr"' in answer.text
    assert language_in(answer.text)["offered"] == [{"code": "en", "name": "English"}, {"code": "de", "name": "Deutsch"}]
    source = re.search(r'<script src="(texts/de\.js\?v=\w+)"></script><script type="module"', answer.text)
    assert source is not None
    script = client.get(f"/{source.group(1)}")
    assert (
        script.headers["content-type"].startswith("text/javascript") and "immutable" in script.headers["cache-control"]
    )
    words = json.loads(script.text.removeprefix("window.snugTexts = ").rstrip(";\n"))
    assert words["messages"]["Close"] == "Schließen"
    assert words["messages"]["{count} token"] == ["{count} Token", "{count} Tokens"]
    assert (words["forms"][1], words["forms"][2]) == (0, 1)
    assert "There is no such message." not in words["messages"]  # said by the server alone


def test_the_address_chooses_and_the_cookie_keeps_it(client: TestClient) -> None:
    assert 'lang="ar-XB" dir="rtl"' in client.get("/?language=ar-XB").text
    assert 'lang="ar-XB" dir="rtl"' in client.get("/", headers={"accept-language": "de"}).text
    assert language_in(client.get("/?language=en").text)["chosen"] == "en"
    assert 'lang="en"' in client.get("/", headers={"accept-language": "de"}).text


@pytest.mark.parametrize("asked", ["../../x", "xx", "<script>", "de\r\nx: y", "de.po"])
def test_what_is_no_language_changes_nothing(client: TestClient, asked: str) -> None:
    answer = client.get("/", params={"language": asked})
    assert 'lang="en"' in answer.text and "set-cookie" not in answer.headers and "alert" not in answer.text
    assert client.get("/texts/xx.js").status_code == 404


def test_everything_but_the_page_passes_through(client: TestClient) -> None:
    assert client.get("/data").json() == {"lang": '<html lang="en"'}
    assert client.get("/nothing").status_code == 404
    assert client.post("/").status_code == 405


def test_a_cookie_of_somebody_elses_is_nothing_in_the_page(client: TestClient) -> None:
    answer = client.get("/", headers={"cookie": "snug_language=</script><script>alert(1)</script>"})
    assert "alert" not in answer.text and language_in(answer.text)["chosen"] == ""
