"""The pictures of characters and personas for the page: always drawn anew by Snug, never a file as it came."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import Response

from modules.accounts.person import person_in
from modules.characters.library import Library
from modules.errors import NotFound
from modules.services import Services

_HEADERS = {"cache-control": "private, max-age=604800"}  # the address changes with the picture


def picture_routes(services: Services) -> APIRouter:
    """GET /pictures/characters/ID and /pictures/personas/ID: WebP."""
    router = APIRouter()

    def theirs(request: Request) -> Library:
        return services.library.whose(person_in(request.scope).owner)

    def serve(read: Callable[[str], bytes | None], ident: str) -> Response:
        found = read(ident)
        if found is None:
            raise NotFound("There is no such picture.")
        return Response(found, media_type="image/webp", headers=_HEADERS)

    @router.get("/pictures/characters/{ident}", include_in_schema=False)
    def character_picture(request: Request, ident: str) -> Response:
        """A character's picture."""
        return serve(theirs(request).characters.picture, ident)

    @router.get("/pictures/personas/{ident}", include_in_schema=False)
    def persona_picture(request: Request, ident: str) -> Response:
        """A persona's picture."""
        return serve(theirs(request).personas.picture, ident)

    return router
