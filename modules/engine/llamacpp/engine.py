"""GGUF files through llama.cpp: many rows over one KV cache, its own samplers, the fair queue of every other engine.

`load` is the LoadEngine. llama.cpp runs in this process (server.py) and decodes; here is who may run, and
what each reply tells. Torch is never imported: a process with a small model stays small.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import zip_longest

import psutil

from modules.engine.base import (
    Emit,
    Engine,
    EngineStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    OnProgress,
    Progress,
    TextPiece,
)
from modules.engine.control_tokens import CHAT_END_TOKENS
from modules.engine.form_reading import FormReader, form_of, too_dear
from modules.engine.intake import QUEUE_LIMIT, Intake, check_embeds, check_fits, check_ids, check_sees
from modules.engine.llamacpp.embedding import LlamaEmbedding, longest_input, pooling_of
from modules.engine.llamacpp.form_costs import FormCosts
from modules.engine.llamacpp.reading import Reading
from modules.engine.llamacpp.reply import LlamaReply
from modules.engine.llamacpp.sampling import check_params, lacks, notices
from modules.engine.llamacpp.server import LlamaServer
from modules.engine.llamacpp.slots import Slots
from modules.engine.llamacpp.stream import Stream
from modules.engine.llamacpp.tokens import LlamaTokens, TokenTable
from modules.engine.process.resident import peak_resident, reset_peak_resident
from modules.engine.shares import Shares, following
from modules.errors import ContextLengthExceeded, GenerationFailed, ModelNotFound, SnugError
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.drafts import other_vocabulary
from modules.memory.planning.native import ignored_note
from modules.memory.planning.planner import Plan
from modules.memory.planning.problem import CHUNKS

log = logging.getLogger(__name__)

LOOK_S = 0.5
SLACK_TOKENS = 64  # of a row beyond what it was promised, which llama.cpp may write until it hears that rows give way


def load(plan: Plan, on_progress: OnProgress) -> Engine:
    """Load the GGUF file `plan.spec`, and its draft model, and return an engine that is ready to generate.

    Raises BadGguf, ModelNotFound, OutOfMemory, LoadFailed, or BadValue for a draft model with another vocabulary.
    """
    started = time.monotonic()
    path, draft = plan.spec.path, plan.draft
    files = [(plan.spec.name, path), *((lora.name, lora.path) for lora in plan.loras)]
    for name, file in (*files, *([] if draft is None else [(draft.name, draft.path)])):
        if not file.exists():
            raise ModelNotFound(f"{name} is no longer in {file.parent.name}/.", remedy="Choose another one.")
    reset_peak_resident()
    on_progress(Progress("Reading the tokenizer", 0.0))
    table = TokenTable(path)
    if draft is not None:
        _check_same_vocabulary(plan.spec, table, draft)
    on_progress(Progress("Loading weights", 0.05))
    pooling = pooling_of(plan, table.metadata) if plan.embeds else ""
    server = LlamaServer(plan, by_mean=pooling == "mean")
    try:
        tokens = LlamaTokens(server, table)
        info = _info(plan, server, tokens, table, started)
        if pooling:
            info = replace(info, embeds=pooling, embed_tokens=longest_input(plan, pooling))
        engine = LlamaCppEngine(server, tokens, info, chunk=plan.run.prefill_chunk)
    except BaseException:
        server.close()
        raise
    log.info("%s loaded by llama.cpp in %.1f s", plan.spec.name, engine.info.load_s)
    on_progress(Progress("Ready", 1.0))
    return engine


class LlamaCppEngine(Intake[LlamaReply | LlamaEmbedding]):
    """An Engine over llama.cpp's slots. One thread admits; each active reply has one that reads its events."""

    def __init__(
        self,
        server: LlamaServer,
        tokens: LlamaTokens,
        info: ModelInfo,
        *,
        chunk: int = CHUNKS[0],
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        """`chunk`: tokens of prompts that are read in one step."""
        super().__init__("llama.cpp admission", queue_limit=queue_limit)
        self._server = server
        self._tokens = tokens
        self._info = info
        # A guess that overruns the shared cache, which others fill, ends the reply with an exception of llama.cpp's.
        self._rows = 1 if server.guesses else SLOTS
        self._slots = Slots(SLOTS)
        self._reading = Reading(chunk)
        self._rest_s = math.inf
        self._shares = Shares(_tokens)
        self._forms = FormReader()
        self._form_costs = FormCosts(info.vocab_size)
        self._readers = ThreadPoolExecutor(self._rows, thread_name_prefix="llama.cpp row")
        self._start()

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        return self._info

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Queue a request. Raises ContextLengthExceeded, QueueFull, or BadValue: an empty prompt, a known id, a
        parameter for which llama.cpp has no sampler. BadGrammar for a form that cannot be held, NotAvailableHere for
        embeddings where they were not asked for.
        """
        check_ids(request, self._info.vocab_size)
        check_sees(self._info, len(request.pictures))
        if request.embed:
            check_embeds(self._info, len(request.prompt_ids))
            self._enqueue(LlamaEmbedding(request, emit))
            return
        check_params(request.params)
        form = form_of(request, "llamacpp")
        if form is not None and request.held_ids:
            raise GenerationFailed(
                "The engine stopped in the middle of a reply that follows a form, and llama.cpp cannot go on with one.",
                remedy="Ask again.",
            )
        held = len(request.prompt_ids) + len(request.reply_ids)
        check_fits(held, self._info.context_tokens, can_grow=self._info.can_grow)
        grammar = self._forms.read(form, request.whose) if form is not None else ""
        self._check_form_cost(request)
        longest, guesses = self._info.context_tokens, self._server.guesses
        encode = self._tokens.encode_text
        self._enqueue(LlamaReply(request, emit, encode, longest=longest, guesses=guesses, grammar=grammar))

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces; content never yields control tokens."""
        return self._tokens.encode(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`, control tokens included."""
        return self._tokens.decode(token_ids)

    def stats(self) -> EngineStats:
        """How busy the engine is now. Bytes are the process's."""
        with self._changed:
            used = sum(len(reply.ids) for reply in self._active.values())
            active, queued = len(self._active), len(self._queue)
        return EngineStats(
            active=active,
            queued=queued,
            rss_bytes=psutil.Process().memory_info().rss,
            gpu_bytes=self._server.gpu_bytes,
            kv_tokens_used=used,
            kv_tokens_total=self._info.context_tokens,
            longest_tokens=self._longest_seen,
            peak_bytes={"cpu": peak_resident(), **self._server.gpu_bytes},
        )

    def _work(self) -> bool:
        """Let in who is next, if there is a row and room in the cache for it, be it of those whose turn is over."""
        reply = self._admit()
        self._attend()
        if reply is None:
            return False
        self._readers.submit(self._serve, reply)
        return True

    def _admit(self) -> LlamaReply | LlamaEmbedding | None:
        with self._changed:
            self._make_way_for_embeddings()
            came = following(self._heads(), self._shares, self._has_room, self._way_for)
            for row_id in came[1] if came else ():
                self._ask_aside(row_id)
            if came is None or came[1]:
                return None
            reply = came[0]
            self._next_of(reply.request.user)
            self._shares.put(reply.request.id, reply.request.user, _held(reply), reply.most_tokens, stays=_stays(reply))
            if isinstance(reply, LlamaReply):
                self._reading.begin(reply.request.id, reply.request.whose, _held(reply))
            return reply

    def _heads(self) -> list[LlamaReply | LlamaEmbedding]:
        """Each user's first in the queue, without those who have to pause or come after an embedding."""
        waits = {one: self._pause_s(one) for one in self._queue.heads() if not self._comes_later(one)}
        self._rest_s = min((wait_s for wait_s in waits.values() if wait_s), default=math.inf)
        return [one for one, wait_s in waits.items() if not wait_s]

    def _pause_s(self, head: LlamaReply | LlamaEmbedding) -> float:
        if head.cancelled or isinstance(head, LlamaEmbedding):
            return 0
        whose = head.request.whose
        others = any(one.request.whose != whose for one in self._active.values())
        return self._reading.wait_s(whose, _held(head), beside_others=others)

    def _read_through(self, reply: LlamaReply | LlamaEmbedding) -> None:
        """The prompt of `reply` is read, or nobody reads it any more: the next one's turn may have come."""
        with self._changed:
            if self._reading.end(reply.request.id, given_up=reply.cancelled):
                self._tell()

    def _look_again_s(self) -> float:
        """Soon, where somebody waits: a turn may be over."""
        with self._changed:
            waits = len(self._queue) or any(isinstance(one, LlamaEmbedding) for one in self._active.values())
        return min(self._rest_s, LOOK_S) if waits else self._rest_s

    def _has_room(self, reply: LlamaReply | LlamaEmbedding) -> bool:
        if len(self._shares) >= self._rows:
            return False
        return self._shares.reserved + self._needs(reply) <= self._info.context_tokens

    def _comes_later(self, reply: LlamaReply | LlamaEmbedding) -> bool:
        """Whether an embedding that has waited enough comes before it: where one that stays is written there is no
        embedding before its end, so others that give way may come in meanwhile."""
        if isinstance(reply, LlamaEmbedding) or not self._embedding_is_due():
            return False
        return _stays(reply) or not any(_stays(one) for one in self._replies())

    def _make_way_for_embeddings(self) -> None:
        """Once all turns are over the replies give way to one that has waited enough; sooner it would not help it."""
        rows = [one.request.id for one in self._replies() if one.request.id in self._shares]
        if self._embedding_is_due() and all(map(self._shares.is_over, rows)):
            for row_id in rows:
                self._ask_aside(row_id)

    def _embedding_is_due(self) -> bool:
        return any(isinstance(one, LlamaEmbedding) and one.waited_enough for one in self._active.values())

    def _replies(self) -> list[LlamaReply]:
        return [one for one in self._active.values() if isinstance(one, LlamaReply)]

    def _needs(self, reply: LlamaReply | LlamaEmbedding) -> int:
        return self._shares.needs(_held(reply), reply.most_tokens, stays=_stays(reply))

    def _way_for(self, reply: LlamaReply | LlamaEmbedding) -> Sequence[str]:
        """The rows that give way to it, since their turn is over; none where that is not enough."""
        return self._shares.over(reply.request.user, self._needs(reply), self._info.context_tokens, self._rows)

    def _ask_aside(self, row_id: str) -> None:
        """Have a row end; its thread puts it aside then."""
        reply = self._active[row_id]
        if isinstance(reply, LlamaReply):
            self._shares.leave(row_id)
            reply.give_way()

    def _goes_on(self, reply: LlamaReply) -> None:
        """`reply` has another token. Promise it what it is about to hold; where there is no more, rows give way."""
        self._read_through(reply)
        self._pay_form(reply)
        with self._changed:
            self._shares.writes(reply.request.id)
            if not self._shares.grow(reply.request.id, reply.held_tokens + SLACK_TOKENS):
                return
            while len(self._shares) > 1 and self._shares.lasting > self._info.context_tokens:
                self._ask_aside(self._shares.gives_way())

    def _pay_form(self, reply: LlamaReply) -> None:
        """Count what its form has cost, beside others. Raises BadGrammar where that is too much."""
        if reply.stays and self._is_beside_others(reply.request):
            for ways, tokens in reply.form_ways():
                self._form_costs.add(reply.request.whose, ways, tokens)
                self._check_form_cost(reply.request)

    def _check_form_cost(self, request: GenerationRequest) -> None:
        """Raise BadGrammar where its person's forms have cost too much beside others' replies."""
        if self._form_costs.is_too_much(request.whose) and self._is_beside_others(request):
            form = form_of(request, "llamacpp")
            if form is not None:
                raise too_dear(form.param)

    def _is_beside_others(self, request: GenerationRequest) -> bool:
        with self._changed:
            asked = [*self._waiting.values(), *self._active.values()]
            return any(one.request.whose != request.whose for one in asked)

    def _serve(self, reply: LlamaReply | LlamaEmbedding) -> None:
        """All of `reply`, in a thread of its own; its row is free before its end is told."""
        end = self._generate(reply)
        self._read_through(reply)
        with self._changed:
            self._shares.remove(reply.request.id)
        if end is None:
            self._step_aside(reply)
        else:
            self._leave(reply, end)

    def _generate(self, reply: LlamaReply | LlamaEmbedding) -> Callable[[], None] | None:
        """What is left to do is telling its end; None where it gave way."""
        try:
            begins = not reply.begun
            if begins:
                reply.begin()
            if isinstance(reply, LlamaEmbedding):
                with self._slots.stranger(reply.request.whose):
                    return partial(reply.finish, reply.read(self._server))
            for notice in notices(reply.request.params) if begins else ():
                reply.degraded(notice, "llama.cpp's samplers see one text.")
            reason = self._read(reply)
            return partial(reply.finish, reason) if reason else None
        except SnugError as error:
            return None if self._was_overrun(reply, error) else partial(reply.finish, "error", error)
        except Exception as error:
            log.exception("request %s failed", reply.request.id)
            failure = GenerationFailed(
                f"llama.cpp failed while generating ({type(error).__name__}).",
                remedy="Try again; the log has the details.",
            )
            return partial(reply.finish, "error", failure)

    def _was_overrun(self, reply: LlamaReply | LlamaEmbedding, error: SnugError) -> bool:
        """Whether the cache was full of others' tokens, sooner than rows could give way, and it can go on later."""
        if not isinstance(error, ContextLengthExceeded) or not isinstance(reply, LlamaReply):
            return False
        with self._changed:
            beside_others = len(self._shares) > 1
        # Who wrote first goes on later whoever else there is: all rows end together, and are not counted at once.
        return (not reply.stays) if reply.writes else beside_others

    def _read(self, reply: LlamaReply) -> FinishReason | None:
        if reply.cancelled:
            return "cancelled"
        if reply.new_tokens >= reply.limit:  # it gave way before it heard of its end
            return "length"
        with self._slots.place(reply.request.whose, reply.ids) as place:
            stream = self._server.stream(reply.body | place.fields)
            reply.begin_stream(stream)
            try:
                # Who cancelled before there was a stream to close is seen at its first event.
                reason = _follow(reply, stream, self._goes_on)
                if reason == "cancelled":
                    reply.finish(reason)  # who leaves waits for nothing
                return reason
            finally:
                stream.let_go()
                place.slot, place.held = reply.slot, reply.ids

    def _shut_down(self) -> None:
        self._readers.shutdown(wait=True)
        self._forms.close()
        self._server.close()


def _tokens(count: int) -> int:
    """Tokens are what its cache is counted in."""
    return count


def _held(reply: LlamaReply | LlamaEmbedding) -> int:
    return reply.held_tokens if isinstance(reply, LlamaReply) else reply.most_tokens


def _stays(reply: LlamaReply | LlamaEmbedding) -> bool:
    return not isinstance(reply, LlamaReply) or reply.stays


def _follow(reply: LlamaReply, stream: Stream, on_written: Callable[[LlamaReply], None]) -> FinishReason | None:
    """Tell the events of `stream` until one ends the reply, or its user does, or it gives way: None. `on_written` with
    each that brought a token."""
    for events in stream:
        if reply.cancelled:
            return "cancelled"
        if reason := reply.take(events):
            return reason
        if reply.gives_way:
            return None
        if reply.writes:
            on_written(reply)
    if reply.cancelled:
        return "cancelled"
    if reply.gives_way:
        return None
    raise GenerationFailed("llama.cpp ended the reply without a word.", remedy="Try again.")


def _check_same_vocabulary(spec: ModelSpec, table: TokenTable, draft: ModelSpec) -> None:
    """Raise BadValue where a token id does not mean the same to both files."""
    ours, its = table.texts, TokenTable(draft.path).texts
    if ours != its:
        raise other_vocabulary(spec, draft, sum(mine != other for mine, other in zip_longest(ours, its)))


def _info(plan: Plan, server: LlamaServer, tokens: LlamaTokens, table: TokenTable, started: float) -> ModelInfo:
    """What is to be said of a loaded file."""
    spec = plan.spec
    prefix, suffix = tokens.border_ids()
    rows = f"up to {SLOTS} conversations at once"
    if server.guesses:
        rows = "one conversation at a time, since tokens are guessed ahead"
    return ModelInfo(
        name=spec.name,
        architecture=spec.architecture,
        loop="llamacpp",
        loop_reason=f"llama.cpp decodes {rows}",
        context_tokens=plan.run.context_tokens,
        vocab_size=table.size,
        is_encoder_decoder=False,
        dtype=str(server.ask("/props")["model_ftype"]).removeprefix("(guessed) "),
        quantization="none",
        chat_template=table.chat_template,
        special_tokens=table.special_tokens(),
        end_texts=_end_texts(table),
        placement=dict(server.weights),
        modules=dict(plan.placement) if plan.gpu_layers else {"": "cpu"},
        load_s=time.monotonic() - started,
        peak_bytes=peak_resident(),
        warnings=(*spec.warnings, *map(ignored_note, filter(lambda lora: lora.ignored, plan.loras))),
        adapters=tuple(lora.title for lora in plan.loras),
        longest_context=spec.max_context,
        text_prefix_ids=prefix,
        text_suffix_ids=suffix,
        lacks=lacks(),
    )


def _end_texts(table: TokenTable) -> tuple[str, ...]:
    """The texts of the tokens that end a reply."""
    named = table.special_tokens()
    ends = {named[name] for name in ("eos_token", "eot_token") if name in named}
    return tuple(sorted(ends | {text for text in table.control if text in CHAT_END_TOKENS}))
