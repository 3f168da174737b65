"""The engine process: loads one model, serves its host until told to close, and never outlives it.

`python -m modules.engine.host.worker NUMBER PARENT` is started by child.py with one end of a pipe; a thread of
the host's own process runs `serve` instead where one process is wanted.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modules.engine.admission import FairQueue
from modules.engine.base import (
    Engine,
    Finished,
    FinishReason,
    GenerationRequest,
    LoadEngine,
    OnProgress,
    Timings,
    Usage,
)
from modules.engine.host.wire import (
    Answer,
    Call,
    Cancel,
    Close,
    Emitted,
    LoadBroke,
    Loaded,
    Loading,
    Message,
    Pipe,
    Start,
    Submit,
    Writer,
)
from modules.errors import GenerationFailed, LoadFailed, OutOfMemory, QueueFull, SnugError
from modules.heap import prepare_load, prepare_run
from modules.memory.planning.planner import Plan
from modules.on_behalf import ASKED_FOR

log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
LAST_WORDS_S = 2.0
OOM_SCORE = 500  # as much as half of the machine's memory would count (proc(5), oom_score_adj)
FORMS_LIMIT = 64  # as many as may wait for the model


@dataclass(frozen=True, slots=True)
class LoadByName:
    """A LoadEngine written "package.module:function", imported only where it is called: in the engine process."""

    name: str

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Engine:
        """Import and call it."""
        module, _, function = self.name.partition(":")
        load: LoadEngine = getattr(importlib.import_module(module), function)
        return load(plan, on_progress)


def main(argv: list[str]) -> None:
    """Serve the host at the other end of the inherited pipe; ends the process."""
    number, parent = int(argv[0]), int(argv[1])
    die_with(parent)
    go_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes this process
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    prepare_load()
    serve(_open(number), on_host_gone=partial(os._exit, 0), on_loaded=prepare_run)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the interpreter's own end would wait for the engine's threads


def serve(pipe: Pipe, *, on_host_gone: Callable[[], None], on_loaded: Callable[[], None] = lambda: None) -> None:
    """Load what the first message says, then serve until Close. Returns when the model is freed.

    `on_host_gone` is called from another thread as soon as the pipe breaks, in the middle of a load too; `on_loaded`
    once the model is there.
    """
    try:
        first = pipe.recv()
    except (EOFError, OSError):
        return
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox, on_host_gone), name="engine inbox", daemon=True).start()
    writer = Writer(pipe, "engine outbox")
    try:
        # In a thread that ends: OpenMP threads that stay with this one would be counted against those of the engine's
        # loop, which then sleeps after every operation instead of waiting for the next (measured: 20 % slower decode).
        with ThreadPoolExecutor(1, "engine load") as once:
            engine = once.submit(_load, first, writer).result()
        gc.collect()
        gc.freeze()  # what the libraries and the load made stays: looking through it again would stop the model
        on_loaded()
    except SnugError as error:
        writer.post(LoadBroke(error))
    else:
        writer.post(Loaded(engine.info))
        with ThreadPoolExecutor(2, "engine calls") as calls, ThreadPoolExecutor(1, "engine forms") as forms:
            submits = _Submits(engine, writer, forms)
            for message in iter(inbox.get, Close()):
                _obey(engine, message, writer, calls, submits)
            forms.shutdown(wait=False, cancel_futures=True)
            engine.close()
            calls.shutdown(wait=False, cancel_futures=True)
    writer.finish(LAST_WORDS_S)


def _listen(pipe: Pipe, inbox: queue.SimpleQueue[Message], on_host_gone: Callable[[], None]) -> None:
    """Read the pipe at all times, so that the host's end is noticed even while a load or a step is stuck."""
    try:
        while True:
            for message in pipe.recv():
                inbox.put(message)
    except (EOFError, OSError):
        on_host_gone()
        inbox.put(Close())


def _load(start: Start, writer: Writer) -> Engine:
    """The loaded engine; raises SnugError for whatever goes wrong."""
    try:
        return start.load(start.plan, lambda progress: writer.post(Loading(progress)))
    except SnugError:
        raise
    except MemoryError as error:
        raise OutOfMemory(
            "Memory ran out while the model was loading.", remedy="Choose a smaller model, context or precision."
        ) from error
    except Exception as error:
        log.exception("The load failed")
        raise LoadFailed(
            f"{start.plan.spec.name} could not be loaded: {_brief(error)}.", remedy="The log says more."
        ) from error


class _Submits:
    """Requests on their way to the engine. Reading the form that a reply is held to may take seconds, so it is done in
    a thread of its own: what else the host asks for does not wait behind it.
    """

    def __init__(self, engine: Engine, writer: Writer, forms: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._writer = writer
        self._forms = forms
        self._lock = threading.Lock()
        self._waiting: FairQueue[GenerationRequest] = FairQueue(FORMS_LIMIT)
        self._cancelled: dict[str, bool] = {}  # of those whose form waits to be read, or is read

    def submit(self, request: GenerationRequest) -> None:
        """Hand `request` to the engine, at once or when its form was read; a refusal is told as its end."""
        if not request.has_form:
            self._hand_over(request)
            return
        try:
            with self._lock:
                self._waiting.push(request.user, request)
                self._cancelled.setdefault(request.id, False)
        except QueueFull:
            because = QueueFull(f"The forms of {FORMS_LIMIT} replies wait to be read.", remedy="Try again soon.")
            self._end(request, "error", because)
        else:
            self._forms.submit(self._read_next)

    def cancel(self, request_id: str) -> None:
        """End a request, wherever it is."""
        with self._lock:
            if request_id in self._cancelled:
                self._cancelled[request_id] = True
        self._engine.cancel(request_id)

    def _read_next(self) -> None:
        """Of the user whose turn it is: a form may be made to take long, and its user sends many."""
        with self._lock:
            request = self._waiting.pop()
            before = request is not None and self._cancelled.get(request.id, False)
        if request is None:
            return
        if before:
            self._end(request, "cancelled")
        else:
            self._hand_over(request)
        with self._lock:
            meanwhile = self._cancelled.pop(request.id, False)
        if meanwhile:  # the engine did not know it yet when it was told
            self._engine.cancel(request.id)

    def _hand_over(self, request: GenerationRequest) -> None:
        try:
            self._engine.submit(request, partial(_emit, self._writer, request.id))
        except Exception as error:
            self._end(request, "error", _as_snug(error))

    def _end(self, request: GenerationRequest, reason: FinishReason, error: SnugError | None = None) -> None:
        usage = Usage(request.held_tokens, 0, 0)
        _emit(self._writer, request.id, Finished(reason, usage, Timings(0, 0, 0, 0, 0), error))


def _obey(engine: Engine, message: Message, writer: Writer, calls: ThreadPoolExecutor, submits: _Submits) -> None:
    """Do what one message asks; what fails is answered, never raised."""
    if isinstance(message, Submit):
        submits.submit(message.request)
    elif isinstance(message, Cancel):
        submits.cancel(message.request_id)
    elif isinstance(message, Call):
        calls.submit(_answer, engine, message, writer)


def _emit(writer: Writer, request_id: str, event: object) -> None:
    writer.post(Emitted(request_id, event))  # type: ignore[arg-type]


def _answer(engine: Engine, call: Call, writer: Writer) -> None:
    if time.monotonic() > call.until:  # who asked gave up: those behind it do not wait for that
        return
    ASKED_FOR.set(call.whose)
    methods: dict[str, Callable[..., object]] = {
        "encode": engine.encode,
        "decode": engine.decode,
        "stats": engine.stats,
    }
    try:
        writer.post(Answer(call.number, methods[call.method](*call.arguments)))
    except BaseException as error:  # a panic in a library's Rust is no Exception; who asked would wait for ever
        writer.post(Answer(call.number, None, _as_snug(error)))


def _as_snug(error: BaseException) -> SnugError:
    if isinstance(error, SnugError):
        return error
    log.error("A request failed", exc_info=error)
    return GenerationFailed(f"The engine failed: {_brief(error)}.", remedy="The log says more.")


def _brief(error: BaseException) -> str:
    """An exception in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(".: ")


def _open(number: int) -> Pipe:
    """The pipe whose file descriptor (on Windows: handle) this process inherited."""
    if sys.platform == "win32":
        from multiprocessing.connection import PipeConnection

        return PipeConnection(number)
    from multiprocessing.connection import Connection

    os.set_inheritable(number, False)
    return Connection(number)


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its host dies, however stuck it is (Linux; elsewhere the pipe tells)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call above
        os._exit(0)


def go_first() -> None:
    """Where memory runs out, let Linux end this process rather than the server, or what else its user has open: a model
    can be loaded again. Processes that it starts are likewise.
    """
    with contextlib.suppress(OSError, ValueError):  # elsewhere than on Linux
        asked = Path("/proc/self/oom_score_adj")
        asked.write_text(str(max(OOM_SCORE, int(asked.read_text()))))


if __name__ == "__main__":
    main(sys.argv[1:])
