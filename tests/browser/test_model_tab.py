"""The picture of a plan and the live strip in a real browser: two GPUs, a phone, by mouse, keyboard and finger."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from modules.hardware import Inventory
from tests.browser import conftest
from tests.browser.conftest import OpenPage, Snug
from tests.browser.test_tabs import open_tab
from tests.fakes import fake_inventory

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
PHONE = {"width": 390, "height": 844}


def two_gpus(_: Path) -> Inventory:
    """A machine of this kind."""
    return fake_inventory((24, 12), ram_gib=64, free_share=0.85)


@pytest.fixture
def model_tab(start: Start, visit: OpenPage) -> Callable[..., Page]:
    """The Model tab with the picture of the model "tiny", not loaded."""

    def opened(*, loaded: bool = False, **options: object) -> Page:
        page = visit(start(loaded=loaded), **options)
        open_tab(page, "Model")
        expect(page.locator("#snug-plan .plan-device").first).to_be_visible()
        return page

    return opened


def test_a_stretch_tells_its_formula_to_mouse_keyboard_and_nobody_after_escape(
    model_tab: Callable[..., Page],
) -> None:
    page = model_tab()
    runtime = page.locator("#snug-plan .lens .plan-part.context")
    runtime.hover()
    expect(page.locator(".plan-tip strong")).to_have_text("Runtime")
    expect(page.locator(".plan-tip")).to_contain_text(re.compile(r"MiB = [\d,]+ bytes"))
    page.mouse.move(1, 1)
    expect(page.locator(".plan-tip")).to_have_count(0)
    page.locator("#snug-plan .lens .plan-part.weights").focus()
    expect(page.locator(".plan-tip strong")).to_have_text("Weights")
    page.keyboard.press("Tab")
    expect(page.locator(".plan-tip strong")).to_have_text("KV cache")
    page.keyboard.press("Escape")
    expect(page.locator(".plan-tip")).to_have_count(0)


def test_the_context_slider_changes_the_option_and_the_picture(model_tab: Callable[..., Page]) -> None:
    page = model_tab()
    slider = page.get_by_role("slider", name="Context length")
    expect(page.locator("#snug-context output")).to_have_text("4,096 tokens, chosen by Snug")
    expect(page.locator(".context-limit")).to_have_text("fits to its full 4,096 tokens")
    legend = page.locator("#snug-plan .plan-legend li", has_text="KV cache")
    before = legend.inner_text()
    slider.focus()
    slider.press("Home")
    expect(page.get_by_label("Context size")).to_have_value("256")
    expect(page.locator("#snug-plan .plan-head p").first).to_contain_text("256 tokens of context")
    expect(legend).not_to_have_text(before)
    expect(page.locator("#snug-context output")).to_have_text("256 tokens")
    page.locator("#snug-context").get_by_text("Let Snug choose").click()
    expect(page.get_by_label("Context size")).to_have_value("")
    expect(page.locator("#snug-context output")).to_have_text("4,096 tokens, chosen by Snug")


def test_the_picture_follows_every_option_and_one_click_takes_it_back(model_tab: Callable[..., Page]) -> None:
    page = model_tab()
    expect(page.locator("#snug-ways .way.taken")).to_have_count(1)
    expect(page.locator("#snug-ways").get_by_text("Let Snug choose")).to_have_count(0)
    page.get_by_label("Load in 8-bit").check()
    expect(page.locator("#snug-plan .verdict")).to_contain_text("8-bit")
    page.locator("#snug-ways").get_by_text("Let Snug choose").click()
    expect(page.get_by_label("Load in 8-bit")).not_to_be_checked()
    expect(page.locator("#snug-plan .verdict")).not_to_contain_text("8-bit")


def test_gpus_have_bars_and_meters_of_their_own(
    model_tab: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conftest, "_machine", two_gpus)
    page = model_tab()
    expect(page.locator("#snug-plan .plan-device[data-device='cuda:0']")).to_contain_text("GPU 0")
    expect(page.locator("#snug-strip .meter-name")).to_have_text(["RAM", "GPU 0", "GPU 1"])
    page.locator("#snug-strip").click()
    sheet = page.get_by_role("dialog", name="Memory of this machine")
    expect(sheet.locator("strong")).to_have_text(["RAM", "GPU 0", "GPU 1"])
    expect(sheet).to_contain_text("of 64.0 GiB")
    page.keyboard.press("Escape")
    expect(sheet).to_have_count(0)


@pytest.mark.parametrize("tab", ["Chat", "Notebook", "Model", "Parameters"])
def test_the_strip_is_on_every_tab_wide_and_narrow(start: Start, visit: OpenPage, tab: str) -> None:
    snug = start()
    for size in ({"width": 1280, "height": 800}, PHONE):
        page = visit(snug, viewport=size)
        open_tab(page, tab)
        expect(page.locator("#snug-strip .meter-name")).to_have_text(["RAM"])
        expect(page.locator("#snug-strip .meter-snug")).to_have_attribute("style", re.compile(r"width: [\d.]+%"))
        box = page.locator("#snug-strip").bounding_box()
        pill = page.locator("#snug-model").bounding_box()
        assert box is not None and pill is not None
        assert box["x"] >= 0 and box["x"] + box["width"] <= pill["x"] <= size["width"]


def test_on_a_phone_a_tap_tells_and_nothing_scrolls_sideways(model_tab: Callable[..., Page]) -> None:
    page = model_tab(loaded=True, viewport=PHONE, has_touch=True)
    expect(page.locator("#snug-plan .plan-truth")).to_contain_text("of the forecast")
    page.locator("#snug-plan .lens .plan-part.context").tap()
    expect(page.locator(".plan-tip strong")).to_have_text("Runtime")
    page.locator(".plan-numbers summary").tap()
    expect(page.locator(".plan-numbers table")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
