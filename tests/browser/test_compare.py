"""The Compare tab in a real browser: chosen, foreseen, run, reloaded, stopped, copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import last_reply, send
from tests.browser.test_tabs import open_tab
from tests.fakes import Script, make_model_folder, write_script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]


def column(page: Page, number: int) -> str:
    """The selector of a column."""
    return f".compare-column:nth-child({number})"


def test_two_models_are_compared_a_reload_finds_them_again_and_the_chat_goes_on(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="The sky is blue because of air.", tokens_per_s=25))
    folder = make_model_folder(
        snug.services.settings.model_dir, "other", Script(reply="The sky is grey <b>today</b>.", tokens_per_s=6)
    )
    make_model_folder(snug.services.settings.model_dir, "broken", Script(load_fault="refuse"))
    page = visit(snug)
    open_tab(page, "Compare")
    expect(page.get_by_label("Model of column 1")).to_have_value("tiny")
    expect(page.get_by_label("Precision of column 1").locator("option").first).to_contain_text("As loaded: ")
    expect(page.get_by_label("Precision of column 2").locator("option:checked")).to_contain_text("4-bit")
    page.get_by_label("Model of column 2").select_option("other")
    page.locator("#snug-compare-more").click()
    page.get_by_label("Model of column 3").select_option("broken")
    expect(page.locator("#snug-compare-plan")).to_contain_text("Side by side: all of it fits in memory together")
    expect(page.locator("#snug-compare-plan")).to_contain_text("tiny stays loaded for the chat.")
    page.fill("#snug-compare-prompt", "Why is the sky blue?")
    page.press("#snug-compare-prompt", "Control+Enter")
    expect(page.locator(column(page, 2)).locator(".compare-text")).to_contain_text("The sky")
    page.reload()
    expect(page.locator("#snug-compare-prompt")).to_have_value("Why is the sky blue?")
    expect(page.locator(column(page, 2)).locator(".compare-stage")).to_have_text("Done")
    expect(page.locator(column(page, 3)).locator(".problem")).to_contain_text("Write another script.")
    parted = page.locator(column(page, 2)).locator(".compare-text")
    expect(parted.locator("mark")).to_have_text("grey")
    expect(parted.locator(".parting")).to_contain_text("from here on it differs from column 1")
    expect(parted).to_contain_text("<b>today</b>")
    expect(page.locator(column(page, 1)).locator("mark")).to_have_text("blue")
    facts = page.locator(column(page, 2)).locator(".facts")
    expect(facts).to_contain_text("12 of 29 tokens are the same")
    expect(facts).to_contain_text("forecast")
    expect(page.locator("#snug-compare-go")).to_be_visible()
    with page.expect_download() as saved:
        page.locator("#snug-compare-save").click()
    assert "⟨≠⟩grey" in saved.value.path().read_text(encoding="utf-8")

    write_script(folder, Script(reply="and so on ", endless=True, tokens_per_s=40))
    page.locator("#snug-compare-go").click()
    expect(page.locator(column(page, 2)).locator(".compare-text")).to_contain_text("and so on")
    open_tab(page, "Chat")
    send(page, "Hello?")
    expect(last_reply(page)).to_have_text("The sky is blue because of air.")
    open_tab(page, "Compare")
    page.keyboard.press("Escape")
    expect(page.locator(column(page, 2)).locator(".compare-stage")).to_have_text("Stopped")
    page.get_by_label("Remove column 3").click()
    expect(page.locator(".compare-choice")).to_have_count(2)


def test_it_fits_a_phone(start: Start, visit: OpenPage) -> None:
    page = visit(start(), viewport={"width": 390, "height": 844}, has_touch=True)
    open_tab(page, "Compare")
    expect(page.get_by_label("Precision of column 2")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
