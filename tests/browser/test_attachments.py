"""Files attached to messages, in a real browser: chosen, dropped, pasted, refused, sent, kept."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import FilePayload, Locator, Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.test_chat import act, hold, last_reply, replies, send
from tests.fakes import Script
from tests.page_rig import Snug
from tests.small_files import docx, pdf
from tests.test_host import until

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

Start = Callable[..., Snug]


def choose(page: Page, *files: tuple[str, bytes]) -> None:
    """As by the file dialog; waits until all are read or refused."""
    payloads: list[FilePayload] = [{"name": name, "mimeType": "", "buffer": data} for name, data in files]
    page.set_input_files("#snug-files", payloads)
    expect(page.locator(".busy-file")).to_have_count(0)


def chips(page: Page) -> Locator:
    """What is in the tray."""
    return page.locator(".tray .file-chip")


def hand_over(page: Page, event: str, target: str, text: str, name: str) -> None:
    """Drop or paste a file as browsers do."""
    page.evaluate(
        """([event, target, text, name]) => {
            const data = new DataTransfer();
            if (name) data.items.add(new File([text], name, { type: "text/plain" }));
            else data.setData("text/plain", text);
            const common = { bubbles: true, cancelable: true, clipboardData: data, dataTransfer: data };
            const made = event === "paste" ? new ClipboardEvent(event, common) : new DragEvent(event, common);
            document.querySelector(target).dispatchEvent(made);
        }""",
        [event, target, text, name],
    )


def test_files_are_chosen_counted_sent_and_kept_with_their_message(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(quote=True)))
    expect(page.locator("#snug-attach")).to_have_attribute("aria-label", "Attach files")
    choose(
        page,
        ("report.docx", docx("The otter sleeps.")),
        ("<img src=x onerror=alert(1)>.md", b"# A seal"),
        ("scan.pdf", pdf("")),
        ("long.txt", b"A line of text.\n" * 4000),
    )
    expect(chips(page)).to_have_count(4)
    expect(chips(page).nth(0)).to_contain_text(re.compile(r"Word document · 3\d KB · \d+ tokens"))
    expect(chips(page).nth(1)).to_contain_text("<img src=x onerror=alert(1)>.md")
    expect(page.locator(".file-chip.bad")).to_contain_text("Let a text recognition (OCR) add the text")
    expect(chips(page).nth(3)).to_contain_text(re.compile(r"This model reads its first [\d,]+ of 63,999 characters"))
    expect(page.locator("#snug-gauge-text")).to_contain_text("tokens")

    page.reload()
    expect(chips(page)).to_have_count(3)  # what could not be read is gone, the rest waits
    chips(page).nth(2).get_by_label(re.compile("Remove long")).click()
    expect(chips(page)).to_have_count(2)
    send(page, "What is in them?")
    expect(replies(page)).to_have_count(1)
    expect(last_reply(page)).to_contain_text("The otter sleeps.")
    expect(chips(page)).to_have_count(0)
    kept = page.locator(".message.user .file-chip")
    expect(kept).to_have_count(2)
    kept.first.locator("button").click()
    expect(page.locator("dialog pre")).to_have_text("The otter sleeps.")
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)
    page.reload()
    expect(kept).to_have_count(2)

    page.fill("#snug-search", "otter")
    expect(page.locator(".snippet")).to_contain_text("otter")
    page.fill("#snug-search", "")
    act(page, "delete")
    expect(page.locator(".message")).to_have_count(0)
    expect(chips(page)).to_have_count(2)
    expect(page.locator("#snug-input")).to_have_value("What is in them?")
    page.get_by_role("button", name="Undo").click()
    expect(kept).to_have_count(2)
    expect(chips(page)).to_have_count(0)
    expect(page.locator("#snug-input")).to_have_value("")


def test_files_are_dropped_and_pasted_and_a_message_waits_for_them(start: Start, visit: OpenPage) -> None:
    page = visit(start(Script(quote=True)))
    hand_over(page, "dragover", ".chat", "x", "a.txt")
    expect(page.locator(".drop-zone")).to_be_visible()
    page.fill("#snug-input", "Which one?")
    hand_over(page, "drop", ".chat", "A walrus.", "a.txt")
    expect(page.locator(".drop-zone")).to_be_hidden()
    page.press("#snug-input", "Enter")  # at once: it goes when the file is read
    expect(last_reply(page)).to_contain_text("A walrus.")
    expect(last_reply(page)).to_contain_text("Which one?")

    hand_over(page, "paste", "#snug-input", "A seal.", "b.txt")
    expect(chips(page)).to_have_count(1)
    expect(page.locator(".busy-file")).to_have_count(0)
    hand_over(page, "paste", "#snug-input", "long text " * 1_000_000, "")
    expect(chips(page)).to_have_count(2)
    expect(page.locator(".busy-file")).to_have_count(0)
    expect(chips(page).nth(1)).to_contain_text("Pasted text.txt")
    expect(chips(page).nth(1)).to_contain_text("Only the first")
    expect(page.locator("#snug-input")).to_have_value("")
    hand_over(page, "drop", ".chat", "", "empty.txt")
    expect(page.locator(".file-chip.bad")).to_contain_text("It is empty")

    page.click(".new-incognito")
    expect(chips(page)).to_have_count(0)
    choose(page, ("secret.txt", b"hush"))
    assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    page.click("#snug-new")
    expect(chips(page)).to_have_count(0)
    page.locator(".conversation").first.click()
    expect(chips(page)).to_have_count(3)
    page.press("#snug-input", "Enter")
    expect(replies(page)).to_have_count(2)
    expect(last_reply(page)).to_contain_text("A seal.")
    expect(chips(page)).to_have_count(0)


def test_a_tray_keeps_to_its_limit_and_files_to_their_chat(start: Start, visit: OpenPage) -> None:
    snug = start(Script(quote=True))
    page = visit(snug)
    let_go = hold(page, "send")
    page.fill("#snug-input", "First")
    page.press("#snug-input", "Enter")
    choose(page, ("late.txt", b"A heron."))  # while the first message is on its way
    expect(page.locator(".busy-file")).to_have_count(0)
    let_go()
    expect(replies(page)).to_have_count(1)
    expect(chips(page)).to_contain_text(["late.txt"])
    page.click("#snug-new")
    expect(chips(page)).to_have_count(0)
    page.locator(".conversation").first.click()
    expect(chips(page)).to_have_count(1)

    choose(page, *[(f"{number}.txt", b"x") for number in range(7)])
    expect(page.locator(".busy-file")).to_have_count(0)
    page.fill("#snug-input", "Second")
    page.press("#snug-input", "Enter")
    expect(replies(page)).to_have_count(2)
    choose(page, *[(f"new{number}.txt", b"x") for number in range(6)])
    expect(page.locator(".busy-file")).to_have_count(0)
    act(page, "delete")
    expect(page.locator(".toast", has_text="4 files of the deleted message are not here")).to_be_visible()
    expect(page.locator(".tray .file-chip")).to_have_count(10)


def test_unsent_files_of_an_incognito_chat_go_with_it(start: Start, visit: OpenPage) -> None:
    snug = start(Script(quote=True))
    page = visit(snug)

    def waiting() -> int:
        database = snug.services.store.attached._databases.of("incognito-")
        with database.read() as connection:
            return int(connection.execute("SELECT count(*) FROM attachments WHERE message_id IS NULL").fetchone()[0])

    page.click(".new-incognito")
    choose(page, ("secret.txt", b"hush"))
    expect(page.locator(".busy-file")).to_have_count(0)
    assert waiting() == 1
    page.reload()
    expect(page.locator("#snug-input")).to_be_visible()
    until(lambda: waiting() == 0)

    page.click(".new-incognito")
    page.fill("#snug-input", "Hello")
    page.press("#snug-input", "Enter")
    expect(replies(page)).to_have_count(1)
    choose(page, ("secret.txt", b"hush"))
    expect(page.locator(".busy-file")).to_have_count(0)
    with snug.services.store.attached._databases.of("incognito-").write() as connection:
        connection.execute("DELETE FROM attachments WHERE message_id IS NULL")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # as after a long sleep: it is sent anew
    until(lambda: waiting() == 1)
    page.get_by_role("button", name="End", exact=True).click()
    page.locator("dialog").get_by_role("button", name="End").click()
    until(lambda: waiting() == 0)
