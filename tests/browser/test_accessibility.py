"""axe looks at every tab, dialog and menu, light and dark, wide and on a phone, and finds no serious fault."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import replies, send
from tests.browser.test_tabs import open_tab
from tests.fakes import Script
from tests.page_rig import Snug

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
SERIOUS = {"serious", "critical"}
REPLY = """A **reply** with [a link](https://example.org), `code` and

```python
print("hi")  # said
```

| a |
|---|
| 1 |
"""


class Looker:
    """What axe has found so far, each fault with the place where it was met."""

    def __init__(self, page: Page, rules: list[str] | None) -> None:
        """`rules`: those to try, None for all."""
        self.page = page
        self.faults: list[str] = []
        self._options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
        page.evaluate(AXE)

    def look(self, where: str) -> None:
        """Run axe over what is on show now."""
        self.page.evaluate("Promise.all(document.getAnimations().map(item => item.finished.catch(() => 0)))")
        answer = self.page.evaluate("options => axe.run(document, options)", self._options)
        for fault in answer["violations"]:
            if fault["impact"] in SERIOUS:
                nodes = "; ".join(f"{node['target'][0]} {node['failureSummary']}"[:300] for node in fault["nodes"][:4])
                self.faults.append(f"{where}: {fault['id']} ({fault['impact']}): {nodes}")


def test_axe_finds_no_serious_fault_on_any_tab_or_dialog(start: Start, visit: OpenPage) -> None:
    snug = start(Script(reply=REPLY))
    wide = visit(snug, color_scheme="light")
    send(wide, "Look at this page.")
    expect(replies(wide)).to_have_count(1)
    faults = look_everywhere(wide, "wide, light")
    wide.locator('[data-theme-choice="dark"]').click()
    faults += look_everywhere(wide, "wide, dark", ["color-contrast"])
    conversation = wide.url.removeprefix(snug.url)
    phone = visit(snug, conversation, viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark")
    expect(replies(phone)).to_have_count(1)
    faults += look_everywhere(phone, "phone, dark")
    assert faults == [], "\n".join(faults)


def unfold_parameters(page: Page) -> None:
    """On the Parameters tab: a changed value, a wrong one, every fold open."""
    page.locator("#param-temperature input[type=number]").fill("1.5")
    expect(page.locator("#param-temperature .param-reset")).to_be_visible()
    page.locator("#param-top_p input[type=number]").fill("9")
    expect(page.locator("#param-top_p .param-problem")).to_be_visible()
    while page.locator(".fold-button[aria-expanded=false]").count():
        page.locator(".fold-button[aria-expanded=false]").first.click()


def look_everywhere(page: Page, how: str, rules: list[str] | None = None) -> list[str]:
    """Every tab, and what opens over them."""
    looker = Looker(page, rules)
    for title in page.locator('#snug-tabs > .tab-wrapper [role="tab"]').all_inner_texts():
        open_tab(page, title)
        if title == "Model":
            page.locator("#snug-models [data-model=tiny]").click()
            expect(page.locator("#snug-plan .verdict")).to_be_visible()
        if title == "Parameters":
            unfold_parameters(page)
        looker.look(f"{how}, {title}")
        if title == "Parameters":
            page.locator("#param-top_p .param-reset").click()
            page.locator("#snug-preset-menu").click()
            looker.look(f"{how}, menu of presets")
            page.keyboard.press("Escape")
            page.locator("#snug-preset-compare").click()
            looker.look(f"{how}, comparing presets")
            page.keyboard.press("Escape")
    open_tab(page, "Chat")
    page.locator("#snug-setup").click()
    expect(page.locator(".setup-panel")).to_be_visible()
    looker.look(f"{how}, Setup")
    page.keyboard.press("Escape")
    page.locator("#snug-strip").click()
    looker.look(f"{how}, memory")
    page.keyboard.press("Escape")
    page.locator('.message.user [data-act="edit"]').click()
    looker.look(f"{how}, editing")
    page.keyboard.press("Escape")
    if not page.locator("#snug-sidebar").is_visible():
        page.get_by_label("Show the sidebar").click()
    page.locator(".conversation .more").first.click()
    looker.look(f"{how}, menu of a conversation")
    page.keyboard.press("Escape")
    page.get_by_label("Keyboard (?)").click()
    looker.look(f"{how}, keys")
    page.keyboard.press("Escape")
    return looker.faults
