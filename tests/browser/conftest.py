"""A whole Snug on a free port, its engine a script, and a Chromium that watches for faults on every page."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, expect, sync_playwright

from modules.api.app import build_api
from modules.chat.presets import Presets
from modules.chat.prompts import Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.chat.templates import TemplateWorker
from modules.engine.host.host import Patience
from modules.hardware import Inventory
from modules.models.manager import ModelManager
from modules.models.planning import DryRunner
from modules.services import Services
from modules.settings import LoadOptions, Settings
from modules.ui.app import mount_ui
from tests.fakes import Script, ScriptedLoad, fake_inventory, make_model_folder

ROOT = Path(__file__).parent.parent.parent
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = Patience(load_s=20.0, reply_s=10.0, cancel_s=0.5, call_s=10.0, close_s=2.0)
WAIT_MS = 15_000


@dataclass
class Snug:
    """A running server and its parts."""

    url: str
    services: Services


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


def _machine(_: Path) -> Inventory:
    return fake_inventory(ram_gib=16)


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., Snug]]:
    """Start a Snug whose model "tiny" plays a script; with `loaded=False` no model is loaded yet.

    `dry_runs` sharpen its plans; without them they are formulas' for good.
    """
    with ExitStack() as parts:

        def begin(
            script: Script | None = None, *, loaded: bool = True, dry_runs: DryRunner | None = None, **flags: object
        ) -> Snug:
            chosen = settings.model_copy(update=flags)
            make_model_folder(chosen.model_dir, "tiny", script or Script())
            services = _services(chosen, parts, dry_runs)
            if loaded:
                services.models.load(LoadOptions.model_validate({"model": "tiny"}))
            return Snug(_serve(services, parts), services)

        yield begin


def _services(settings: Settings, parts: ExitStack, dry_runs: DryRunner | None) -> Services:
    store = Store(settings.user_data_dir / "snug.db")
    parts.callback(store.close)
    worker = TemplateWorker()
    parts.callback(worker.close)
    models = ModelManager(
        settings, loaders={"transformers": ScriptedLoad()}, read_inventory=_machine, patience=PATIENCE, drain_s=0.5,
        dry_runs=dry_runs,
    )  # fmt: skip
    parts.callback(models.close)
    prompts = Prompts(worker)
    chat = ChatService(models, store, prompts)
    parts.callback(chat.shutdown)
    presets = Presets(ROOT / "presets", settings.user_data_dir / "presets")
    return Services(settings=settings, models=models, chat=chat, store=store, prompts=prompts, presets=presets)


def _serve(services: Services, parts: ExitStack) -> str:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    app = mount_ui(build_api(services), services)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()

    def end() -> None:
        server.should_exit = True
        thread.join(10)
        listener.close()

    parts.callback(end)
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        thread.join(0.02)
    return f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for a file's tests. No longer: while playwright runs, no other event loop can in this thread."""
    from tests.conftest import find_chromium

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=ARGUMENTS)
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
