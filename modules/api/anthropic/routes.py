"""Anthropic's routes: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from modules.api import sse
from modules.api.anthropic.schemas import CountRequest, MessagesRequest
from modules.api.anthropic.shapes import MessageShape
from modules.api.prompting import Prompting, form_of
from modules.api.shapes import Json
from modules.api.single import Order, Waits, answer
from modules.engine.host.host import EngineHost
from modules.services import Services


def anthropic_routes(services: Services, *, keep_alive_s: float, send_timeout_s: float) -> APIRouter:
    """The routes that Anthropic's clients call, but for /v1/models, which both dialects have."""
    router = APIRouter(prefix="/v1/messages")
    waits = Waits(keep_alive_s, send_timeout_s)
    prompting = Prompting(services.prompts)

    @router.post("")
    async def messages(request: Request, body: MessagesRequest) -> Response:
        """Answer a conversation, as Anthropic's API does."""
        make = partial(_order, prompting, body)
        return await answer(services, request, make, sse.ANTHROPIC, waits if body.stream else None)

    @router.post("/count_tokens")
    def count_tokens(body: CountRequest) -> Json:
        """How many tokens the prompt of a conversation has."""
        asked = body.asked
        tokens: int = services.models.with_engine(lambda engine: prompting.count(engine, asked))
        return {"input_tokens": tokens}

    return router


def _order(prompting: Prompting, body: MessagesRequest, engine: EngineHost) -> Order:
    asked = body.asked
    params, held = form_of(body.params, asked.offer)
    prompt = prompting.build(engine, asked, max_new_tokens=params.max_new_tokens, held=held)
    shape = MessageShape(engine.info.name, body.max_tokens, params.stop, shows_thoughts=body.thinks)
    return Order(engine, prompt, prompt.reader(), params, shape)
