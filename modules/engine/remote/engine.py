"""A model on another server as an Engine: the fair queue, the page, the API and the history are as with any other.

`load` is the LoadEngine. Where the server lends its tokenizer, prompts are made here and travel as token ids, as for a
model on this machine; else as messages, and the server's own template and tokenizer are used.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence

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
from modules.engine.form_reading import FormReader, form_of
from modules.engine.intake import QUEUE_LIMIT, Intake, check_fits, check_ids, check_sees
from modules.engine.remote.client import PATIENCE, Json, Patience, RemoteClient, Unreached
from modules.engine.remote.connecting import Found, find_out
from modules.engine.remote.dialect import lacks
from modules.engine.remote.embedding import PATH, RemoteEmbedding
from modules.engine.remote.reply import RemoteReply
from modules.engine.remote.tokens import RemoteTokens
from modules.errors import (
    BadValue,
    ContextLengthExceeded,
    GenerationFailed,
    LoadFailed,
    NotAvailableHere,
    ServerLost,
    SnugError,
)
from modules.memory.planning.planner import Plan
from modules.remote_server import RemoteServer

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.25
_CLOSE_S = 5.0
_OPEN_KEY = "The key and all texts travel unencrypted to {}: whoever is on the way can read them. Use https://."
_OPEN = "All texts travel unencrypted to {}: whoever is on the way can read them. Use https://."


def load(plan: Plan, on_progress: OnProgress) -> Engine:
    """Connect to the server that `plan` names. Raises SnugError: nothing answers, a key, no such model."""
    if plan.remote is None:
        raise LoadFailed(f"The plan for {plan.spec.name} names no server.")
    return connect(plan, plan.remote, plan.remote.read_key(), on_progress)


def connect(
    plan: Plan, server: RemoteServer, key: str, on_progress: OnProgress, *, patience: Patience = PATIENCE
) -> RemoteEngine:
    """An engine that asks `server`."""
    started = time.monotonic()
    on_progress(Progress(f"Asking {server.host}", 0.1))
    client = RemoteClient(server.url, key, patience=patience)
    try:
        found = find_out(client, server)
        engine = RemoteEngine(client, found, describe(plan, server, found, started))
    except BaseException:
        client.close()
        raise
    log.info("%s: %s; %s", server.host, found.title, engine.info.loop_reason)
    on_progress(Progress("Ready", 1.0))
    return engine


class RemoteEngine(Intake[RemoteReply | RemoteEmbedding]):
    """An Engine over HTTP. One thread admits; replies are read in the client's loop, `Found.rows` of them at once."""

    def __init__(self, client: RemoteClient, found: Found, info: ModelInfo, *, queue_limit: int = QUEUE_LIMIT) -> None:
        super().__init__("remote admission", queue_limit=queue_limit)
        self._client = client
        self._found = found
        self._info = info
        self._askers: set[str] = set()
        self._forms = FormReader()
        self._start()

    @property
    def info(self) -> ModelInfo:
        """What was found."""
        return self._info

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        """Queue a request. Raises ContextLengthExceeded, QueueFull, or BadValue: an empty prompt, a known id, ids for a
        server that takes words, what this kind of server cannot do at all.
        """
        if request.embed:
            self._enqueue(RemoteEmbedding(request, emit, self._found))
            return
        if request.words is None:
            if self._found.tokens is None:
                raise BadValue("This server takes text, not token ids.", remedy="Send text.", param="prompt")
            check_ids(request, self._info.vocab_size)
            check_sees(self._info, len(request.pictures))
            held = len(request.prompt_ids) + len(request.reply_ids)
            check_fits(held, self._info.context_tokens, can_grow=self._info.can_grow)
        # Another Snug reads schemas itself; calls are no part of what it can be asked for with token ids.
        written = self._found.kind == "llamacpp" or (self._found.kind == "snug" and request.shape is not None)
        form = form_of(request, "llamacpp") if written else None
        grammar = self._forms.read(form, request.whose) if form is not None else ""
        self._askers.add(request.whose)
        self._enqueue(RemoteReply(request, emit, self._found, grammar, shared=len(self._askers) > 1))

    def encode(self, pieces: Sequence[TextPiece]) -> list[int]:
        """Token ids of the pieces. Raises NotAvailableHere where the server lends no tokenizer."""
        return self._tokens().encode(pieces)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of `token_ids`. Raises NotAvailableHere where the server lends no tokenizer."""
        return self._tokens().decode(token_ids)

    def stats(self) -> EngineStats:
        """How busy the engine is now. Bytes are those of the process that asks, not of the one that answers."""
        with self._changed:
            active, queued = len(self._active), len(self._queue)
        return EngineStats(active=active, queued=queued, rss_bytes=psutil.Process().memory_info().rss)

    def _tokens(self) -> RemoteTokens:
        if self._found.tokens is None:
            raise NotAvailableHere(
                f"{self._found.title} at {self._client.where} does not lend its tokenizer.", remedy="Send text."
            )
        return self._found.tokens

    def _work(self) -> bool:
        """Let in the next, if a row is free."""
        with self._changed:
            free = len(self._active) < self._found.rows
        reply = self._next() if free else None
        self._attend()
        if reply is None:
            return False
        self._client.spawn(self._serve(reply))
        return True

    async def _serve(self, reply: RemoteReply | RemoteEmbedding) -> None:
        """All of `reply`; its row is free before its end is told. Cancelled is only what it waits for."""
        doing = self._generate(reply) if isinstance(reply, RemoteReply) else self._embed(reply)
        work = asyncio.ensure_future(doing)
        reply.on_cancel = lambda: self._client.call_soon(work.cancel)
        if reply.cancelled:
            work.cancel()
        reason, error = await _outcome(work)
        if isinstance(reply, RemoteReply):
            reply.close_thought()
        self._leave(reply, lambda: reply.finish("cancelled", None) if reply.cancelled else reply.finish(reason, error))

    async def _embed(self, reply: RemoteEmbedding) -> FinishReason:
        reply.begin()
        return reply.take(await self._client.ask(PATH, reply.body))

    async def _generate(self, reply: RemoteReply) -> FinishReason:
        """Ask until the server took the request, then follow it to its end. Raises SnugError."""
        reply.begin()
        for left_out in reply.told:
            reply.degraded(left_out, "The model runs on another server.")
        pauses = _Pauses(self._client.patience.return_s)
        while True:
            try:
                async with self._client.stream(reply.path, reply.body) as events:
                    return await _follow(reply, events)
            except ContextLengthExceeded:
                dropped = reply.drop_oldest()
                if not dropped:
                    raise
                messages = "message was" if dropped == 1 else f"{dropped} messages were"
                reply.degraded(f"The oldest {messages} left out.", "The server's context is full.")
            except Unreached as unreached:
                if reply.began or not pauses.left:
                    raise unreached.error from unreached
                if pauses.count == 1:  # the first time it may only have been a connection that had gone stale
                    reply.degraded("Snug tries again for a while.", unreached.error.message)
                await pauses.wait()

    def _shut_down(self) -> None:
        deadline = time.monotonic() + _CLOSE_S
        with self._changed:
            self._changed.wait_for(lambda: not self._active, max(0.0, deadline - time.monotonic()))
        self._client.close()
        self._forms.close()


class _Pauses:
    """Waits between tries, each twice as long as the one before, the first none at all."""

    def __init__(self, together_s: float) -> None:
        self._until = time.monotonic() + together_s
        self.count = 0

    @property
    def left(self) -> bool:
        """Whether another try is worth it."""
        return self.count == 0 or time.monotonic() < self._until

    async def wait(self) -> None:
        """Until the next try."""
        pause = _FIRST_PAUSE_S * 2 ** (self.count - 1) if self.count else 0.0
        self.count += 1
        await asyncio.sleep(min(pause, max(0.0, self._until - time.monotonic())))


async def _outcome(work: asyncio.Future[FinishReason]) -> tuple[FinishReason, SnugError | None]:
    """How a reply ended, whatever ended it."""
    try:
        return await work, None
    except asyncio.CancelledError:
        return "cancelled", None
    except SnugError as error:
        return "error", error
    except Exception as error:
        log.exception("a request to a server failed")
        return "error", GenerationFailed(
            f"Asking the server failed ({type(error).__name__}).", remedy="Try again; the log has the details."
        )


async def _follow(reply: RemoteReply, events: AsyncIterator[Json]) -> FinishReason:
    """Tell the events until one ends the reply. Raises SnugError where they break off before."""
    try:
        async for event in events:
            if reason := reply.take(event):
                return reason
    except SnugError:
        if reply.ended is None:
            raise
    if reply.ended is None:
        raise ServerLost(
            "The server broke the reply off; what was written is kept.",
            remedy="Continue it, or look at the server's log.",
        )
    return reply.ended


def describe(plan: Plan, server: RemoteServer, found: Found, started: float) -> ModelInfo:
    """What is to be said of a model that runs elsewhere."""
    by_ids = found.tokens is not None
    prefix, suffix = found.tokens.border_ids() if found.tokens is not None else ((), ())
    how = "token ids, made here" if by_ids else "messages; its own chat template is used"
    warnings = []
    if server.url.startswith("http://") and not server.is_here:
        warnings.append((_OPEN_KEY if server.key_file else _OPEN).format(server.host))
    if not found.context_tokens:
        warnings.append("The server does not say how long a text may be; --ctx-size N tells Snug.")
    return ModelInfo(
        name=found.model or server.host,
        architecture="",
        loop="remote",
        loop_reason=f"{found.title} at {server.host} runs it; prompts travel as {how}",
        context_tokens=found.context_tokens,
        vocab_size=found.vocab_size,
        is_encoder_decoder=found.is_encoder_decoder,
        dtype="",
        quantization="none",
        chat_template=found.chat_template,
        special_tokens=dict(found.special_tokens),
        end_texts=found.end_texts,
        placement={},
        modules={},
        load_s=time.monotonic() - started,
        peak_bytes=0,
        warnings=(*plan.spec.warnings, *warnings),
        longest_context=found.longest_context,
        text_prefix_ids=prefix,
        text_suffix_ids=suffix,
        takes="tokens" if by_ids else "words",
        embeds="server",
        lacks=lacks(found.kind),
        tells_logprobs=found.kind != "transformers",
        sees=not by_ids,  # it may; only the server knows, and says so
    )
