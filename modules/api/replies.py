"""The generations behind one API request: started together, read together, and cancelled together.

Knows nothing of any client's dialect; openai.py turns what comes out of here into its JSON.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from anyio import to_thread

from modules.chat.prompts import BuiltPrompt
from modules.engine.base import Degraded, Delta, Embedding, Event, Finished, GenerationRequest, TokenLogprob, Usage
from modules.engine.host.host import EngineHost, Generation
from modules.errors import EngineDied
from modules.sampling import GenerationParams

Handle = Callable[[int, Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Job:
    """One reply to make: the prompt, and how; or the prompt to `embed`."""

    prompt: BuiltPrompt
    params: GenerationParams
    embed: bool = False

    def request(self, user: str) -> GenerationRequest:
        """What the engine gets; the prompt's own stop strings join the client's."""
        return GenerationRequest(
            id=uuid.uuid4().hex,
            user=user,
            prompt_ids=self.prompt.prompt_ids,
            reply_ids=self.prompt.reply_ids,
            words=self.prompt.words,
            embed=self.embed,
            params=self.params.model_copy(update={"stop": (*self.params.stop, *self.prompt.stop)}),
        )


def seeded(params: GenerationParams, number: int) -> GenerationParams:
    """The parameters of the reply with this number: a fixed seed moves on by one, or all replies would be the same."""
    return params if params.seed < 0 else params.model_copy(update={"seed": (params.seed + number) % 2**63})


@asynccontextmanager
async def running(engine: EngineHost, jobs: Sequence[Job], user: str) -> AsyncIterator[list[Generation]]:
    """The generations of `jobs`, which end with this context at the latest."""
    generations: list[Generation] = []

    def submit_all() -> None:
        for job in jobs:
            generations.append(engine.submit(job.request(user)))

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
    degraded: tuple[Degraded, ...] = ()
    embedding: tuple[float, ...] = ()
    finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Take in the next event."""
        if isinstance(event, Delta):
            self.text += event.text
            self.logprobs += event.logprobs
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


async def collect(generations: Sequence[Generation]) -> list[Collected]:
    """The whole replies."""
    replies = [Collected() for _ in generations]

    async def add(index: int, event: Event) -> None:
        replies[index].add(event)

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
