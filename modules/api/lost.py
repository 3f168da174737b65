"""Routes that are not there: programs with a base URL that has a slash or /v1 too many or too few are told which is."""

from __future__ import annotations

from fastapi import APIRouter, Request

from modules.errors import NotFound

SHARED = ("chat/completions", "completions", "embeddings", "messages", "models", "responses")
"""What clients put behind the base URL that they were given."""
_BASES = "base URLs end with /v1, those for Anthropic's programs before it"


def no_route(method: str, path: str) -> NotFound:
    """The refusal, with the route that was meant if one can be told."""
    name = "/".join(part for part in path.split("/") if part not in ("", "v1"))
    told = path if path.startswith("/v1") else path.lstrip("/")  # what looks like a folder would be left out
    meant = f"/v1/{name} is there: {_BASES}." if name in SHARED else "docs/api.md lists every route."
    return NotFound(f"There is no {method} {told[:200]}.", remedy=meant)


def lost_routes() -> APIRouter:
    """Routes outside /v1 where programs with a wrong base URL arrive; the page would answer them without a word."""
    router = APIRouter(include_in_schema=False)

    def lost(request: Request) -> None:
        raise no_route(request.method, request.scope["path"])

    for path in (*(f"/{name}" for name in SHARED), "//v1/{rest:path}"):
        router.add_api_route(path, lost, methods=["GET", "POST"])
    return router
