"""A person's requests wait for one another where they take threads: nobody holds all of the server's or the engine's.

What is quick by itself can be asked thousands of times at once: texts to count, plans, files, the page's own doors.
Bodies of megabytes come in a few at a time, for what Python makes of them takes many times their size.
Replies have a fair queue of their own in the engine; of them only the building of prompts waits here.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modules.accounts.attempts import place_of
from modules.accounts.person import STATE, Person
from modules.errors import QueueFull
from modules.on_behalf import ASKED_FOR, UNTIL_ANSWERED
from modules.units import KiB

T = TypeVar("T")
OPEN_AT_ONCE = 256
"""Requests of a person with an account, or of a guest's address, that may be under way together, streams to open pages
among them: connections are files, of which a process has a thousand or so, for everybody."""
LARGE_BYTES = 512 * KiB
LARGE_AT_ONCE = 4  # bodies of one person that are larger, until their answers begin
PROMPTS_AT_ONCE = 4
PROMPTS_WAITING = 128  # of one person; each may have megabytes
_ROUTES: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"/v1/internal/(token/.*|encode|decode|token-count|chat-prompt|plan)"), 2),
    (re.compile(r"/v1/(messages/count_tokens|responses/input_tokens)"), 2),
    (re.compile(r"/attachments"), 2),
    (re.compile(r"/gradio_api/upload/?"), 2),  # each part of one is an open file
    (re.compile(r"/conversations"), 1),
    (re.compile(r"/gradio_api/(component_server|run/predict|api/predict)/?"), 6),
)
"""Which routes, and how many of a person's requests to them are worked on at once."""
_PERSON, _GUEST = "person ", "guest "
_PROMPTS: ContextVar[CapacityLimiter | None] = ContextVar("prompts", default=None)


class Places:
    """ASGI behind the doors: who asks is known, and nothing of the body has been read."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._limiters: WeakValueDictionary[tuple[str, int], CapacityLimiter] = WeakValueDictionary()
        self._open: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        who = _who(scope)
        if self._open[who] >= OPEN_AT_ONCE and who.startswith((_PERSON, _GUEST)):
            raise QueueFull("Too many of your requests are open.", remedy="Close some pages, or ask for less at once.")
        self._open[who] += 1
        try:
            await self._in_turn(who, scope, receive, send)
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]

    async def _in_turn(self, who: str, scope: Scope, receive: Receive, send: Send) -> None:
        """The request, when its person has room for it."""
        prompts = self._limiter(who, -1, PROMPTS_AT_ONCE)
        held = ExitStack()
        prompting, holding = _PROMPTS.set(prompts), UNTIL_ANSWERED.set(held)
        ASKED_FOR.set(who)
        try:
            for number, (path, at_once) in enumerate(_ROUTES):
                if scope["method"] == "POST" and path.fullmatch(scope["path"]):
                    async with self._limiter(who, number, at_once):
                        await self.app(scope, receive, send)
                    return
            large = _LargeBody(self._limiter(who, -2, LARGE_AT_ONCE), receive, send)
            try:
                await self.app(scope, large.receive, large.send)
            finally:
                large.let_go()
        finally:
            held.close()
            UNTIL_ANSWERED.reset(holding)
            _PROMPTS.reset(prompting)

    def _limiter(self, who: str, number: int, at_once: int) -> CapacityLimiter:
        """The same one for as long as a request holds it."""
        found = self._limiters.get((who, number))
        if found is None:
            found = self._limiters[who, number] = CapacityLimiter(at_once)
        return found


class _LargeBody:
    """A body that waits, once LARGE_BYTES of it are here, until it may come in whole; it counts until its answer
    begins. What waits is not read: the client waits with it."""

    def __init__(self, places: CapacityLimiter, receive: Receive, send: Send) -> None:
        self._places = places
        self._receive = receive
        self._send = send
        self._arrived = 0
        self._holds = False

    async def receive(self) -> Message:
        """The next piece of it."""
        message = await self._receive()
        self._arrived += len(message.get("body", b""))
        if self._arrived > LARGE_BYTES and not self._holds:
            await self._places.acquire_on_behalf_of(self)
            self._holds = True
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer."""
        self.let_go()
        await self._send(message)

    def let_go(self) -> None:
        """Let the next one in."""
        if self._holds:
            self._places.release_on_behalf_of(self)
            self._holds, self._arrived = False, 0


def _who(scope: Scope) -> str:
    """Whose turn it is: each person's, and where nobody has an account each address's, guests there by themselves."""
    person = scope.get("state", {}).get(STATE)
    if isinstance(person, Person) and person.id:
        return _PERSON + person.id
    address = scope["client"][0] if scope.get("client") else ""
    if isinstance(person, Person) and not person.admin:
        return _GUEST + place_of(address)
    return f"address {address}" if address else ""


async def in_place(work: Callable[[], T]) -> T:
    """What `work` makes, in a thread, when it is this person's turn. Who leaves while it waits has nothing made; once
    begun it keeps its place to its end, so that leaving and asking anew takes no more threads. Raises QueueFull.
    """
    left, places = False, _PROMPTS.get()
    if places is not None and places.statistics().tasks_waiting >= PROMPTS_WAITING:
        raise QueueFull("Too many of your requests wait already.", remedy="Try again soon.")

    def unless_left() -> T:
        if left:
            raise ClientDisconnect
        return work()

    task = asyncio.ensure_future(to_thread.run_sync(unless_left, limiter=places))
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # where nobody waits any more
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        left = True
        raise
