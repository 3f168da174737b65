"""The page in other languages: nothing stays English that is ours, the layout holds, the choice is kept."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_accessibility import unfold_parameters
from tests.browser.test_chat import replies
from tests.fakes import Script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
PEOPLES = (
    ".message > .body, .conversation-title, .entry-name, .model-name, .snippet, pre, code, kbd"
    ", option[value]:not([value=''])"
    ", .tile-name, .tile-about, .persona-text, .extension-head h3, .extension-head p, .extension-other"
    ", .person-dialog:not(.editing) :is(h2, .tags, .about, .greeting), .edit-area, .wordmark"
    ", svg, script, style, [data-tip='']"
)
"""Where people's own words stand, and names that are the same in every language."""
NAMES = re.compile(
    r"\b(?:xyz|Mira|tiny|Snug|Deutsch|English|Balanced|float32|LlamaForCausalLM|llamacpp"
    r"|serial: a script needs no batching|vllm|flash_attention_[23]|plain"
    r"|static|int4|offloaded|ngram|RAM|GPU|CPU|[KMGT]i?B|JSON|YAML|PNG|Markdown|Esc|Ctrl|Shift|Enter|Alt|XTC|DRY|Mirostat|fake"
    r"|transformers|auto|none|default|bf16|fp16|fp32|fp4|nf4|int8|\d+bit|q\d_\d|f16|sdpa|eager)\b"
)
SEEN = """peoples => {
  const told = [], shown = node => node.checkVisibility({ visibilityProperty: true }) && !node.closest(peoples);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { data, parentElement } = walker.currentNode;
    if (data.trim() && shown(parentElement)) told.push(data.trim());
  }
  const names = ["title", "aria-label", "placeholder", "data-tip", "data-method"];
  for (const node of document.querySelectorAll(names.map(name => `[${name}]`).join())) if (shown(node))
    told.push(...names.map(name => node.getAttribute(name)).filter(Boolean));
  return [...new Set(told)];
}"""


def plain(text: str) -> str:
    """What of a text is in no brackets, and no name."""
    while text != (inner := re.sub(r"\[[^\[\]]*\]", " ", text)):
        text = inner
    return NAMES.sub(" ", text).strip()


class Reader:
    """What has been seen in plain English, with the place."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.found: list[str] = []

    def read(self, where: str) -> None:
        """Look at all that is on show now."""
        for text in self.page.evaluate(SEEN, PEOPLES):
            if re.search(r"[A-Za-z]{3,}", plain(text)):
                self.found.append(f"{where}: {text[:160]!r}")
        wide = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if wide > 0:
            self.found.append(f"{where}: wider than the page by {wide} px")


def test_no_word_of_ours_stays_english_in_the_language_that_nobody_speaks(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="xyz"))
    page = visit(snug, "/?language=en-XA")
    expect(page.locator("html")).to_have_attribute("lang", "en-XA")
    reader = Reader(page)
    reader.read("empty chat")
    page.locator("#snug-input").fill("xyz")
    page.locator("#snug-send").click()
    expect(replies(page)).to_have_count(1)
    expect(page.locator("#snug-send")).to_be_visible()
    read_everywhere(reader)
    assert reader.found == [], "\n".join(reader.found)


def read_everywhere(reader: Reader) -> None:
    """Every tab, and what opens over them."""
    page = reader.page
    for name in ("chat", "characters", "notebook", "compare", "model", "parameters", "extensions"):
        page.evaluate("name => snug.selectTab(name)", name.capitalize())
        if name == "characters":
            expect(page.locator(".tile").first).to_be_visible()
        if name == "compare":
            expect(page.locator(".compare-column")).to_have_count(2)
            expect(page.locator("#snug-compare-plan")).not_to_be_empty()
        if name == "model":
            page.locator("#snug-models [data-model=tiny]").click()
            expect(page.locator("#snug-plan .verdict")).to_be_visible()
            page.evaluate("document.querySelectorAll('#snug-tab-model details').forEach(fold => { fold.open = true; })")
            folds = page.locator("#snug-tab-model .options button.label-wrap:not(.open)")
            while folds.count():
                folds.first.click()
        if name == "parameters":
            unfold_parameters(page)
        reader.read(name)
        if name == "characters":
            page.locator(".tile").first.click()
            expect(page.locator("dialog[open]")).to_have_count(1)
            reader.read("a character")
            page.keyboard.press("Escape")
            expect(page.locator("dialog[open]")).to_have_count(0)
            page.locator("#snug-new-character").click()
            reader.read("new character")
            page.keyboard.press("Escape")
        if name == "parameters":
            page.locator("#param-top_p .param-reset").click()
            page.locator("#snug-preset-menu").click()
            reader.read("menu of presets")
            page.keyboard.press("Escape")
            page.locator("#snug-preset-compare").click()
            reader.read("comparing presets")
            page.keyboard.press("Escape")
    page.evaluate("snug.selectTab('Chat')")
    for opener, where in (
        ("#snug-setup", "setup"), ("#snug-strip", "memory"), ('.message.user [data-act="edit"]', "editing"),
        (".conversation .more", "menu of a conversation"), ("#snug-view", "folders"), ("#snug-language", "languages"),
    ):  # fmt: skip
        page.locator(opener).first.click()
        reader.read(where)
        page.keyboard.press("Escape")
    page.locator("[data-theme-choice=system]").focus()
    page.keyboard.press("?")
    expect(page.locator("#snug-keys")).to_be_visible()
    reader.read("keys")
    page.keyboard.press("Escape")


def test_german_comes_with_the_browser_and_a_choice_outlives_reloads(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="xyz", tokens_per_s=200))
    page = visit(snug, locale="de-AT")
    expect(page.locator("html")).to_have_attribute("lang", "de")
    expect(page.locator("#snug-input")).to_have_attribute("placeholder", "Nachricht schreiben")
    page.locator("#snug-input").fill("xyz")
    page.locator("#snug-send").click()
    expect(page.locator(".message .stats")).to_contain_text(re.compile("Tokens? · .*erstes Token 0,"))
    page.get_by_role("tab", name="Modell").click()
    page.locator("#snug-models [data-model=tiny]").click()
    expect(page.locator("#snug-plan .verdict")).to_contain_text("Es passt")
    expect(page.locator("#snug-load")).to_have_text("Neu laden")
    expect(page.locator("#option-ctx_size")).to_contain_text("Kontextlänge")
    answer = page.request.get(f"{snug.url}/v1/models/nothing").json()
    assert "is not loaded" in answer["error"]["message"]  # programs read that, in English
    page.locator("#snug-language").click()
    page.get_by_role("menuitem", name="English").click()
    expect(page.locator("#snug-input")).to_have_attribute("placeholder", "Write a message")
    page.reload()
    expect(page.locator("#snug-input")).to_have_attribute("placeholder", "Write a message")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    page.locator("#snug-language").click()
    page.get_by_role("menuitem", name="As the browser").click()
    expect(page.locator("#snug-input")).to_have_attribute("placeholder", "Nachricht schreiben")


def test_the_phone_holds_long_words_from_right_to_left(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply="xyz"))
    page = visit(snug, "/?language=ar-XB", viewport={"width": 390, "height": 844}, has_touch=True)
    expect(page.locator("html")).to_have_attribute("dir", "rtl")
    expect(page.locator("#snug-input")).to_be_visible()
    wide = []
    for name in ("Chat", "Characters", "Notebook", "Compare", "Model", "Parameters", "Extensions"):
        page.evaluate("name => snug.selectTab(name)", name)
        page.wait_for_function("name => snug.currentTab() === name", arg=name)
        over = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if over > 0:
            wide.append((name, over))
    assert wide == []
    page.evaluate("snug.selectTab('Chat')")
    box = page.locator(".composer").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_a_language_that_runs_from_right_to_left_has_its_sidebar_on_the_right(start: Start, visit: OpenPage) -> None:
    page = visit(start(), "/?language=ar-XB")
    expect(page.locator("#snug-input")).to_be_visible()

    def edges(selector: str) -> tuple[float, float]:
        page.wait_for_function("document.getAnimations().every((one) => one.playState !== 'running')")
        box = page.locator(selector).bounding_box()
        assert box is not None
        return box["x"], box["x"] + box["width"]

    left, right = edges("#snug-sidebar")
    assert right == 1280
    assert edges(".chat") == (0, left)
    assert edges("#snug-send")[1] < 640 < edges("#snug-tab-chat-button")[0]
    page.locator("#snug-sidebar .brand button").click()
    assert edges(".chat") == (0, 1280)
    assert edges("#snug-sidebar")[0] >= 1280
