"""The Model tab, the phone layout, and what hostile text must not do, in a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from modules.settings import LoadOptions
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import last_reply, replies, send
from tests.fakes import Script, make_model_folder
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>
[link](javascript:alert(4)) ![picture](http://192.0.2.1/canary.png) <iframe srcdoc="<script>alert(5)</script>"></iframe>
$\\href{javascript:alert(6)}{x}$ <a href="data:text/html,<script>alert(7)</script>">a</a>
```html
<script>alert(8)</script>
```
"""


def open_tab(page: Page, title: str) -> None:
    """Go to a tab."""
    page.get_by_role("tab", name=title).click()


def test_a_model_is_chosen_planned_loaded_with_progress_and_unloaded(start: Start, visit: OpenPage) -> None:
    snug = start(Script(load_s=4), loaded=False)
    page = visit(snug)
    open_tab(page, "Model")
    page.locator("#snug-models [data-model=tiny]").click()
    expect(page.locator("#snug-models [aria-pressed=true]")).to_contain_text("tiny")
    expect(page.locator("#snug-plan .verdict")).to_contain_text("It fits")
    expect(page.locator("#snug-plan .plan-device[data-device=cpu] .plan-part.weights").first).to_be_attached()
    expect(page.locator("#snug-ways .reasons li").first).to_be_attached()
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model-card [data-load-bar]")).to_have_attribute("style", re.compile(r"width: ?[1-9]"))
    expect(page.locator("#snug-model .pill-percent")).to_be_visible()
    expect(page.locator("#snug-model-card h2")).to_have_text("tiny is loaded")
    expect(page.locator("#snug-plan .plan-truth")).to_contain_text("measured now")
    expect(page.locator("#snug-model")).to_have_text("tiny")
    page.locator("#snug-unload").click()
    expect(page.locator("#snug-model-card")).to_contain_text("No model is loaded")
    expect(page.locator("#snug-model")).to_have_text("No model loaded")


def test_a_load_that_fails_says_why_and_the_old_model_answers_on(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="Still here."))
    make_model_folder(snug.services.settings.model_dir, "broken", Script(load_fault="refuse"))
    page = visit(snug)
    open_tab(page, "Model")
    page.locator("#snug-models [data-model=broken]").click()
    expect(page.locator("#snug-plan .verdict")).to_be_visible()
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model-card .problem")).to_be_visible()
    open_tab(page, "Chat")
    send(page, "Are you there?")
    expect(last_reply(page)).to_have_text("Still here.")


def test_options_that_cannot_go_together_are_told_before_loading(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    open_tab(page, "Model")
    page.locator("#snug-models [data-model=tiny]").click()
    page.get_by_label("Load in 8-bit").check()
    page.get_by_label("Load in 4-bit").check()
    expect(page.locator("#option-load_in_4bit")).to_contain_text("--load-in-8bit and --load-in-4bit")
    expect(page.locator("#snug-load")).to_be_disabled()


def test_at_390_pixels_nothing_scrolls_sideways_and_the_sidebar_folds(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="A rather long line of code follows:\n\n```\n" + "x" * 300 + "\n```\n"))
    page = visit(snug, viewport={"width": 390, "height": 844}, has_touch=True)
    expect(page.locator("#snug-sidebar")).not_to_be_visible()
    send(page, "w" * 200)
    expect(replies(page)).to_have_count(1)
    for tab in ("Chat", "Notebook", "Model", "Parameters"):
        open_tab(page, tab)
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        wide = page.evaluate(
            "[...document.querySelectorAll('.scroller, .sheet, .notebook')].filter(n => n.scrollWidth > 391).length"
        )
        assert wide == 0, tab
    page.get_by_label("Show the sidebar").click()
    expect(page.locator("#snug-sidebar")).to_be_visible()
    page.locator(".conversation a").first.click()
    expect(page.locator("#snug-sidebar")).not_to_be_visible()


def test_hostile_text_does_nothing_while_it_streams_nor_when_it_is_done(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply=HOSTILE, tokens_per_s=150))
    page = visit(snug)
    send(page, HOSTILE)
    expect(replies(page)).to_have_count(1)
    expect(last_reply(page)).to_contain_text("<script>alert(1)</script>")
    banned = "script, img, svg:not(.icon), iframe, style, form, object, [onerror], [onload]"
    links = "a[href^='javascript' i], a[href^='data' i]"
    assert page.locator(f".messages :is({banned}, {links})").count() == 0
    conversation = snug.services.store.list("")[0]
    snug.services.store.rename("", conversation.id, "<img src=x onerror=alert(9)>")
    page.reload()
    expect(replies(page)).to_have_count(1)
    expect(page.locator(".conversation a")).to_have_text("<img src=x onerror=alert(9)>")


def test_dark_and_light_follow_the_system_until_someone_chooses(start: Start, visit: OpenPage) -> None:
    page = visit(start(), color_scheme="dark")
    expect(page.locator("html")).to_have_class(re.compile("dark"))
    page.get_by_role("button", name="Light").click()
    expect(page.locator("html")).not_to_have_class(re.compile("dark"))
    page.reload()
    expect(page.locator("#snug-input")).to_be_visible()
    expect(page.locator("html")).not_to_have_class(re.compile("dark"))


def test_the_notebook_opens_first_when_asked_to(start: Start, visit: OpenPage) -> None:
    page = visit(start(notebook=True))
    expect(page.locator("#snug-notebook")).to_be_visible()
    page.locator("#snug-new").click()
    expect(page.locator("#snug-input")).to_be_visible()


def test_a_parameter_goes_beyond_its_slider_and_an_invalid_one_stops_only_itself(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(reply="and so on ", endless=True)))
    open_tab(page, "Parameters")
    length = page.locator("#param-max_new_tokens input[type=number]")
    length.fill("8")
    length.press("Tab")
    temperature = page.locator("#param-temperature input[type=number]")
    temperature.fill("50")
    temperature.press("Tab")
    top_p = page.locator("#param-top_p input[type=number]")
    top_p.fill("0")
    top_p.press("Tab")
    expect(page.locator("#param-top_p .param-problem")).to_contain_text("greater than 0")
    expect(page.locator(".param.changed")).to_have_count(2)
    expect(length).to_have_value("8")
    expect(temperature).to_have_value("50")
    assert page.evaluate("snug.params()") == {"max_new_tokens": 8, "temperature": 50}
    top_p.fill("")
    top_p.press("Tab")
    expect(top_p).to_have_value("0.9")
    expect(page.locator(".param-problem")).to_have_count(0)
    page.reload()
    open_tab(page, "Parameters")
    expect(temperature).to_have_value("50")
    open_tab(page, "Chat")
    send(page, "Go on")
    expect(page.locator(".message.assistant .stats")).to_contain_text("8 tokens")


def test_the_only_model_is_chosen(start: Start, visit: OpenPage) -> None:
    page = visit(start(loaded=False))
    open_tab(page, "Model")
    expect(page.locator("#snug-models [aria-pressed=true]")).to_contain_text("tiny")
    expect(page.locator("#snug-plan .verdict")).to_contain_text("It fits")
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model")).to_have_text("tiny")


def test_the_options_are_those_of_the_loaded_model_until_someone_changes_them(start: Start, visit: OpenPage) -> None:
    snug = start()
    make_model_folder(snug.services.settings.model_dir, "other", Script())
    snug.services.models.load(LoadOptions.model_validate({"model": "tiny", "dtype": "fp32", "ctx_size": 1024}))
    page = visit(snug)
    open_tab(page, "Model")
    expect(page.locator("#snug-models [aria-pressed=true]")).to_contain_text("tiny")
    expect(page.get_by_label("Context size")).to_have_value("1024")
    snug.services.models.load(LoadOptions.model_validate({"model": "other", "ctx_size": 512}))
    expect(page.locator("#snug-models [aria-pressed=true]")).to_contain_text("other")
    expect(page.get_by_label("Context size")).to_have_value("512")
    page.get_by_label("Context size").fill("256")
    snug.services.models.load(LoadOptions.model_validate({"model": "tiny"}))
    expect(page.locator("#snug-model-card h2")).to_have_text("tiny is loaded")
    expect(page.get_by_label("Context size")).to_have_value("256")
    expect(page.locator("#snug-models [aria-pressed=true]")).to_contain_text("other")


def test_nothing_in_the_header_lies_over_the_tabs_at_any_width(start: Start, visit: OpenPage) -> None:
    snug = start()
    make_model_folder(snug.services.settings.model_dir, "A-model-of-a-long-name-7B-Instruct-v0.3", Script())
    snug.services.models.load(LoadOptions.model_validate({"model": "A-model-of-a-long-name-7B-Instruct-v0.3"}))
    page = visit(snug)
    page.wait_for_selector(".model-pill.ready")
    for width in (1500, 1381, 1280, 1180, 1100, 1060, 940, 860, 802):
        page.set_viewport_size({"width": width, "height": 700})
        for opened in (True, False):
            page.evaluate("open => snug.turnSidebar(open)", opened)
            page.wait_for_function(
                """() => document.querySelector(".topbar").getAnimations().length === 0
                    && document.querySelector("#snug-tabs > .tab-wrapper").getAnimations().length === 0"""
            )
            gap = page.evaluate(
                """() => {
                    const tabs = [...document.querySelectorAll('#snug-tabs > .tab-wrapper [role="tab"]')];
                    const beside = [...document.querySelectorAll(".topbar .strip, .topbar .model-pill")];
                    const left = Math.min(...beside.filter(node => node.checkVisibility())
                        .map(node => node.getBoundingClientRect().left));
                    return left - Math.max(...tabs.map(tab => tab.getBoundingClientRect().right));
                }"""
            )
            assert gap >= 0, (width, opened, gap)
