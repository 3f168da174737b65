"""Files that the page attaches: one POST takes a file in, as raw bytes; what was read of it comes back, not the file.

A picture can be looked at again, as Snug drew it anew.

The guard in front checks who asks, and how much comes.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response

from modules.accounts.person import person_in
from modules.api.errors import problem
from modules.api.image_parts import picture_side
from modules.attachments.extracted import MAX_FILES, clean_name
from modules.chat.incognito import is_incognito
from modules.errors import SnugError
from modules.services import Services
from modules.texts.spoken import texts_of

AT_ONCE = 4  # uploads; each may have tens of megabytes


def attachment_routes(services: Services) -> APIRouter:
    """POST /attachments?name=…: the body is the file; POST /attachments/discard?ids=… forgets some."""
    router = APIRouter()
    places = CapacityLimiter(AT_ONCE)

    @router.post("/attachments", include_in_schema=False)
    async def attach(request: Request, name: str = Query(max_length=1000), incognito: bool = False) -> dict[str, Any]:
        """Read a file and keep its text until its message is sent; a problem is told as the page's doors tell it."""

        owner = person_in(request.scope).owner

        def take(data: bytes) -> dict[str, Any]:
            shown, tell = clean_name(name), texts_of(request.headers).tell
            try:
                taken = services.extractor.extract(shown, data, most_side=picture_side(services))
                kept = services.store.attached.keep(owner, shown, len(data), taken, incognito=incognito)
                return asdict(kept) | {"about": tell(kept.about), "cut": tell(kept.cut)}
            except SnugError as error:
                return problem(error, tell)

        data = await request.body()  # before a place is taken: a slow client holds none (doors/places.py bounds each)
        async with places:  # uploads that wait hold no thread of the page's
            return await to_thread.run_sync(take, data)

    @router.get("/attachments/{ident}/picture", include_in_schema=False)
    def picture(request: Request, ident: str) -> Response:
        """A picture, waiting or sent."""
        found = services.store.attached.picture(person_in(request.scope).owner, ident)
        kept = "no-store" if is_incognito(ident) else "private, max-age=604800"
        return Response(found.data, media_type=found.media_type, headers={"cache-control": kept})

    @router.post("/attachments/discard", include_in_schema=False)
    async def discard(request: Request, ids: Annotated[list[str], Query(max_length=MAX_FILES)]) -> Response:
        """Forget unsent files; what a page that is being closed can still say."""

        owner = person_in(request.scope).owner

        def forget() -> None:
            for ident in ids:
                services.store.attached.discard(owner, ident)

        await to_thread.run_sync(forget)
        return Response(status_code=204)

    return router
