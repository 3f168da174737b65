"""People with accounts, as they see the page: logging in, their account, what is only for administrators."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import WAIT_MS, Watch
from tests.fakes import Script
from tests.hostile_text import CANARY, VECTORS
from tests.household import WORDS
from tests.page_rig import Snug

pytestmark = pytest.mark.browser

LOG_IN = "who => fetch('/login', { method: 'POST', body: new URLSearchParams(who), redirect: 'manual' })"


@pytest.fixture
def arrive(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Somebody's browser, which has come to the page before the page."""
    expect.set_options(timeout=WAIT_MS)
    contexts, watches = [], []

    def come(snug: Snug, **options: object) -> Page:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        watches.append(Watch(snug.url))
        watches[-1].observe(page)
        page.goto(snug.url)
        return page

    yield come
    for context in contexts:
        context.close()
    refusals = "the server responded with a status of 401"  # which is what a page without a session gets
    assert [fault for watch in watches for fault in watch.faults if refusals not in fault] == []


def log_in(page: Page, name: str, password: str | None = None) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(password or WORDS[name])
    page.keyboard.press("Enter")


def peopled(start: Callable[..., Snug]) -> Snug:
    """A Snug in which all of WORDS have accounts."""
    snug = start(Script())
    accounts = snug.services.accounts
    assert accounts is not None
    for name, word in WORDS.items():
        accounts.add(name, word)
    return snug


def test_two_people_live_in_one_snug(start: Callable[..., Snug], arrive: Callable[..., Page]) -> None:
    snug = peopled(start)
    accounts = snug.services.accounts
    assert accounts is not None

    ana = arrive(snug)
    expect(ana.get_by_label("Name")).to_be_focused()
    log_in(ana, "Ana", "nonsense")
    expect(ana.get_by_role("alert")).to_contain_text("do not belong together")
    expect(ana.get_by_label("Password")).to_be_focused()
    log_in(ana, "Ana")
    expect(ana.locator("#snug-person")).to_contain_text("Ana")
    ana.locator("#snug-input").fill("A word of Ana's")
    ana.keyboard.press("Enter")
    expect(ana.locator(".message.assistant, .message").last).to_contain_text("brown fox")

    ana.locator("#snug-person").click()
    dialog = ana.get_by_role("dialog", name="Ana")
    dialog.get_by_label("New key for").fill("my script")
    dialog.get_by_role("button", name="Make key").click()
    secret = dialog.locator(".account-secret code").inner_text()
    assert accounts.by_key(secret) is not None
    dialog.get_by_label("New person").fill("Cy")
    dialog.get_by_label("Password", exact=True).fill("a long password")
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(dialog.locator(".account-row", has_text="Cy")).to_be_visible()
    expect(dialog.locator(".account-secret")).to_have_count(0)

    ben = arrive(snug, color_scheme="dark")
    log_in(ben, "Ben")
    expect(ben.locator("#snug-person")).to_contain_text("Ben")
    expect(ben.locator(".empty-list")).to_be_visible()
    ben.get_by_role("tab", name="Model").click()
    expect(ben.get_by_text("Loading and unloading is for administrators.")).to_be_visible()
    expect(ben.locator("#snug-load")).to_be_disabled()
    expect(ben.locator("#snug-unload")).to_be_disabled()
    expect(ben.locator("#snug-hub-name")).to_be_disabled()
    ben.get_by_role("tab", name="Compare").click()
    expect(ben.locator("#snug-compare-go")).to_be_disabled()
    ben.locator("#snug-person").click()
    expect(ben.get_by_role("heading", name="Keys for programs")).to_be_visible()
    expect(ben.get_by_role("heading", name="People")).to_have_count(0)

    accounts.remove(accounts.named("Ben").id)
    expect(ben.get_by_label("Name")).to_be_visible()
    dialog.get_by_role("button", name="Log out").click()
    expect(ana.get_by_label("Name")).to_be_visible()
    ana.goto(snug.url)
    expect(ana.get_by_label("Name")).to_be_visible()


def test_a_browser_keeps_each_persons_own_for_them_and_nothing_of_who_logs_out(
    start: Callable[..., Snug], arrive: Callable[..., Page]
) -> None:
    snug = peopled(start)

    page = arrive(snug)
    log_in(page, "Ben")
    page.locator("#snug-input").fill("what Ben has not sent")
    page.evaluate("snug.setTheme('dark')")
    page.context.clear_cookies()
    page.goto(snug.url)
    log_in(page, "Ana")
    expect(page.locator("#snug-person")).to_contain_text("Ana")
    expect(page.locator("#snug-input")).to_have_value("")
    page.locator("#snug-input").fill("what Ana has not sent")
    assert page.evaluate("[snug.remember.get('theme'), snug.remember.unsent()]") == ["dark", True]
    page.locator("#snug-person").click()
    page.get_by_role("button", name="Log out").click()
    page.get_by_role("button", name="Log out").last.click()
    expect(page.get_by_label("Name")).to_be_visible()
    assert "Ana" not in page.evaluate("JSON.stringify(localStorage)")

    log_in(page, "Ben")
    expect(page.locator("#snug-input")).to_have_value("what Ben has not sent")


def test_a_tab_of_who_was_there_before_is_theirs_who_is_there_now(
    start: Callable[..., Snug], arrive: Callable[..., Page]
) -> None:
    """It would send what is written under the one name as the other, who reads it."""
    snug = peopled(start)

    older = arrive(snug)
    log_in(older, "Ana")
    expect(older.locator("#snug-person")).to_contain_text("Ana")
    newer = older.context.new_page()
    newer.goto(snug.url)
    expect(newer.locator("#snug-person")).to_contain_text("Ana")
    older.locator("#snug-input").fill("what Ana has not sent")
    newer.evaluate(LOG_IN, {"name": "Ben", "password": WORDS["Ben"]})  # no page to log in stays behind in either tab
    newer.goto(snug.url)
    expect(older.locator("#snug-person")).to_contain_text("Ben")
    expect(older.locator("#snug-input")).to_have_value("")
    newer.evaluate("fetch('/logout', { method: 'POST', redirect: 'manual' }).then(() => snug.remember.leave())")
    expect(older.get_by_label("Name")).to_be_visible()


def test_no_hostile_text_runs_or_loads_anything_while_it_is_written(
    start: Callable[..., Snug], visit: Callable[..., Page]
) -> None:
    reply = "\n\n".join(vector.replace("\x00", "") for vector in VECTORS[::2])
    snug = start(Script(reply=reply))
    page = visit(snug)
    page.add_init_script("")
    page.locator("#snug-input").fill("Sting me")
    page.keyboard.press("Enter")
    expect(page.locator(".message").last.locator(".actions")).to_be_visible(timeout=60_000)
    page.wait_for_function("!document.querySelector('.message .streaming')")
    assert page.evaluate("window.stung") is None
    banned = "script, iframe, object, embed, form, svg:not(.icon), img, video, audio, style, link, meta, base"
    assert page.locator(".messages .message").last.locator(banned).count() == 0
    assert CANARY in page.locator(".messages").inner_text(), "the text itself is there to be read"
