"""Routes that are not there: programs with a base URL that has a slash or /v1 too many or too few are told which is,
and those that speak another server's API what to speak instead.
"""

from __future__ import annotations

import re

from fastapi import APIRouter, Request

from modules.errors import NotFound

SHARED = ("chat/completions", "completions", "embeddings", "messages", "models", "responses")
"""What clients put behind the base URL that they were given."""
_BASES = "base URLs end with /v1, those for Anthropic's programs before it"
_OTHERS = (
    (
        "Ollama",
        "api/tags", "api/version", "api/ps", "api/chat", "api/generate", "api/show", "api/pull", "api/embed",
        "api/embeddings",
    ),
    ("LM Studio", "api/v0/{rest:path}", "api/v1/models", "api/v1/chat"),
    ("KoboldCpp", "api/v1/{rest:path}", "api/extra/{rest:path}", "api/latest/{rest:path}"),
    (
        "llama-server",
        "props", "slots", "completion", "infill", "tokenize", "detokenize", "apply-template",
    ),
    ("vLLM", "version", "tokenizer_info"),
    ("text-generation-inference", "info", "generate", "generate_stream"),
)  # fmt: skip
"""Whose API a program speaks that comes to these, the first that fits."""
_PATTERNS = tuple(
    (whose, re.compile("|".join(path.replace("{rest:path}", ".*") for path in paths))) for whose, *paths in _OTHERS
)


def no_route(method: str, path: str) -> NotFound:
    """The refusal, with the route that was meant if one can be told."""
    name = "/".join(part for part in path.split("/") if part not in ("", "v1"))
    told = path if path.startswith("/v1") else path.lstrip("/")  # what looks like a folder would be left out
    asked = path.strip("/").removeprefix("v1/")
    whose = next((whose for whose, pattern in _PATTERNS if pattern.fullmatch(asked)), "")
    meant = "docs/api.md lists every route."
    if name in SHARED:
        meant = f"/v1/{name} is there: {_BASES}."
    elif asked.startswith("responses/"):
        meant = "Snug keeps no responses: send the whole conversation as input."
    elif whose:
        meant = (
            f"That is {whose}'s own API, and Snug speaks OpenAI's and Anthropic's: choose an OpenAI-compatible server "
            "in the program, with a base URL that ends with /v1."
        )
    return NotFound(f"There is no {method} {told[:200]}.", remedy=meant)


def lost_routes() -> APIRouter:
    """Routes outside /v1 where programs with a wrong base URL arrive; the page would answer them without a word."""
    router = APIRouter(include_in_schema=False)

    def lost(request: Request) -> None:
        raise no_route(request.method, request.scope["path"])

    others = (f"/{path}" for _, *paths in _OTHERS for path in paths)
    for path in (*(f"/{name}" for name in SHARED), "/v1", "//v1/{rest:path}", *others):
        router.add_api_route(path, lost, methods=["GET", "POST"])
    return router
