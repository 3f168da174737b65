"""A reply while it is written, as others see it: looked at, waited for or followed, by any number of tabs.

Whoever looks away misses nothing and slows nobody down. writing.py writes it, the store keeps it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from modules.errors import SnugError
from modules.messages import Conversation, Message, MessageStatus, ReplyStats


@dataclass(frozen=True, slots=True)
class ReplyView:
    """One look at a reply. `version` grows with every change.

    `text` is the whole message (of a notebook completion: what was added). `position` in the queue and `prefill`
    (tokens read, of how many) are None when they do not apply; `notice` is "" or a sentence for people. `told` are
    sentences about what the engine had to give up in the midst of it. `conversation` is how the end of the reply left
    it: None before, and where none keeps it. `modified` is what the page shows of a finished one in place of its
    answer, None for the answer itself. To `reread` is to look at the conversation anew: other messages changed as well.
    """

    message_id: str
    text: str = ""
    status: MessageStatus = "streaming"
    stats: ReplyStats | None = None
    position: int | None = None
    prefill: tuple[int, int] | None = None
    notice: str = ""
    told: tuple[str, ...] = ()
    error: SnugError | None = None
    conversation: Conversation | None = None
    modified: str | None = None
    reread: bool = False
    version: int = 0

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.status != "streaming"


class RunningReply:
    """The readers' side of one reply. Safe to use from any thread and any event loop."""

    def __init__(self, message_id: str, text: str = "", *, stop: Callable[[], None] = lambda: None) -> None:
        self._changed = threading.Condition()
        self._view = ReplyView(message_id, text)
        self._more: list[str] = []  # text that came since the view was made; joining it at each token would be slow
        self._stop = stop
        self._wakes: set[Callable[[], None]] = set()

    @classmethod
    def of(cls, message: Message) -> RunningReply:
        """A reply that ended before, as the store has it."""
        reply = cls(message.id, message.content)
        status: MessageStatus = "interrupted" if message.status == "streaming" else message.status
        told = message.stats.told if message.stats else ()
        reply.change(status=status, stats=message.stats, notice=message.error, told=told, modified=message.modified)
        return reply

    @property
    def message_id(self) -> str:
        """The id of the message that is written."""
        return self._view.message_id

    def view(self) -> ReplyView:
        """The reply as it is now."""
        with self._changed:
            if self._more:
                self._view = replace(self._view, text="".join((self._view.text, *self._more)))
                self._more.clear()
            return self._view

    def wait(self, version: int, timeout_s: float) -> ReplyView:
        """The reply as soon as it is newer than `version`, or as it is after `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._view.version > version or self._view.finished, timeout_s)
        return self.view()

    async def updates(self, max_hz: float = 20, heartbeat_s: float = 0.5) -> AsyncIterator[ReplyView]:
        """Views until the finished one, at most `max_hz` a second, at least one every `heartbeat_s`.

        The heartbeat is for the reader's sake: who writes to a closed tab notices.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not news.is_set():
                with contextlib.suppress(RuntimeError):  # its loop is closed: nobody reads any more
                    loop.call_soon_threadsafe(news.set)

        self._wakes.add(wake)
        try:
            while True:
                news.clear()
                view = self.view()
                yield view
                if view.finished:
                    return
                await asyncio.sleep(1 / max_hz)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), heartbeat_s)
        finally:
            self._wakes.discard(wake)

    def stop(self) -> None:
        """End the reply within a token; what it holds stays. Stopping a finished one does nothing."""
        self._stop()

    def replace(self, text: str) -> None:
        """The reply reads `text` now."""
        if text != self.view().text:
            with self._changed:
                self._more.clear()
            self.change(text=text)

    def add(self, text: str) -> None:
        """The writer's: more text, which also ends waiting and reading."""
        with self._changed:
            if not self._view.finished:
                self._more.append(text)
                self._tell({"position": None, "prefill": None})

    def change(self, **changes: Any) -> None:
        """The writer's: set fields of the view, the final `status` last of all; ignored after that."""
        with self._changed:
            if not self._view.finished:
                self._tell(changes)

    def _tell(self, changes: dict[str, Any]) -> None:
        self._view = replace(self._view, **changes, version=self._view.version + 1)
        self._changed.notify_all()
        for wake in tuple(self._wakes):
            wake()
