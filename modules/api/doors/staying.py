"""Requests and answers that take long, of somebody who meanwhile may come in no more: they end there.

A body that is sent slowly asks for nothing until it is whole, and does nothing where the right is gone by then. Whoever
logged out, was removed, or whose key was revoked reads nothing further, on any page that is still open. What runs for
an answer alone ends with it, as for a client that left; a reply in a conversation belongs to the conversation, goes on,
and is kept.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Message, Receive, Scope, Send

from modules.api.doors.lock import header_values
from modules.api.errors import error_response
from modules.errors import SnugError, Unauthorized

LOOK_EVERY_S = 1.0
"""How soon an ending from the terminal is noticed while something is sent; one in this process is at once."""
WAITING_S = 5.0
"""How soon any ending is noticed while nothing is sent."""


class Staying:
    """One request on its way in, and its answer on its way out."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        admitted: Callable[[], bool],
        entitled: Callable[[], bool],
        endings: Callable[[], int],
    ) -> None:
        """`admitted` says whether who asked may still come in, `entitled` whether with the same rights too.

        `endings` counts the sessions, keys and rights that this process has ended.
        """
        self._scope = scope
        self._receive = receive
        self._send = send
        self._admitted = admitted
        self._entitled = entitled
        self._endings = endings
        self._seen = (endings(), time.monotonic())
        self._asked = False
        self._answers = False
        self._whole = False
        self._gone = False
        self._over = False

    async def receive(self) -> Message:
        """The next piece of the body; the last one only as long as who asked has the rights that it began with.

        After it that the client has left, or that who asked may stay no longer.
        """
        if self._asked:
            return await self._leaving()
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._asked = True
            self._gone = self._gone or not self._entitled()  # however short it took: that may have been the moment
            if self._gone:
                return {"type": "http.disconnect"}
        return message

    async def _leaving(self) -> Message:
        coming = asyncio.ensure_future(self._receive())
        try:
            while True:
                if (await asyncio.wait({coming}, timeout=WAITING_S))[0]:
                    return coming.result()
                if not self._may_stay():
                    return {"type": "http.disconnect"}
        finally:
            coming.cancel()

    async def send(self, message: Message) -> None:
        """Pass `message` on, while who asked may hear it."""
        if self._over:
            return
        starts = message["type"] == "http.response.start"
        if not self._may_stay() and (starts or not self._whole):
            await self._end_answer()
            return
        if starts:  # an answer whose length was told is whole, or broken
            self._answers = True
            self._whole = bool(header_values({"headers": message.get("headers", ())}, b"content-length"))
        else:
            self._over = not message.get("more_body", False)
        await self._send(message)

    async def end(self) -> None:
        """After the last of the answer: where what worked for who may stay no longer has ended without a word."""
        if self._gone and not self._over and not self._whole:
            await self._end_answer()

    async def _end_answer(self) -> None:
        self._over = True
        if self._answers:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await error_response(_left())(self._scope, self._receive, self._send)

    def _may_stay(self) -> bool:
        if not self._gone and self._is_due():
            self._gone = not self._admitted()
        return not self._gone

    def _is_due(self) -> bool:
        """Whether it is time to look again."""
        endings, looked = self._seen
        now, ended = time.monotonic(), self._endings()
        if ended == endings and now - looked < LOOK_EVERY_S:
            return False
        self._seen = (ended, now)
        return True


def _left() -> SnugError:
    return Unauthorized("This session has ended.", remedy="Log in again.")
