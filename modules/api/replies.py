"""The generations behind one API request: started together, read together, and cancelled together.

Knows nothing of any client's dialect; openai.py turns what comes out of here into its JSON.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio import to_thread

from modules.api.asking import CURRENT_REQUEST, Asker
from modules.chat.prompts import BuiltPrompt
from modules.engine.base import (
    Degraded,
    Delta,
    Embedding,
    Event,
    Finished,
    GenerationRequest,
    Scored,
    TokenLogprob,
    Usage,
)
from modules.engine.host.host import EngineHost, Generation
from modules.errors import EngineDied
from modules.forms.tools import CallShape
from modules.sampling import GenerationParams

Handle = Callable[[int, Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One reply to make: the prompt, and how; or the prompt to `embed`. `shape`, `shows`, `scored` and `writes` are the
    request's.
    """

    prompt: BuiltPrompt
    params: GenerationParams
    embed: bool = False
    shape: CallShape | None = None
    shows: tuple[str, ...] = ()
    scored: bool = False
    writes: bool = True

    def request(self, asker: Asker, names: str = "", queue_s: float = 0.0) -> GenerationRequest:
        """What the engine gets; the prompt's own stop strings join the client's. `names` are what it goes by."""
        return GenerationRequest(
            id=f"{uuid.uuid4().hex} {names}".strip(),
            user=asker.turn,
            whose=asker.owner,
            prompt_ids=self.prompt.prompt_ids,
            reply_ids=self.prompt.reply_ids,
            words=self.prompt.words,
            embed=self.embed,
            pictures=self.prompt.pictures,
            shape=self.shape,
            shows=self.shows,
            queue_s=queue_s,
            scored=self.scored,
            writes=self.writes,
            params=self.params.model_copy(update={"stop": (*self.params.stop, *self.prompt.stop)}),
        )


def seeded(params: GenerationParams, number: int) -> GenerationParams:
    """The parameters of the reply with this number: a fixed seed moves on by one, or all replies would be the same."""
    return params if params.seed < 0 else params.model_copy(update={"seed": (params.seed + number) % 2**63})


@asynccontextmanager
async def running(
    engine: EngineHost, jobs: Sequence[Job], asker: Asker, key: str = ""
) -> AsyncIterator[list[Generation]]:
    """The generations of `jobs`, which end with this context at the latest.

    They can be stopped by `key`, the answer's id, and by the number of the request. The first one waits for its turn
    as long as the engine's queue lets it; once that has come, the others may take what they need.
    """
    generations: list[Generation] = []
    names = f"{key} {CURRENT_REQUEST.get()}".strip()

    def submit_all() -> None:
        for job in jobs:
            queue_s = 0.0 if generations else engine.queue_s
            generations.append(engine.submit(job.request(asker, names, queue_s)))

    try:
        # Not abandoned when cancelled: what was submitted must be known, to be cancelled below.
        await to_thread.run_sync(submit_all)
        yield generations
    finally:
        for generation in generations:
            generation.close()


async def relay(generations: Sequence[Generation], handle: Handle) -> None:
    """Hand every event to `handle`, with its generation's index, until all have finished.

    Raises the first error that a generation ends with. Nothing is handed on before each of them has been accepted,
    so that a request which the engine refuses in part is refused as a whole.
    """
    readers = [aiter(generation) for generation in generations]
    first = [checked(await anext(reader)) for reader in readers]
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def read(index: int) -> None:
            try:
                await handle(index, first[index])
                async for event in readers[index]:
                    await handle(index, checked(event))
            except Exception as error:  # carried out of the task group, which would wrap it
                failures.append(error)
                group.cancel_scope.cancel()

        for index in range(len(readers)):
            group.start_soon(read, index)
    if failures:
        raise failures[0]


def checked(event: Event) -> Event:
    """`event`, unless it ends a generation with an error: then that is raised."""
    if isinstance(event, Finished) and event.reason == "error":
        raise event.error or EngineDied("The engine stopped without saying why.", remedy="Try again.")
    return event


@dataclass(slots=True)
class Collected:
    """One reply, put together from its events."""

    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    scored: list[TokenLogprob] = field(default_factory=list)
    degraded: tuple[Degraded, ...] = ()
    embedding: tuple[float, ...] = ()
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take in the next event."""
        if isinstance(event, Delta):
            self.text += event.text
            self.logprobs += event.logprobs
        elif isinstance(event, Scored):
            self.scored[event.start :] = event.tokens
        elif isinstance(event, Embedding):
            self.embedding = event.values
        elif isinstance(event, Degraded):
            self.degraded += (event,)
        elif isinstance(event, Finished):
            self.finished = event

    @property
    def end(self) -> Finished:
        """How the reply ended. Raises EngineDied if it has not."""
        if self.finished is None:
            raise EngineDied("The reply ended without its last word.", remedy="Try again.")
        return self.finished


async def collect(
    generations: Sequence[Generation], settled: Callable[[int, str], bool] | None = None
) -> list[Collected]:
    """The whole replies. `settled`, given an index and new text, says whether that reply may be ended."""
    replies = [Collected() for _ in generations]

    async def add(index: int, event: Event) -> None:
        replies[index].add(event)
        if settled is not None and isinstance(event, Delta) and settled(index, event.text):
            generations[index].cancel()

    await relay(generations, add)
    return replies


def total_usage(usages: Sequence[Usage], *, replies_per_prompt: int) -> Usage:
    """The usage of a whole request: each prompt counts once, every reply counts."""
    prompts = usages[::replies_per_prompt]
    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
        cached_tokens=sum(usage.cached_tokens for usage in prompts),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
