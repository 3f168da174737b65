"""Snug's own routes beside those for tokens and models: counts, prompts, next-token probabilities, stop, stats.

Some go by the names that text-generation-webui gave them and answer in its shapes, so that its clients work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from modules.api import sse
from modules.api.asking import Asker, asker
from modules.api.doors.places import in_place
from modules.api.image_parts import look_at
from modules.api.prompting import Asked, Prompting
from modules.api.replies import Job, collect, running
from modules.api.schemas import ChatRequest, SamplingFields, sampling
from modules.api.shapes import Json
from modules.api.tokens import MAX_CHARACTERS, MAX_TOKENS, LongTexts
from modules.api.turns import turns_of
from modules.chat.prompts import BuiltPrompt
from modules.engine.base import TextPiece, TokenLogprob
from modules.engine.host.host import EngineHost
from modules.errors import BadValue, GenerationFailed, NotFound
from modules.few import FIRST_FAULT, FewFields
from modules.sampling import GenerationParams
from modules.services import Services

MOST_ALTERNATIVES = 100
_STRICT = ConfigDict(strict=True, extra="forbid")


class TextBody(FewFields):
    """A text, in which control tokens may be written."""

    model_config = _STRICT

    text: Annotated[str, Field(max_length=MAX_CHARACTERS)]


class TokensBody(FewFields):
    """Token ids."""

    model_config = _STRICT

    tokens: Annotated[list[int], FIRST_FAULT, Field(max_length=MAX_TOKENS)]


class StopBody(BaseModel):
    """Which reply to stop: the id of an answer (`chatcmpl-…`, `msg_…`, …) or of a request (X-Request-Id)."""

    model_config = ConfigDict(strict=True)

    id: Annotated[str, Field(max_length=200)] | None = None


class LogitsRequest(SamplingFields):
    """The body of POST /v1/internal/logits: a raw text to go on from."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    use_samplers: bool = Field(False, description="Not as the model computed them, but as the samplers leave them.")
    top_logits: Annotated[int, Field(ge=1, le=MOST_ALTERNATIVES)] | None = Field(
        None, description="How many tokens to tell. Default: 50."
    )

    @property
    def params(self) -> GenerationParams:
        """How to ask for one token."""
        if not self.use_samplers:
            return GenerationParams(max_new_tokens=1, temperature=0, ban_eos_token=True, logprobs=self.top_logits or 50)
        return sampling(self, max_new_tokens=1, logprobs=self.top_logits or 50, sampled_logprobs=True)


def internal_routes(services: Services, long_texts: LongTexts) -> APIRouter:
    """The routes right under /v1/internal."""
    models, prompting = services.models, Prompting(services.prompts)
    router = APIRouter(prefix="/v1/internal")

    @router.get("/health")
    def health() -> Json:
        """Alive; /health/ready says more."""
        return {"status": "ok"}

    @router.get("/stats")
    def stats() -> Json:
        """How busy the engine is, and its memory beside the forecast."""
        return _stats_json(services)

    @router.post("/encode")
    async def encode(body: TextBody) -> Json:
        """A text's tokens, with what the tokenizer itself puts around a text."""
        tokens = await long_texts.read([TextPiece(body.text, template=True)], _encoded)
        return {"tokens": tokens, "length": len(tokens)}

    @router.post("/decode")
    def decode(body: TokensBody) -> Json:
        """The text of tokens, control tokens included."""
        return {"text": models.with_engine(partial(decoded, tokens=body.tokens))}

    @router.post("/token-count")
    async def token_count(body: TextBody) -> Json:
        """How many tokens a text has, as /v1/internal/encode counts."""
        return {"length": len(await long_texts.read([TextPiece(body.text, template=True)], _encoded))}

    @router.post("/chat-prompt")
    def chat_prompt(body: ChatRequest) -> Json:
        """The exact prompt that /v1/chat/completions makes of this body, and its tokens; whether it fits or not."""
        return models.with_engine(partial(_chat_prompt, services, prompting, body))

    @router.post("/logits")
    async def logits(request: Request, body: LogitsRequest) -> Json:
        """The likeliest next tokens of a text, with their probabilities."""
        return await sse.unless_disconnected(request, partial(_logits, services, body, asker(request)))

    @router.post("/stop-generation")
    def stop_generation(request: Request, body: StopBody | None = None) -> Json:
        """Stop every reply that the API is writing for whoever asks, or the one of this id."""
        name = (body.id or "") if body else ""
        stopped = models.stop(asker(request).turn, name)
        if name and not stopped:
            raise NotFound("No reply of yours with this id is being written.", remedy="It may have ended.", param="id")
        return {"status": "OK", "stopped": stopped}

    return router


def decoded(engine: EngineHost, tokens: list[int]) -> str:
    """The text of ids that clients sent. Raises BadValue."""
    if any(not 0 <= token < engine.info.vocab_size for token in tokens):
        raise BadValue(f"Token ids go from 0 to {engine.info.vocab_size - 1}.", param="tokens")
    return engine.decode(tokens)


def _encoded(engine: EngineHost, pieces: Sequence[TextPiece]) -> list[int]:
    info = engine.info
    ids = engine.encode(pieces)
    begun = tuple(ids[: len(info.text_prefix_ids)]) == info.text_prefix_ids
    return [*(() if begun else info.text_prefix_ids), *ids, *info.text_suffix_ids]


def _chat_prompt(services: Services, prompting: Prompting, body: ChatRequest, engine: EngineHost) -> Json:
    params, offer = body.params(), body.offer
    held = bool(params.json_schema or params.grammar) and not (offer and offer.must_call)
    pictures = look_at([message.pictures for message in body.messages], services, engine.info)
    turns, begun = turns_of(body.messages, pictures), None
    if body.continues:
        begun = turns.pop().content
    asked = Asked(turns, begun, offer, body.effort)
    built = prompting.whole(engine, asked, held=held).built
    return {
        "prompt": None if built.words else engine.decode([*built.prompt_ids, *built.reply_ids]),
        "tokens": prompting.count(engine, asked, held=held),
        "exact": built.words is None,
        "context_tokens": engine.info.context_tokens or None,
        "stop": list(built.stop),
    }


async def _logits(services: Services, body: LogitsRequest, user: Asker) -> Json:
    def prepare(engine: EngineHost) -> tuple[EngineHost, BuiltPrompt]:
        return engine, services.prompts.completion(engine, body.prompt, max_new_tokens=1)

    engine, prompt = await in_place(partial(services.models.with_engine, prepare))
    async with running(engine, [Job(prompt, body.params)], user) as generations:
        (reply,) = await collect(generations)
    return _probabilities(reply.logprobs)


def _probabilities(told: tuple[TokenLogprob, ...]) -> Json:
    """text-generation-webui's `logits`, by text, and beside it every token by its id: texts may occur twice."""
    if not told:
        raise GenerationFailed(
            "The reply ended at once, and this engine tells no probabilities then.",
            remedy="Ask again, or without use_samplers.",
        )
    top = [one for one in told[0].top if one[2] > -math.inf]
    tokens = [{"id": number, "text": text, "probability": math.exp(value)} for number, text, value in top]
    by_text: dict[str, float] = {}
    for _, text, value in top:
        by_text[text] = by_text.get(text, 0.0) + math.exp(value)
    return {"logits": by_text, "tokens": tokens}


def _stats_json(services: Services) -> Json:
    state, stats = services.models.state, services.models.stats()
    plan = state.plan
    forecast: Mapping[str, Any] = plan.budgets if plan else {}
    held = {"cpu": stats.rss_bytes, **stats.gpu_bytes} if state.info else {}
    return {
        "status": state.status,
        "model": state.info.name if state.info else None,
        "running": stats.active,
        "waiting": stats.queued,
        "kv_tokens_used": stats.kv_tokens_used,
        "kv_tokens_total": stats.kv_tokens_total,
        "longest_tokens": stats.longest_tokens,
        "memory": {
            device: {
                "measured_bytes": held.get(device, 0),
                "peak_bytes": stats.peak_bytes.get(device, 0),
                "forecast_bytes": forecast[device].total if device in forecast else None,
            }
            for device in sorted({*held, *forecast})
        },
        "forecast_tokens_per_s": list(plan.tokens_per_s) if plan else None,
        "counted": services.models.meter.summary(),
    }
