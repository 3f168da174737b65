"""Make the pictures in docs/screenshots/ from the real app: server.py, the starter model, Chromium.

Run it from the repository's root: `python docs/screenshots/make.py`. It needs the starter model and a Chromium, and
leaves nothing behind but the pictures.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
MODEL = "SmolLM2-135M-Instruct"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WAIT_MS = 180_000
CHATS = (
    ("Give me three names for a sleepy grey cat.",),
    ("What is a KV cache, in two sentences?",),
    (
        "Why is the sky blue?",
        "Write a Python function that counts the words in a text.",
    ),
)


@contextmanager
def snug() -> Iterator[str]:
    """A server of its own with an empty user data folder; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "server.py", "--listen-port", str(port), "--user-data-dir", folder, "--model", MODEL]
        server = subprocess.Popen(command, cwd=ROOT)
        try:
            yield _wait_for(f"http://127.0.0.1:{port}")
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address: str) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return address
        except OSError:
            time.sleep(0.3)
    raise TimeoutError(f"{address} does not answer")


def open_page(browser: Browser, address: str, *, dark: bool = False, phone: bool = False) -> Page:
    """A page in a fresh profile."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844} if phone else {"width": 1440, "height": 900},
        color_scheme="dark" if dark else "light",
        has_touch=phone,
        device_scale_factor=2 if phone else 1.5,
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(address)
    page.wait_for_selector(".model-pill.ready")
    return page


def talk(page: Page, prompts: tuple[str, ...]) -> None:
    """A new conversation with these questions, each answered."""
    page.click("#snug-new")
    for number, prompt in enumerate(prompts, start=1):
        page.fill("#snug-input", prompt)
        page.press("#snug-input", "Enter")
        page.wait_for_function(
            "count => document.querySelectorAll('.message.assistant:not(.streaming)').length === count", arg=number
        )


def tab(page: Page, title: str) -> None:
    """Go to a tab and let it settle; on the Model tab until all is counted and measured."""
    page.get_by_role("tab", name=title).click()
    if title == "Model":
        page.wait_for_selector(".plan-truth")
        page.wait_for_timeout(3000)  # by then a dry run has begun, where one is needed
        page.wait_for_selector("#snug-plan:not(.counting)", state="attached")
    page.wait_for_timeout(1500)


def shoot(page: Page, name: str) -> None:
    """Save what the page shows."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(300)
    page.screenshot(path=HERE / f"{name}.png")
    print(f"docs/screenshots/{name}.png")


def keep_in_order(page: Page) -> None:
    """Two folders, and a search with the places found."""
    for title, folder in (("KV cache", "Learning"), ("sleepy grey cat", "Home")):
        row = page.locator(".conversation", has_text=title)
        row.hover()
        row.locator(".more").click()
        page.get_by_role("menuitem", name="Move to folder").click()
        page.get_by_role("menuitem", name="New folder").click()
        page.fill(".dialog-input", folder)
        page.press(".dialog-input", "Enter")
        page.wait_for_selector("dialog", state="detached")
    page.fill("#snug-search", "the")
    page.locator(".snippet").first.click()
    page.wait_for_selector(".message.found")
    page.wait_for_timeout(2600)
    shoot(page, "conversations")
    page.fill("#snug-search", "")


def main() -> None:
    """All pictures."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with snug() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = open_page(browser, address)
        shoot(page, "start")
        for prompts in CHATS:
            talk(page, prompts)
        shoot(page, "chat")
        conversation = page.url
        tab(page, "Characters")
        page.wait_for_function("[...document.querySelectorAll('.tile img')].every(image => image.complete)")
        page.click("#snug-new-persona")
        page.fill("#edit-name", "Kim")
        page.fill("#edit-description", "Kim repairs boats and drinks too much coffee.")
        page.click("#snug-save-person")
        page.wait_for_selector("[data-persona]")
        shoot(page, "characters")
        page.click('[data-character="Wren"]')
        page.click("#snug-talk")
        page.wait_for_selector(".message .speaker")
        page.fill("#snug-input", "Why is the sky blue?")
        page.press("#snug-input", "Enter")
        page.wait_for_function("document.querySelectorAll('.message.assistant:not(.streaming)').length === 2")
        page.click("#snug-setup")
        page.click("#snug-exact summary")
        page.wait_for_selector(".exact-text")
        shoot(page, "setup")
        page.keyboard.press("Escape")
        keep_in_order(page)
        tab(page, "Model")
        shoot(page, "model")
        tab(page, "Parameters")
        shoot(page, "parameters")
        tab(page, "Notebook")
        page.fill("#snug-notebook", "The lighthouse keeper had not spoken to anyone for a year. One evening,")
        page.click("#snug-generate")
        page.wait_for_function("document.getElementById('snug-notebook').value.length > 700")
        page.click("#snug-notebook-stop")
        page.wait_for_selector("#snug-undo:not([disabled])")
        shoot(page, "notebook")
        shoot(open_page(browser, conversation, dark=True), "chat-dark")
        dark = open_page(browser, address, dark=True)
        tab(dark, "Model")
        dark.locator("#snug-strip").click()
        shoot(dark, "model-dark")
        phone = open_page(browser, conversation, phone=True)
        shoot(phone, "phone")
        tab(phone, "Model")
        phone.locator("#snug-plan").scroll_into_view_if_needed()
        shoot(phone, "model-phone")
        browser.close()


if __name__ == "__main__":
    main()
