"""The keyboard in a real browser: every key of the list does what the list says, and none disturbs who types."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import replies, send
from tests.fakes import Script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
DOCS = Path(__file__).parent.parent.parent / "docs" / "keyboard.md"


def test_a_question_mark_shows_the_keys_that_are_documented_unless_one_types(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    page.focus("#snug-input")
    page.keyboard.type("Why? ")
    expect(page.locator("#snug-input")).to_have_value("Why? ")
    expect(page.locator("#snug-keys")).to_have_count(0)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    dialog = page.locator("#snug-keys")
    expect(dialog.get_by_role("heading", name="Keyboard")).to_be_visible()
    rows = dialog.locator("dl").evaluate_all(
        "lists => lists.flatMap(list => [...list.children]).map(cell => [...cell.querySelectorAll('.chord')]"
        ".map(chord => [...chord.children].map(key => key.textContent).join('+')).join(', ') || cell.textContent)"
    )
    table = "\n".join(f"| {keys} | {does} |" for keys, does in zip(rows[::2], rows[1::2], strict=True))
    documented = [line for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    documented = [line for line in documented if not line.startswith(("| key", "| ---"))]
    assert "\n".join(documented) == table, table
    page.keyboard.press("?")
    expect(dialog).to_have_count(0)
    page.get_by_label("Keyboard (?)").click()
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Keyboard (?)"


def test_the_page_is_led_by_keys_alone(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Here you are."))
    page = visit(snug)
    tabs = page.locator('#snug-tabs > .tab-wrapper [role="tab"]')
    names = tabs.all_inner_texts()
    for number in (3, 1):
        page.keyboard.press(f"Alt+Shift+Digit{number}")
        expect(page.get_by_role("tab", name=names[number - 1])).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Control+,")
    expect(page.get_by_role("tab", name="Parameters")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Alt+Shift+Digit1")
    page.keyboard.press("Control+b")
    expect(page.locator("#snug-sidebar")).not_to_be_visible()
    page.keyboard.press("Control+k")
    expect(page.locator("#snug-search")).to_be_focused()
    page.locator("#snug-model").focus()
    page.keyboard.type("Hello")
    expect(page.locator("#snug-input")).to_have_value("Hello")
    page.keyboard.press("Control+Enter")
    expect(replies(page)).to_have_count(1)
    expect(page.locator("#snug-input")).to_have_value("")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".versions")).to_contain_text("2/2")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".versions")).to_contain_text("1/2")
    before = page.locator(".stats").inner_text()
    page.keyboard.press("Alt+Enter")
    page.wait_for_function(
        "before => document.querySelector('.stats')?.innerText !== before && !snug.chatView().running", arg=before
    )
    expect(replies(page)).to_have_count(1)
    page.focus("#snug-input")
    page.keyboard.press("ArrowUp")
    area = page.locator(".message.user .edit-area")
    expect(area).to_be_focused()
    area.fill("Hello there")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".message.user .body")).to_have_text("Hello there")
    expect(replies(page)).to_have_count(1)
    page.focus("#snug-input")
    page.keyboard.press("Control+Shift+M")
    expect(page.locator("#snug-input")).to_have_value("Here you are.")
    page.keyboard.press("Control+Shift+Backspace")
    expect(replies(page)).to_have_count(1)
    page.fill("#snug-input", "")
    page.keyboard.press("Control+Shift+Backspace")
    expect(replies(page)).to_have_count(0)
    expect(page.locator("#snug-input")).to_have_value("Hello there")
    page.fill("#snug-input", "")
    page.keyboard.press("Control+Shift+O")
    send(page, "Again")
    expect(replies(page)).to_have_count(1)
    assert len(snug.services.store.list("")) == 2
    expect(page.locator(".stats")).to_have_text(re.compile("tok/s"))
