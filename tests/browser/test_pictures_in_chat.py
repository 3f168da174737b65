"""Pictures in the chat, in a real browser: chosen, pasted, dropped, seen large, kept; and models that cannot see."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_attachments import chips, choose
from tests.browser.test_chat import last_reply, replies, send
from tests.fakes import CONTROL_IDS, IMAGE_TOKEN, Script
from tests.page_rig import Snug
from tests.test_pictures import halves, saved

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
LARGE = saved(halves(3200, 1600), "PNG")
SMALL = saved(halves(320, 160), "JPEG")


def hand_over(page: Page, event: str, data: bytes, name: str) -> None:
    """Paste or drop a picture as browsers do."""
    page.evaluate(
        """([event, encoded, name]) => {
            const bytes = Uint8Array.from(atob(encoded), (sign) => sign.charCodeAt(0)), data = new DataTransfer();
            data.items.add(new File([bytes], name, { type: "image/png" }));
            const common = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
            const made = event === "paste" ? new ClipboardEvent(event, common) : new DragEvent(event, common);
            document.querySelector("#snug-input").dispatchEvent(made);
        }""",
        [event, base64.b64encode(data).decode(), name],
    )
    expect(page.locator(".busy-file")).to_have_count(0)


def test_pictures_are_attached_seen_large_and_kept_with_their_message(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(sees=True, reply="Blue and red.")))
    choose(page, ("large.png", LARGE))
    chip = chips(page).first
    expect(chip).to_contain_text(re.compile(r"1536 × 768 · \d+ KB · 1,152 tokens"))
    expect(chip).to_contain_text("Scaled from 3200 × 1600 to 1536 × 768 pixels.")
    thumb = chip.locator("img.file-thumb")
    expect(thumb).to_be_visible()
    page.wait_for_function("document.querySelector('img.file-thumb').naturalWidth === 1536")
    expect(page.locator("#snug-gauge-text")).to_contain_text(re.compile(r"1,1\d\d"))
    hand_over(page, "paste", SMALL, "pasted.jpg")
    hand_over(page, "drop", SMALL, "dropped.jpg")
    expect(chips(page)).to_have_count(3)
    expect(chips(page).nth(2)).to_contain_text(re.compile(r"320 × 160 · \d+ KB · 50 tokens"))

    page.reload()  # they wait in the composer
    expect(chips(page)).to_have_count(3)
    chips(page).nth(1).get_by_label(re.compile("Remove pasted")).click()
    send(page, "What is in them?")
    expect(last_reply(page)).to_contain_text("Blue and red.")
    expect(chips(page)).to_have_count(0)
    shown = page.locator(".message.user .shown-picture img")
    expect(shown).to_have_count(2)
    expect(shown.first).to_have_attribute("alt", "Attached picture: large.png")
    box = shown.first.bounding_box()
    assert box is not None and abs(box["width"] / box["height"] - 2) < 0.1 and box["width"] <= 340
    shown.first.click()
    expect(page.locator("dialog.picture-dialog img")).to_be_visible()
    expect(page.locator("dialog.picture-dialog")).to_contain_text("1536 × 768")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.reload()
    expect(page.locator(".message.user .shown-picture img")).to_have_count(2)


def test_a_picture_alone_is_sent_and_a_model_that_reads_text_is_told_so_before_and_after(
    start: Start, visit: OpenPage
) -> None:
    snug = start(Script(quote=True))
    page = visit(snug)
    choose(page, ("cat.png", SMALL), ("film.gif", saved(halves(40, 40), "GIF")))
    expect(chips(page).first).to_contain_text(re.compile("cannot see pictures; it is told that there is one"))
    expect(page.locator(".file-chip.bad")).to_contain_text("Save it as PNG, JPEG or WebP")
    page.locator(".file-chip.bad").get_by_label(re.compile("Remove film")).click()
    send(page, "What is it?")
    expect(replies(page)).to_have_count(1)
    expect(last_reply(page)).to_contain_text("[The user attached a picture, which you cannot see.]")
    expect(page.locator(".message.assistant")).to_contain_text("cannot see pictures, and was told so")
    expect(page.locator(".message.user .shown-picture img")).to_have_count(1)
    assert CONTROL_IDS[IMAGE_TOKEN]
