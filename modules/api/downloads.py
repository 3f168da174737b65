"""Snug's own routes: models from the hub. A download goes on when the client that asked for it leaves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath

from modules.api.errors import error_object
from modules.api.schemas import DownloadRequest
from modules.api.shapes import Json
from modules.downloads.job import DownloadView
from modules.downloads.offers import Offers
from modules.services import Services

Ident = Annotated[str, InPath(max_length=300)]


def download_routes(services: Services) -> APIRouter:
    """The routes under /v1/internal/downloads."""
    downloads = services.downloads
    offers = Offers(downloads, services.models, services.settings.user_data_dir / "cache" / "hub")
    router = APIRouter(prefix="/v1/internal/downloads")

    @router.get("")
    def list_downloads() -> Json:
        """Every download that is under way, waits, was broken off, or ended since the server began."""
        return {"object": "list", "data": [_json(view) for view in downloads.views()]}

    @router.post("")
    def begin(body: DownloadRequest) -> Json:
        """Fetch a model from the hub into the models folder; goes on with one that was broken off."""
        return _json(offers.begin(body.name, body.file))

    @router.post("/{ident}/pause")
    def pause(ident: Ident) -> Json:
        """Stop one and keep what came."""
        return _json(downloads.pause(ident))

    @router.post("/{ident}/resume")
    def resume(ident: Ident) -> Json:
        """Go on with one."""
        return _json(downloads.resume(ident))

    @router.delete("/{ident}")
    def cancel(ident: Ident) -> Json:
        """Throw away what was fetched; of one that is done, take it off the list."""
        downloads.cancel(ident)
        return list_downloads()

    return router


def _json(view: DownloadView) -> Json:
    return {
        "id": view.id,
        "name": view.name,
        "revision": view.revision,
        "title": view.title,
        "state": view.state,
        "done_bytes": view.done_bytes,
        "total_bytes": view.total_bytes,
        "bytes_per_s": round(view.speed_Bps),
        "seconds_left": round(view.left_s) or None,
        "error": None if view.error is None else error_object(view.error)["error"],
    }
