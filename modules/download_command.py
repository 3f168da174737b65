"""`server.py --download`: a model from the hub into models/, told and drawn in the terminal; Ctrl-C keeps what came."""

from __future__ import annotations

from contextlib import closing

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from modules.downloads.job import DownloadView
from modules.downloads.manager import Downloads
from modules.downloads.offers import Offer, Offers, hub_of
from modules.downloads.telling import download_label, plan_line, progress_line, size_line
from modules.machine_speeds import MACHINE_FILE, MachineSpeeds
from modules.models.manager import ModelManager
from modules.settings import Settings

_LOOK_EVERY_S = 0.5


def run_download(settings: Settings) -> int:
    """Fetch what --download names; returns 0 once it is in models/, 130 if it was paused. Raises SnugError."""
    console = Console(highlight=False)
    speeds = MachineSpeeds(settings.user_data_dir / MACHINE_FILE)
    with (
        closing(Downloads(settings.model_dir, hub_of(settings))) as downloads,
        closing(speeds),
        closing(ModelManager(settings, speeds=speeds.speeds)) as models,
    ):
        offers = Offers(downloads, models, settings.user_data_dir / "cache" / "hub")
        offer = offers.look(settings.download or "", settings.download_file or "")
        _tell(console, offer)
        if not offer.is_here:
            if offer.is_blocked and offer.problem is not None:
                raise offer.problem
            end = _follow(downloads, downloads.start(offer.listing, offer.address.revision, offer.choice).id)
            if end.error is not None:
                raise end.error
            if end.state != "done":
                console.print("Paused: what was fetched is kept. The same command goes on.")
                return 130
    console.print(f"{escape(offer.goal)} is in {escape(settings.model_dir.name)}/. To load it:")
    console.print(f"  python server.py --model {escape(offer.goal)}", soft_wrap=True)
    return 0


def _tell(console: Console, offer: Offer) -> None:
    """What it is, what it weighs, how it would run; and what else there is."""
    licence = f", licence {offer.listing.license}" if offer.listing.license else ""
    gated = ", gated" if offer.listing.gated else ""
    console.print(escape(f"{offer.listing.name} at {offer.address.revision}{licence}{gated}"), style="bold")
    console.print(escape(f"{offer.choice.title}: {size_line(offer)}"))
    console.print(escape(plan_line(offer)))
    others = [download_label(choice) for choice in offer.choices if choice is not offer.choice]
    if others:
        console.print(escape(f"Also there, with --download-file: {', '.join(others)}"), style="dim")


def _follow(downloads: Downloads, ident: str) -> DownloadView:
    """Draw a download until it ends. Ctrl-C pauses it."""
    columns = BarColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=1.0)
        view = downloads.view(ident)
        try:
            while view.state in ("running", "waiting"):
                view = downloads.wait(ident, _LOOK_EVERY_S)
                progress.update(
                    task, completed=view.done_bytes, total=view.total_bytes, description=escape(progress_line(view))
                )
        except KeyboardInterrupt:
            downloads.pause(ident)
            view = downloads.wait(ident, 15.0)
    return view
