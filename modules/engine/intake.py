"""How requests reach an engine: from any thread into the fair queue, one thread that takes them from there.

What a request does when its turn has come is the subclass's. It knows nothing of models.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from modules.engine.admission import FairQueue
from modules.engine.base import GenerationRequest, ModelInfo
from modules.engine.telling import Telling
from modules.errors import BadValue, ContextLengthExceeded, NoModelLoaded, NotAvailableHere, TimedOut
from modules.units import format_duration

log = logging.getLogger(__name__)

QUEUE_LIMIT = 64
CLOSE_TIMEOUT_S = 60.0

Taken = TypeVar("Taken", bound=Telling)


class Intake(Generic[Taken]):
    """Waiting and active requests, and the thread that serves them."""

    def __init__(self, name: str, *, queue_limit: int = QUEUE_LIMIT) -> None:
        self._queue: FairQueue[Taken] = FairQueue(queue_limit)
        self._waiting: dict[str, Taken] = {}
        self._active: dict[str, Taken] = {}
        self._changed = threading.Condition()
        self._news = False  # submitted or cancelled since the thread last looked
        self._closing = False
        self._due = math.inf  # when the first of those that wait has waited too long (time.monotonic)
        self._longest_seen = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _start(self) -> None:
        """Start the thread; the subclass calls it when it is ready."""
        self._thread.start()

    @abstractmethod
    def _work(self) -> bool:
        """Do something of bounded length; False if there was nothing to do."""

    @abstractmethod
    def _shut_down(self) -> None:
        """End every active request as cancelled and let go of caches."""

    def _look_again_s(self) -> float:
        """In how many seconds there may be something to do although nothing happened."""
        return math.inf

    def _check_machine(self, error: Exception) -> None:
        """Called with an error that nobody caught: end the process if nothing can come after it."""

    def _enqueue(self, taken: Taken) -> None:
        """Queue a request. Raises QueueFull, BadValue for a known id, NoModelLoaded while closing."""
        request = taken.request
        with self._changed:
            if self._closing:
                raise NoModelLoaded("The model is being unloaded.", remedy="Load a model first.")
            if request.id in self._waiting or request.id in self._active:
                raise BadValue(f"The request id {request.id!r} is in use.", remedy="Give each request its own id.")
            self._queue.push(request.user, taken)
            self._waiting[request.id] = taken
            if request.queue_s:
                self._due = min(self._due, time.monotonic() + request.queue_s)
            self._tell()

    def cancel(self, request_id: str) -> None:
        """End a request within a token. Unknown ids are ignored."""
        with self._changed:
            taken = self._waiting.get(request_id) or self._active.get(request_id)
            if taken is not None:
                taken.cancel()
                self._tell()

    def close(self) -> None:
        """Cancel everything, wait for the thread, and let go of the caches."""
        with self._changed:
            self._closing = True
            for taken in [*self._waiting.values(), *self._active.values()]:
                taken.cancel()
            self._tell()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()

    def _run(self) -> None:
        while not self._closing:
            try:
                worked = self._work()
            except Exception as error:
                self._check_machine(error)
                log.exception("the generation loop stumbled; it goes on")
                worked = True
            if not worked:
                with self._changed:
                    left_s = max(self._due - time.monotonic(), 0)
                    rest_s = min(left_s, self._look_again_s(), 60)
                    self._changed.wait_for(lambda: self._news or self._closing, timeout=rest_s)
        self._attend()
        self._shut_down()

    def _attend(self) -> None:
        """End requests that wait and were cancelled, or have waited too long; tell the others where they stand.

        Cheap where nothing happened.
        """
        if not self._news and time.monotonic() < self._due:
            return
        with self._changed:
            self._news = False
            cancelled = [taken for taken in self._waiting.values() if taken.cancelled]
            late = [taken for taken in self._waiting.values() if taken.left_s <= 0 and not taken.cancelled]
            for taken in (*cancelled, *late):
                self._queue.remove(taken)
                del self._waiting[taken.request.id]
            self._due = time.monotonic() + min((taken.left_s for taken in self._waiting.values()), default=math.inf)
            order = self._queue.order()
        for taken in cancelled:
            taken.finish("cancelled")
        for taken in late:
            taken.finish("error", waited_too_long(taken.request.queue_s))
        for position, taken in enumerate(order):
            taken.wait_at(position)

    def _next(self) -> Taken | None:
        """Take the next request off the queue and make it active; None where nobody waits."""
        with self._changed:
            taken = self._queue.pop()
            if taken is not None:
                del self._waiting[taken.request.id]
                self._active[taken.request.id] = taken
                self._news = True  # the others move up
        return taken

    def _next_of(self, user: str) -> None:
        """Take `user`'s first request off the queue, before others', and make it active."""
        with self._changed:
            self._queue.put_first(user)
            self._next()

    def _step_aside(self, taken: Taken) -> None:
        """From any thread: `taken` is active no more, and waits for another turn."""
        taken.step_aside()
        with self._changed:
            del self._active[taken.request.id]
            self._waiting[taken.request.id] = taken
            self._queue.put_back(taken.request.user, taken, lambda one: one.came_at)
            self._tell()

    def _leave(self, taken: Taken, end: Callable[[], None]) -> None:
        """From any thread: free `taken`'s row, let the next one in, and only then tell its `end`."""
        self._done(taken)
        with self._changed:
            self._tell()
        try:
            end()
        except Exception:
            log.exception("the end of request %s could not be told", taken.request.id)

    def _done(self, taken: Taken) -> None:
        """`taken` is active no more; its end is told after this."""
        self._longest_seen = max(self._longest_seen, len(taken.ids))
        with self._changed:
            self._active.pop(taken.request.id, None)


def waited_too_long(seconds: float) -> TimedOut:
    """Why a request ends whose turn never came."""
    return TimedOut(
        f"The request waited {format_duration(seconds)} for its turn, and was ended.",
        remedy="Send it again when fewer are waiting, or start Snug with a longer --queue-timeout.",
    )


def check_fits(total: int, longest: int, *, can_grow: bool) -> None:
    """Raise ContextLengthExceeded where a text of `total` tokens leaves no room for a reply within `longest`."""
    if total >= longest:
        raise ContextLengthExceeded(
            f"The text has {total} tokens; with room for a reply, at most {longest - 1} fit.",
            remedy="Shorten it, or load the model with a larger --ctx-size."
            if can_grow
            else "Shorten it: this model was made for no more.",
            param="prompt",
        )


def check_ids(request: GenerationRequest, vocab_size: int) -> None:
    """Raise BadValue for an empty prompt or ids that are not the model's."""
    if not request.prompt_ids:
        raise BadValue("The prompt is empty.", remedy="Write something first.", param="prompt")
    known = range(vocab_size)
    if min(ids := (*request.prompt_ids, *request.reply_ids)) not in known or max(ids) not in known:
        raise BadValue(f"Token ids must be 0 to {known[-1]}.", remedy="Use this model's tokenizer.", param="prompt")


def check_generates(info: ModelInfo) -> None:
    """Raise NotAvailableHere where `info` writes no replies."""
    if not info.generates:
        raise NotAvailableHere(
            f"{info.name} makes embeddings of texts and writes no replies.",
            remedy="Load a model that chats. This one answers /v1/embeddings.",
            param="model",
        )


def check_embeds(info: ModelInfo, tokens: int, *, param: str = "input") -> None:
    """Raise NotAvailableHere where `info` makes no embeddings, ContextLengthExceeded for a text that is too long."""
    if not info.embeds:
        raise NotAvailableHere(
            f"{info.name} makes no embeddings.",
            remedy="Load it with --embeddings."
            if info.loop == "llamacpp"
            else "Load a model that embeds (a sentence-transformers folder), or a .gguf file with --loader llamacpp "
            "--embeddings.",
            param="model",
        )
    if info.embed_tokens and tokens > info.embed_tokens:
        raise ContextLengthExceeded(
            f"The text has {tokens:,} tokens; {info.name} embeds at most {info.embed_tokens:,} at once.",
            remedy="Send it in parts.",
            param=param,
        )


def check_sees(info: ModelInfo, pictures: int, *, param: str = "messages") -> None:
    """Raise NotAvailableHere for pictures, which came in `param`, to a model that cannot see."""
    if pictures and not info.sees:
        raise NotAvailableHere(
            f"{info.name} reads text and cannot see pictures.",
            remedy="Load a model that sees (SmolVLM, LLaVA, Qwen2.5-VL), or remove the picture.",
            param=param,
        )
