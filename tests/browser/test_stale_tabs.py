"""A tab older than the server, many tabs, a menu over a list that changes, a conversation longer than a page."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import act, last_reply, replies, send
from tests.browser.test_conversations import choose, row, undo
from tests.browser.test_hostile_moves import plain
from tests.fakes import Script
from tests.page_rig import Snug
from tests.scripted_server import scripted_server
from tests.server_rig import free_port
from tests.test_long_conversations import long_tree

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
__all__ = ["plain"]


def test_all_that_is_done_in_a_tab_older_than_the_server_is_done_and_nothing_is_lost(
    plain: Page, tmp_path: Path
) -> None:
    port, page, script = free_port(), plain, Script(reply="Fine, and this is the rest of it.")
    with scripted_server(port, tmp_path, script) as server:
        page.goto(f"http://127.0.0.1:{port}/")
        for number in range(3):
            send(page, f"Question {number}")
            expect(replies(page)).to_have_count(number + 1)
        server.kill()
        server.wait()
        expect(page.locator(".model-pill")).to_have_text("Snug does not answer")
    with scripted_server(port, tmp_path, script):
        expect(page.locator(".model-pill")).to_have_text("tiny")
        act(page, "regenerate")
        expect(page.locator(".versions")).to_have_text("2/2")
        first = page.locator(".message.user").first
        first.hover()
        first.locator('[data-act="edit"]').click()
        page.fill(".edit-area", "Question 0, edited")
        page.get_by_role("button", name="Save").click()
        expect(first.locator(".body")).to_have_text("Question 0, edited")
        act(page, "delete")
        expect(page.locator(".message")).to_have_count(4)
        expect(page.locator("#snug-input")).to_have_value("Question 2")
        undo(page)
        expect(page.locator(".message")).to_have_count(6)
        choose(page, "Question 0", "Rename")
        page.fill(".rename", "Renamed")
        page.press(".rename", "Enter")
        expect(row(page, "Renamed")).to_have_count(1)
        page.get_by_role("tab", name="Parameters").click()
        page.locator("#param-max_new_tokens input[type=number]").fill("4")
        page.locator("#param-max_new_tokens input[type=number]").press("Tab")
        page.get_by_role("tab", name="Chat").click()
        send(page, "Question 3")
        expect(last_reply(page)).to_have_text("Fine")
        expect(replies(page)).to_have_count(4)
        act(page, "continue")
        expect(last_reply(page)).to_have_text("Fine, an")
        page.reload()
        expect(page.locator(".message.user .body")).to_have_text(
            ["Question 0, edited", "Question 1", "Question 2", "Question 3"]
        )
        expect(last_reply(page)).to_have_text("Fine, an")


def test_what_an_open_menu_deletes_is_the_conversation_that_it_was_opened_for(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    store = snug.services.store
    ids = {}
    for name in ("Apples", "Pears", "Plums"):
        ids[name] = store.shelf.add("", [long_tree(2)])[0].id
        store.rename("", ids[name], name)
    page = visit(snug, f"/?c={ids['Apples']}")
    expect(page.locator(".message")).to_have_count(2)
    row(page, "Pears").hover()
    row(page, "Pears").locator(".more").click()
    entry = page.get_by_role("menuitem", name="Delete", exact=True)
    expect(entry).to_be_visible()
    page.evaluate(f"snug.openConversation('{ids['Plums']}')")  # as the back button does, below the menu
    expect(page.locator(".conversation.current")).to_contain_text("Plums")
    store.rename("", ids["Apples"], "Apples moved up")
    entry.click()
    expect(row(page, "Pears")).to_have_count(0)
    assert {chat.title for chat in store.list("")} == {"Apples moved up", "Plums"}
    expect(page.locator(".message")).to_have_count(2)


def test_a_conversation_of_many_messages_opens_at_its_end_and_shows_the_rest_on_the_way_up(
    start: Start, visit: OpenPage
) -> None:
    snug = start(Script(reply="Quick."))
    store = snug.services.store
    (chat,) = store.shelf.add("", [long_tree(700)])
    page = visit(snug, f"/?c={chat.id}")
    expect(page.locator(".message")).to_have_count(60)
    expect(page.locator(".message").last).to_be_in_viewport()
    earlier, later = page.locator("#snug-earlier"), page.locator("#snug-later")
    expect(earlier).to_have_text("Show 100 of 640 earlier messages")
    send(page, "One more")
    expect(page.locator(".message")).to_have_count(62)
    expect(last_reply(page)).to_have_text("Quick.")
    top = page.locator(".message .body", has_text=re.compile("^640 "))
    page.evaluate("document.querySelector('#snug-scroller').scrollTo({ top: 0, behavior: 'instant' })")
    expect(page.locator(".message")).to_have_count(162)
    expect(top).to_be_in_viewport()  # what was being read stays where it is
    send(page, "And another")
    expect(page.locator(".message")).to_have_count(164)
    expect(page.locator(".message").last).to_be_in_viewport()
    early = store.path("", chat.id)[5].id
    store.edit("", early, "a needle in the beginning")
    page.fill("#snug-search", "needle")
    expect(page.locator(".snippet mark")).to_have_text("needle")
    page.locator(".conversation a").click()
    found = page.locator(f'.message[data-id="{early}"]')
    expect(found.locator(".body")).to_have_text("a needle in the beginning")
    expect(found).to_be_in_viewport()
    expect(earlier).to_be_hidden()
    expect(page.locator(".message")).to_have_count(36)  # what is near, not all that follows
    expect(later).to_have_text("Show 100 of 668 later messages")
    expect(page.locator('.message [data-act="delete"]')).to_have_count(0)  # the last exchange is not on show
    lowest = page.locator(".message").nth(35)
    later.click()
    expect(page.locator(".message")).to_have_count(136)
    expect(lowest).to_be_in_viewport()
    page.locator(".jump").click()
    expect(last_reply(page)).to_be_in_viewport()
    expect(later).to_be_hidden()
    expect(page.locator(".message")).to_have_count(60)


def test_what_is_sent_far_above_the_end_goes_to_the_end(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Quick."))
    store = snug.services.store
    (chat,) = store.shelf.add("", [long_tree(300)])
    early = store.path("", chat.id)[20]
    page = visit(snug)
    page.evaluate(f"snug.openConversation('{chat.id}', {{ message: '{early.id}' }})")
    expect(page.locator(f'.message[data-id="{early.id}"]')).to_be_in_viewport()
    page.keyboard.press("Control+Shift+Backspace")  # deletes the last exchange, where that is on show
    page.locator(f'.message[data-id="{early.id}"]').hover()
    send(page, "At the end")
    expect(last_reply(page)).to_have_text("Quick.")
    expect(last_reply(page)).to_be_in_viewport()
    path = store.path("", chat.id)
    assert [len(path), path[-2].content] == [302, "At the end"]


@pytest.mark.slow
def test_twenty_tabs_that_stream_at_once_each_show_their_whole_reply(start: Start, visit: OpenPage) -> None:
    text = "word " * 60
    snug = start(Script(reply=text, tokens_per_s=60))
    pages = [visit(snug) for _ in range(20)]
    for number, page in enumerate(pages):
        send(page, f"Question {number}")
    for page in pages:
        expect(last_reply(page)).to_have_text(text.strip(), timeout=120_000)
        expect(replies(page)).to_have_count(1)
    assert len(snug.services.store.list("")) == 20
