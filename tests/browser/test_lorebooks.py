"""A character's lorebook as people edit it, and the gallery of many characters, in a real browser."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import FilePayload, Page, expect

from modules.characters.character import Character
from modules.messages import Setup
from tests.browser.conftest import OpenPage
from tests.browser.test_accessibility import Looker
from tests.browser.test_characters import prompt_of, talk_to
from tests.browser.test_tabs import open_tab
from tests.fakes import Script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
WORLD = {"entries": {"0": {"uid": 0, "key": ["mill"], "content": "The <b>mill</b> burnt.", "disable": False}}}


def file_of(values: object, name: str = "world.json") -> FilePayload:
    return {"name": name, "mimeType": "application/json", "buffer": json.dumps(values).encode()}


def open_book(page: Page, ident: str) -> None:
    open_tab(page, "Characters")
    page.locator(f'[data-character="{ident}"]').click()
    page.locator("#snug-lorebook").click()
    expect(page.locator(".lore-dialog")).to_be_visible()


def test_a_lorebook_is_written_tried_on_the_open_chat_imported_and_undone(start: Start, visit: OpenPage) -> None:
    snug = start(Script(echo=True))
    page = visit(snug)
    talk_to(page, "Mira")
    page.fill("#snug-input", "Where is the hive?")
    open_book(page, "Mira")
    expect(page.locator(".lore-dialog")).to_contain_text("None yet")
    page.locator("#snug-lore-new").click()
    page.fill("#lore-content", "The hive is in the old oak.")
    page.locator("#snug-lore-save").click()
    expect(page.locator(".lore-edit .problem")).to_contain_text("has no key")
    page.fill("#lore-keys", "hive, honey")
    page.keyboard.press("Escape")
    expect(page.locator(".toast")).to_contain_text("There are changes")  # within reach, though a dialog is open
    page.locator("#snug-lore-save").click()
    row = page.locator(".lore-row")
    expect(row).to_contain_text("In the prompt: “hive” in the last 4 messages.")
    expect(page.locator(".lore-dialog > .panel-help").first).to_contain_text("1 in the next prompt")

    page.locator("#snug-lore-file").set_input_files(file_of(WORLD))
    expect(page.locator(".toast", has_text="added")).to_contain_text("1 entry added.")
    expect(row).to_have_count(2)
    expect(row.nth(1)).to_contain_text("The <b>mill</b> burnt.")
    expect(row.nth(1)).to_contain_text("Not in the prompt: no key in the last 4 messages.")
    page.locator("#snug-lore-file").set_input_files(file_of({"name": "Kim"}, "kim.json"))
    expect(page.locator(".toast.bad")).to_contain_text("holds no lorebook entries")

    row.nth(1).get_by_role("switch").click()
    expect(row.nth(1)).to_contain_text("Not in the prompt: switched off.")
    row.nth(0).locator(".lore-open").click()
    page.locator(".lore-edit summary").click()
    page.fill("#lore-secondary", "oak")
    looker = Looker(page, None)
    looker.look("an entry in its editor")
    assert looker.faults == []
    page.locator("#snug-lore-save").click()
    expect(row.nth(0)).to_contain_text("but none of its secondary keys.")
    row.nth(0).get_by_label("Delete hive, honey").click()
    expect(row).to_have_count(1)
    page.locator(".toast", has_text="is deleted").get_by_text("Undo").click()
    expect(row).to_have_count(2)
    row.nth(0).locator(".lore-open").click()
    page.locator(".lore-edit summary").click()
    page.fill("#lore-secondary", "")
    page.locator("#snug-lore-save").click()

    page.locator(".lore-read summary").click()
    page.fill("#lore-depth", "1")
    page.locator("#lore-depth").blur()
    expect(row.nth(0)).to_contain_text("in the last message")
    page.locator("#snug-lore-close").click()
    expect(page.locator(".lore-dialog")).to_have_count(0)
    open_tab(page, "Chat")
    assert "The hive is in the old oak." in prompt_of(page, "Where is the hive?")
    book = snug.services.library.characters.get("Mira").character_book
    assert book is not None and book.scan_depth == 1 and [entry.enabled for entry in book.entries] == [True, False]


def test_many_characters_are_searched_and_sorted_by_keys(start: Start, visit: OpenPage) -> None:
    snug = start()
    add = snug.services.library.characters.add
    for number in range(8):
        add(
            Character(
                name=f"Person {number}", description=f"Likes number{number}.", tags=("orchard",) if number > 5 else ()
            ),
            None,
        )
    page = visit(snug)
    snug.services.chat.begin("", Setup(manner="chat", character="Person 4"))
    open_tab(page, "Characters")
    names = page.locator(".tile-name")
    expect(names).to_have_count(11)
    page.locator("body").press("/")
    expect(page.locator("#snug-find-character")).to_be_focused()
    page.keyboard.type("NUMBER3")
    expect(names).to_have_text(["Person 3"])
    page.fill("#snug-find-character", "orchard")
    expect(names).to_have_text(["Person 6", "Person 7"])
    page.fill("#snug-find-character", "nobody at all")
    expect(page.locator(".gallery-slot")).to_contain_text("Nobody like that is here.")
    page.fill("#snug-find-character", "person")
    page.select_option("#snug-order", "used")
    expect(names.first).to_have_text("Person 4")
    page.reload()
    open_tab(page, "Characters")
    expect(names.first).to_have_text("Person 4")


def test_a_lorebook_of_a_thousand_entries_is_searched_in_a_phone(start: Start, visit: OpenPage, tmp_path: Path) -> None:
    snug = start()
    page = visit(snug, viewport={"width": 390, "height": 844}, has_touch=True)
    open_book(page, "Wren")
    entries = [{"keys": [f"key{n}"], "content": f"Fact {n}. " + "long " * 40} for n in range(1000)]
    page.locator("#snug-lore-file").set_input_files(file_of({"entries": entries}))
    expect(page.locator(".lore-row")).to_have_count(100)
    expect(page.locator(".lore-dialog > .panel-help").first).to_contain_text("1,000 entries")
    page.locator(".lore-dialog input[type=search]").fill("fact 777.")
    expect(page.locator(".lore-row strong")).to_have_text(["key777"])
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    box = page.locator(".lore-dialog").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390
