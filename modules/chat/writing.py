"""One reply from its prompt to its end: a thread that reads the engine's events, keeps the text and tells the readers.

It goes on whether anybody watches or not, and ends with the text kept whatever fails. Which reply, and where its text
belongs, is service.py's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from modules.chat.prompts import BuiltPrompt
from modules.chat.running import RunningReply
from modules.chat.thinking import Stopwatch
from modules.engine.base import Degraded, Delta, Event, Finished, GenerationRequest, Prefill, Queued
from modules.engine.host.host import EngineHost, Generation
from modules.errors import EngineDied, GenerationFailed, SnugError, StaleView, StoreFailed
from modules.messages import Conversation, MessageStatus, ReplyStats
from modules.models.manager import ModelManager
from modules.sampling import MAX_STOP_STRINGS, GenerationParams

log = logging.getLogger(__name__)

JOURNAL_EVERY_S = 0.25
SAVE_TRIES = 4
SAVE_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reply ended."""

    status: MessageStatus
    stats: ReplyStats | None = None
    error: SnugError | None = None


class Keeper(Protocol):
    """Where a reply's text is kept."""

    def journal(self, text: str) -> None:
        """Keep the text so far. Raises StaleView if its place is gone, StoreFailed."""

    def finish(self, text: str, outcome: Outcome) -> Conversation | None:
        """Keep the whole text and how it ended: the conversation as that leaves it, if it is in one.

        Raises as `journal`.
        """


@dataclass(frozen=True, slots=True)
class Task:
    """What a reply is made of. `build` makes its prompt for the engine that will run it; it may take its time.

    `polish` makes of a complete reply's text what is to be kept.
    """

    owner: str
    params: GenerationParams
    build: Callable[[EngineHost], BuiltPrompt]
    keeper: Keeper
    trim_start: bool
    polish: Callable[[str], str] = str


class Writer:
    """Drives one reply in a thread of its own. `reply` is what readers get."""

    def __init__(
        self, models: ModelManager, task: Task, message_id: str, text: str, on_end: Callable[[Writer], None]
    ) -> None:
        """`on_end` is called once, when everything is kept and before readers see the final status."""
        self.reply = RunningReply(message_id, text, stop=self.stop)
        self._models = models
        self._task = task
        self._text = text
        self._on_end = on_end
        self._lock = threading.Lock()
        self._generation: Generation | None = None
        self._cut_short: MessageStatus | None = None
        self._ending = False
        self._hurry = threading.Event()
        self._journalled = time.monotonic()
        self._trim = task.trim_start
        self._model = ""
        self._dropped = 0
        self._thought = Stopwatch(text)
        self._told: tuple[str, ...] = ()
        self._thread = threading.Thread(target=self._run, name=f"reply {message_id}", daemon=True)

    def start(self) -> None:
        """Begin; where the system gives no thread, the reply ends with an error that says so."""
        try:
            self._thread.start()
        except RuntimeError as error:
            log.error("%s", error)
            self._end("error", GenerationFailed("This machine has no thread left.", remedy="Stop other replies."))

    def stop(self) -> None:
        """End the reply as "stopped"."""
        self._cut("stopped")

    def interrupt(self) -> None:
        """End the reply as "interrupted", because Snug shuts down, without retrying what fails."""
        self._hurry.set()
        self._cut("interrupted")

    def join(self, timeout_s: float) -> None:
        """Wait for the end; past `timeout_s` the reply ends with what it has."""
        self._thread.join(max(timeout_s, 0))
        self._end(self._cut_short or "interrupted")

    def _cut(self, status: MessageStatus) -> None:
        with self._lock:
            self._cut_short = self._cut_short or status
            generation = self._generation
        if generation is None:
            self._end(status)  # the thread is still loading a model or building the prompt, and will notice
        else:
            generation.cancel()

    def _run(self) -> None:
        try:
            generation = self._submit()
            if generation is not None:
                for event in generation:
                    self._take(event)
        except StaleView as error:
            self._end("stopped", error)
        except SnugError as error:
            self._end("interrupted" if isinstance(error, EngineDied) else "error", error)
        except Exception:
            log.exception("A reply ended by a fault of Snug's")
            self._end("error", GenerationFailed("The reply failed by a fault of Snug's.", remedy="See the log."))
        finally:
            if self._generation is not None:
                self._generation.close()

    def _submit(self) -> Generation | None:
        """Find the engine, build the prompt, submit it; None if the reply was cut short meanwhile."""
        if self._models.state.status in ("loading", "died"):
            self.reply.change(notice="The model is being loaded; the reply follows.")
        engine, built = self._models.with_engine(lambda engine: (engine, self._task.build(engine)))
        self._model, self._dropped = engine.info.name, built.dropped
        if built.opens and not self._text:
            self._add(built.opens.lstrip())  # the template began the thought; the text says so from its first mark on
        self.reply.change(notice=_notice(built, engine.info.context_tokens))
        stop = tuple(dict.fromkeys((*self._task.params.stop, *built.stop)))[:MAX_STOP_STRINGS]
        params = self._task.params.model_copy(update={"stop": stop})
        request = GenerationRequest(
            uuid4().hex, self._task.owner, built.prompt_ids, params, built.reply_ids, built.words
        )
        with self._lock:
            if self._cut_short is not None:
                return None
            self._generation = engine.submit(request)
            return self._generation

    def _take(self, event: Event) -> None:
        match event:
            case Queued(position):
                self.reply.change(position=position)
            case Prefill(done, total):
                self.reply.change(position=None, prefill=(done, total))
            case Delta():
                self._add(event.text)
            case Degraded(what, why):
                self._told += (f"{why} {what}",)
                self.reply.change(told=self._told)
            case Finished():
                self._finish(event)

    def _add(self, text: str) -> None:
        if self._trim:
            text = text.lstrip()
            self._trim = not text
        if not text:
            return
        self._text += text
        self._thought.see(self._text, len(text))
        self.reply.add(text)
        now = time.monotonic()
        if now - self._journalled >= JOURNAL_EVERY_S:
            self._journalled = now
            try:
                self._task.keeper.journal(self._text)
            except StoreFailed as error:
                self.reply.change(notice=str(error))

    def _finish(self, event: Finished) -> None:
        usage, timings = event.usage, event.timings
        stats = ReplyStats(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            queue_s=timings.queue_s,
            prefill_s=timings.prefill_s,
            first_token_s=timings.first_token_s,
            tokens_per_s=timings.tokens_per_s,
            finish_reason=event.reason,
            model=self._model,
            dropped_messages=self._dropped,
            told=self._told,
            drafted_tokens=timings.drafted_tokens,
            accepted_tokens=timings.accepted_tokens,
            thought_s=self._thought.seconds,
        )
        if event.reason == "error":
            self._end("interrupted" if isinstance(event.error, EngineDied) else "error", event.error, stats)
        elif event.reason == "cancelled":
            self._end(self._cut_short or "interrupted", None, stats)
        else:
            self._end("complete", None, stats)

    def _end(self, status: MessageStatus, error: SnugError | None = None, stats: ReplyStats | None = None) -> None:
        """Keep everything, then let readers know; only the first call counts."""
        with self._lock:
            if self._ending:
                return
            self._ending = True
            self._cut_short = self._cut_short or status
        if status == "complete":
            self._text = self._task.polish(self._text)
            self.reply.replace(self._text)
        conversation = None
        try:
            conversation = self._save(Outcome(status, stats, error))
        except SnugError as fault:
            error = error or fault
        self._on_end(self)
        self.reply.change(
            status=status, error=error, stats=stats, position=None, prefill=None, conversation=conversation
        )

    def _save(self, outcome: Outcome) -> Conversation | None:
        """Keep the end of the reply, again and again for a while if the store cannot take it."""
        for _ in range(SAVE_TRIES - 1):
            try:
                return self._task.keeper.finish(self._text, outcome)
            except StoreFailed as fault:
                log.warning("%s", fault)
                self.reply.change(notice=str(fault))
                if self._hurry.wait(SAVE_AGAIN_S):
                    break
        return self._task.keeper.finish(self._text, outcome)


def _notice(built: BuiltPrompt, context_tokens: int) -> str:
    """What people should know of a prompt."""
    one = built.dropped == 1
    dropped = (
        f"The {'oldest message' if one else f'{built.dropped} oldest messages'} did not fit the model's context of "
        f"{context_tokens:,} tokens and {'was' if one else 'were'} left out."
        if built.dropped
        else ""
    )
    return " ".join(part for part in (dropped, built.notice) if part)
