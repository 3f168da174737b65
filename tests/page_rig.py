"""A whole Snug on a free port, its engine a script: for tests in Chromium and for benchmarks of the page."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from modules.accounts.directory import Accounts
from modules.api.app import build_api
from modules.api.doors.connections import Connection
from modules.api.doors.guard import install_guard
from modules.characters.library import Library
from modules.chat.presets import Presets
from modules.chat.prompts import Prompts
from modules.chat.scripts_model import ModelForScripts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.downloads.manager import Downloads
from modules.engine.base import LoadEngine
from modules.engine.host.host import Patience
from modules.extensions.manager import Extensions
from modules.hardware import Inventory
from modules.models.manager import ModelManager
from modules.models.planning import DryRunner
from modules.services import Services
from modules.settings import LoadOptions, Settings
from modules.ui.app import mount_ui
from tests.fakes import Script, ScriptedLoad, fake_inventory, make_model_folder
from tests.rendering import TEMPLATES

ROOT = Path(__file__).parent.parent
CHROMIUM_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PATIENCE = Patience(load_s=20.0, reply_s=10.0, cancel_s=0.5, call_s=10.0, close_s=2.0)


@dataclass
class Snug:
    """A running server and its parts."""

    url: str
    services: Services


def start_snug(
    settings: Settings,
    parts: ExitStack,
    script: Script,
    *,
    loaded: bool = True,
    dry_runs: DryRunner | None = None,
    load: LoadEngine | None = None,
    extensions: Extensions | None = None,
    port: int = 0,
    in_process: bool = False,
) -> Snug:
    """A Snug whose model "tiny" plays `script`, by `load` if one is given; `parts` ends it. `port` 0: a free one.

    With `in_process` its engines are threads: sooner there than processes, and nobody can kill them.
    """
    services = parts_of(
        settings, parts, script, dry_runs=dry_runs, load=load, extensions=extensions, in_process=in_process
    )
    if loaded:
        services.models.load(LoadOptions.model_validate({"model": "tiny"}))
    return Snug(_serve(services, parts, port), services)


def parts_of(
    settings: Settings,
    parts: ExitStack,
    script: Script,
    *,
    dry_runs: DryRunner | None = None,
    load: LoadEngine | None = None,
    extensions: Extensions | None = None,
    in_process: bool = False,
) -> Services:
    """The same without its faces, nothing loaded yet."""
    make_model_folder(settings.model_dir, "tiny", script)
    return _services(settings, parts, dry_runs, load or ScriptedLoad(), extensions, in_process)


def fake_machine(_: Path) -> Inventory:
    return fake_inventory(ram_gib=16)


def _services(
    settings: Settings,
    parts: ExitStack,
    dry_runs: DryRunner | None,
    load: LoadEngine,
    extensions: Extensions | None,
    in_process: bool,
) -> Services:
    accounts = Accounts(settings.user_data_dir / "users.db")
    parts.callback(accounts.close)
    store = Store(settings.user_data_dir / "snug.db")
    parts.callback(store.close)
    models = ModelManager(
        settings, loaders={"transformers": load}, read_inventory=fake_machine, patience=PATIENCE, drain_s=0.5,
        dry_runs=dry_runs, in_process=in_process,
    )  # fmt: skip
    parts.callback(models.close)
    prompts = Prompts(TEMPLATES)
    library = Library.of(ROOT / "characters", settings.user_data_dir)
    extensions = extensions or Extensions(ROOT / "extensions")
    extensions.connect(ModelForScripts(models))
    chat = ChatService(models, store, prompts, extensions, library)
    parts.callback(chat.shutdown)
    presets = Presets(ROOT / "presets", settings.user_data_dir / "presets")
    return Services(
        settings=settings, models=models, chat=chat, store=store, prompts=prompts, presets=presets, library=library,
        downloads=_downloads(settings, parts), extensions=extensions, accounts=accounts,
    )  # fmt: skip


def _downloads(settings: Settings, parts: ExitStack) -> Downloads:
    downloads = Downloads(settings.model_dir)
    parts.callback(downloads.close)
    return downloads


def app_of(services: Services) -> FastAPI:
    """Page and API behind their doors, on loopback."""
    app = mount_ui(build_api(services), services)
    install_guard(
        app, host="127.0.0.1", port=services.settings.listen_port, access_token=None, accounts=services.accounts
    )
    return app


def _serve(services: Services, parts: ExitStack, port: int) -> str:
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    app = app_of(services)
    config = uvicorn.Config(app, http=Connection, log_level="error", timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
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
