"""The Parameters tab in a real browser: what is changed is marked, presets are kept, two windows agree."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from modules.ui.parameters_tab import ParametersTab
from tests.browser.conftest import OpenPage
from tests.browser.test_tabs import open_tab
from tests.fakes import Script, make_model_folder
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
DATA = Path(__file__).parent.parent / "data" / "presets"


def set_number(page: Page, name: str, value: str) -> None:
    """Write into a parameter's box and leave it."""
    page.locator(f"#param-{name} input[type=number]").fill(value)
    page.locator(f"#param-{name} input[type=number]").press("Tab")


def number(page: Page, name: str) -> Locator:
    """The box of a parameter."""
    return page.locator(f"#param-{name} input[type=number]")


def unfold(page: Page, group: str) -> None:
    """Open a group of parameters."""
    page.locator(f'[data-fold="{group}"]').click()
    expect(page.locator(f"#params-{group}")).to_have_class(re.compile("open"))


def from_menu(page: Page, name: str) -> None:
    """Choose a line of the menu of presets."""
    page.locator("#snug-preset-menu").click()
    page.get_by_role("menuitem", name=name).click()


def answer(page: Page, text: str) -> None:
    """Write into the dialog that asks for a line of text, and confirm."""
    page.fill(".dialog-input", text)
    page.press(".dialog-input", "Enter")
    expect(page.locator("dialog")).to_have_count(0)


def test_what_is_changed_is_marked_and_goes_back_with_one_click(start: Start, visit: OpenPage) -> None:
    page = visit(start())
    open_tab(page, "Parameters")
    expect(page.locator("#snug-preset")).to_have_value("Balanced")
    expect(page.locator("#param-tfs")).not_to_be_visible()
    set_number(page, "temperature", "1.3")
    chip = page.locator("#param-temperature .param-reset")
    expect(chip).to_have_text("0.7")
    expect(page.locator(".preset-line")).to_contain_text("Changed since: Temperature.")
    unfold(page, "truncation")
    set_number(page, "tfs", "0.9")
    page.locator("#param-temperature_last input").evaluate("box => box.click()")
    expect(page.locator('[data-fold="truncation"] .fold-count')).to_have_text("1 changed")
    expect(page.locator('[data-fold="heat"] .fold-count')).to_have_text("1 changed")
    page.locator("#param-top_p input[type=number]").fill("7")
    expect(page.locator("#param-top_p .param-problem")).to_be_visible()
    page.locator("#param-top_p .param-reset").click()
    expect(page.locator("#param-top_p .param-problem")).to_have_count(0)
    expect(number(page, "top_p")).to_have_value("0.9")
    chip.click()
    expect(chip).to_have_count(0)
    expect(number(page, "temperature")).to_have_value("0.7")
    expect(number(page, "tfs")).to_have_value("0.9")
    page.reload()
    expect(page.get_by_role("tab", name="Parameters")).to_have_attribute("aria-selected", "true")
    expect(number(page, "tfs")).to_have_value("0.9")
    expect(number(page, "tfs")).to_be_visible()
    expect(page.locator("#param-temperature_last .param-reset")).to_have_text("off")
    page.locator("#snug-reset").click()
    expect(page.locator(".param.changed")).to_have_count(0)
    expect(page.locator("#snug-reset")).to_be_hidden()


def test_presets_are_saved_renamed_deleted_brought_back_and_go_as_files(
    start: Start, visit: OpenPage, tmp_path: Path
) -> None:
    snug = start()
    presets = snug.services.presets
    page = visit(snug)
    open_tab(page, "Parameters")
    page.locator("#snug-preset").select_option("Creative")
    creative = presets.get("Creative")
    expect(number(page, "temperature")).to_have_value(str(creative.temperature))
    expect(page.locator(".preset-line")).to_contain_text("For stories and ideas.")
    set_number(page, "temperature", "1.23")
    expect(page.locator("#snug-preset-save")).to_have_text("Save as")
    page.locator("#snug-preset-save").click()
    answer(page, "My own")
    expect(page.locator("#snug-preset")).to_have_value("My own")
    assert presets.get("My own") == creative.model_copy(update={"temperature": 1.23})
    set_number(page, "top_k", "33")
    page.locator("#snug-preset-save").click()
    expect(page.locator("#snug-preset-save")).to_be_hidden()
    assert presets.get("My own").top_k == 33
    set_number(page, "top_k", "34")
    page.locator("#snug-preset-back").click()
    expect(number(page, "top_k")).to_have_value("33")
    from_menu(page, "Save as")
    page.fill(".dialog-input", "balanced")
    page.press(".dialog-input", "Enter")
    expect(page.locator(".toast.bad")).to_contain_text("comes with Snug")
    from_menu(page, "Rename My own")
    answer(page, "Mine")
    expect(page.locator("#snug-preset")).to_have_value("Mine")
    with page.expect_download() as caught:
        from_menu(page, "Export Mine")
    assert caught.value.suggested_filename == "Mine.yaml"
    file = tmp_path / "there.yaml"
    caught.value.save_as(file)
    from_menu(page, "Delete Mine")
    expect(page.locator("#snug-preset")).not_to_have_value("Mine")
    assert "Mine" not in presets.names()
    page.locator(".toast", has_text="was deleted").get_by_role("button", name="Undo").click()
    expect(page.locator("#snug-preset")).to_have_value("Mine")
    with page.expect_file_chooser() as chooser:
        from_menu(page, "Import a file")
    chooser.value.set_files([file])
    expect(page.locator("#snug-preset")).to_have_value("there")
    assert presets.get("there") == presets.get("Mine")


def test_a_file_of_text_generation_webui_opens_and_what_has_no_place_is_named(start: Start, visit: OpenPage) -> None:
    snug = start(Script(lacks={"tfs": "llama.cpp cannot do this: set it to 1, or no reply begins."}))
    page = visit(snug)
    open_tab(page, "Parameters")
    with page.expect_file_chooser() as chooser:
        from_menu(page, "Import a file")
    chooser.value.set_files([DATA / "everything.yaml"])
    expect(page.locator("#snug-preset")).to_have_value("everything")
    expect(page.locator(".preset-notes li")).to_have_count(6)
    expect(page.locator(".preset-notes")).to_contain_text("guidance_scale 1.5 is left out")
    assert snug.services.presets.text("everything") == (DATA / "everything.yaml").read_text()
    page.locator("#snug-preset-compare").click()
    dialog = page.locator("#snug-compare")
    dialog.get_by_label("Second preset").select_option("Precise")
    differs = dialog.locator("tr.differs", has_text="Temperature").first
    expect(differs.locator("td")).to_have_text(["0.8", "0.3", "0.7"])
    dialog.get_by_label("First preset").select_option("Precise")
    expect(dialog.locator("tr.differs")).to_have_count(0)
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    unfold(page, "truncation")
    expect(page.locator("#param-tfs .param-lack")).to_contain_text("llama.cpp cannot do this")
    make_model_folder(snug.services.settings.model_dir, "able", Script())
    snug.services.models.load(LoadOptions.model_validate({"model": "able"}))
    expect(page.locator("#param-tfs .param-lack")).to_have_count(0)
    own = snug.services.settings.user_data_dir / "presets"
    (own / "broken.yaml").write_text("temprature: 1\n")
    (own / "<img src=x onerror=alert(1)>.yaml").write_text("top_k: 1\n")
    page.reload()
    expect(page.locator("#snug-preset option")).to_have_count(7)
    page.locator("#snug-preset").select_option("broken")
    expect(page.locator(".toast.bad")).to_contain_text("temprature")
    from_menu(page, "Delete broken")
    expect(page.locator("#snug-preset option")).to_have_count(6)


def test_what_is_set_while_another_windows_values_arrive_is_not_lost_to_them(
    start: Start, visit: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit(start())
    open_tab(page, "Parameters")
    expect(number(page, "top_k")).to_be_visible()
    asked, held, show = threading.Event(), threading.Event(), ParametersTab.show

    def late(tab: ParametersTab, params: GenerationParams) -> Any:
        asked.set()
        held.wait(10)
        return show(tab, params)

    monkeypatch.setattr(ParametersTab, "show", late)
    page.evaluate("snug.setParams({ top_k: 40 })")
    assert asked.wait(10)
    # Gradio never hears of the number: what arrives in the same moment has its place.
    page.evaluate("document.addEventListener('input', (e) => e.stopPropagation(), { capture: true, once: true })")
    number(page, "min_p").fill("0.25")
    page.locator("h1", has_text="Parameters").click()
    held.set()
    page.wait_for_function("snug.params().min_p === 0.25 && snug.params().top_k === 40")
    expect(number(page, "min_p")).to_have_value("0.25")
    expect(page.locator("#param-min_p")).to_have_class(re.compile("changed"))


def test_two_windows_agree_and_what_is_being_typed_stays(start: Start, visit: OpenPage) -> None:
    snug = start()
    first = visit(snug)
    second = visit(snug, context=first.context)
    for page in (first, second):
        open_tab(page, "Parameters")
        expect(number(page, "top_k")).to_be_visible()
    set_number(first, "top_k", "40")
    expect(number(second, "top_k")).to_have_value("40")
    expect(second.locator("#param-top_k .param-reset")).to_be_visible()
    typed = second.locator("#param-stop textarea")
    unfold(second, "other")
    typed.focus()
    typed.press_sequentially("END")
    expect(second.locator("#param-stop")).to_have_class(re.compile("changed"))
    set_number(first, "min_p", "0.25")
    expect(first.locator("#param-min_p")).to_have_class(re.compile("changed"))
    typed.press_sequentially("ING")
    expect(typed).to_have_value("ENDING")
    typed.press("Tab")
    for page in (first, second):
        page.wait_for_function(
            "params => JSON.stringify(Object.entries(snug.params()).sort()) === params",
            arg='[["min_p",0.25],["stop",["ENDING"]],["top_k",40]]',
        )
        expect(number(page, "min_p")).to_have_value("0.25")
        expect(page.locator("#param-stop textarea")).to_have_value("ENDING")
    first.locator('[data-theme-choice="dark"]').click()
    expect(second.locator("html")).to_have_class(re.compile("dark"))
    second.reload()
    expect(second.locator("html")).to_have_class(re.compile("dark"))
    expect(second.locator("#params-other")).to_have_class(re.compile("open"))
    GenerationParams.model_validate(second.evaluate("snug.params()"))
