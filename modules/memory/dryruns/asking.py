"""What a model consists of and what a run of it allocates, asked of a worker that can be killed; answers are kept.

The worker (worker.py) builds the model of a checked config without weights and counts the bytes of each
operation; it imports torch, this file does not. Of a GGUF file another one (llamacpp_worker.py) asks llama.cpp. An
answer holds for a config or a file, a run and the libraries' versions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from modules.errors import BadConfig, BadGguf, NotAvailableHere, OutOfMemory, SnugError, TimedOut, UnsupportedModel
from modules.files import atomic_write
from modules.killable import KillableWorker, WorkerDoesNotStart, WorkerEnded, WorkerLate, bare_environment
from modules.memory.dryruns.llamacpp_fit import Buffers
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes
from modules.memory.forecasting.training import TrainingRun
from modules.memory.model.config import read_json
from modules.memory.model.describing import described
from modules.memory.model.model_spec import Description
from modules.memory.model.spec import ModelSpec

log = logging.getLogger(__name__)

Kind = Literal["cpu", "cuda"]
Answer = Mapping[str, Any]
ANSWER_S = 30.0
IDLE_S = 120.0
MOST_WAITING = 16
# What failed for want of time or memory is tried again after so long.
RETRY_S = 300.0
_PASSING = (TimedOut, NotAvailableHere, OutOfMemory)
_START_S = 90.0
# Raised when dryrun.py comes to count otherwise: answers from before are then not believed any more.
_METHOD = 2
# Questions whose answers are bytes; descriptions are kept by describing.py.
_COUNTED = ("peaks", "training", "fit")
_LIBRARIES = ("torch", "transformers", "bitsandbytes")
_GGUF_LIBRARIES = ("xllamacpp",)
_TORCH_WORKER, _GGUF_WORKER = "modules.memory.dryruns.worker", "modules.memory.dryruns.llamacpp_worker"
_ERRORS = {kind.code: kind for kind in (BadConfig, BadGguf, UnsupportedModel, OutOfMemory, NotAvailableHere)}


@dataclass(frozen=True, slots=True)
class Peaks:
    """Bytes of a whole model on one device at the end of a context of `RunSpec.context_tokens`.

    `weights` holds parameters and buffers, quantization data included; `kv_cache` what is kept of the context;
    `prefill_peak` and `decode_peak` the most beyond both while the last `prefill_chunk` tokens are read and while one
    token is written.
    """

    weights: int
    kv_cache: int
    prefill_peak: int
    decode_peak: int


@dataclass(frozen=True, slots=True)
class TrainingPeaks:
    """Bytes of one training step on one device; `activations` is the most beyond weights, gradients and optimizer.

    `peak` is the most alive at any moment of the second step, when the optimizer has its states.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


class DryRuns:
    """Dry runs in worker processes that start when first needed and end after two idle minutes. Thread-safe."""

    def __init__(
        self,
        cache_folder: Path,
        *,
        answer_s: float = ANSWER_S,
        idle_s: float = IDLE_S,
        most_waiting: int = MOST_WAITING,
        retry_s: float = RETRY_S,
    ) -> None:
        """`cache_folder` is made when the first answer comes; one run may compute for `answer_s`.

        Workers end after `idle_s` without a question; of more than `most_waiting` the oldest is given up. What took
        too long is tried again after `retry_s`.
        """
        self._cache_folder = cache_folder
        self._answer_s = answer_s
        self._idle_s = idle_s
        self._most_waiting = most_waiting
        self._retry_s = retry_s
        self._failed_at: dict[str, float] = {}
        self._worker, self._gguf_worker = _worker(_TORCH_WORKER), _worker(_GGUF_WORKER)
        self._workers = (self._worker, self._gguf_worker)
        self._lock = threading.Condition()
        self._known: dict[str, Answer | SnugError] = {}
        self._waiting: dict[str, dict[str, Any]] = {}
        self._futures: dict[str, Future[Answer]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._times_let_go = 0  # how often
        self._answered = 0

    @property
    def answered(self) -> int:
        """How many questions have an answer, or an error, that they had not when this began."""
        return self._answered

    @property
    def busy(self) -> bool:
        """Whether something is being worked out."""
        return bool(self._futures)

    @property
    def held_bytes(self) -> int:
        """RAM that the workers hold; `let_go` gives it back."""
        return sum(worker.rss_bytes for worker in self._workers)

    def known_peaks(self, spec: ModelSpec, run: RunSpec, *, kind: Kind = "cpu") -> Peaks | None:
        """The Peaks if they are known; nothing is set off."""
        try:
            request = _peaks_request(spec, run, kind)
        except SnugError:
            return None
        known = self._lookup(_key(request))
        return _peaks(request, known) if isinstance(known, Mapping) else None

    def peaks(self, spec: ModelSpec, run: RunSpec, *, kind: Kind = "cpu") -> Peaks | None:
        """The Peaks if they are known; else None, and they are being worked out. None for ever where that fails."""
        try:
            request = _peaks_request(spec, run, kind)
        except SnugError:
            return None
        known = self._lookup(_key(request))
        if known is None:
            self._submit(request)
        return _peaks(request, known) if isinstance(known, Mapping) else None

    def measure(
        self, spec: ModelSpec, run: RunSpec, timeout_s: float = _START_S + ANSWER_S, *, kind: Kind = "cpu"
    ) -> Peaks:
        """The Peaks, waited for. Raises UnsupportedModel, BadConfig, OutOfMemory, NotAvailableHere or TimedOut."""
        request = _peaks_request(spec, run, kind)
        return _peaks(request, self._wait(request, timeout_s))

    def training(
        self, spec: ModelSpec, run: TrainingRun, timeout_s: float = _START_S + ANSWER_S, *, kind: Kind = "cpu"
    ) -> TrainingPeaks:
        """The TrainingPeaks, waited for. Raises as `measure` does."""
        return TrainingPeaks(**self._wait(_request("training", spec, asdict(run), kind), timeout_s))

    def describe(self, config: Path, *, cache_folder: Path, timeout_s: float = _START_S + ANSWER_S) -> Description:
        """As describing.describe_in_process, by the worker that dry runs need anyway. Raises as `measure` does."""

        def ask(file: Path) -> Answer:
            asked = {"question": "describe", "name": file.name, "file": str(file.resolve()), "config": read_json(file)}
            return self._wait(asked, timeout_s)

        return described(config, ask, cache_folder)

    def prepare(self) -> None:
        """Start the worker, which takes some seconds, before it is asked anything. Returns at once."""
        self._submit({"question": "ready", "name": ""})

    def fit(self, spec: ModelSpec, run: RunSpec, timeout_s: float = _START_S + ANSWER_S) -> dict[str, Buffers]:
        """What llama.cpp itself says that it will allocate for a GGUF file, by device, waited for.

        Raises UnsupportedModel or BadGguf where it cannot load the file, else as `measure` does.
        """
        return _buffers(self._wait(_request("fit", spec, asdict(run), "cpu"), timeout_s))

    def let_go(self) -> None:
        """End the workers, whatever they do; who waits gets NotAvailableHere and may ask again."""
        with self._lock:
            self._times_let_go += 1
            waiting = list(self._waiting)
            self._waiting.clear()
        for key in waiting:
            self._give_up(key)
        for worker in self._workers:
            worker.kill()

    def close(self) -> None:
        """End the workers; who waits gets NotAvailableHere."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            waiters = list(self._futures.values())
            self._futures.clear()
            self._lock.notify_all()
        for future in waiters:
            future.set_exception(_not_here("Snug is ending."))
        for worker in self._workers:
            worker.kill()
        if self._thread is not None:
            self._thread.join(timeout=10)
        for worker in self._workers:
            worker.close()

    def _wait(self, request: dict[str, Any], timeout_s: float) -> Answer:
        known = self._lookup(_key(request))
        if known is None:
            try:
                known = self._submit(request).result(timeout_s)
            except TimeoutError as error:
                raise TimedOut(
                    f"{_doing(request)} has no answer after {timeout_s:.0f} s.",
                    remedy="Try again; Snug's formulas serve until then.",
                ) from error
        if isinstance(known, SnugError):
            raise known
        return known

    def _lookup(self, key: str) -> Answer | SnugError | None:
        """The answer, or error, that this process or an earlier one got."""
        with self._lock:
            failed_at = self._failed_at.get(key)
            if failed_at is not None and time.monotonic() - failed_at >= self._retry_s:
                self._failed_at.pop(key)
                self._known.pop(key, None)
            known = self._known.get(key)
        if known is not None:
            return known
        try:
            content = json.loads((self._cache_folder / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(content, dict) or not all(type(value) is int for value in content.values()):
            return None
        with self._lock:
            self._known[key] = content
        return content

    def _submit(self, request: dict[str, Any]) -> Future[Answer]:
        """Have `request` worked out, the latest first; the oldest of too many is given up."""
        key = _key(request)
        with self._lock:
            if self._closed:
                raise _not_here("Snug is ending.")
            future = self._futures.get(key)
            if future is not None and key not in self._waiting:
                return future  # it is being worked out
            future = self._futures.setdefault(key, Future())
            self._waiting.pop(key, None)
            self._waiting[key] = request
            while len(self._waiting) > self._most_waiting:
                oldest = next(iter(self._waiting))
                del self._waiting[oldest]
                self._futures.pop(oldest).set_exception(_not_here("Too many dry runs wait."))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="dry runs", daemon=True)
                self._thread.start()
            self._lock.notify_all()
        return future

    def _work(self) -> None:
        """Answer what waits, the latest first; after `idle_s` let the workers go."""
        while True:
            with self._lock:
                if not self._lock.wait_for(lambda: self._closed or self._waiting, timeout=self._idle_s):
                    self._thread = None
                    break
                if self._closed:
                    return
                key, request = self._waiting.popitem()
                before = self._times_let_go
            try:
                answer = self._ask(request)
            except Exception:  # the edge of one question: whatever it is, the thread goes on with the next
                log.exception("A dry run failed")
                answer = _not_here("The dry run failed; the log says why.")
            if isinstance(answer, SnugError) and before != self._times_let_go:
                self._give_up(key)
            else:
                if isinstance(answer, NotAvailableHere) and not self._closed:
                    log.warning("%s: %s", _doing(request), answer.message)  # plans go on by formulas, and tell nobody
                self._settle(request, key, answer)
        for worker in self._workers:
            worker.close()

    def _give_up(self, key: str) -> None:
        """Nobody works on this any more, which says nothing about it: it may be asked again."""
        with self._lock:
            future = self._futures.pop(key, None)
        if future is not None:
            future.set_exception(_not_here("The memory of the dry runs was wanted for something else."))

    def _settle(self, request: Answer, key: str, answer: Answer | SnugError) -> None:
        if request["question"] in _COUNTED and not isinstance(answer, SnugError):
            try:
                self._cache_folder.mkdir(parents=True, exist_ok=True)
                atomic_write(self._cache_folder / f"{key}.json", json.dumps(answer))
            except OSError as error:
                log.warning("the answer of a dry run could not be kept: %s", error)
        with self._lock:
            if request["question"] != "ready":
                self._known[key] = answer
                if isinstance(answer, _PASSING):
                    self._failed_at[key] = time.monotonic()
            future = self._futures.pop(key, None)
            self._answered += 1
        if future is None:
            return
        if isinstance(answer, SnugError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _ask(self, request: dict[str, Any]) -> Answer | SnugError:
        payload = json.dumps({**request, "answer_s": self._answer_s}).encode("ascii")
        worker = self._gguf_worker if request["question"] == "fit" else self._worker
        try:
            answer = worker.ask(payload, timeout_s=self._answer_s)
        except WorkerLate:
            return TimedOut(
                f"{_doing(request)} takes longer than {self._answer_s:.0f} s.",
                remedy="Snug's formulas are used instead. Are the sizes in its config.json right?",
            )
        except WorkerDoesNotStart:
            return _not_here("The process for dry runs does not start.")
        except WorkerEnded:
            return BadConfig(f"{_doing(request)} ended its process.", remedy="Are the sizes in its config.json right?")
        if "error" in answer:
            error = answer["error"]
            return _ERRORS.get(error["code"], BadConfig)(error["message"], remedy=error["remedy"])
        return answer


def _request(question: str, spec: ModelSpec, run: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """What the worker is asked. Raises UnsupportedModel for a model that it cannot build."""
    if question == "fit":
        return _gguf_request(spec, run, kind)
    file = spec.path / "config.json" if spec.path.is_dir() else spec.path
    if spec.source != "safetensors" or file.suffix != ".json":
        raise UnsupportedModel(f"{spec.name} has no config.json to dry-run.", remedy="Snug's formulas are used.")
    config = read_json(file)
    run = {name: value for name, value in run.items() if name != "kv_cache"}  # what lies beside the cache is the same
    return {"question": question, "name": spec.name, "file": str(file.resolve()), "config": config, "run": run,
            "kind": kind, "prequantized": spec.prequantized}  # fmt: skip


def _peaks_request(spec: ModelSpec, run: RunSpec, kind: Kind) -> dict[str, Any]:
    """The question of what `run` takes; raises as `_request` does."""
    return _request("fit" if run.runtime == "llamacpp" else "peaks", spec, asdict(run), kind)


def _gguf_request(spec: ModelSpec, run: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """A question about a GGUF file, which its place, size and time stand for."""
    if spec.source != "gguf":
        raise UnsupportedModel(f"{spec.name} is not a GGUF file.", remedy="Snug's formulas are used.")
    file = spec.path.resolve()
    try:
        found = file.stat()
    except OSError as error:
        raise BadGguf(f"{spec.name} cannot be read ({error.strerror}).", remedy="Is the file still there?") from error
    whole = RunSpec(**{**run, "runtime": "llamacpp"})
    asked = {name: run[name] for name in ("context_tokens", "prefill_chunk", "kv_cache")}
    config = {"file": str(file), "size": found.st_size, "modified_ns": found.st_mtime_ns,
              "stored_bytes": sum(tensor.size_bytes for tensor in spec.tensors),
              "cache_bytes": kv_cache_bytes(spec, whole, whole.context_tokens)}  # fmt: skip
    return {"question": "fit", "name": spec.name, "file": str(file), "config": config, "run": asked,
            "kind": kind, "prequantized": "none"}  # fmt: skip


def _buffers(known: Mapping[str, int]) -> dict[str, Buffers]:
    """An answer about a GGUF file by device."""
    return {
        device: Buffers(*(known[f"{device}.{purpose}"] for purpose in ("model", "context", "compute")))
        for device in dict.fromkeys(name.rpartition(".")[0] for name in known)
    }


def _peaks(request: Mapping[str, Any], known: Mapping[str, int]) -> Peaks:
    """An answer as Peaks. llama.cpp computes in one buffer, whatever it does; rows of logits count to it."""
    if request["question"] != "fit":
        return Peaks(**known)
    found = list(_buffers(known).values())
    kept, cache = sum(one.context for one in found), request["config"]["cache_bytes"]
    peak = sum(one.compute for one in found) + max(0, kept - cache)
    return Peaks(sum(one.model for one in found), min(kept, cache), peak, peak)


def _worker(module: str) -> KillableWorker:
    command = [sys.executable, "-P", "-X", "utf8", "-m", module]
    return KillableWorker(command, _environment(), start_s=_START_S)


def _doing(request: Answer) -> str:
    """The beginning of a sentence about what `request` asks for."""
    return f"{'Building the model' if request['question'] == 'describe' else 'The dry run'} of {request['name']}"


def _key(request: Mapping[str, Any]) -> str:
    """What an answer depends on."""
    asked = {name: request.get(name) for name in ("question", "config", "run", "kind", "prequantized")}
    libraries = _GGUF_LIBRARIES if request["question"] == "fit" else _LIBRARIES
    versions = [_version(name) for name in libraries]
    content = json.dumps([_METHOD, versions, asked], sort_keys=True)
    return hashlib.sha256(content.encode("ascii")).hexdigest()[:32]


def _version(library: str) -> str:
    """Its version; "" where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def _environment() -> dict[str, str]:
    """As for every helper, and no GPU."""
    return {**bare_environment(), "TRANSFORMERS_VERBOSITY": "critical", "CUDA_VISIBLE_DEVICES": ""}


def _not_here(message: str) -> NotAvailableHere:
    return NotAvailableHere(message, remedy="Snug's formulas are used instead.")
