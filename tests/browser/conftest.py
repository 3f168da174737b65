"""Snugs whose engines are scripts (tests/page_rig.py), and a Chromium that watches for faults on every page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from modules.models.planning import DryRunner
from modules.settings import Settings
from tests.fakes import Script
from tests.page_rig import CHROMIUM_ARGUMENTS, Snug, start_snug

WAIT_MS = 15_000


@dataclass
class Watch:
    """What no page may do: faults in the console, requests to elsewhere."""

    origin: str
    faults: list[str] = field(default_factory=list)

    def observe(self, page: Page) -> None:
        """Note the faults of `page` from now on."""
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", self._console)
        page.on("dialog", self._dialog)
        page.on("request", lambda request: self._check(request.url))

    def _dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _console(self, message: ConsoleMessage) -> None:
        # Gradio's client says these itself when a page is left while a stream is open.
        leaving = "AbortError" in message.text or "Connection errored out" in message.text
        if message.type == "error" and not leaving:
            self.faults.append(f"console: {message.text}")

    def _check(self, url: str) -> None:
        if not url.startswith((self.origin, "data:", "blob:")):
            self.faults.append(f"request to {url}")


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., Snug]]:
    """Start a Snug whose model "tiny" plays a script; with `loaded=False` no model is loaded yet.

    `dry_runs` sharpen its plans; without them they are formulas' for good. Its engines are threads unless
    `processes`.
    """
    with ExitStack() as parts:

        def begin(
            script: Script | None = None,
            *,
            loaded: bool = True,
            dry_runs: DryRunner | None = None,
            processes: bool = False,
            **flags: object,
        ) -> Snug:
            chosen = settings.model_copy(update=flags)
            return start_snug(
                chosen, parts, script or Script(), loaded=loaded, dry_runs=dry_runs, in_process=not processes
            )

        yield begin


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a file's tests. No longer: while playwright runs, no other event loop can in this thread."""
    from tests.conftest import find_chromium

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def visit(browser: Browser) -> Iterator[OpenPage]:
    """Open a page in a fresh browser profile (or a given one) and fail the test if it misbehaves."""
    expect.set_options(timeout=WAIT_MS)
    watches: list[Watch] = []
    contexts: list[BrowserContext] = []

    def opened(snug: Snug, path: str = "/", *, context: BrowserContext | None = None, **options: object) -> Page:
        if context is None:
            wide: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
            context = browser.new_context(**(wide | options))
            contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        watch = Watch(snug.url)
        watch.observe(page)
        watches.append(watch)
        page.goto(snug.url + path)
        page.wait_for_selector("#snug-tabs")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [fault for watch in watches for fault in watch.faults] == []
