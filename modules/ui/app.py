"""The page: `build_ui` makes it from TABS, `mount_ui` puts it at "/" of the server's app.

A new tab is one file and one entry in TABS.
"""

from __future__ import annotations

import html
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported

import gradio as gr
from gradio.state_holder import SessionState
from gradio.utils import get_upload_folder
from starlette.applications import Starlette
from starlette.middleware import Middleware

from modules.services import Services
from modules.texts.spoken import CATALOGUE
from modules.ui import (
    characters_tab,
    chat_tab,
    compare_tab,
    extensions_tab,
    model_tab,
    notebook_tab,
    parameters_tab,
    people_panel,
    theme,
)
from modules.ui.page_texts import PageTexts
from modules.ui.sessions import OwnSessions
from modules.ui.streams import Streams
from modules.ui.widgets import is_for_admins

App = TypeVar("App", bound=Starlette)
MAX_UPLOAD = "1mb"
# Gradio's queue looks for work a thousand times a second, and for news of progress bars, which this page has none of:
# 3 % of a core taken from the model, day and night.
QUEUE_LOOKS_EVERY_S = 0.05
QUEUE_REPORTS_EVERY_S = 1.0
# Gradio keeps a copy of the page's configuration for every page that was ever opened, 10,000 of them unless told
# otherwise. Nothing of Snug's is lost with one: a page that is older begins a new session with its next request.
SESSIONS_KEPT = 100
# Gradio works on 40 events at once, whoever's they are, and each page has one for as long as a reply is being written.
# They take no threads: they wait for it.
STREAMS_KEPT = 2000


@dataclass(frozen=True, slots=True)
class Tab:
    """One tab of the page."""

    id: str
    title: str
    build: Callable[[Services], None]


TABS = (
    Tab("chat", "Chat", chat_tab.build),
    Tab("characters", "Characters", characters_tab.build),
    Tab("notebook", "Notebook", notebook_tab.build),
    Tab("compare", "Compare", compare_tab.build),
    Tab("model", "Model", model_tab.build),
    Tab("parameters", "Parameters", parameters_tab.build),
    Tab("extensions", "Extensions", extensions_tab.build),
)


def build_ui(services: Services) -> gr.Blocks:
    """The page with all its tabs; nothing of a user's is kept in it."""
    parts = extensions_tab.build_parts(services.extensions)
    with gr.Blocks(title="Snug", analytics_enabled=False, fill_width=True) as page:
        chat_tab.build_shell(services)
        people_panel.build(services)
        extensions_tab.build_assets(services)
        first = "notebook" if services.settings.notebook else "chat"
        with gr.Tabs(selected=first, elem_id="snug-tabs"):
            for tab in TABS:
                with gr.Tab(tab.title, id=tab.id, elem_id=f"snug-tab-{tab.id}"):
                    tab.build(services)
                    if tab.id == "extensions":
                        _place([part for part in parts if not part.own_tab])
            for part in parts:
                if part.own_tab:
                    with gr.Tab(part.title, elem_id=f"snug-tab-extension-{part.name}"):
                        _place([part])
    page.queue(api_open=False, default_concurrency_limit=None)
    page.state_session_capacity = SESSIONS_KEPT
    page._queue.sleep_when_free = QUEUE_LOOKS_EVERY_S
    page._queue.progress_update_sleep_when_free = QUEUE_REPORTS_EVERY_S
    page._queue.max_thread_count = STREAMS_KEPT
    page._queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # Gradio has pandas make a table of the last 10,000 events
    return page


def _place(parts: list[extensions_tab.Part]) -> None:
    """Put the controls of extensions here, each under its name."""
    for part in parts:
        with gr.Column(elem_id=f"snug-extension-{part.name}", elem_classes=["sheet", "extension-part"]):
            gr.HTML(f"<h2>{html.escape(part.title)}</h2>", apply_default_css=False)
            part.blocks.render()


def mount_ui(app: App, services: Services) -> App:
    """Serve the page at "/" of `app`: own theme and scripts, nothing from elsewhere, no upload beyond a megabyte."""
    page = build_ui(services)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        app_kwargs={"middleware": [_own_sessions(page)]},
        theme=theme.theme(),
        head=theme.head(),
        favicon_path=str(theme.FAVICON),
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        max_file_size=MAX_UPLOAD,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
    )
    # Gradio keeps what each session's controls hold, for links to it that nobody can make here.
    SessionState._update_value_in_config = _keep_nothing
    # Only of a page that was launched does Gradio check that files which an event names were uploaded; any file of this
    # machine was copied to where pages may read it, and mounting is no launch to it.
    page.has_launched = True
    app.add_middleware(PageTexts, catalogue=CATALOGUE)
    return app


def _keep_nothing(_session: SessionState, _part: int, _value: object) -> None:
    """In place of keeping a control's value."""


def _own_sessions(page: gr.Blocks) -> Middleware:
    """What keeps people's sessions of this page apart."""
    return Middleware(
        OwnSessions,
        streams=Streams(page._queue),
        files=Path(get_upload_folder()),
        events=page.fns.keys(),
        parts=page.blocks.keys(),
        admin_events=_admins({number: event.fn for number, event in page.fns.items()}),
        admin_parts=_admins(page.blocks),
    )


def _admins(things: Mapping[int, object]) -> frozenset[int]:
    """The events that only administrators may start, or the parts of the page whose doors are theirs."""
    return frozenset(number for number, thing in things.items() if is_for_admins(thing))
