"""/v1/embeddings: each input becomes a request to the engine, some of them at once, and their vectors OpenAI's JSON.

Every input is tokenized and measured before the first of them is computed.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Sequence
from functools import partial

from modules.api.asking import Asker
from modules.api.doors.places import in_place
from modules.api.replies import Collected, Job, collect, running
from modules.api.schemas import EmbeddingRequest, Prompt
from modules.api.shapes import Json
from modules.chat.prompts import LONGEST_TOKEN_CHARACTERS, BuiltPrompt
from modules.engine.base import ModelInfo, TextPiece, Words
from modules.engine.host.host import EngineHost
from modules.engine.intake import check_embeds
from modules.errors import BadValue, ContextLengthExceeded, GenerationFailed
from modules.sampling import GenerationParams
from modules.services import Services

# Inputs of one request that wait or are computed at once: the queue has room for other users.
AT_ONCE = 8
# Of a model that reads many texts in one step.
AT_ONCE_IN_BATCHES = 32
_NO_TOKENS = GenerationParams(max_new_tokens=1)


async def embed(services: Services, body: EmbeddingRequest, user: Asker) -> Json:
    """The vectors of all inputs, in their order. Raises SnugError."""
    prepare = partial(services.models.with_engine, partial(_jobs, body))
    engine, jobs = await in_place(prepare)
    vectors: list[Sequence[float]] = [()] * len(jobs)
    tokens = 0
    for numbers in _rounds(jobs, engine.info):
        async with running(engine, [jobs[number] for number in numbers], user) as generations:
            replies = await collect(generations)
        for number, reply in zip(numbers, replies, strict=True):
            vectors[number] = _cut(_vector(reply), body.dimensions, engine.info.name)
        tokens += sum(reply.end.usage.prompt_tokens for reply in replies)
    return _answer(engine.info.name, vectors, tokens, packed=body.encoding_format == "base64")


def _rounds(jobs: Sequence[Job], info: ModelInfo) -> list[list[int]]:
    """The numbers of the jobs that go to the engine together: those of like length, where it reads many in one step."""
    batches = info.loop == "encoder"
    order = sorted(range(len(jobs)), key=lambda number: len(jobs[number].prompt.prompt_ids) if batches else number)
    step = AT_ONCE_IN_BATCHES if batches else AT_ONCE
    return [order[start : start + step] for start in range(0, len(order), step)]


def _jobs(body: EmbeddingRequest, engine: EngineHost) -> tuple[EngineHost, list[Job]]:
    prompts = [_prompt(engine, text, f"input[{index}]") for index, text in enumerate(body.input)]
    return engine, [Job(prompt, _NO_TOKENS, embed=True) for prompt in prompts]


def _prompt(engine: EngineHost, text: Prompt, param: str) -> BuiltPrompt:
    """An input for the engine: of a text all is content, ids are taken as they are. Raises SnugError naming `param`."""
    info = engine.info
    check_embeds(info, 0)
    if isinstance(text, str):
        return _written(engine, info, text, param)
    if info.takes == "words":
        raise BadValue("This model runs on a server that takes text only.", remedy="Send text.", param=param)
    if any(not 0 <= token < info.vocab_size for token in text):
        raise BadValue(f"Token ids go from 0 to {info.vocab_size - 1}.", param=param)
    check_embeds(info, len(text), param=param)
    return BuiltPrompt(prompt_ids=text)


def _written(engine: EngineHost, info: ModelInfo, text: str, param: str) -> BuiltPrompt:
    most = info.embed_tokens * LONGEST_TOKEN_CHARACTERS
    if most and len(text) > most:
        raise ContextLengthExceeded(
            f"The text has {len(text):,} characters; {info.name} embeds at most {info.embed_tokens:,} tokens at once.",
            remedy="Send it in parts.",
            param=param,
        )
    if info.takes == "words":
        return BuiltPrompt(prompt_ids=(), words=Words(text=text))
    ids = (*info.text_prefix_ids, *engine.encode([TextPiece(text)]), *info.text_suffix_ids)
    check_embeds(info, len(ids), param=param)
    return BuiltPrompt(prompt_ids=ids)


def _answer(model: str, vectors: Sequence[Sequence[float]], tokens: int, *, packed: bool) -> Json:
    """OpenAI's list of embeddings."""
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else list(vector)}
            for index, vector in enumerate(vectors)
        ],
        "model": model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(reply: Collected) -> tuple[float, ...]:
    if not reply.embedding:
        raise GenerationFailed("The engine ended without an embedding.", remedy="Try again.")
    return reply.embedding


def _cut(vector: Sequence[float], dimensions: int | None, model: str) -> Sequence[float]:
    """The first `dimensions` numbers at length 1, as models that are trained for it (Matryoshka) are cut short.

    Raises BadValue for more than there are.
    """
    if dimensions is None or dimensions == len(vector):
        return vector
    if dimensions > len(vector):
        raise BadValue(
            f"The vectors of {model} have {len(vector):,} numbers, not {dimensions:,}.",
            remedy=f"Ask for {len(vector):,} or fewer, or leave dimensions out.",
            param="dimensions",
        )
    kept = vector[:dimensions]
    length = math.hypot(*kept)
    return [value / length for value in kept] if length else kept


def _packed(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats in base64, as OpenAI packs them."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
