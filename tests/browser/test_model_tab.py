"""The picture of a plan and the live strip in a real browser: two GPUs, a phone, by mouse, keyboard and finger."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from modules.hardware import Inventory
from modules.settings import LoadOptions
from modules.ui.model_tab import ModelTab
from tests import page_rig
from tests.browser.conftest import OpenPage
from tests.browser.test_tabs import open_tab
from tests.fakes import Script, fake_inventory, make_model_folder
from tests.page_rig import Snug

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


def precision(page: Page) -> Locator:
    """The control of --dtype."""
    return page.locator("fieldset", has_text="Precision of weights")


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


def test_a_context_that_cannot_be_leaves_the_picture_and_is_told_under_its_field(
    model_tab: Callable[..., Page],
) -> None:
    page = model_tab()
    size, load = page.get_by_label("Context size"), page.locator("#snug-load")
    size.fill("2048")
    expect(page.locator("#snug-context output")).to_have_text("2,048 tokens")
    for text, told in (("200000", "tiny was made for at most 4,096 tokens."), ("64k", "“64k” is not a number")):
        size.fill(text)
        expect(page.locator("#option-ctx_size .param-problem")).to_contain_text(told)
        expect(load).to_be_disabled()
        expect(page.locator("#snug-context output")).to_have_text("2,048 tokens")
        expect(page.locator("#snug-plan .verdict")).to_contain_text("It fits")
        expect(page.locator("#snug-ways .way.taken")).to_have_count(1)
        expect(page.locator("#snug-plan .problem")).to_have_count(0)
    size.fill("200000")
    page.get_by_role("button", name="Use 4,096").click()
    expect(size).to_have_value("4096")
    expect(page.locator(".param-problem")).to_have_count(0)
    expect(load).to_be_enabled()
    expect(page.locator("#snug-context output")).to_have_text("4,096 tokens")


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
    monkeypatch.setattr(page_rig, "fake_machine", two_gpus)
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


def test_the_legend_tells_too_and_a_stretch_stands_out_with_its_entry(model_tab: Callable[..., Page]) -> None:
    page = model_tab()
    page.locator("#snug-plan .plan-legend li", has_text="Reading the prompt").hover()
    expect(page.locator(".plan-tip strong")).to_have_text("Reading the prompt")
    expect(page.locator("#snug-plan .lens .plan-part.prefill_peak")).to_have_class(re.compile(r"\bon\b"))
    expect(page.locator("#snug-plan .lens .plan-part.weights")).not_to_have_class(re.compile(r"\bon\b"))
    page.mouse.move(1, 1)
    expect(page.locator("#snug-plan .plan.lit")).to_have_count(0)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The share of 16 GiB that is free, which a test may change while the page shows it."""
    share = [0.9]
    monkeypatch.setattr(page_rig, "fake_machine", lambda _: fake_inventory(ram_gib=16, free_share=share[0]))
    return share


@pytest.fixture
def live_tab(free: list[float], start: Start, visit: OpenPage) -> Page:
    """The Model tab, drawn once, of a machine of which `free` tells what is free."""
    page = visit(start(loaded=False))
    open_tab(page, "Model")
    expect(page.locator("#snug-plan .plan-sum")).to_contain_text("of 14.4 GiB free")
    return page


def test_folds_stay_open_and_the_focus_stays_when_the_picture_is_drawn_anew(live_tab: Page, free: list[float]) -> None:
    page = live_tab
    page.locator(".plan-numbers summary").click()
    page.locator("#snug-plan .lens .plan-part.weights").focus()
    free[0] = 0.5
    expect(page.locator("#snug-plan .plan-sum")).to_contain_text("of 8.00 GiB free")
    expect(page.locator(".plan-numbers table")).to_be_visible()
    expect(page.locator("#snug-plan .lens .plan-part.weights")).to_be_focused()
    expect(page.locator(".plan-tip strong")).to_have_text("Weights")


def test_the_picture_is_of_now_when_its_tab_is_opened_again(live_tab: Page, free: list[float]) -> None:
    page = live_tab
    open_tab(page, "Chat")
    free[0] = 0.899  # less than moves a picture on show
    open_tab(page, "Model")
    expect(page.locator("#snug-plan .plan-free").first).to_have_attribute("style", re.compile("left: ?89.9"))


def test_the_buttons_say_what_they_would_do(start: Start, visit: OpenPage) -> None:
    snug = start(Script(load_s=3), loaded=False)
    page = visit(snug)
    open_tab(page, "Model")
    expect(page.locator("#snug-load")).to_have_text("Load")
    expect(page.locator("#snug-unload")).to_be_disabled()
    page.locator("#snug-load").click()
    expect(page.locator("#snug-unload")).to_have_text("Stop loading")
    expect(page.locator("#snug-load")).to_have_text("Load again")
    expect(page.locator("#snug-unload")).to_have_text("Unload")
    precision(page).get_by_text("bf16", exact=True).click()
    expect(page.locator("#snug-load")).to_have_text("Load")
    page.locator("#snug-unload").click()
    expect(page.locator("#snug-unload")).to_be_disabled()


def test_a_choice_of_a_few_is_made_by_one_click_or_the_arrows_and_leaves_nothing_open(
    model_tab: Callable[..., Page],
) -> None:
    page = model_tab()
    precision(page).get_by_text("bf16", exact=True).click()
    expect(page.locator("#snug-plan .verdict")).to_contain_text("16-bit")
    page.keyboard.press("ArrowRight")
    expect(precision(page).get_by_label("fp16")).to_be_checked()
    open_tab(page, "Chat")
    expect(page.locator("[role=listbox]:visible, ul.options:visible")).to_have_count(0)


def test_models_that_cannot_be_loaded_are_folded_below_the_others_with_their_reasons(
    start: Start, visit: OpenPage
) -> None:
    snug = start(loaded=False)
    broken = make_model_folder(snug.services.settings.model_dir, "a-broken-one")
    (broken / "model.safetensors").write_bytes(b"garbage!")
    page = visit(snug)
    open_tab(page, "Model")
    expect(page.locator("#snug-models .entry").first).to_contain_text("tiny")
    expect(page.locator("#snug-models .entry", has_text="a-broken-one")).not_to_be_visible()
    page.get_by_text("1 model cannot be loaded").click()
    expect(page.locator("#snug-models .entry-problem")).to_contain_text("not a sound safetensors file")
    page.locator("#snug-refresh").click()
    expect(page.locator("#snug-models .entry-problem")).to_be_visible()


def test_a_model_chosen_while_a_loads_end_arrives_stays_chosen_with_options_of_its_own(
    start: Start, visit: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    snug = start(loaded=False)
    make_model_folder(snug.services.settings.model_dir, "other")
    page = visit(snug)
    open_tab(page, "Model")
    expect(page.locator("#snug-models .entry", has_text="other")).to_be_visible()
    looking, held, shown = threading.Event(), threading.Event(), ModelTab.state_html

    def late(tab: ModelTab) -> str:
        if tab.models.state.status == "ready":
            looking.set()
            held.wait(10)
        return shown(tab)

    monkeypatch.setattr(ModelTab, "state_html", late)
    snug.services.models.load(LoadOptions.model_validate({"model": "tiny", "load_in_8bit": True}))
    assert looking.wait(10)
    other = page.locator("#snug-models .entry", has_text="other")
    other.click()
    expect(page.locator("#snug-load")).to_be_enabled()
    held.set()
    expect(page.locator("#snug-model-card")).to_contain_text("tiny is loaded")
    expect(other).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Load in 8-bit")).not_to_be_checked()
    expect(page.locator("#snug-load")).to_be_enabled()
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model-card")).to_contain_text("other is loaded")


def test_what_is_set_before_the_answer_to_a_choice_outlives_it(
    start: Start, visit: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    snug = start(loaded=False)
    for name in ("other", "third"):
        make_model_folder(snug.services.settings.model_dir, name)
    snug.services.models.load(LoadOptions.model_validate({"model": "other", "ctx_size": 64}))
    page = visit(snug)
    open_tab(page, "Model")
    expect(page.get_by_label("Context size")).to_have_value("64")
    asked, held, picked = threading.Event(), threading.Event(), ModelTab.picked

    def late(tab: ModelTab, name: str, *, anew: bool) -> Any:
        asked.set()
        held.wait(10)
        return picked(tab, name, anew=anew)

    monkeypatch.setattr(ModelTab, "picked", late)
    page.locator("#snug-models .entry", has_text="third").click()
    assert asked.wait(10)
    page.get_by_label("Context size").fill("48")
    page.get_by_label("Load in 8-bit").check()
    held.set()
    expect(page.locator("#snug-load")).to_be_enabled()
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model-card")).to_contain_text("third is loaded")
    options = snug.services.models.options
    assert options is not None and options.ctx_size == 48 and options.load_in_8bit


def test_a_look_from_before_an_option_was_set_does_not_take_away_what_is_told_of_it(
    start: Start, visit: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit(start())
    open_tab(page, "Model")
    expect(page.locator("#snug-model-card")).to_contain_text("tiny is loaded")
    looking, held, drawn = threading.Event(), threading.Event(), ModelTab.adapters

    def late(tab: ModelTab, data: Any) -> Any:
        if not looking.is_set():
            looking.set()
            held.wait(10)
        return drawn(tab, data)

    page.get_by_label("Load in 8-bit").check()  # from now on no look brings the options of the loaded model
    page.get_by_label("Load in 8-bit").uncheck()
    expect(page.locator("#snug-load")).to_have_text("Load again")
    monkeypatch.setattr(ModelTab, "adapters", late)
    page.evaluate("snug.refreshModelTab()")
    assert looking.wait(10)
    page.get_by_label("Load in 8-bit").check()
    page.get_by_label("Load in 4-bit").check()
    told = page.locator("#option-load_in_4bit", has_text="--load-in-8bit and --load-in-4bit")
    expect(told).to_be_visible()
    page.evaluate("""() => {
        snug.memoryMoved = snug.followDryRuns = () => {};  // which would look again by chance
        const mark = snug.markOptions;
        window.marks = 0;
        snug.markOptions = (wrong) => { mark(wrong); marks += 1; };
    }""")
    held.set()
    page.wait_for_function("marks > 0")
    expect(told).to_be_visible()
    expect(page.locator("#snug-load")).to_be_disabled()
