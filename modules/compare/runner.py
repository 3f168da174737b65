"""Runs comparisons, one at a time: loads what is needed, asks every column the same, ends what it loaded.

A column that fails says so and the others go on. Stop, a page that is gone for good, and the server's end end it within
a token; nothing that it loaded outlives it, and the chat's model is back where it made room.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

from modules.chat.prompts import Prompts
from modules.compare.arranging import arrange
from modules.compare.column import Column
from modules.compare.measuring import memory_of, vocabulary_of
from modules.compare.values import Arrangement, Batch, ColumnView, Job, Trial, View
from modules.engine.base import GenerationRequest, Progress
from modules.engine.host.host import EngineHost, Generation
from modules.errors import Busy, EngineDied, GenerationFailed, OutOfMemory, SnugError
from modules.messages import ChatMessage
from modules.models.loan import Loan
from modules.models.manager import ModelManager
from modules.models.state import as_snug
from modules.sampling import MAX_STOP_STRINGS

log = logging.getLogger(__name__)

UNWATCHED_S = 30.0
"""Whoever reloads a page is back sooner; whoever closed it wants no more of it."""
LOOK_S = 0.5
BUSY = "A comparison is running."


class Comparison:
    """One comparison, from its start to its end, in a thread of its own."""

    def __init__(self, models: ModelManager, prompts: Prompts, trial: Trial, owner: str, unwatched_s: float) -> None:
        """Raises Busy while a model loads, and what stands in the way of all its columns."""
        self._models = models
        self._prompts = prompts
        self._trial = trial
        self._owner = owner
        self._unwatched_s = unwatched_s
        self._loan: Loan = models.lend(BUSY)
        try:
            self._plan = arrange(models, trial)
            if len(self._plan.refused) == len(trial.columns):
                raise next(iter(self._plan.refused.values()))
        except BaseException:
            self._loan.give_back()
            raise
        self.id = uuid4().hex
        self._columns = [Column(view) for view in self._first_looks(self._plan)]
        self._lock = threading.Lock()
        self._open: set[Generation] = set()
        self._watchers, self._left_at = 0, time.monotonic()
        self._phase, self._words = "", self._plan.words
        self._problem: SnugError | None = None
        self._why_stopped = "It was stopped: the chat's model was unloaded, or needed the memory."
        self._over = threading.Event()
        self._loan.when_closed(self._cancel_open)
        threading.Thread(target=self._run, name="comparison", daemon=True).start()
        threading.Thread(target=self._watch, name="comparison's watch", daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether all is done, the chat's model back in its place."""
        return self._over.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Whether it is over, waiting for that at most `timeout_s`."""
        return self._over.wait(timeout_s)

    def view(self) -> View:
        """As it is now."""
        over = self._over.is_set()
        columns = tuple(column.view() for column in self._columns)
        phase = "" if over else self._phase
        return View(self.id, self._trial, self._words, columns, phase, over, self._problem)

    def stop(self, why: str = "") -> None:
        """End it within a token; what the columns hold stays. `why` is for people."""
        self._why_stopped = why
        self._loan.close()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A page looks on."""
        with self._lock:
            self._watchers += 1
        try:
            yield
        finally:
            with self._lock:
                self._watchers -= 1
                self._left_at = time.monotonic()

    def _first_looks(self, plan: Arrangement) -> Iterator[ColumnView]:
        jobs = {number: job for batch in plan.batches for job in batch.jobs for number in job.columns}
        for number, asked in enumerate(self._trial.columns):
            job = jobs.get(number)
            if job is None:
                yield ColumnView(asked.model, "", asked.sampling, "failed", error=plan.refused.get(number))
                continue
            yield ColumnView(
                asked.model,
                job.plan.title,
                asked.sampling,
                forecast_tokens_per_s=job.plan.tokens_per_s,
                vocabulary=vocabulary_of(job.plan.spec),
            )

    def _watch(self) -> None:
        """Stop it when nobody has looked on for a while: its engines hold memory."""
        while not self._over.wait(LOOK_S):
            with self._lock:
                gone = not self._watchers and time.monotonic() - self._left_at > self._unwatched_s
            if gone and not self._loan.is_over():
                self.stop("It was stopped: its page was closed.")

    def _run(self) -> None:
        batches = deque(self._plan.batches)
        try:
            while batches and not self._loan.is_over():
                batches.extend(self._run_batch(batches.popleft()))
        except Exception as error:
            log.exception("A comparison ended by a fault of Snug's")
            self._problem = as_snug(error)
        finally:
            for column in self._columns:
                column.stop()
            if self._loan.is_over() and self._why_stopped:
                self._words = (*self._words, self._why_stopped)
            name = self._models.state.name
            self._phase = f"Bringing back {name} for the chat" if self._loan.away else "Ending"
            try:
                self._loan.give_back()
            finally:
                self._over.set()

    def _run_batch(self, batch: Batch) -> list[Batch]:
        """Load, ask, measure and end the engines of a batch; what memory ran out for is to be tried alone."""
        again: list[Batch] = []
        ready: list[tuple[Job, EngineHost]] = []
        try:
            if batch.instead:
                self._phase = f"Waiting for the replies of {self._models.state.name} in the chat"
                self._loan.make_room()
            for job in batch.jobs:
                try:
                    ready.append((job, self._engine(job)))
                except OutOfMemory as error:
                    if len(batch.jobs) == 1 or self._loan.is_over():
                        self._fail(job, error)
                        continue
                    self._each(job, lambda column: column.again("Memory ran out beside the others: it is tried alone."))
                    again.append(Batch((job,), batch.instead))
                except SnugError as error:
                    self._fail(job, error)
            self._phase = ""
            self._ask_all(ready)
        except Busy:  # stopped while it waited for room
            pass
        finally:
            for job, host in ready:
                self._measure(job, host)
                if not job.loaded:
                    self._loan.end(host)
        return again

    def _engine(self, job: Job) -> EngineHost:
        """The engine of a job, loaded. Raises SnugError."""
        current = self._loan.loaded
        if job.loaded:
            if current is None or not current.host.alive:
                raise EngineDied("The chat's model has stopped.", remedy="Load it again, then compare.")
            return current.host
        self._phase = f"Loading {job.plan.spec.name}, {job.plan.title}"
        host = self._loan.start(job.plan, lambda told: self._each(job, lambda column: column.loading(told)))
        self._each(job, lambda column: column.change(stage="waiting", progress=None, load_s=host.info.load_s))
        return host

    def _ask_all(self, ready: list[tuple[Job, EngineHost]]) -> None:
        """Every column its question, all at the same time or in turn."""
        asking = [(number, host) for job, host in ready for number in job.columns]
        threads = [
            threading.Thread(target=self._ask, args=pair, name=f"column {pair[0] + 1}", daemon=True)
            for pair in sorted(asking, key=lambda pair: pair[0])
        ]
        for thread in threads:
            thread.start()
            if self._trial.in_turn:
                thread.join()
        for thread in threads:
            thread.join()

    def _ask(self, number: int, host: EngineHost) -> None:
        column = self._columns[number]
        try:
            generation = self._submit(number, host)
            if generation is None:
                return column.stop()
            try:
                for event in generation:
                    column.take(event)
            finally:
                with self._lock:
                    self._open.discard(generation)
                generation.close()
        except SnugError as error:
            self._columns[number].fail(error)
        except Exception:
            log.exception("A column ended by a fault of Snug's")
            column.fail(GenerationFailed("This column failed by a fault of Snug's.", remedy="The log says more."))

    def _submit(self, number: int, host: EngineHost) -> Generation | None:
        """Send a column's question; None if all was stopped meanwhile. Raises SnugError."""
        if self._loan.is_over():
            return None
        self._columns[number].change(stage="reading", progress=Progress("Reading the prompt", 0.0))
        asked, limit = self._trial.columns[number], self._trial.max_new_tokens
        messages = [ChatMessage("user", self._trial.prompt)]
        built = self._prompts.chat(host, messages, max_new_tokens=limit, truncate=False)
        stop = tuple(dict.fromkeys((*asked.params.stop, *built.stop)))[:MAX_STOP_STRINGS]
        seed = self._trial.seed if asked.params.seed < 0 else asked.params.seed
        params = asked.params.model_copy(update={"stop": stop, "seed": seed, "max_new_tokens": limit})
        request = GenerationRequest(
            uuid4().hex, self._owner, built.prompt_ids, params, words=built.words, whose=self._owner
        )
        generation = host.submit(request)
        with self._lock:
            self._open.add(generation)
        if self._loan.is_over():
            generation.cancel()
        return generation

    def _measure(self, job: Job, host: EngineHost) -> None:
        """What an engine took, in the columns that it wrote."""
        try:
            found = memory_of(job.plan, host.info, host.stats(), self._models.machine()) if host.alive else ()
        except SnugError:  # it does not even answer
            return
        self._each(job, lambda column: column.note_after(memory=found))

    def _fail(self, job: Job, error: SnugError) -> None:
        self._each(job, lambda column: column.stop() if self._loan.is_over() else column.fail(error))

    def _each(self, job: Job, do: Callable[[Column], None]) -> None:
        for number in job.columns:
            do(self._columns[number])

    def _cancel_open(self) -> None:
        with self._lock:
            generations = tuple(self._open)
        for generation in generations:
            generation.cancel()


class Comparisons:
    """The comparison that runs, or the last one. One at a time: two would only measure each other."""

    def __init__(self, models: ModelManager, prompts: Prompts, *, unwatched_s: float = UNWATCHED_S) -> None:
        self._models = models
        self._prompts = prompts
        self._unwatched_s = unwatched_s
        self._lock = threading.Lock()
        self._last: tuple[str, Comparison] | None = None

    def start(self, owner: str, trial: Trial) -> Comparison:
        """Begin one. Raises Busy while another one runs or a model loads, and what stands in the way of all columns."""
        with self._lock:
            if self._last is not None and not self._last[1].over:
                raise Busy(BUSY, remedy="Wait until it is complete, or stop it.")
            comparison = Comparison(self._models, self._prompts, trial, owner, self._unwatched_s)
            self._last = owner, comparison
            return comparison

    def last(self, owner: str) -> Comparison | None:
        """The owner's comparison that runs or ran last."""
        last = self._last
        return last[1] if last is not None and last[0] == owner else None
