"""OpenAI's routes: /v1/models, /v1/chat/completions, /v1/completions, /v1/embeddings.

A request becomes jobs (one for each reply), the jobs generations, and their events JSON. Prompts are built and
engines woken in threads; the loop only carries events. What is refused is refused before status 200.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from fastapi.routing import iter_route_contexts

from modules.api import sse
from modules.api.asking import Asker, asker, dialect_of
from modules.api.doors.places import in_place
from modules.api.embeddings import embed
from modules.api.errors import ALLOWED
from modules.api.image_parts import look_at
from modules.api.lost import no_route
from modules.api.model_list import anthropic_model, anthropic_models
from modules.api.prompting import Asked, Prompting, form_of, with_room
from modules.api.replies import Collected, Job, collect, relay, running, seeded, total_usage
from modules.api.schemas import ChatRequest, CompletionRequest, EmbeddingRequest, Prompt, TextRequest
from modules.api.shapes import ChatShape, CompletionShape, Envelope, Json, degraded_json
from modules.api.turns import turns_of
from modules.chat import thinking
from modules.chat.filling import Filling
from modules.chat.offering import OfferedPrompt, Toolbox
from modules.chat.prompts import BuiltPrompt, free_tokens
from modules.engine.base import Degraded, Delta, Event, Finished, ModelInfo, Usage
from modules.engine.host.host import EngineHost
from modules.engine.intake import check_generates
from modules.errors import (
    BadValue,
    ContextLengthExceeded,
    MethodNotAllowed,
    ModelNotFound,
    NotAvailableHere,
)
from modules.messages import ChatMessage
from modules.sampling import GenerationParams
from modules.services import Services


@dataclass(frozen=True, slots=True)
class Order:
    """One request, ready to run. `kept_per_prompt`, where it is not 0: only so many of each prompt's are returned."""

    engine: EngineHost
    jobs: Sequence[Job]
    envelope: Envelope
    replies_per_prompt: int
    user: Asker
    kept_per_prompt: int = 0

    def usage(self, usages: Sequence[Usage]) -> Usage:
        """The token counts of the whole request."""
        return total_usage(usages, replies_per_prompt=self.replies_per_prompt)

    def kept(self, replies: Sequence[Collected]) -> list[Collected]:
        """The replies to return: all, or each prompt's likeliest."""
        if not self.kept_per_prompt:
            return list(replies)
        each = self.replies_per_prompt
        groups = [sorted(replies[start : start + each], key=_unlikely) for start in range(0, len(replies), each)]
        return [reply for group in groups for reply in group[: self.kept_per_prompt]]


def openai_routes(services: Services, *, keep_alive_s: float, send_timeout_s: float) -> APIRouter:
    """The routes that OpenAI's clients call."""
    router = APIRouter(prefix="/v1")
    toolbox, filling = Toolbox(services.prompts), Filling()

    async def answer(request: Request, body: TextRequest, prepare: Callable[[Asker], Order]) -> Response:
        user = asker(request, body.cache_salt or "")
        if body.stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            produce = partial(_stream, partial(prepare, user), include_usage)
            return sse.EventStream(produce, keep_alive_s=keep_alive_s, send_timeout_s=send_timeout_s)
        return JSONResponse(await sse.unless_disconnected(request, partial(_whole, partial(prepare, user))))

    @router.get("/models")
    def list_models(request: Request) -> Json:
        """The model that answers now; an empty list while none is loaded. In the dialect of whoever asks."""
        info = services.models.state.info
        if dialect_of(request.scope) == "anthropic":
            return anthropic_models(info)
        return {"object": "list", "data": [] if info is None else [_model_json(info)]}

    @router.get("/models/{name:path}")
    def get_model(request: Request, name: str) -> Json:
        """One model, if it is the loaded one."""
        info = services.models.state.info
        if info is None or name != info.name:
            raise ModelNotFound(
                f"{name[:100]!r} is not loaded.", remedy="POST /v1/internal/model/load loads it.", param="model"
            )
        return anthropic_model(info) if dialect_of(request.scope) == "anthropic" else _model_json(info)

    @router.post("/chat/completions", responses=sse.STREAMED)
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Answer a conversation."""
        return await answer(
            request, body, partial(_with_engine, services, partial(_chat_order, services, toolbox, body))
        )

    @router.post("/completions", responses=sse.STREAMED)
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue a text."""
        order = partial(_completion_order, services, filling, body)
        return await answer(request, body, partial(_with_engine, services, order))

    @router.post("/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """The vector of each text."""
        return JSONResponse(await sse.unless_disconnected(request, partial(embed, services, body, asker(request))))

    @router.api_route("/{rest:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    def unknown(request: Request, rest: str) -> Json:
        routes = [route for route in iter_route_contexts(request.app.routes) if route.path == f"/v1/{rest}"]
        if routes:
            allowed = sorted({method for route in routes for method in route.methods or ()})
            request.scope[ALLOWED] = ", ".join(allowed)
            raise MethodNotAllowed(f"/v1/{rest} takes no {request.method}.", remedy="docs/api.md lists every route.")
        raise no_route(request.method, request.scope["path"])

    return router


async def _whole(prepare: Callable[[], Order]) -> Json:
    """The answer in one piece."""
    order = await in_place(prepare)
    async with running(order.engine, order.jobs, order.user, order.envelope.id) as generations:
        replies = await collect(generations, order.envelope.shape.settled)
    return order.envelope.whole(order.kept(replies), order.usage([reply.end.usage for reply in replies]))


async def _stream(prepare: Callable[[], Order], include_usage: bool, write: sse.Write) -> None:
    """The answer as chunks: an opening, the text as it comes, a closing for each reply; then the counts, if asked."""
    order = await in_place(prepare)
    shape = order.envelope.shape
    opened = [False] * len(order.jobs)
    usages = [Usage(0, 0, 0)] * len(order.jobs)

    async def send(choice: Json) -> None:
        await write(sse.event(order.envelope.chunk(choice)))

    async def handle(index: int, event: Event) -> None:
        if not opened[index]:
            opened[index] = True
            await send(shape.opening(index))
        if isinstance(event, Delta):
            for choice in shape.parts(index, event):
                await send(choice)
            if shape.settled(index):
                generations[index].cancel()
        elif isinstance(event, Degraded):
            await send(shape.notice(index) | degraded_json([event]))
        elif isinstance(event, Finished):
            usages[index] = event.usage
            for choice in shape.closing(index, event):
                await send(choice)

    async with running(order.engine, order.jobs, order.user, order.envelope.id) as generations:
        await relay(generations, handle)
    if include_usage:
        await write(sse.event(order.envelope.usage_chunk(order.usage(usages))))
    await write(sse.DONE)


def _with_engine(services: Services, make: Callable[[Asker, EngineHost], Order], user: Asker) -> Order:
    """What `make` makes for `user` with the engine that answers, loaded anew if it died."""
    return services.models.with_engine(partial(make, user))


def _unlikely(reply: Collected) -> float:
    """How unlikely a reply's tokens are, by their mean log-probability."""
    values = [token.logprob for token in reply.logprobs]
    return -sum(values) / len(values) if values else 0.0


def _chat_order(services: Services, toolbox: Toolbox, body: ChatRequest, user: Asker, engine: EngineHost) -> Order:
    check_generates(engine.info)
    params, held = form_of(body.params(), body.offer)
    check_biases(params, engine.info)
    pictures = look_at([message.pictures for message in body.messages], services, engine.info)
    turns = turns_of(body.messages, pictures)
    made = (
        _continued(services, body, turns, engine, params.max_new_tokens, held=held)
        if body.continues
        else toolbox.chat(
            engine,
            turns,
            body.offer,
            max_new_tokens=params.max_new_tokens,
            thinks=thinking.choice_for(engine.info.chat_template, body.effort),
            held=held,
        )
    )
    params = params if body.limited else with_room(params, engine.info)
    jobs = [
        Job(made.built, seeded(params, number), shape=made.shape, shows=made.shows) for number in range(body.choices)
    ]
    shape = ChatShape(body.alternatives, [made.reader() for _ in jobs])
    return Order(engine, jobs, Envelope(shape, engine.info.name), body.choices, user)


def _continued(
    services: Services,
    body: ChatRequest,
    turns: Sequence[ChatMessage],
    engine: EngineHost,
    max_new_tokens: int,
    *,
    held: bool,
) -> OfferedPrompt:
    """The prompt of a reply that goes on from the last message. Raises BadValue with tools."""
    asked = Asked(turns[:-1], turns[-1].content, body.offer, body.effort)
    return Prompting(services.prompts).build(engine, asked, max_new_tokens=max_new_tokens, held=held)


def _completion_order(
    services: Services, filling: Filling, body: CompletionRequest, user: Asker, engine: EngineHost
) -> Order:
    check_generates(engine.info)
    if (body.scored or not body.writes) and not engine.info.scores:
        raise NotAvailableHere(
            f"{engine.info.name} tells no log-probabilities of a prompt: only causal models that transformers runs do.",
            remedy="Load it from safetensors, or leave out echo.",
            param="echo",
        )
    params = body.params()
    check_biases(params, engine.info)
    chooses = body.made > body.choices
    if chooses and not params.logprobs:
        params = params.model_copy(update={"logprobs": 1})
    prompts = [
        _filled(filling, engine, prompt, body.suffix, params.max_new_tokens)
        if body.suffix
        else _built(services, engine, prompt, params.max_new_tokens)
        for prompt in body.prompt
    ]
    jobs = [
        Job(prompt, seeded(params, number), scored=body.scored, writes=body.writes)
        for prompt in prompts
        for number in range(body.made)
    ]
    echoes = tuple(
        _echo(engine, prompt) if body.echo else "" for prompt in body.prompt for _ in range(body.choices)
    )  # fmt: skip
    envelope = Envelope(CompletionShape(body.alternatives, echoes), engine.info.name)
    return Order(engine, jobs, envelope, body.made, user, body.choices if chooses else 0)


def check_biases(params: GenerationParams, info: ModelInfo) -> None:
    """Raise BadValue for a bias of a token that the model does not have."""
    for token, _ in params.logit_bias:
        if info.takes == "tokens" and token >= info.vocab_size:
            raise BadValue(f"logit_bias names token {token}; ids go to {info.vocab_size - 1}.", param="logit_bias")


def _filled(filling: Filling, engine: EngineHost, prompt: Prompt, suffix: str, max_new_tokens: int) -> BuiltPrompt:
    """A prompt for what stands between a text and its suffix. Raises BadValue where the model has no way to do that."""
    gap = filling.tokens_of(engine)
    if gap is None or not isinstance(prompt, str):
        raise BadValue(
            "suffix needs a text as prompt."
            if gap is not None
            else f"{engine.info.name} was not made to fill gaps: its tokenizer has no tokens for that.",
            remedy="Leave suffix out.",
            param="suffix",
        )
    built = filling.prompt(engine, gap, prompt, suffix, max_new_tokens=max_new_tokens)
    if built.notice:
        raise ContextLengthExceeded(
            f"Prompt and suffix do not fit the context of {engine.info.name} ({engine.info.context_tokens:,} tokens).",
            remedy="Send less.",
            param="prompt",
        )
    return built


def _built(services: Services, engine: EngineHost, prompt: Prompt, max_new_tokens: int) -> BuiltPrompt:
    """A prompt for the engine. Token ids are taken as they are, control tokens too: who sends ids means them."""
    if isinstance(prompt, str):
        try:
            return services.prompts.completion(engine, prompt, max_new_tokens=max_new_tokens)
        except ContextLengthExceeded as error:  # here the field is called otherwise
            raise ContextLengthExceeded(error.message, remedy=error.remedy, param="prompt") from error
    info = engine.info
    if info.takes == "words":
        raise BadValue("This model runs on a server that takes text only.", remedy="Send text.", param="prompt")
    if any(not 0 <= token < info.vocab_size for token in prompt):
        raise BadValue(f"Token ids go from 0 to {info.vocab_size - 1}.", param="prompt")
    free = 0 if info.is_encoder_decoder else free_tokens(info, max_new_tokens)
    if len(prompt) + free > info.context_tokens:
        raise ContextLengthExceeded(
            f"{len(prompt):,} prompt tokens, and {free:,} kept free for the reply, are more than the context of "
            f"{info.name} holds: {info.context_tokens:,}.",
            remedy="Send fewer.",
            param="prompt",
        )
    return BuiltPrompt(prompt_ids=prompt, reply_ids=(), stop=(), dropped=0)


def _echo(engine: EngineHost, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else engine.decode(prompt)


def _model_json(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": info.loaded_at,
        "owned_by": "snug",
        "context_length": info.context_tokens or None,
        "sees": info.sees,
        "generates": info.generates,
        "embeds": bool(info.embeds),
    }
