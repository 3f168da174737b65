"""Anthropic's routes: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from modules.api import sse
from modules.api.anthropic.schemas import CountRequest, MessagesRequest
from modules.api.anthropic.shapes import MessageShape
from modules.api.prompting import Prompting, form_of
from modules.api.sent import looked_at
from modules.api.shapes import Json
from modules.api.single import Order, Waits, answer
from modules.engine.host.host import EngineHost
from modules.services import Services


def anthropic_routes(services: Services, *, keep_alive_s: float, send_timeout_s: float) -> APIRouter:
    """The routes that Anthropic's clients call, but for /v1/models, which both dialects have."""
    router = APIRouter(prefix="/v1/messages")
    waits = Waits(keep_alive_s, send_timeout_s)
    prompting = Prompting(services.prompts)

    @router.post("", responses=sse.STREAMED)
    async def messages(request: Request, body: MessagesRequest) -> Response:
        """Answer a conversation, as Anthropic's API does."""
        make = partial(_order, services, prompting, body)
        return await answer(services, request, make, sse.ANTHROPIC, waits if body.stream else None)

    @router.post("/count_tokens")
    def count_tokens(body: CountRequest) -> Json:
        """How many tokens the prompt of a conversation has."""
        tokens: int = services.models.with_engine(partial(_count, services, prompting, body))
        return {"input_tokens": tokens}

    return router


def _count(services: Services, prompting: Prompting, body: CountRequest, engine: EngineHost) -> int:
    return prompting.count(engine, looked_at(body.asked, services, engine.info, param="messages"))


def _order(services: Services, prompting: Prompting, body: MessagesRequest, engine: EngineHost) -> Order:
    asked = looked_at(body.asked, services, engine.info, param="messages")
    params, held = form_of(body.params, asked.offer)
    prompt = prompting.build(engine, asked, max_new_tokens=params.max_new_tokens, held=held)
    shape = MessageShape(engine.info.name, body.max_tokens, params.stop, shows_thoughts=body.shows_thoughts)
    return Order(engine, prompt, prompt.reader(), params, shape)
