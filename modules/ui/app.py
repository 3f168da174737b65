"""The page: `build_ui` makes it from TABS, `mount_ui` puts it at "/" of the server's app.

A new tab is one file and one entry in TABS.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by gradio when it is imported

import gradio as gr

from modules.services import Services
from modules.ui import characters_tab, chat_tab, model_tab, notebook_tab, parameters_tab, theme

App = TypeVar("App")
MAX_UPLOAD = "1mb"
# Gradio's queue looks for work a thousand times a second, and for news of progress bars, which this page has none of:
# 3 % of a core taken from the model, day and night.
QUEUE_LOOKS_EVERY_S = 0.05
QUEUE_REPORTS_EVERY_S = 1.0


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
    Tab("model", "Model", model_tab.build),
    Tab("parameters", "Parameters", parameters_tab.build),
)


def build_ui(services: Services) -> gr.Blocks:
    """The page with all its tabs; nothing of a user's is kept in it."""
    with gr.Blocks(title="Snug", analytics_enabled=False, fill_width=True) as page:
        chat_tab.build_shell(services)
        first = "notebook" if services.settings.notebook else "chat"
        with gr.Tabs(selected=first, elem_id="snug-tabs"):
            for tab in TABS:
                with gr.Tab(tab.title, id=tab.id, elem_id=f"snug-tab-{tab.id}"):
                    tab.build(services)
    page.queue(api_open=False, default_concurrency_limit=None)
    page._queue.sleep_when_free = QUEUE_LOOKS_EVERY_S
    page._queue.progress_update_sleep_when_free = QUEUE_REPORTS_EVERY_S
    return page


def mount_ui(app: App, services: Services) -> App:
    """Serve the page at "/" of `app`: own theme and scripts, nothing from elsewhere, no upload beyond a megabyte."""
    gr.mount_gradio_app(
        app,
        build_ui(services),
        path="/",
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
    return app
