"""What a hostile text is on its way to the page, cut anywhere, in a browser that forbids nothing: it does nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Dialog

from modules.ui.markdown import StreamingMarkdown
from tests.hostile_text import VECTORS

LIVE = "script, iframe, object, embed, form, base, meta, link, style, svg, img, video, audio, input, details"
SHOW = """async ([pages, live]) => {
    const box = document.querySelector("#box"), acting = [];
    for (const page of pages) {
        box.innerHTML = page;
        const nodes = [...box.querySelectorAll("*")];
        const acts = node => [...node.attributes].some(one => one.name.startsWith("on"))
            || /^\\s*(javascript|data|vbscript):/i.test(node.getAttribute("href") ?? "");
        if (box.querySelector(live) || nodes.some(acts)) acting.push(page);
        await new Promise(done => setTimeout(done));
    }
    return acting;
}"""


def states(step: int) -> Iterator[str]:
    """The HTML of the beginnings of every text, `step` characters apart, and of the whole."""
    for number, vector in enumerate(VECTORS):
        text, growing = f"So: {vector}\n\nand on", StreamingMarkdown()
        for end in (*range(4 + number % step, len(text), step), len(text)):
            blocks, tail = growing.update(text[:end])
            yield "".join(blocks) + tail


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_no_state_of_a_hostile_text_does_anything_in_a_browser(browser: Browser, step: int) -> None:
    page = browser.new_page()
    ran: list[str] = []
    asked: list[str] = []

    def alarm(dialog: Dialog) -> None:
        ran.append(dialog.message)
        dialog.dismiss()

    page.on("dialog", alarm)
    page.on("request", lambda request: asked.append(request.url))
    page.set_content("<div id=box></div>")
    try:
        different = list(dict.fromkeys(states(step)))
        for first in range(0, len(different), 400):
            assert page.evaluate(SHOW, [different[first : first + 400], LIVE]) == []
        page.evaluate(SHOW, [["<img src=x onerror='alert(1)'>"], "none"])
        page.wait_for_timeout(200)
        assert page.evaluate("window.stung") is None
    finally:
        page.close()
    assert ran == ["1"], "only the one that was meant to"
    assert [url for url in asked if not url.startswith(("data:", "about:"))] == []
