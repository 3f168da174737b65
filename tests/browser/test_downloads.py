"""Models from the hub in a real browser: looked at, fetched, paused, found again, chosen, loaded, remembered."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from modules.downloads.manager import Hub
from tests.browser.conftest import OpenPage
from tests.browser.test_tabs import open_tab
from tests.fake_hub import FakeHub, repository, serve
from tests.fakes import Script, make_model_folder
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

PHONE = {"width": 390, "height": 844}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a small model that can be "loaded" here, and two quantizations beside it that cannot."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    files = repository(make_model_folder(tmp_path / "source", "Fox-1B", Script(reply="FOX")))
    files |= {"Fox-1B-Q4_K_M.gguf": b"x" * 3000, "Fox-1B-Q8_0.gguf": b"x" * 5000, "pytorch_model.bin": b"pickle"}
    with serve(FakeHub(files, repo="den/Fox-1B")) as running:
        yield running
        running.release.set()


def test_a_model_is_found_fetched_paused_resumed_loaded_and_remembered(
    hub: FakeHub, start: Callable[..., Snug], visit: OpenPage
) -> None:
    snug = start()
    snug.services.downloads.hub = Hub(hub.endpoint)
    page = visit(snug)
    open_tab(page, "Model")
    field, chip = page.get_by_label("A model on the Hugging Face hub"), page.locator("#snug-download-chip")

    field.fill("../x")
    field.press("Enter")
    expect(page.locator(".offer-box .problem")).to_contain_text("is no name of a model on the hub")
    hub.fail, hub.near = (404, "RepoNotFound"), ("den/Fox-1B",)
    field.fill("den/fox")
    field.press("Enter")
    expect(page.locator(".offer-box .problem")).to_contain_text("Did you mean den/Fox-1B?")
    hub.fail = None

    field.fill("https://huggingface.co/den/Fox-1B/tree/main")
    page.get_by_role("button", name="Look").click()
    offer = page.get_by_role("region", name="den/Fox-1B")
    expect(offer.locator(".offer-facts")).to_have_text("licence apache-2.0")
    expect(offer.locator(".verdict")).to_contain_text("It fits")
    expect(offer.locator(".plan-device")).to_contain_text("CPU")
    expect(offer.locator(".offer-size")).to_contain_text("in 4 files")
    expect(offer.get_by_role("radio")).to_have_count(3)
    offer.get_by_role("radio", name="Q8_0").click()
    expect(offer.locator(".problem")).to_contain_text("not a sound GGUF file")
    expect(offer.get_by_role("radio", name="Q8_0")).to_have_attribute("aria-checked", "true")
    offer.get_by_role("radio", name="Q8_0").press("ArrowRight")
    expect(offer.get_by_role("radio", name="The whole model")).to_be_focused()
    expect(offer.locator(".verdict")).to_contain_text("It fits")

    hub.hold_at = 200_000
    page.get_by_role("button", name="Download", exact=True).click()
    card = page.locator(".download")
    expect(card.locator(".download-name")).to_have_text("Fox-1B")
    expect(chip).to_have_text(re.compile(r"[5-9]\d %"))
    expect(page.locator("#snug-models .entry")).to_have_count(1)  # nothing half there
    page.reload()
    second = visit(snug, viewport=PHONE)
    expect(second.locator("#snug-download-chip")).to_be_visible()
    second.locator("#snug-download-chip").click()
    card, field = page.locator(".download"), second.get_by_label("A model on the Hugging Face hub")
    expect(second.locator(".download-line")).to_contain_text(" of 35")
    assert second.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    second.get_by_role("button", name="Pause", exact=True).click()
    expect(second.get_by_role("button", name="Pausing", exact=True)).to_be_disabled()
    hub.hold_at = None
    hub.release.set()
    expect(second.locator(".download-line")).to_contain_text("Paused · ")
    expect(second.locator("#snug-download-chip")).to_be_hidden()
    open_tab(page, "Model")
    expect(card.locator(".download-line")).to_contain_text("Paused · ")

    hub.damaged["model.safetensors"] = 2  # twice: more than is mended without a word
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(card.locator(".problem")).to_contain_text("model.safetensors arrived damaged")
    expect(chip).to_have_attribute("aria-label", re.compile("A download stopped"))
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(card.locator(".download-line")).to_have_text("It is in the list of models.")
    card.get_by_role("button", name="Choose it").click()
    expect(page.locator('[data-model="Fox-1B"]')).to_have_attribute("aria-pressed", "true")
    card.get_by_role("button", name="Take off the list").click()
    expect(card).to_have_count(0)

    page.get_by_label("Context size").fill("512")
    page.get_by_label("Load in 8-bit").check()
    expect(page.locator("#snug-plan .verdict")).to_contain_text("8-bit")
    page.locator("#snug-load").click()
    expect(page.locator("#snug-model")).to_have_text("Fox-1B")
    expect(page.locator("#snug-plan .verdict")).to_contain_text("as it is loaded")  # all that the load told has come
    page.locator('[data-model="tiny"]').click()
    expect(page.locator("#snug-plan .verdict")).not_to_contain_text("as it is loaded")
    expect(page.locator("#snug-plan .verdict")).to_contain_text("8-bit")  # never loaded from here: the options stay
    page.locator('[data-model="Fox-1B"]').click()
    expect(page.locator("#snug-memory")).to_contain_text("As you loaded it last. Context size 512, Load in 8-bit")
    expect(page.get_by_label("Context size")).to_have_value("512")
    page.locator('[data-model="tiny"]').click()
    expect(page.get_by_label("Load in 8-bit")).not_to_be_checked()  # what was offered was the other one's
    page.locator('[data-model="Fox-1B"]').click()
    expect(page.get_by_label("Load in 8-bit")).to_be_checked()
    open_tab(page, "Parameters")
    page.select_option("#snug-preset", "Creative")
    page.locator("#snug-reset").click()
    expect(page.locator(".param.changed")).to_have_count(0)
    open_tab(page, "Model")
    page.get_by_role("button", name="Use preset Creative").click()
    expect(page.locator("#snug-preset")).to_have_value("Creative")
    page.get_by_role("button", name="Forget").click()
    expect(page.get_by_label("Load in 8-bit")).not_to_be_checked()
    expect(page.locator("#snug-memory p")).to_have_count(0)
