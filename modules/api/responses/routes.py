"""OpenAI's Responses API: /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from modules.api import sse
from modules.api.prompting import Prompting, form_of, with_room
from modules.api.responses.schemas import FlatTool, ResponsesRequest
from modules.api.responses.shapes import ResponseShape
from modules.api.sent import looked_at
from modules.api.shapes import Json
from modules.api.single import Order, Waits, answer
from modules.engine.host.host import EngineHost
from modules.sampling import GenerationParams
from modules.services import Services


def responses_routes(services: Services, *, keep_alive_s: float, send_timeout_s: float) -> APIRouter:
    """The routes of an API that keeps nothing."""
    router = APIRouter(prefix="/v1")
    waits = Waits(keep_alive_s, send_timeout_s)
    prompting = Prompting(services.prompts)

    @router.post("/responses", responses=sse.STREAMED)
    async def responses(request: Request, body: ResponsesRequest) -> Response:
        """Answer an input, as OpenAI's Responses API does; nothing is kept."""
        make = partial(_order, services, prompting, body)
        return await answer(services, request, make, sse.OPENAI, waits if body.stream else None)

    @router.post("/responses/input_tokens")
    def input_tokens(body: ResponsesRequest) -> Json:
        """How many tokens the prompt of an input has."""
        tokens: int = services.models.with_engine(partial(_count, services, prompting, body))
        return {"object": "response.input_tokens", "input_tokens": tokens}

    return router


def _count(services: Services, prompting: Prompting, body: ResponsesRequest, engine: EngineHost) -> int:
    return prompting.count(engine, looked_at(body.asked, services, engine.info, param="input"))


def _order(services: Services, prompting: Prompting, body: ResponsesRequest, engine: EngineHost) -> Order:
    asked = looked_at(body.asked, services, engine.info, param="input")
    params, held = form_of(body.params, asked.offer)
    cuts = body.truncation == "auto"
    prompt = prompting.build(engine, asked, max_new_tokens=params.max_new_tokens, held=held, truncate=cuts)
    params = params if body.limited else with_room(params, engine.info)
    sums_up = body.reasoning is not None and body.reasoning.summary is not None
    shape = ResponseShape(engine.info.name, _repeated(body, params), body.namespaces, sums_up, body.alternatives)
    return Order(engine, prompt, prompt.reader(), params, shape)


def _repeated(body: ResponsesRequest, params: GenerationParams) -> Json:
    """What a response repeats of its request, with the defaults that were used."""
    form = body.text.format if body.text and body.text.format else None
    choice = body.tool_choice or "auto"
    return {
        "instructions": body.instructions,
        "max_output_tokens": params.max_new_tokens,
        "metadata": body.metadata or {},
        "reasoning": {name: getattr(body.reasoning, name, None) for name in ("effort", "summary")},
        "temperature": params.temperature,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "text": {"format": form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [_tool_json(tool) for tool in body.tools or ()],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "top_p": params.top_p,
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
    }


def _tool_json(tool: FlatTool) -> Json:
    return tool.model_dump(exclude={"namespace"} if tool.namespace is None else None)
