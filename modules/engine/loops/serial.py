"""The generation loop for one request at a time: for every model that runs as `model.forward` with a KV cache.

It serves what continuous batching does not carry: encoder-decoder and state-space models, families that it gets
wrong, ZeRO-3. Three layers, each useful alone: a row's `read` (rows.py), `steps`, and SerialEngine.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial

import torch

from modules.engine.base import FinishReason, Prefill
from modules.engine.loops.attention import prefer_cpu_attention
from modules.engine.loops.drafting import MOST_DRAFTED
from modules.engine.loops.fixed_row import FixedRow
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import QUEUE_LIMIT, LoopEngine
from modules.engine.loops.packed_cache import cache_maker
from modules.engine.loops.reply import (
    SMALLEST_CHUNK_TOKENS,
    Reply,
    Rung,
    end_without_gpu,
    is_out_of_memory,
    smaller_chunk,
)
from modules.engine.loops.rows import CausalRow, EncoderDecoderRow, Row, Shelf
from modules.engine.loops.seeing_row import SeeingRow
from modules.engine.loops.speculation import Speculation
from modules.engine.shares import turn_s
from modules.heap import LARGE_STEP_TOKENS, give_back

log = logging.getLogger(__name__)

DEFAULT_SHELF_BYTES = 256 * 1024**2  # where the plan names no KV budget

Choose = Callable[[torch.Tensor], int | None]
Draft = Callable[[], list[int]]
Score = Callable[[int, torch.Tensor], None]


def steps(
    row: Row, ids: Sequence[int], choose: Choose, *, chunk: int, draft: Draft | None = None, score: Score | None = None
) -> Iterator[Prefill | int]:
    """Read what `row` lacks of `ids` in stretches of `chunk` tokens, then yield token after token without end.

    Yields Prefill before and after each stretch, then each token that `choose` takes from the logits (vocab,), before
    the model reads it. It ends where `choose` gives None, or where the caller stops asking. Ranks in step: all ranks
    run it, `choose` broadcasts rank 0's token, and the callers agree at each yield whether to go on.

    `draft` gives tokens that may follow, [] where none: the model reads them with the token before, and those are
    yielded as if read one by one that `choose` takes in their places. A caller that stops among them finds the rest of
    them in `row`. `score` gets each stretch's place and its logits (tokens, vocab), for which `chunk` must be small.
    """
    done = len(row.tokens)
    yield Prefill(done, len(ids))
    while done < len(ids):
        stretch = ids[done : done + chunk]
        logits = row.read(stretch) if score is None else _scored(row, stretch, score)
        done += len(stretch)
        if len(stretch) >= LARGE_STEP_TOKENS:
            give_back()
        yield Prefill(done, len(ids))
    token = choose(logits)
    while token is not None:
        yield token
        drafted = draft() if draft is not None else []
        if drafted and isinstance(row, CausalRow):
            token = yield from _checked(row, token, drafted, choose)
        else:
            token = choose(row.read([token]))


def _scored(row: Row, stretch: Sequence[int], score: Score) -> torch.Tensor:
    """Read `stretch` and have each of its tokens' logits looked at; the last one's."""
    if not isinstance(row, CausalRow):
        raise TypeError("what an encoder reads has no logits: such models score nothing")
    start = len(row.tokens)
    logits = row.read_each(stretch)
    score(start, logits)
    return logits[-1]


def _checked(row: CausalRow, token: int, drafted: list[int], choose: Choose) -> Generator[int, None, int | None]:
    """Read `token` and `drafted`; yield those of `drafted` that are chosen in their places, return the next token."""
    logits = row.read_each([token, *drafted])
    end = len(row.tokens)
    for place, guess in enumerate(drafted):
        chosen = choose(logits[place])
        if chosen != guess:
            row.keep_prefix(end - len(drafted) + place)
            return chosen
        yield guess
    return choose(logits[-1])


class SerialEngine(LoopEngine):
    """One request at a time, users in turn, none of them without end while others wait; KV caches of the last
    conversations are kept for their next turn."""

    def __init__(self, loaded: LoadedModel, *, queue_limit: int = QUEUE_LIMIT, fixed: FixedRow | None = None) -> None:
        """`fixed`: the one row that runs all requests, whose memory is taken already; none is kept beside it."""
        super().__init__(loaded, queue_limit=queue_limit)
        self._fixed = fixed
        self._shelf_bytes = loaded.kv_budget_bytes or DEFAULT_SHELF_BYTES
        self._shelf = Shelf(self._shelf_bytes)
        self._speculation = Speculation(loaded)
        self._new_cache = cache_maker(loaded)
        self._bytes_per_token = 0
        self._row: Row | None = None
        self._attention: str = loaded.model.config._attn_implementation
        if fixed is None:  # a compiled step has masks, which are sdpa's
            prefer_cpu_attention(loaded, many_rows=False)
        self._start()

    def _work(self) -> bool:
        reply = self._next()
        self._attend()
        if reply is None:
            return False
        end = self._serve(reply)
        self._row = None
        if end is None:
            self._step_aside(reply)
            return True
        self._done(reply)
        end()
        return True

    def _serve(self, reply: Reply) -> Callable[[], None] | None:
        """Generate `reply` until it ends, and what is left to do is telling its end, or its turn does: None."""
        try:
            if not reply.begun:
                reply.start(decoder_start=self._decoder_start())
            reason = self._generate_within_memory(reply)
        except Exception as error:
            end_without_gpu(error)
            return partial(reply.fail, error)
        return partial(reply.finish, reason) if reason else None

    def _generate_within_memory(self, reply: Reply) -> FinishReason | None:
        """Generate; where memory runs out, give up one thing after the other and go on from the tokens so far."""
        chunk = self.loaded.plan.run.prefill_chunk
        while True:
            try:
                return self._generate(reply, chunk)
            except (RuntimeError, MemoryError) as error:
                rung = self._next_rung(reply, chunk) if is_out_of_memory(error) else None
                if rung is None:
                    raise
                log.warning("out of memory in request %s after %d tokens", reply.request.id, reply.new_tokens)
            # Only here, where the error is gone, is nothing held by the frames that it went through.
            self._row = None
            reply.forget_guesses()
            reply.given_up.add(rung)
            if rung == "caches":
                self._shelf.shrink(0)
                reply.degraded("The caches of earlier conversations were dropped.", "Memory ran out.")
            else:
                chunk = smaller_chunk(chunk)
                reply.degraded(f"The conversation is read again, {chunk} tokens at a time.", "Memory ran out.")
            release_memory(thorough=True)

    def _next_rung(self, reply: Reply, chunk: int) -> Rung | None:
        """What to give up next, each thing once a reply; None where nothing is left."""
        if len(self._shelf) and "caches" not in reply.given_up:
            return "caches"
        shrinks = chunk > SMALLEST_CHUNK_TOKENS and not self.loaded.is_encoder_decoder  # an encoder reads all at once
        return "chunk" if shrinks and "chunk" not in reply.given_up else None

    def _generate(self, reply: Reply, chunk: int) -> FinishReason | None:
        """Run `reply` from the tokens that it holds to its end, or that of its turn."""
        if reply.cancelled:
            return "cancelled"
        row, ids = self._row_for(reply)
        self._row = row
        reason = self._run_steps(reply, row, ids, chunk)
        if isinstance(row, CausalRow) and row.tokens:
            row.keep_prefix(min(len(row.tokens), len(reply.ids)))
        if isinstance(row, CausalRow) and row.tokens and row is not self._fixed:
            self._bytes_per_token = row.size_bytes // len(row.tokens)
            if isinstance(row, SeeingRow):
                row.seen = None
            self._shelf.put(row)
        return reason

    def _run_steps(self, reply: Reply, row: Row, ids: list[int], chunk: int) -> FinishReason | None:
        draft = partial(self._draft, reply, row) if isinstance(row, CausalRow) else None
        score = None
        if reply.scoring is not None and reply.scores_prompt:
            score, chunk = reply.score, min(chunk, reply.scoring.stretch_tokens)
        choose = reply.choose if reply.request.writes else _none
        began, turn_ends = time.monotonic(), 0.0
        for step in steps(row, ids, choose, chunk=chunk, draft=draft, score=score):
            self._attend()
            if reply.cancelled:
                return "cancelled"
            if isinstance(step, int):
                if reason := reply.take(step):
                    return reason
                now = time.monotonic()
                turn_ends = turn_ends or now + turn_s(now - began)
                if now >= turn_ends and self._others_wait(reply.request.user):
                    reply.forget_guesses()
                    return None
            elif isinstance(row, CausalRow):  # an encoder has told its own progress
                reply.prefilled(step.done, step.total)
        return "length"

    def _others_wait(self, user: str) -> bool:
        with self._changed:
            return any(reply.request.user != user for reply in self._queue.heads())

    def _draft(self, reply: Reply, row: CausalRow) -> list[int]:
        return self._speculation.draft(reply, row.droppable(MOST_DRAFTED))

    def _row_for(self, reply: Reply) -> tuple[Row, list[int]]:
        """A row for `reply`, holding what is known of its prompt, and all ids that it has to hold."""
        request = reply.request
        if self.loaded.is_encoder_decoder:
            reply.prefilled(0, len(request.prompt_ids))
            encoded = self._new_encoder_decoder_row(request.prompt_ids)
            reply.prefilled(len(request.prompt_ids), len(request.prompt_ids))
            return encoded, [*self._decoder_start(), *reply.tokens]
        eyes = self.loaded.eyes
        seen = eyes.look(request.prompt_ids, request.pictures) if eyes is not None else None
        ids = [*seen.keys, *reply.tokens] if seen else reply.ids
        known = () if reply.scores_prompt else ids  # what is not read anew has no logits
        whose = request.whose
        if self._fixed is not None:
            row: CausalRow = self._fixed.begin(known, whose)
        else:
            row = self._shelf.take(known, whose) or self._new_causal_row()
        row.whose = whose
        if not reply.new_tokens:
            reply.cached_tokens = len(row.tokens)
        self._shelf.make_room((len(ids) + reply.limit) * self._bytes_per_token)
        if isinstance(row, SeeingRow):
            row.seen = seen
        return row, ids

    def _new_causal_row(self) -> CausalRow:
        if self.loaded.eyes is not None:
            return SeeingRow(self.loaded.model, self.loaded.device, self.loaded.eyes, self._new_cache())
        return CausalRow(self.loaded.model, self.loaded.device, self._new_cache())

    def _new_encoder_decoder_row(self, prompt_ids: Sequence[int]) -> EncoderDecoderRow:
        return EncoderDecoderRow(self.loaded.model, self.loaded.device, prompt_ids)

    def _decoder_start(self) -> list[int]:
        """The tokens that the decoder of an encoder-decoder model begins with."""
        if not self.loaded.is_encoder_decoder:
            return []
        config = self.loaded.model.generation_config
        start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
        return [token for token in (start, config.forced_bos_token_id) if token is not None]

    def _shut_down(self) -> None:
        self._shelf.shrink(0)
        if self.loaded.model.config._attn_implementation != self._attention:
            self.loaded.model.set_attn_implementation(self._attention)

    def _kv_tokens(self) -> tuple[int, int]:
        row = self._row or self._fixed
        return self._shelf.token_count + (len(row.tokens) if row else 0), self.loaded.info.context_tokens


def _none(_logits: torch.Tensor) -> None:
    """The choice of who only reads."""


def release_memory(*, thorough: bool = False) -> None:
    """Give memory that nothing refers to back to the device.

    `thorough`: also what the load made. An engine's process sets that aside (`gc.freeze`), and cycles in it would stay
    for ever; looking through it takes most of a second.
    """
    set_aside = gc.get_freeze_count() if thorough else 0
    if set_aside:
        gc.unfreeze()
    gc.collect()
    if set_aside:
        gc.freeze()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
