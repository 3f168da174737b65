"""What both generation loops share: intake from any thread, the fair queue, one thread that owns the model.

A subclass gives `_work`, which runs in that thread. Sampling and text are Reply's, models are the subclass's.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod

from modules.engine.admission import FairQueue
from modules.engine.base import Emit, EngineStats, GenerationRequest
from modules.engine.loaded import LoadedModel, TokenizerFace, process_memory
from modules.engine.reply import Reply
from modules.errors import BadValue, ContextLengthExceeded, NoModelLoaded

log = logging.getLogger(__name__)

QUEUE_LIMIT = 64
CLOSE_TIMEOUT_S = 60.0


class LoopEngine(TokenizerFace):
    """An Engine whose model is used by one thread only. That thread makes every `emit`."""

    def __init__(self, loaded: LoadedModel, *, queue_limit: int = QUEUE_LIMIT) -> None:
        super().__init__(loaded)
        self._queue: FairQueue[Reply] = FairQueue(queue_limit)
        self._waiting: dict[str, Reply] = {}
        self._active: dict[str, Reply] = {}
        self._changed = threading.Condition()
        self._news = False  # submitted or cancelled since the thread last looked
        self._closing = False
        self._longest_seen = 0
        self._thread = threading.Thread(target=self._run, name=f"{loaded.info.loop} loop", daemon=True)

    def _start(self) -> None:
        """Start the thread; the subclass calls it when it is ready."""
        self._thread.start()

    @abstractmethod
    def _work(self) -> bool:
        """Do something of bounded length; False if there was nothing to do."""

    @abstractmethod
    def _shut_down(self) -> None:
        """End every active reply as cancelled and let go of caches."""

    @abstractmethod
    def _kv_tokens(self) -> tuple[int, int]:
        """Tokens in KV caches, and how many fit."""

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Queue a request. Raises ContextLengthExceeded, QueueFull, or BadValue for an empty prompt or a known id."""
        self._check(request)
        reply = Reply(request, emit, self.loaded, self._codec, longest=self._longest_sequence())
        with self._changed:
            if self._closing:
                raise NoModelLoaded("The model is being unloaded.", remedy="Load a model first.")
            if request.id in self._waiting or request.id in self._active:
                raise BadValue(f"The request id {request.id!r} is in use.", remedy="Give each request its own id.")
            self._queue.push(request.user, reply)
            self._waiting[request.id] = reply
            self._tell()

    def cancel(self, request_id: str) -> None:
        """End a request within a token. Unknown ids are ignored."""
        with self._changed:
            reply = self._waiting.get(request_id) or self._active.get(request_id)
            if reply is not None:
                reply.cancel()
                self._tell()

    def stats(self) -> EngineStats:
        """How busy the engine is now."""
        return process_memory(len(self._active), len(self._queue), *self._kv_tokens(), self._longest_seen)

    def close(self) -> None:
        """Cancel everything, wait for the thread, and let go of the caches."""
        with self._changed:
            self._closing = True
            for reply in [*self._waiting.values(), *self._active.values()]:
                reply.cancel()
            self._tell()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    def _check(self, request: GenerationRequest) -> None:
        prompt, reply = len(request.prompt_ids), len(request.reply_ids)
        if not prompt:
            raise BadValue("The prompt is empty.", remedy="Write something first.", param="prompt")
        known = range(self.loaded.info.vocab_size)
        if min(ids := (*request.prompt_ids, *request.reply_ids)) not in known or max(ids) not in known:
            raise BadValue(f"Token ids must be 0 to {known[-1]}.", remedy="Use this model's tokenizer.", param="prompt")
        longest = self._longest_sequence()
        total = max(prompt, reply + 2) if self.loaded.is_encoder_decoder else prompt + reply
        if total >= longest:
            raise ContextLengthExceeded(
                f"The text has {total} tokens; with room for a reply, at most {longest - 1} fit.",
                remedy="Shorten it, or load the model with a larger --ctx-size."
                if self.loaded.info.can_grow
                else "Shorten it: this model was made for no more.",
                param="prompt",
            )

    def _longest_sequence(self) -> int:
        """Prompt and reply together, in tokens."""
        return self.loaded.info.context_tokens

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()

    def _run(self) -> None:
        while not self._closing:
            try:
                worked = self._work()
            except Exception:
                log.exception("the generation loop stumbled; it goes on")
                worked = True
            if not worked:
                with self._changed:
                    self._changed.wait_for(lambda: self._news or self._closing, timeout=60)
        self._attend()
        self._shut_down()

    def _attend(self) -> None:
        """End cancelled requests that wait, and tell the others where they stand. Cheap where nothing happened."""
        if not self._news:
            return
        with self._changed:
            self._news = False
            cancelled = [reply for reply in self._waiting.values() if reply.cancelled]
            for reply in cancelled:
                self._queue.remove(reply)
                del self._waiting[reply.request.id]
            order = self._queue.order()
        for reply in cancelled:
            reply.finish("cancelled")
        for position, reply in enumerate(order):
            reply.wait_at(position)

    def _next(self) -> Reply | None:
        """Take the next request off the queue and make it active; None where nobody waits."""
        with self._changed:
            reply = self._queue.pop()
            if reply is not None:
                del self._waiting[reply.request.id]
                self._active[reply.request.id] = reply
                self._news = True  # the others move up
        return reply

    def _done(self, reply: Reply) -> None:
        """`reply` is active no more; its end is told after this."""
        self._longest_seen = max(self._longest_seen, len(reply.ids))
        with self._changed:
            self._active.pop(reply.request.id, None)
