"""Extensions on the page: what they add, what they break and do not, and who may switch them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import expect

from modules.extensions.manager import Extensions
from modules.settings import Settings
from tests.browser.conftest import OpenPage
from tests.browser.test_chat import last_reply, replies, send
from tests.fakes import Script
from tests.page_rig import Snug, start_snug
from tests.test_extensions import SHIPPED, write

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

BROKEN = """
'''Breaks in many ways.'''
import gradio as gr
def ui():
    gr.Textbox(label="Left behind")
    raise RuntimeError("no controls")
def input_modifier(string, state, is_chat=False):
    return string + 1
def custom_js():
    return "throw new Error('a broken page script')"
"""
HANDLER = """
'''Controls that work, and one that does not.'''
import gradio as gr
params = {"display_name": "Moods", "mood": "calm"}
def ui():
    mood = gr.Textbox(value=params["mood"], label="Mood")
    shown = gr.Textbox(label="Shown", interactive=False)
    mood.change(lambda text: params.update(mood=text) or text.upper(), mood, shown)
    gr.Button("Fail").click(lambda: 1 / 0)
def output_modifier(string):
    return f'{string} <span style="color: red; position: fixed" onclick="alert(1)">{params["mood"]}</span>' \\
        '<script>alert(2)</script><button data-act="delete">x</button><img src="http://192.0.2.1/x.png">'
"""
SPOKEN = """
window.spoken = [];
window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
Object.defineProperty(window, "speechSynthesis", { value: {
  getVoices: () => [], cancel() {}, addEventListener() {}, speak(one) { window.spoken.push(one.text); },
} });
"""
Begin = Callable[..., Snug]


@pytest.fixture
def begin(settings: Settings) -> Iterator[Begin]:
    """Start a Snug with extensions."""
    with ExitStack() as parts:

        def start(extensions: Extensions, reply: str = "The bee sleeps.") -> Snug:
            extensions.start()
            return start_snug(settings, parts, Script(reply=reply), extensions=extensions)

        yield start


def test_extensions_are_seen_steered_switched_and_their_failures_named(
    begin: Begin, visit: OpenPage, tmp_path: Path
) -> None:
    write(tmp_path, "broken", BROKEN)
    write(tmp_path, "moods", HANDLER)
    write(tmp_path, "idle", "'''Never started.'''\nraise SystemExit")
    snug = begin(Extensions(tmp_path, ["broken", "moods"], kept=tmp_path / "kept", hook_timeout_s=5))
    context_page = visit(snug)
    page = context_page
    expect(page.locator(".toast", has_text="Extension broken: its script on this page failed")).to_be_visible()
    send(page, "hello")
    expect(replies(page)).to_have_count(1)
    expect(last_reply(page)).to_contain_text("The bee sleeps. calm<script>")
    assert page.locator(".body script, .body img, .body [data-act=delete], .body [onclick]").count() == 0
    assert last_reply(page).locator("span").get_attribute("style") == "color:red"
    expect(page.locator(".message.assistant .told")).to_contain_text(
        "Extension broken: input_modifier failed: TypeError"
    )
    page.get_by_text("As the model wrote it").click()
    expect(page.locator(".modified div")).to_have_text("The bee sleeps.")

    page.get_by_role("tab", name="Extensions").click()
    card = page.locator('[data-extension="broken"]')
    expect(card).to_contain_text("on, with problems")
    expect(card).to_contain_text("a broken page script")
    expect(card).to_contain_text("no controls")
    card.locator("summary", has_text="input_modifier").click()
    expect(card).to_contain_text("return string + 1")
    expect(page.get_by_label("Left behind")).to_have_count(0)
    page.get_by_text("1 more in the extensions folder").click()
    expect(page.locator(".extension-other")).to_have_text("idleNever started.")

    page.get_by_role("textbox", name="Mood").fill("merry")
    expect(page.get_by_role("textbox", name="Shown")).to_have_value("MERRY")
    page.get_by_role("button", name="Fail").click()
    expect(page.locator(".toast-body, .toast", has_text="Extension moods: the handler").first).to_be_visible()
    assert json.loads((tmp_path / "kept" / "moods.json").read_text())["mood"] == "merry"

    page.locator('[data-extension="broken"] .switch').click()
    expect(page.locator('[data-extension="broken"] .switch')).to_have_attribute("aria-checked", "false")
    page.reload()
    page.get_by_role("tab", name="Chat").click()
    send(page, "again")
    expect(replies(page)).to_have_count(2)
    expect(last_reply(page)).to_contain_text("The bee sleeps. merry")
    expect(page.locator(".message.assistant").last.locator(".told p")).to_have_count(0)
    page.get_by_role("tab", name="Extensions").click()
    expect(page.get_by_role("textbox", name="Mood")).to_have_value("merry")


def test_what_comes_with_snug_works_together(begin: Begin, visit: OpenPage, tmp_path: Path) -> None:
    names = [name for name in SHIPPED if name not in ("web_search", "long_replies")]
    snug = begin(Extensions(Path("extensions"), names, kept=tmp_path), "The bee sleeps. `code` She dreams.")
    page = visit(snug, "/?blank")
    page.add_init_script(SPOKEN)
    page.goto(snug.url)
    page.wait_for_selector(".face")
    expect(page.locator(".face")).to_have_count(3)
    send(page, "hello")
    expect(replies(page)).to_have_count(1)
    expect(last_reply(page)).to_contain_text("Checked by an extension.")
    expect(page.locator(".example-mark")).to_have_text("10 words")
    page.get_by_role("button", name="Read aloud").click()
    assert page.evaluate("window.spoken")[0].strip() == "The bee sleeps."
    expect(page.locator(".speaking-now")).to_have_count(1)
    page.get_by_role("button", name="Read aloud").click()
    expect(page.locator(".speaking-now")).to_have_count(0)
    send(page, "/example")
    expect(replies(page)).to_have_count(2)
    expect(last_reply(page)).to_contain_text("this reply was written by an extension")
    page.click("#snug-new")
    page.locator(".face").first.click()
    expect(page.locator(".message.assistant")).to_have_count(1)
