"""The generation loop for many: one forward step for all rows, each with its own sampler, stop strings and end.

It decides which requests run, fairly: as many as the KV memory holds, whose rows give way to others where it runs short
(shares.py) and go on later; and which of them pays for an error. The paged model itself is paged.py's; what a request
is, reply.py's.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence

import torch

from modules.engine.base import FinishReason
from modules.engine.loops.drafting import MOST_DRAFTED
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import QUEUE_LIMIT, LoopEngine
from modules.engine.loops.paged import PagedModel, Stretch
from modules.engine.loops.reply import SMALLEST_CHUNK_TOKENS, Reply, end_without_gpu, is_out_of_memory, smaller_chunk
from modules.engine.loops.serial import release_memory
from modules.engine.loops.speculation import Chosen, Speculation
from modules.engine.shares import Shares, following

log = logging.getLogger(__name__)

MOST_RETRIES = 3
OUT = "Memory ran out."
GATHER_S = 0.05
"""Rows that run beside others tell their text so often at most: 20 times a second is as smooth to a reader."""
WORTH_SHRINKING = 0.75  # a pool that would keep more than this share of its size stays as it is


class BatchedEngine(LoopEngine):
    """Many requests at once; a conversation's pages serve its next turn, a system prompt's all of one person's."""

    def __init__(self, loaded: LoadedModel, *, queue_limit: int = QUEUE_LIMIT, page_tokens: int | None = None) -> None:
        """Raises what PagedModel raises for a model that continuous batching does not carry."""
        super().__init__(loaded, queue_limit=queue_limit)
        self._paged = PagedModel(loaded, self._choose, page_tokens=page_tokens)
        self._rows: dict[str, Reply] = {}
        self._chosen: dict[str, Chosen] = {}
        self._speculation = Speculation(loaded)
        self._shares = Shares(self._paged.units)
        self._unproven: set[str] = set()  # rows that have not come through a step yet
        self._suspects: deque[Reply] = deque()  # rows of a failed step; each has to come through one alone
        self._retries: dict[str, int] = {}
        self._longest = min(loaded.info.context_tokens, self._paged.longest_row())
        self._start()

    def _work(self) -> bool:
        for reply in self._begun():
            if reply.cancelled:
                self._end(reply, "cancelled")
        self._admit()
        self._attend()
        self._make_way()
        if not self._rows:
            return False
        for reply in self._rows.values():
            reply.gather(GATHER_S if len(self._rows) > 1 else 0.0)
        try:
            self._draft()
            stretches = self._paged.step()
        except Exception as error:
            self._recover(error)
            return True
        starved = [self._advance(stretch) for stretch in stretches]
        if failure := next(filter(None, starved), None):
            self._recover(failure)
        return bool(stretches)

    def _longest_sequence(self) -> int:
        return self._longest

    def _admit(self) -> None:
        """Make rows of those who are next while they fit; after an error, the suspects first, one by one."""
        if self._suspects:
            if not self._unproven:
                self._make_row(self._suspects.popleft())
            return
        while came := self._following():
            reply, rows = came
            for row_id in rows:
                self._give_way(self._rows[row_id])
            self._next_of(reply.request.user)
            try:
                if not reply.begun:
                    reply.start()
            except Exception as error:
                self._fail(reply, error)
                continue
            if reply.cancelled:
                self._end(reply, "cancelled")
            else:
                self._make_row(reply)

    def _following(self) -> tuple[Reply, Sequence[str]] | None:
        with self._changed:
            heads = self._queue.heads()
        return following(heads, self._shares, self._has_room, self._way_for)

    def _has_room(self, reply: Reply) -> bool:
        """Whether it fits beside the rows, with what it may soon write, and could come to its end alone."""
        if not self._rows:
            return True
        most, capacity = _most_tokens(reply), self._paged.capacity
        fits = self._shares.reserved + self._shares.needs(_held(reply), most) <= capacity
        return fits and self._paged.units(most) <= capacity and len(self._rows) < self._paged.most_rows

    def _way_for(self, reply: Reply) -> Sequence[str]:
        """The rows that give way to it, since their turn is over; none where that is not enough."""
        most = _most_tokens(reply)
        if self._paged.units(most) > self._paged.capacity:
            return ()
        needed, limits = self._shares.needs(_held(reply), most), (self._paged.capacity, self._paged.most_rows)
        return self._shares.over(reply.request.user, needed, *limits)

    def _make_way(self) -> None:
        """Promise the rows what they are about to hold; where that is more than there is, some give way."""
        ahead = MOST_DRAFTED if len(self._rows) == 1 else 0
        grown = [self._shares.grow(row_id, _held(reply) + ahead) for row_id, reply in self._rows.items()]
        if not any(grown) and not self._unproven:
            return
        while len(self._rows) > 1 and self._shares.reserved > self._paged.capacity:
            self._give_way(self._rows[self._shares.gives_way()])
        if any(grown):
            self._paged.make_room(self._shares.reserved)

    def _give_way(self, reply: Reply) -> None:
        """Take its row away: it goes on later, from its tokens."""
        self._forget(reply)
        self._step_aside(reply)

    def _make_row(self, reply: Reply) -> None:
        """Add its row, to a pool brought back to its planned size if it was made smaller and would not hold it."""
        try:
            alone = not self._rows and not self._paged.closed
            if self._paged.closed or (alone and self._paged.units(_most_tokens(reply)) > self._paged.capacity):
                self._paged.resize()
            self._add_row(reply)
        except Exception as error:
            self._fail(reply, error)

    def _add_row(self, reply: Reply) -> None:
        row_id = reply.request.id
        self._shares.put(row_id, reply.request.user, _held(reply), _most_tokens(reply))
        self._paged.add(row_id, reply.ids, reserved_units=self._shares.reserved, whose=reply.request.whose)
        if reply.scoring is not None and reply.scores_prompt:
            self._paged.score(row_id, reply.scoring, reply.score)
        self._rows[row_id] = reply
        self._unproven.add(row_id)

    def _choose(self, row_ids: list[str], logits: torch.Tensor) -> list[int]:
        """Each row's next token, or tokens where some were drafted: NOT_CHOSEN in the places after a wrong guess.

        A sampler that fails gets its own row into trouble only.
        """
        self._chosen = {row_id: Chosen(self._paged.drafted(row_id)) for row_id in row_ids}
        return [
            self._chosen[row_id].choose(self._rows[row_id], scores)
            for row_id, scores in zip(row_ids, logits, strict=True)
        ]

    def _draft(self) -> None:
        """Let a row that is alone and writes read what may follow with its last token: many rows fill a step anyway."""
        if len(self._rows) != 1 or self._unproven:
            return
        ((row_id, reply),) = self._rows.items()
        if drafted := self._speculation.draft(reply, self._paged.droppable(row_id, MOST_DRAFTED)):
            self._paged.draft(row_id, drafted)

    def _advance(self, stretch: Stretch) -> Exception | None:
        """Tell `stretch`'s row what was read, and its token, if one was chosen. The error, if memory ran out for it."""
        reply = self._rows[stretch.row_id]
        total = len(reply.ids)
        if stretch.row_id in self._unproven:
            self._unproven.discard(stretch.row_id)
            if not reply.new_tokens:
                reply.cached_tokens = stretch.start
            reply.prefilled(stretch.start, total)
        if self._shares.reads(stretch.row_id):
            reply.prefilled(stretch.end, total)
        if not stretch.chose:
            return None
        self._shares.writes(stretch.row_id)
        if not reply.request.writes:
            self._end(reply, "cancelled" if reply.cancelled else "length")
            return None
        chosen = self._chosen[stretch.row_id]
        for sampled in chosen.tokens:
            reason = "cancelled" if reply.cancelled else reply.take(sampled.token_id, sampled)
            if reason:
                self._end(reply, reason)
                return None
        if chosen.error is not None:
            if is_out_of_memory(chosen.error):
                return chosen.error
            self._fail(reply, chosen.error)
        return None

    def _end(self, reply: Reply, reason: FinishReason) -> None:
        self._forget(reply)
        self._done(reply)
        reply.finish(reason)

    def _fail(self, reply: Reply, error: BaseException) -> None:
        self._forget(reply)
        self._done(reply)
        reply.fail(error)

    def _forget(self, reply: Reply) -> None:
        row_id = reply.request.id
        if self._rows.pop(row_id, None) is not None:
            self._paged.remove(row_id)
        if reply in self._suspects:
            self._suspects.remove(reply)
        self._shares.remove(row_id)
        self._retries.pop(row_id, None)
        self._unproven.discard(row_id)

    def _recover(self, error: Exception) -> None:
        """After a step that failed: shrink what caused it or find whom; all others go on from their tokens."""
        end_without_gpu(error)
        log.warning("a step with %d rows failed: %s", len(self._rows), type(error).__name__)
        rows, unproven = list(self._rows.values()), set(self._unproven)
        out_of_memory = is_out_of_memory(error)
        if out_of_memory:
            error.__traceback__ = error.__context__ = None  # its frames hold what the step had computed
        self._paged.reset(forget_prefixes=out_of_memory)
        for rows_of in (self._rows, self._shares, self._unproven):
            rows_of.clear()
        guilty: list[Reply] = []
        suspects: list[Reply] = []
        if out_of_memory:
            release_memory()
            if not self._give_something_up(rows):
                guilty = rows if self._paged.closed else [max(rows, key=lambda reply: len(reply.ids))]
        else:
            suspects = [reply for reply in rows if reply.request.id in unproven] or rows
            guilty = suspects if len(suspects) == 1 else [reply for reply in suspects if self._retried_enough(reply)]
        for reply in rows:
            reply.forget_guesses()
            if reply in guilty:
                self._fail(reply, error)
            elif reply in suspects:
                self._suspects.append(reply)
            else:
                self._add_row(reply)
        release_memory()

    def _give_something_up(self, rows: list[Reply]) -> bool:
        """Give up the next thing that frees memory, each once a row. False where nothing is left."""
        if any("caches" not in reply.given_up for reply in rows) and self._drop_idle_pages(rows):
            return True
        if self._paged.closed or all("chunk" in reply.given_up for reply in rows):
            return False
        if self._paged.batch_tokens <= SMALLEST_CHUNK_TOKENS:
            return False
        self._paged.limit_batch(smaller_chunk(self._paged.batch_tokens))
        for reply in rows:
            reply.given_up.add("chunk")
            reply.degraded(f"The conversation is read again, {self._paged.batch_tokens} tokens at a time.", OUT)
        return True

    def _drop_idle_pages(self, rows: list[Reply]) -> bool:
        """Keep only the pages that `rows` may come to need. False where that frees too little."""
        for reply in rows:
            reply.given_up.add("caches")
        tokens = self._paged.pool_tokens([_most_tokens(reply) for reply in rows])
        if not tokens or tokens > self._paged.capacity_tokens * WORTH_SHRINKING:
            return False
        try:
            self._paged.resize(tokens)
        except (RuntimeError, MemoryError) as error:
            log.warning("no memory for a smaller pool either: %s", error)
            return False
        for reply in rows:
            reply.degraded("The memory kept for other conversations was given up.", OUT)
        return True

    def _retried_enough(self, reply: Reply) -> bool:
        row_id = reply.request.id
        self._retries[row_id] = self._retries.get(row_id, 0) + 1
        return self._retries[row_id] > MOST_RETRIES

    def _shut_down(self) -> None:
        for reply in self._begun():
            self._end(reply, "cancelled")
        self._paged.close()

    def _begun(self) -> list[Reply]:
        return [*self._rows.values(), *self._suspects]

    def _kv_tokens(self) -> tuple[int, int]:
        return sum(len(reply.ids) for reply in list(self._rows.values())), self._paged.capacity_tokens


def _most_tokens(reply: Reply) -> int:
    """Tokens that a reply's row may come to hold."""
    return _held(reply) + reply.limit - reply.new_tokens


def _held(reply: Reply) -> int:
    """Tokens that it holds: prompt and reply so far."""
    return len(reply.request.prompt_ids) + len(reply.tokens)
