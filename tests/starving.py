"""Ways to load real models whose engines then run out of memory: by an exception put in, or by a limit that is real."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modules.engine.base import Emit, Engine, GenerationRequest, OnProgress
from modules.memory.planning.planner import Plan
from modules.units import MiB
from tests.fakes import Script, ScriptedLoad

Kind = Literal["torch", "python", "allocator"]
ERRORS: dict[Kind, type[Exception]] = {
    "torch": torch.OutOfMemoryError, "python": MemoryError, "allocator": RuntimeError,
}  # fmt: skip
WORDS = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def starve(model: Any, kind: Kind, *, first: int, last: int = 10**9) -> None:
    """The model's second layer raises at its forward calls `first` to `last`, 1 being the first from now on.

    The first layer has written to the KV cache by then.
    """
    layer = model.model.layers[1]
    forward, calls = layer.forward, 0

    def forward_or_fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if first <= calls <= last:
            raise ERRORS[kind](WORDS)
        return forward(*args, **kwargs)

    layer.forward = forward_or_fail


@dataclass(frozen=True)
class Starving:
    """A LoadEngine: above a context of `enough_tokens` memory runs out, at forward call `first` and ever after.

    `first` 0: already in the load.
    """

    kind: Kind
    first: int
    enough_tokens: int

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Engine:
        """Load with transformers."""
        from modules.engine.loading import huggingface

        starved = plan.run.context_tokens > self.enough_tokens
        if starved and not self.first:
            huggingface._load_model = self._fail
        engine = huggingface.load(plan, on_progress)
        if starved:
            starve(engine.loaded.model, self.kind, first=self.first)  # type: ignore[attr-defined]
        return engine

    def _fail(self, plan: Plan, on_progress: OnProgress) -> Any:
        raise ERRORS[self.kind](WORDS)


@dataclass(frozen=True)
class Limited:
    """A LoadEngine whose process may take only `more_bytes` of data beyond what it has after the load (RLIMIT_DATA)."""

    more_bytes: int

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Engine:
        """Load with transformers, then set the limit."""
        from modules.engine.loading.huggingface import load

        engine = load(plan, on_progress)
        most = data_bytes() + self.more_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        return engine


def data_bytes() -> int:
    """What the kernel counts against RLIMIT_DATA: private writable memory, touched or not."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmData:")[1].split()[0]) * 1024


@dataclass(frozen=True)
class Glutton:
    """A LoadEngine that plays a script; above a context of `enough_tokens` its process is in the memory cgroup `group`
    and takes more than that allows as soon as it is asked something: the kernel kills it.
    """

    script: Script
    group: Path
    enough_tokens: int

    def __call__(self, plan: Plan, on_progress: OnProgress) -> Engine:
        """No model is loaded."""
        engine = ScriptedLoad(self.script)(plan, on_progress)
        if plan.run.context_tokens > self.enough_tokens:
            (self.group / "cgroup.procs").write_text(str(os.getpid()))
            submit = engine.submit

            def submit_and_grow(request: GenerationRequest, emit: Emit) -> None:
                submit(request, emit)
                threading.Thread(target=grow_for_ever, daemon=True).start()

            engine.submit = submit_and_grow  # type: ignore[method-assign]
        return engine


def grow_for_ever() -> None:
    """Take memory, a little at a time and used, until somebody stops it."""
    taken = []
    while True:
        taken.append(b"\1" * MiB)
        time.sleep(0.005)


def make_group(limit_bytes: int) -> Path | None:
    """A memory cgroup inside our own, with that limit; None where this machine does not permit it."""
    own = next((line for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), "")
    folder = Path("/sys/fs/cgroup/memory") / own.split(":")[-1].strip("/") / f"snug-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        with contextlib.suppress(OSError):
            folder.rmdir()
        return None
    return folder
