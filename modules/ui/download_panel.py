"""Models from the hub, on the Model tab: what a repository would be on this machine, then its download.

The page's script draws it (static/download.js); how far downloads are comes to every page with its pulse.
"""

from __future__ import annotations

from urllib.parse import quote

import gradio as gr
from huggingface_hub import constants
from pydantic import Field

from modules.downloads.job import DownloadView
from modules.downloads.manager import Downloads
from modules.downloads.offers import Offer, Offers
from modules.downloads.telling import progress_line, size_line
from modules.memory.planning.planner import longest_context
from modules.services import Services
from modules.ui.plan_picture import plan_html
from modules.ui.views import Json, printable, problem_view
from modules.ui.widgets import Body, door
from modules.ui.words import format_size, told


class Wish(Body):
    """A repository as it was typed or pasted, and which of its choices."""

    text: str = Field(max_length=2000)
    choice: str = Field(default="", max_length=1000)


class Ident(Body):
    """One download."""

    id: str = Field(max_length=300)


class DownloadDoors:
    """What the page may ask for; every answer is JSON for static/download.js."""

    def __init__(self, services: Services) -> None:
        self.downloads = services.downloads
        self.offers = Offers(services.downloads, services.models, services.settings.user_data_dir / "cache" / "hub")

    def look(self, _: str, body: Wish) -> Json:
        """What it would be on this machine."""
        return {"offer": offer_view(self.offers.look(body.text, body.choice), self.downloads)}

    def begin(self, _: str, body: Wish) -> Json:
        """Fetch it."""
        begun = self.offers.begin(body.text, body.choice)
        return {"begun": begun.id, "downloads": downloads_view(self.downloads)}

    def pause(self, _: str, body: Ident) -> Json:
        """Stop one and keep what came."""
        self.downloads.pause(body.id)
        return {"downloads": downloads_view(self.downloads)}

    def resume(self, _: str, body: Ident) -> Json:
        """Go on with one."""
        self.downloads.resume(body.id)
        return {"downloads": downloads_view(self.downloads)}

    def cancel(self, _: str, body: Ident) -> Json:
        """Throw one away, or take one that is done off the list."""
        self.downloads.cancel(body.id)
        return {"downloads": downloads_view(self.downloads)}


def offer_view(offer: Offer, downloads: Downloads) -> Json:
    """A repository with its choices and the plan of the chosen one."""
    under_way = any(view.id == offer.goal and view.state != "done" for view in downloads.views())
    listing = offer.listing
    return {
        "name": printable(listing.name),
        "revision": printable(offer.address.revision),
        "page": f"{constants.ENDPOINT}/{quote(listing.name)}",
        "license": printable(listing.license),
        "gated": listing.gated,
        "private": listing.private,
        "choices": [
            {
                "id": choice.id,
                "title": told(printable(choice.title)),
                "size": format_size(choice.size_bytes),
                "chosen": choice is offer.choice,
            }
            for choice in offer.choices
        ],
        "size": told(size_line(offer)),
        "lacks": bool(offer.lacks_bytes) and not offer.is_here,
        "goal": printable(offer.goal),
        "here": offer.is_here,
        "under_way": under_way,
        "blocked": offer.is_blocked,
        "plan": _plan_html(offer),
        "refused": problem_view(offer.problem) if offer.problem else None,
    }


def _plan_html(offer: Offer) -> str:
    """The picture of the way that Snug would choose, or that lacks least; "" where none can be drawn."""
    table = offer.table
    if table is None:
        return ""
    plan = table.chosen or min(table.plans, key=lambda miss: miss.short_bytes, default=None)
    if plan is None:
        return ""
    fits = longest_context(table, plan)
    return plan_html(plan, table.inventory, fits_tokens=fits, context_chosen=True, refusal=table.refusal)


def downloads_view(downloads: Downloads) -> list[Json]:
    """All downloads, for the panel and the header."""
    return [_download_view(view) for view in downloads.views()]


def _download_view(view: DownloadView) -> Json:
    return {
        "id": view.id,
        "name": printable(view.name),
        "title": told(printable(view.title)),
        "state": view.state,
        "pausing": view.pausing,
        "known": bool(view.name),
        "share": view.done_bytes / view.total_bytes if view.total_bytes else 0.0,
        "line": told(printable(progress_line(view))),
        "problem": problem_view(view.error) if view.error else None,
    }


def build(services: Services) -> None:
    """Put the panel here."""
    doors = DownloadDoors(services)
    gr.HTML(
        js_on_load="snug.mountDownloads(element, server)",
        apply_default_css=False,
        elem_id="snug-downloads",
        server_functions=[
            door(Wish, "look", doors.look, admin="Asking the hub"),
            door(Wish, "begin", doors.begin, admin="Fetching a model"),
            door(Ident, "pause", doors.pause, admin="Pausing a download"),
            door(Ident, "resume", doors.resume, admin="Fetching a model"),
            door(Ident, "cancel", doors.cancel, admin="Ending a download"),
        ],
    )
