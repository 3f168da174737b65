"""What a dry run counted takes the place of the formulas on the page, by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_tabs import open_tab
from tests.page_rig import Snug
from tests.test_host import until
from tests.test_planning import PEAKS, FakeDryRuns

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

HINT = "Counting what this way really allocates"


def method_of(page: Page, title: str) -> str:
    """What the picture says of how a figure was found."""
    return page.locator(f'#snug-plan [data-tip="{title}"]').first.get_attribute("data-method") or ""


def test_the_picture_is_there_at_once_and_drawn_anew_when_the_dry_run_has_its_answer(
    start: Callable[..., Snug], visit: OpenPage
) -> None:
    runs = FakeDryRuns()
    page = visit(start(loaded=False, dry_runs=runs))
    open_tab(page, "Model")
    expect(page.locator("#snug-plan .plan-device").first).to_be_visible()
    assert method_of(page, "Reading the prompt").startswith("formula")
    expect(page.get_by_text(HINT)).to_be_visible()
    runs.answer(PEAKS)
    expect(page.locator('#snug-plan [data-tip="Reading the prompt"][data-method^="dry run"]').first).to_be_attached()
    expect(page.get_by_text(HINT)).not_to_be_visible()
    assert method_of(page, "Weights").startswith("exact")


def test_another_context_is_counted_anew(start: Callable[..., Snug], visit: OpenPage) -> None:
    runs = FakeDryRuns(PEAKS)
    page = visit(start(loaded=False, dry_runs=runs))
    open_tab(page, "Model")
    expect(page.locator('#snug-plan [data-method^="dry run"]').first).to_be_attached()
    runs.known = None
    page.locator("#snug-context-range").press("Home")
    until(lambda: len({run.context_tokens for run, _ in runs.asked}) == 2, 15)
    expect(page.get_by_text(HINT)).to_be_visible()
    runs.answer(PEAKS)
    expect(page.locator('#snug-plan [data-method^="dry run"]').first).to_be_attached()
