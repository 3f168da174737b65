"""One reply from its prompt to its end: a thread that reads the engine's events, keeps the text and tells the readers.

It goes on whether anybody watches or not, and ends with the text kept whatever fails. Which reply, and where its text
belongs, is service.py's business.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol
from uuid import uuid4

from modules.chat.modifying import Part
from modules.chat.prompts import BuiltPrompt
from modules.chat.running import RunningReply
from modules.chat.thinking import Stopwatch
from modules.engine.base import Degraded, Delta, Event, Finished, GenerationRequest, Prefill, Queued, TokenLogprob
from modules.engine.host.host import EngineHost, Generation
from modules.errors import EngineDied, GenerationFailed, SnugError, StaleView, StoreFailed
from modules.messages import Conversation, MessageStatus, ReplyStats
from modules.models.manager import ModelManager
from modules.on_behalf import ASKED_FOR
from modules.sampling import MAX_STOP_STRINGS, GenerationParams

log = logging.getLogger(__name__)

JOURNAL_EVERY_S = 0.25
SAVE_TRIES = 4
SAVE_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a reply ended. `modified` is what the page shows in place of its answer, None for the answer itself."""

    status: MessageStatus
    stats: ReplyStats | None = None
    error: SnugError | None = None
    modified: str | None = None


class Keeper(Protocol):
    """Where a reply's text is kept."""

    def journal(self, text: str) -> None:
        """Keep the text so far. Raises StaleView if its place is gone, StoreFailed."""

    def finish(self, text: str, outcome: Outcome) -> Conversation | None:
        """Keep the whole text and how it ended: the conversation as that leaves it, if it is in one.

        Raises as `journal`.
        """


def ignore(_: Delta) -> None:
    """Watches nothing."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a reply is made of. `build` makes its prompt for the engine that will run it; it may take its time.

    `part` is what extensions do to it, None where none take part; `watch` sees every Delta before its text is shown.
    """

    owner: str
    params: GenerationParams
    build: Callable[[EngineHost], BuiltPrompt]
    keeper: Keeper
    trim_start: bool
    part: Part | None = None
    watch: Callable[[Delta], None] = ignore


class Writer:
    """Drives one reply in a thread of its own. `reply` is what readers get."""

    def __init__(
        self, models: ModelManager, task: Task, message_id: str, text: str, on_end: Callable[[Writer], None]
    ) -> None:
        """`on_end` is called once, when everything is kept and before readers see the final status."""
        self.reply = RunningReply(message_id, text, stop=self.stop)
        self._models = models
        self._task = task
        self._asked_for = ASKED_FOR.get() or task.owner  # what was kept for the gauge is then there for the prompt
        self._text = text
        self._on_end = on_end
        if task.part is not None:
            task.part.on_slow = lambda what: self.reply.change(notice=what)
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
        self._tokens: list[TokenLogprob] = []
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
        ASKED_FOR.set(self._asked_for)
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
        state = self._models.state
        if state.lent:
            self.reply.change(notice="A comparison has the memory; the reply follows when the model is back.")
        elif state.status in ("loading", "died"):
            self.reply.change(notice="The model is being loaded; the reply follows.")
        return self._models.with_engine(self._submit_to)

    def _submit_to(self, engine: EngineHost) -> Generation | None:
        built = self._task.build(engine)
        self._model, self._dropped = engine.info.name, built.dropped
        self._told = built.told
        if built.opens and not self._text:
            self._add(built.opens.lstrip())  # the template began the thought; the text says so from its first mark on
        self.reply.change(notice=_notice(built, engine.info.context_tokens), told=self._told)
        part = self._task.part
        params = part.params if part else self._task.params
        stop = tuple(dict.fromkeys((*params.stop, *built.stop)))[:MAX_STOP_STRINGS]
        if part is not None:
            self._tell(part.told)
            if part.replies() and self._takes_over(part, engine, built, stop):
                return None
        params = params.model_copy(update={"stop": stop})
        request = GenerationRequest(
            uuid4().hex, self._task.owner, built.prompt_ids, params, built.reply_ids, built.words,
            scripts=part.scripts if part else (), pictures=built.pictures, whose=self._task.owner,
        )  # fmt: skip
        with self._lock:
            if self._cut_short is not None:
                return None
            self._generation = engine.submit(request)
            return self._generation

    def _takes_over(self, part: Part, engine: EngineHost, built: BuiltPrompt, stop: tuple[str, ...]) -> bool:
        """Let an extension write the reply; False where it does not, and the model has to."""
        prompt = built.words.text if built.words else engine.decode(built.prompt_ids)
        before, wrote = self._text, False
        for text in part.reply(prompt, stop):
            if self._cut_short is not None:
                return True
            wrote = True
            new = (before + text).lstrip() if self._trim else before + text
            if new.startswith(self._text):
                self._task.watch(Delta(new[len(self._text) :]))
                self._add(new[len(self._text) :])
            else:
                self._text = new
                self.reply.replace(new)
        if wrote:
            self._end("complete", None, self._unmeasured(part))
        return wrote

    def _unmeasured(self, part: Part) -> ReplyStats:
        """Of a reply that no model has written."""
        self._tell(part.told)
        return ReplyStats(0, 0, 0, 0, 0, 0, 0, "stop", "", told=self._told)

    def _tell(self, sentences: Iterable[str]) -> None:
        new = tuple(sentence for sentence in sentences if sentence not in self._told)
        if new:
            self._told += new
            self.reply.change(told=self._told)

    def _take(self, event: Event) -> None:
        match event:
            case Queued(position):
                self.reply.change(position=position)
            case Prefill(done=done, total=total):
                self.reply.change(position=None, prefill=(done, total))
            case Delta():
                self._task.watch(event)
                self._tokens += event.logprobs
                self._add(event.text)
            case Degraded(what, why, extension):
                if extension and self._task.part:
                    self._task.part.blame(extension, why)
                self._tell([f"{why} {what}"])
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
        modified, conversation = None, None
        try:
            modified, stats = self._polished(status, stats)
            conversation = self._save(Outcome(status, stats, error, modified))
        except SnugError as fault:
            error = error or fault
        except Exception:  # whatever it is, the conversation must not stay busy
            log.exception("The end of a reply was not kept, by a fault of Snug's")
            error = error or GenerationFailed("The reply was not kept, by a fault of Snug's.", remedy="See the log.")
        finally:
            self._on_end(self)
            self.reply.change(
                status=status, error=error, stats=stats, position=None, prefill=None, conversation=conversation,
                modified=modified, reread=bool(self._task.part and self._task.part.changed_question),
            )  # fmt: skip

    def _polished(self, status: MessageStatus, stats: ReplyStats | None) -> tuple[str | None, ReplyStats | None]:
        """What extensions make of a complete reply, and the figures with what is to be told of that."""
        part = self._task.part
        if part is None or status != "complete" or self._hurry.is_set():
            return None, stats
        with suppress(StoreFailed):
            self._task.keeper.journal(self._text)  # hooks may take their time
        notice = self.reply.view().notice
        modified = part.after(self._text, self._tokens)
        self.reply.change(notice=notice)  # without whom people had to wait for
        self._tell(part.told)
        return modified, replace(stats, told=self._told) if stats else None

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
