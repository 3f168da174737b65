"""The Notebook tab in a real browser: nothing written is lost, and every token tells its probability."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.fakes import Script
from tests.page_rig import Snug
from tests.test_host import until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
ENDLESS = Script(reply="and so on ", endless=True, tokens_per_s=40)


def open_notebook(page: Page) -> Locator:
    """Go to the notebook; returns its text area once the text has arrived."""
    page.get_by_role("tab", name="Notebook").click()
    area = page.locator("#snug-notebook")
    expect(area).to_be_editable()
    return area


def kept(snug: Snug) -> str:
    """The text that the server has."""
    return snug.services.store.notebooks.text("")


def test_nothing_that_was_written_is_lost(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply=" a fox."))
    page = visit(snug)
    area = open_notebook(page)
    area.fill("Once")
    expect(page.locator("#snug-token-count")).to_contain_text("4 of")
    page.keyboard.press("Control+Enter")
    expect(area).to_have_value("Once a fox.")
    expect(page.locator("#snug-token-count")).to_contain_text("11 of")
    page.click("#snug-again")
    expect(page.locator("#snug-versions")).to_contain_text("2/2")
    area.press("End")
    area.press_sequentially(" Then")
    page.keyboard.press("Control+z")  # before it was saved, even
    expect(area).to_have_value("Once a fox.")
    page.keyboard.press("Control+z")
    expect(area).to_have_value("Once")
    page.reload()
    area = open_notebook(page)
    expect(area).to_have_value("Once")
    page.click("#snug-redo")
    page.click("#snug-redo")
    expect(area).to_have_value("Once a fox. Then")
    page.click("#snug-undo")
    page.get_by_role("button", name="Earlier version").click()
    expect(page.locator("#snug-versions")).to_contain_text("1/2")
    page.click("#snug-insert")
    area.evaluate("area => area.setSelectionRange(4, 6)")
    area.press("Shift")  # tells the page that the caret moved
    expect(page.locator(".note-stats")).to_contain_text("Replaces what is selected; this model reads only")
    page.click("#snug-generate")
    expect(area).to_have_value("Once a fox. fox.")
    page.click("#snug-undo")
    expect(area).to_have_value("Once a fox.")
    until(lambda: kept(snug) == "Once a fox.")


def test_each_token_shows_its_probability_and_what_could_stand_there(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply=" né."))
    page = visit(snug)
    open_notebook(page).fill("Once")
    page.click("#snug-generate")
    page.click("#snug-token-view")
    tokens = page.locator("#snug-tokens .tok")
    expect(tokens).to_have_count(5)
    expect(page.locator("#snug-tokens")).to_contain_text("Once")
    expect(page.locator(".token-legend")).to_contain_text("less than 5 %")
    assert tokens.evaluate_all("all => all.map(one => [one.textContent, one.title])") == [
        [" ", "90 %"], ["n", "90 %"], ["½", "Part of a character, 90 %"], ["é", "90 %"], [".", "90 %"],
    ]  # fmt: skip
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    panel = page.get_by_role("dialog")
    expect(panel.locator(".token-choice")).to_have_count(10)
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(tokens.nth(1)).to_be_focused()
    tokens.nth(1).click()
    panel.get_by_role("button", name="b, 33 %").click()
    expect(page.locator("#snug-tokens")).to_have_text("Once b n½é.")
    expect(tokens).to_have_count(7)
    tokens.nth(1).click()  # the one just chosen has its alternatives too
    expect(panel.get_by_role("button", name="as it stands")).to_have_count(1)
    page.keyboard.press("Escape")
    page.reload()
    page.get_by_role("tab", name="Notebook").click()
    expect(tokens).to_have_count(7)
    page.click("#snug-undo")
    expect(page.locator("#snug-tokens")).to_have_text("Once n½é.")
    page.click("#snug-token-view")
    expect(page.locator("#snug-notebook")).to_have_value("Once né.")
    page.locator("#snug-notebook").fill("Ounce né.")
    page.click("#snug-token-view")
    expect(tokens).to_have_count(5)
    page.click("#snug-token-view")
    page.locator("#snug-notebook").fill("Ounce né!")
    page.click("#snug-token-view")
    expect(tokens).to_have_count(4)
    until(lambda: kept(snug) == "Ounce né!")


def test_a_token_of_a_running_completion_is_left_for_another_one(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    open_notebook(page).fill("Once ")
    page.click("#snug-token-view")
    page.keyboard.press("Control+Enter")
    page.click("#snug-generate")
    tokens = page.locator("#snug-tokens .tok")
    expect(tokens.nth(12)).to_be_visible()
    page.reload()
    page.get_by_role("tab", name="Notebook").click()
    expect(tokens.nth(20)).to_be_visible()
    tokens.nth(2).click()
    page.get_by_role("dialog").get_by_role("button", name="c, 12 %").click()
    expect(page.locator("#snug-tokens")).to_have_text(re.compile(r"^Once ancand so on and"))
    page.keyboard.press("Escape")
    expect(page.locator("#snug-generate")).to_be_visible()
    text = kept(snug)
    page.click("#snug-undo")
    expect(page.locator("#snug-tokens")).to_have_text(re.compile(r"^Once and so on "))
    page.click("#snug-redo")
    until(lambda: kept(snug) == text)


def test_two_thousand_tokens_do_not_make_the_page_slow(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="word " * 400))
    page = visit(snug)
    page.evaluate("localStorage.setItem('snug.notebook-tokens', 'true')")
    page.reload()
    page.get_by_role("tab", name="Parameters").click()
    page.locator("#param-max_new_tokens input[type=number]").fill("4000")
    page.locator("#param-max_new_tokens input[type=number]").press("Tab")
    page.get_by_role("tab", name="Notebook").click()
    page.click("#snug-token-view")
    open_notebook(page).fill("Once ")
    page.click("#snug-token-view")
    page.click("#snug-generate")
    expect(page.locator("#snug-tokens .tok")).to_have_count(2000)
    expect(page.locator("#snug-generate")).to_be_visible()
    spent = page.evaluate(
        """() => {
            const view = snug.tokenView({ look: null, choose: null });
            document.querySelector('.notebook').append(view.page);
            view.page.hidden = false;
            const pieces = [...Array(2000)].map((_, n) => [` w${n}`, n / 2000]);
            view.show([{ run: 1, first: 0, pieces }]);
            view.begin(pieces.map((piece) => piece[0]).join(""), "");
            const first = view.page.querySelector('.tok'), looks = [];
            for (let n = 0; n < 100; n++) {
                const before = performance.now();
                view.write([[" x", 0.5]], n);
                view.page.scrollHeight;
                looks.push(performance.now() - before);
            }
            const same = first.isConnected;
            view.page.remove();
            return { took: looks.sort((a, b) => a - b)[50], same };
        }"""
    )
    assert spent["same"]  # what is on show is never drawn anew
    assert spent["took"] < 20  # milliseconds: the median look, layout included, takes one


def test_the_reply_in_the_notebook_goes_on_after_a_reload(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS)
    page = visit(snug)
    open_notebook(page).fill("Once upon a time ")
    page.click("#snug-generate")
    expect(page.locator("#snug-notebook")).to_have_value(re.compile("Once upon a time and so on and so on"))
    page.reload()
    page.get_by_role("tab", name="Notebook").click()
    expect(page.locator("#snug-notebook-stop")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#snug-generate")).to_be_visible()
    text = page.locator("#snug-notebook").input_value()
    until(lambda: kept(snug) == text)


def test_notebook_text_that_was_just_written_outlives_a_reload(start: Start, visit: OpenPage) -> None:
    snug = start()
    page = visit(snug)
    open_notebook(page).fill("Old")
    until(lambda: kept(snug) == "Old")
    page.route("**/component_server/", lambda route: route.abort())
    page.locator("#snug-notebook").fill("New")
    page.unroute("**/component_server/")
    page.reload()
    expect(open_notebook(page)).to_have_value("New")
    until(lambda: kept(snug) == "New")


@pytest.mark.parametrize("choice", ["theirs", "mine"])
def test_a_notebook_changed_in_two_tabs_asks_which_text_counts(start: Start, visit: OpenPage, choice: str) -> None:
    snug = start()
    page = visit(snug)
    area = open_notebook(page)
    snug.services.store.notebooks.save("", "Theirs")
    area.fill("Mine")
    expect(page.locator(".notebook-choice")).to_contain_text("changed in another tab")
    assert kept(snug) == "Theirs"
    page.locator("#snug-use-theirs" if choice == "theirs" else "#snug-keep-mine").click()
    expect(page.locator(".notebook-choice")).to_be_hidden()
    expect(area).to_have_value("Theirs" if choice == "theirs" else "Mine")
    if choice == "theirs":
        page.click("#snug-undo")
    expect(area).to_have_value("Mine")
    until(lambda: kept(snug) == "Mine")


def test_a_completion_does_not_start_below_a_text_that_another_tab_changed(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="a fox."))
    page = visit(snug)
    area = open_notebook(page)
    area.fill("Mine ")
    until(lambda: kept(snug) == "Mine ")
    snug.services.store.notebooks.save("", "Theirs ")
    page.click("#snug-generate")
    expect(area).to_have_value("Theirs ")  # mine is a step of the history
    expect(page.locator(".toast")).to_contain_text("changed in another tab")
    page.click("#snug-generate")
    expect(area).to_have_value("Theirs a fox.")
    page.click("#snug-undo")
    page.click("#snug-undo")
    expect(area).to_have_value("Mine ")


def test_an_engine_that_dies_below_the_notebook_is_told_once(start: Start, visit: OpenPage) -> None:
    snug = start(ENDLESS, processes=True)
    page = visit(snug)
    open_notebook(page).fill("Once ")
    page.click("#snug-generate")
    expect(page.locator("#snug-notebook")).to_have_value(re.compile("and so on"))
    pid = snug.services.models.engine().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(page.locator("#snug-generate")).to_be_visible()
    expect(page.locator("#snug-model")).to_have_class(re.compile("died"))
    assert page.locator(".toast.bad").count() == 1
