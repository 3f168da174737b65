"""One reply to one request, whole or as a stream of events, for dialects that make one reply at a time.

The dialect says how a reply looks (Told) and how it is told as it comes (Events); what is refused is refused before
status 200. Prompts are built in threads; the loop only carries events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from modules.api import sse
from modules.api.asking import Asker, asker
from modules.api.doors.places import in_place
from modules.api.replies import Job, collect, relay, running
from modules.api.shapes import Json, degraded_json
from modules.chat.offering import OfferedPrompt
from modules.chat.reply_reading import Part, ReplyReader
from modules.engine.base import Degraded, Delta, Event, Finished, Prefill, Queued, TokenLogprob
from modules.engine.host.host import EngineHost
from modules.errors import SnugError
from modules.sampling import GenerationParams
from modules.services import Services


@dataclass(frozen=True, slots=True)
class End:
    """How a reply ended; `called`: with calls of tools that are whole. `logprobs` are those of all its tokens."""

    finished: Finished
    called: bool
    logprobs: Sequence[TokenLogprob] = ()


class Events(Protocol):
    """The events of one stream, in the dialect's framing."""

    def begin(self, cached_tokens: int) -> bytes:
        """What the stream begins with; so many tokens of the prompt need not be read again."""

    def parts(self, parts: Sequence[Part], logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """What the client hears of more of the reply, whose tokens had these log-probabilities."""

    def end(self, end: End, degraded: Json) -> bytes:
        """What the stream ends with."""

    def failure(self, error: SnugError, request_id: str) -> bytes:
        """The last event of a stream that `error` ends."""


class Told(Protocol):
    """How one reply is told."""

    @property
    def key(self) -> str:
        """What the answer goes by."""

    def whole(self, parts: Sequence[Part], end: End) -> Json:
        """The answer in one piece."""

    def events(self, prompt_tokens: int) -> Events:
        """The answer as a stream; `prompt_tokens` is 0 where the engine takes words."""


@dataclass(frozen=True, slots=True)
class Order:
    """One request, ready to run; `reader` reads its one reply."""

    engine: EngineHost
    prompt: OfferedPrompt
    reader: ReplyReader
    params: GenerationParams
    told: Told

    @property
    def job(self) -> Job:
        """What the engine is to do."""
        return Job(self.prompt.built, self.params, shape=self.prompt.shape, shows=self.prompt.shows)

    def end(self, finished: Finished, logprobs: Sequence[TokenLogprob]) -> End:
        """How it ended."""
        return End(finished, bool(self.reader.calls) and finished.reason != "length", logprobs)


@dataclass(frozen=True, slots=True)
class Waits:
    """How long streams wait, in seconds; see app.Patience."""

    keep_alive_s: float
    send_timeout_s: float


async def answer(
    services: Services, request: Request, make: Callable[[EngineHost], Order], framing: sse.Framing, waits: Waits | None
) -> Response:
    """The response to a request that `make` makes an order of: a stream with `waits`, else in one piece."""
    prepare = partial(services.models.with_engine, make)
    if waits is None:
        return JSONResponse(await sse.unless_disconnected(request, partial(_whole, prepare, asker(request))))
    begun: list[Events] = []
    own = sse.Framing(
        framing.keep_alive,
        lambda error, request_id: (begun[0] if begun else framing).failure(error, request_id),
    )
    return sse.EventStream(
        partial(_stream, prepare, asker(request), begun), framing=own, keep_alive_s=waits.keep_alive_s,
        send_timeout_s=waits.send_timeout_s,
    )  # fmt: skip


async def _whole(prepare: Callable[[], Order], user: Asker) -> Json:
    order = await in_place(prepare)
    parts: list[Part] = []

    def settled(_: int, text: str) -> bool:
        parts.extend(order.reader.feed(text))
        return order.reader.done

    async with running(order.engine, [order.job], user, order.told.key) as generations:
        (reply,) = await collect(generations, settled)
    parts += order.reader.end()
    return order.told.whole(parts, order.end(reply.end, reply.logprobs)) | degraded_json(reply.degraded)


async def _stream(prepare: Callable[[], Order], user: Asker, begun: list[Events], write: sse.Write) -> None:
    """Write the events; `begun` gets their maker when the first of them goes out."""
    order = await in_place(prepare)
    reader, degraded, logprobs = order.reader, list[Degraded](), list[TokenLogprob]()
    events = order.told.events(order.job.prompt.held_tokens)

    async def handle(_: int, happened: Event) -> None:
        if isinstance(happened, Queued):  # how much of the prompt is kept, which the beginning tells, is not known yet
            return
        told = b"" if begun else events.begin(happened.cached if isinstance(happened, Prefill) else 0)
        if not begun:
            begun.append(events)
        if isinstance(happened, Delta):
            logprobs.extend(happened.logprobs)
            told += events.parts(reader.feed(happened.text), happened.logprobs)
            if reader.done:
                generations[0].cancel()
        elif isinstance(happened, Degraded):
            degraded.append(happened)
        elif isinstance(happened, Finished):
            told += events.parts(reader.end()) + events.end(order.end(happened, logprobs), degraded_json(degraded))
        if told:
            await write(told)

    async with running(order.engine, [order.job], user, order.told.key) as generations:
        await relay(generations, handle)
