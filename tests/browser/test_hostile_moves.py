"""What a page has to bear with nothing lost. docs/conversations.md lists ten such moves; these are the rough ones.

The others: a reload in mid-reply, two tabs, a double click, a killed engine, a conversation deleted elsewhere
(test_chat.py), undo (test_conversations.py), two changes on a slow link (test_characters.py).
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, expect

from tests.browser.conftest import WAIT_MS, OpenPage
from tests.browser.test_chat import ENDLESS, grows, last_reply, replies, send
from tests.fakes import Script
from tests.page_rig import Snug
from tests.scripted_server import scripted_server
from tests.server_rig import free_port

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
PASTED = "word " * 2_000_000  # 10 MB
LENGTH = "document.querySelector('#snug-input').value.length"


@pytest.fixture
def plain(browser: Browser) -> Iterator[Page]:
    """A page of its own, which may lose its server and ask before it is left."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    yield page
    context.close()


def paste(page: Page, text: str) -> None:
    """Put a long text into the composer, as a paste does: at once."""
    page.evaluate(
        """text => {
            const box = document.querySelector("#snug-input");
            box.focus();
            box.value = text;
            box.dispatchEvent(new InputEvent("input", { bubbles: true, inputType: "insertFromPaste" }));
        }""",
        text,
    )


def test_a_server_that_is_killed_and_started_again_under_an_open_page(plain: Page, tmp_path: Path) -> None:
    port = free_port()
    page = plain
    with scripted_server(port, tmp_path) as server:
        page.goto(f"http://127.0.0.1:{port}/")
        send(page, "Tell me a story")
        expect(last_reply(page)).to_contain_text("and so on " * 8)  # so much that some of it has been saved
        page.fill("#snug-input", "What I was about to say")
        server.kill()
        server.wait()
        expect(page.locator(".model-pill")).to_have_text("Snug does not answer")
        page.press("#snug-input", "Enter")
        expect(page.locator("#snug-input")).to_have_value("What I was about to say")
    with scripted_server(port, tmp_path):
        expect(page.locator(".model-pill")).to_have_text("tiny")
        expect(page.locator(".message.assistant .body")).to_contain_text("and so on")
        expect(replies(page)).to_have_count(1)
        expect(page.locator("#snug-input")).to_have_value("What I was about to say")
        page.press("#snug-input", "Enter")
        expect(page.locator(".message.user")).to_have_count(2)
        expect(page.locator("#snug-input")).to_have_value("")
        expect(last_reply(page)).to_contain_text("and so on")


def test_a_full_disk_keeps_the_text_in_the_composer_until_there_is_room(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Fine."))
    page = visit(snug)
    send(page, "First")
    expect(replies(page)).to_have_count(1)
    writer: sqlite3.Connection = snug.services.store._database._writer
    pages = writer.execute("PRAGMA page_count").fetchone()[0]
    writer.execute(f"PRAGMA max_page_count = {pages}")
    long = "Second " * 3000
    paste(page, long)
    page.press("#snug-input", "Enter")
    expect(page.locator(".toast").filter(has_text=re.compile("disk.*full", re.S))).to_be_visible()
    expect(page.locator("#snug-input")).to_have_value(long)
    writer.execute("PRAGMA max_page_count = 1000000")
    page.press("#snug-input", "Enter")
    expect(page.locator(".message.user")).to_have_count(2)
    expect(page.locator("#snug-input")).to_have_value("")


def test_ten_pasted_megabytes_are_refused_in_words_and_stay(start: Start, plain: Page) -> None:
    snug = start(Script(reply="Fine."))
    plain.goto(snug.url)
    send(plain, "First")
    expect(replies(plain)).to_have_count(1)
    paste(plain, PASTED)
    plain.press("#snug-input", "Enter")
    expect(plain.locator(".toast")).to_contain_text("10,000,000 characters", timeout=60_000)
    assert plain.evaluate(LENGTH) == len(PASTED)
    plain.locator("#snug-new").click()
    expect(plain.locator("#snug-input")).to_have_value("")
    plain.go_back()
    expect(plain.locator(".message.user")).to_have_count(1)
    assert plain.evaluate(LENGTH) == len(PASTED)
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    plain.on("dialog", stay)
    plain.evaluate("location.reload()")
    expect(plain.locator(".message.user")).to_have_count(1)
    assert asked == ["beforeunload"]
    assert plain.evaluate(LENGTH) == len(PASTED)


def test_back_and_forward_in_mid_reply_find_it_running(start: Start, visit: OpenPage) -> None:
    page = visit(start(ENDLESS))
    send(page, "Go on for ever")
    grows(page)
    page.locator("#snug-new").click()
    expect(page.locator(".message")).to_have_count(0)
    page.go_back()
    grows(page)
    page.go_forward()
    expect(page.locator(".message")).to_have_count(0)
    page.go_back()
    grows(page)
    page.keyboard.press("Escape")
    expect(replies(page)).to_have_count(1)


def test_a_link_that_breaks_in_mid_reply_loses_nothing_of_it(start: Start, plain: Page) -> None:
    snug = start(ENDLESS)
    page = plain
    page.goto(snug.url)
    send(page, "Go on")
    grows(page)
    page.context.set_offline(True)
    expect(page.locator(".model-pill")).to_have_text("Snug does not answer")
    page.context.set_offline(False)
    grows(page)
    page.keyboard.press("Escape")
    expect(replies(page)).to_have_count(1)
    chat = page.url.split("c=")[1]
    assert snug.services.store.path("", chat)[-1].content.strip() == last_reply(page).inner_text().strip()


def test_a_text_of_many_pages_is_folded_and_found(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="Fine.")))
    paste(page, "word " * 6000 + "quixotry")
    page.press("#snug-input", "Enter")
    expect(replies(page)).to_have_count(1)
    question = page.locator(".message.user .body")
    assert len(question.inner_text()) < 6000
    question.get_by_role("button", name="Show all 30,008 characters").click()
    expect(question).to_contain_text("quixotry")
    page.reload()
    expect(question.get_by_role("button")).to_be_visible()
    page.fill("#snug-search", "quixotry")
    expect(page.locator(".snippet mark")).to_have_text("quixotry")
    page.locator(".conversation a").click()
    expect(question).to_contain_text("quixotry")
