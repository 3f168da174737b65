"""The list of conversations in a real browser: found, sorted, branched, deleted and had back, taken in and out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from modules.chat.indexing import IndexProgress
from modules.chat.trees import Tree, TreeMessage
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import ENDLESS, act, last_reply, replies, send
from tests.fakes import Script
from tests.page_rig import Snug
from tests.test_host import until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]


def row(page: Page, title: str) -> Locator:
    """One line of the list."""
    return page.locator(".conversation", has_text=title)


def choose(page: Page, title: str, action: str) -> None:
    """An entry of a conversation's menu."""
    row(page, title).hover()
    row(page, title).locator(".more").click()
    page.get_by_role("menuitem", name=action, exact=True).click()


def view(page: Page, entry: str) -> None:
    """An entry of the list's own menu."""
    page.click("#snug-view")
    page.get_by_role("menuitem", name=entry).click()


def undo(page: Page) -> None:
    """Take back what was deleted last."""
    page.locator(".toast:not(.leaving)").get_by_role("button", name="Undo").click()


def fill_store(snug: Snug, *titles: str, length: int = 1) -> list[str]:
    """Conversations with a question and an answer, `length` times; their ids."""

    def message(title: str, n: int) -> TreeMessage:
        return TreeMessage(n - 1 if n else None, "assistant" if n % 2 else "user", f"{title} {n}")

    count = 2 * length
    trees = [Tree(title, tuple(message(title, n) for n in range(count)), count - 1, renamed=True) for title in titles]
    return [made.id for made in snug.services.store.shelf.add("", trees)]


def test_a_search_shows_the_place_and_leads_to_the_message(start: Start, visit: OpenPage) -> None:
    snug = start()
    (chat,) = fill_store(snug, "Long talk", length=60)
    fill_store(snug, "Other")
    store = snug.services.store
    early = store.path("", chat)[20]
    other = store.append("", chat, early.parent_id, "assistant", "A hidden **needle** here", op_id="needle").id
    store.set_head("", chat, early.id)
    page = visit(snug)
    page.fill("#snug-search", "NEEDLE")
    expect(page.locator(".conversation")).to_have_count(1)
    expect(page.locator(".snippet")).to_have_text("A hidden **needle** here")
    expect(page.locator(".snippet mark")).to_have_text("needle")
    row(page, "Long talk").locator("a").click()
    found = page.locator(f'.message[data-id="{other}"]')
    expect(found).to_be_in_viewport()
    expect(found).to_have_class(re.compile("found"))
    page.fill("#snug-search", '"talk 33"')
    expect(page.locator(".snippet mark")).to_have_text("talk 33")
    page.locator(".conversation a").click()
    expect(page.locator(".message.found .body")).to_have_text("Long talk 33")
    expect(page.locator(".message.found")).to_be_in_viewport()


def test_a_deleted_conversation_comes_back_by_undo_and_from_the_recently_deleted(start: Start, visit: OpenPage) -> None:
    snug = start()
    (chat,) = fill_store(snug, "Precious")
    page = visit(snug, f"/?c={chat}")
    expect(page.locator(".message")).to_have_count(2)
    choose(page, "Precious", "Delete")
    expect(page.locator(".conversation")).to_have_count(0)
    expect(page.locator(".message")).to_have_count(0)
    undo(page)
    expect(row(page, "Precious")).to_have_count(1)
    expect(page.locator(".message")).to_have_count(2)
    choose(page, "Precious", "Delete")
    expect(page.locator(".conversation")).to_have_count(0)
    view(page, "Recently deleted")
    choose(page, "Precious", "Bring back")
    expect(page.locator(".empty-list")).to_have_text("Nothing was deleted in the last day.")
    view(page, "All chats")
    expect(row(page, "Precious")).to_have_count(1)
    assert len(snug.services.store.path("", chat)) == 2
    choose(page, "Precious", "Delete")
    view(page, "Recently deleted")
    choose(page, "Precious", "Delete for good")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator(".conversation")).to_have_count(0)
    assert snug.services.store.shelf.deleted("") == ()


def test_deleted_messages_come_back_and_the_composer_is_as_before(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="Yes.")))
    for text in ("One", "Two"):
        send(page, text)
        expect(replies(page)).to_have_count(1 if text == "One" else 2)
    act(page, "delete")
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator("#snug-input")).to_have_value("Two")
    undo(page)
    expect(page.locator(".message")).to_have_count(4)
    expect(page.locator("#snug-input")).to_have_value("")
    first = page.locator(".message").nth(1)
    first.hover()
    first.locator('[data-act="cut"]').click()
    expect(page.locator(".message")).to_have_count(1)
    undo(page)
    expect(page.locator(".message")).to_have_count(4)


def test_a_branch_is_a_conversation_of_its_own(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    page = visit(snug)
    for number, text in enumerate(("One", "Two"), start=1):
        send(page, text)
        expect(replies(page)).to_have_count(number)
    before = page.url
    first = page.locator(".message.assistant").first
    first.hover()
    first.locator('[data-act="branch"]').click()
    expect(page.locator(".message")).to_have_count(2)
    expect(page.locator(".conversation.current")).to_contain_text("One (branch)")
    assert page.url != before
    send(page, "Three")
    expect(replies(page)).to_have_count(2)
    page.go_back()
    expect(page.locator(".message.user .body")).to_have_text(["One", "Two"])


def test_folders_and_pins_sort_the_list_and_new_chats_begin_in_the_folder(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Yes."))
    fill_store(snug, "Apples", "Pears", "Plums")
    page = visit(snug)
    expect(page.locator(".conversation")).to_have_count(3)
    choose(page, "Pears", "Move to folder")
    page.get_by_role("menuitem", name="New folder").click()
    page.fill(".dialog-input", "Fruit salad")
    page.press(".dialog-input", "Enter")
    view(page, "Fruit salad")
    expect(page.locator(".conversation")).to_have_text([re.compile("Pears")])
    page.click("#snug-new")
    send(page, "Made here")
    expect(page.locator(".conversation")).to_have_count(2)
    page.reload()
    expect(page.locator(".conversation")).to_have_count(2)
    view(page, "All chats")
    expect(page.locator(".conversation")).to_have_count(4)
    choose(page, "Plums", "Pin")
    expect(page.locator(".conversations h3").first).to_have_text("Pinned")
    expect(page.locator(".conversation").first).to_contain_text("Plums")
    view(page, "Fruit salad")
    view(page, "Remove folder")
    page.get_by_role("button", name="Remove", exact=True).click()
    expect(page.locator("#snug-view")).to_have_text("All chats")
    expect(page.locator(".conversation")).to_have_count(4)
    assert snug.services.store.shelf.folders("") == ()


def test_an_incognito_chat_is_marked_survives_a_reload_and_leaves_no_trace(
    start: Start, visit: OpenPage, tmp_path: Path
) -> None:
    snug = start(Script(reply="Understood, dearconfidant."))
    page = visit(snug)
    page.get_by_label("New incognito chat").click()
    expect(page.locator(".incognito-line")).to_contain_text("memory only")
    page.fill("#snug-input", "myhiddenplan is a draft")
    assert "myhiddenplan" not in page.evaluate("JSON.stringify(localStorage)")
    page.press("#snug-input", "Enter")
    expect(last_reply(page)).to_have_text("Understood, dearconfidant.")
    expect(page).to_have_title("Incognito chat · Snug")
    page.reload()
    expect(last_reply(page)).to_have_text("Understood, dearconfidant.")
    expect(page.locator(".incognito-line")).to_be_visible()
    expect(page.locator(".conversations h3").first).to_have_text("Incognito")
    for file in snug.services.settings.user_data_dir.rglob("*"):
        if file.is_file():
            assert b"myhiddenplan" not in file.read_bytes(), file
            assert b"dearconfidant" not in file.read_bytes(), file
    assert "myhiddenplan" not in page.evaluate("JSON.stringify([localStorage, sessionStorage])")
    elsewhere = visit(snug)
    expect(elsewhere.locator(".empty-list")).to_be_visible()
    page.locator(".incognito-line").get_by_role("button", name="End").click()
    page.locator("dialog").get_by_role("button", name="End").click()
    expect(page.locator(".message")).to_have_count(0)
    expect(page.locator(".incognito-line")).to_have_count(0)
    expect(page.locator(".conversation")).to_have_count(0)


def test_the_arrow_keys_turn_versions_where_no_text_box_has_the_keys(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    send(page, "Hi")
    expect(replies(page)).to_have_count(1)
    act(page, "regenerate")
    expect(page.locator(".versions")).to_have_text("2/2")
    page.fill("#snug-input", "ab")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".versions")).to_have_text("2/2")
    page.keyboard.press("Escape")
    expect(page.locator("#snug-input")).not_to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".versions")).to_have_text("1/2")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".versions")).to_have_text("2/2")
    page.keyboard.type("c")
    expect(page.locator("#snug-input")).to_have_value("acb")


def test_what_is_exported_is_imported_again_as_it_was(start: Start, visit: OpenPage, tmp_path: Path) -> None:
    snug = start()
    (first, _) = fill_store(snug, "Über / apples", "Pears", length=3)
    page = visit(snug)
    with page.expect_download() as one:
        choose(page, "apples", "Export as Markdown")
    assert one.value.suggested_filename == "Über apples.md"
    assert "## You\n\nÜber / apples 0\n" in one.value.path().read_text(encoding="utf-8")
    before = {snug.services.store.shelf.tree("", ident) for ident in snug.services.store.shelf.ids("")}
    with page.expect_download() as all_of_them:
        view(page, "Export all as JSON")
    file = tmp_path / "conversations.json"
    all_of_them.value.save_as(file)
    for ident in snug.services.store.shelf.ids(""):
        snug.services.store.delete("", ident)
    expect(page.locator(".conversation")).to_have_count(0)
    with page.expect_file_chooser() as chooser:
        view(page, "Import")
    chooser.value.set_files(file)
    expect(page.locator(".toast")).to_contain_text("2 conversations imported, with 12 messages")
    expect(page.locator(".conversation")).to_have_count(2)
    assert {snug.services.store.shelf.tree("", ident) for ident in snug.services.store.shelf.ids("")} == before
    assert first not in snug.services.store.shelf.ids("")


def test_a_large_file_is_taken_in_portions_and_what_is_broken_is_named(
    start: Start, visit: OpenPage, tmp_path: Path
) -> None:
    snug = start()
    page = visit(snug)
    items: list[object] = [
        {"conversations": [{"from": "human", "value": f"{n} " + "word " * 2000}, {"from": "gpt", "value": "Yes"}]}
        for n in range(500)
    ]
    items[450] = {"conversations": [{"from": "human", "value": "x" * 11_000_000}]}
    items[400] = {"title": "Odd one", "conversations": [{"value": "who?"}]}
    large, broken = tmp_path / "large.json", tmp_path / "broken.json"
    large.write_text(json.dumps(items))
    broken.write_text('{"internal": [["a", "b"]')
    with page.expect_file_chooser() as chooser:
        view(page, "Import")
    chooser.value.set_files([large, broken])
    dialog = page.locator("dialog")
    expect(dialog).to_contain_text("499 conversations imported, with 997 messages")
    expect(dialog).to_contain_text("large.json, conversation 401 (“Odd one”): Message 1 does not say who speaks.")
    expect(dialog).to_contain_text("broken.json, the file: It is not JSON")
    page.get_by_role("button", name="Done").click()
    assert len(snug.services.store.shelf.ids("")) == 499
    with page.expect_file_chooser() as chooser:
        view(page, "Import")
    chooser.value.set_files(large)
    expect(dialog).to_contain_text("499 were here already, word for word, and were skipped")
    page.get_by_role("button", name="Import anyway").click()
    expect(page.locator(".toast")).to_contain_text("499 conversations imported, with 997 messages")
    assert len(snug.services.store.shelf.ids("")) == 998


def test_ten_thousand_conversations_come_as_the_list_is_scrolled(start: Start, visit: OpenPage) -> None:
    snug = start()
    now = time.time()
    snug.services.store.shelf.add("", (
        Tree(f"Title {n}", (TreeMessage(None, "user", f"word {n}"),), 0, renamed=True, updated_at=now - n * 600)
        for n in range(10_000)
    ))  # fmt: skip
    page = visit(snug)
    expect(page.locator(".conversation").first).to_contain_text("Title 0")
    assert page.locator(".conversation").count() < 500
    for _ in range(3):
        count = page.locator(".conversation").count()
        page.evaluate("document.querySelector('.show-more')?.scrollIntoView()")
        page.wait_for_function("count => document.querySelectorAll('.conversation').length > count", arg=count)
    snug.services.store.rename("", snug.services.store.list("")[150].id, "Renamed elsewhere")
    expect(row(page, "Renamed elsewhere")).to_have_count(1)
    page.fill("#snug-search", "word 9876")
    expect(page.locator(".conversation")).to_have_text([re.compile("Title 9876")])


def test_a_running_reply_keeps_its_conversation_from_being_deleted_and_branched(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    send(page, "Go on")
    expect(last_reply(page)).to_contain_text("and so on")
    choose(page, "Go on", "Delete")
    expect(page.locator(".toast.bad")).to_contain_text("A reply is being written here.")
    expect(row(page, "Go on")).to_have_count(1)
    page.click("#snug-stop")
    until(lambda: snug.services.chat.running("", page.url.split("c=")[1]) is None)
    choose(page, "Go on", "Delete")
    expect(page.locator(".conversation")).to_have_count(0)


def test_an_old_store_says_how_far_its_search_is(
    start: Start, visit: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    snug = start()
    now = time.time()
    snug.services.store.shelf.add(
        "", [Tree("Old", (TreeMessage(None, "user", "an owl", now - 9e6),), 0, updated_at=now)]
    )
    before = [IndexProgress(0.4, 1_700_000_000.0)]
    monkeypatch.setattr(snug.services.store.indexing, "progress", lambda: before[0] if before else None)
    page = visit(snug)
    line = page.locator(".index-line")
    expect(line).to_have_text("The search index is being built: 40 %.")
    page.fill("#snug-search", "owl")
    expect(line).to_contain_text("Messages from before")
    expect(line).to_contain_text("2023 are not found yet.")
    before.clear()
    expect(line).to_be_hidden()
