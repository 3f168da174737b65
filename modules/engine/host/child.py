"""Where a worker runs: a process of its own, or for tests and debugging a thread of this one.

A plain subprocess rather than multiprocessing: no second import of the main module, no helper process that stays
behind, and standard output and error arrive here line by line.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from modules.engine.host.wire import Pipe
from modules.engine.host.worker import serve
from modules.engine.process import spinning

log = logging.getLogger(__name__)
MAX_LINE = 2000
# An abort of native code prints where it was, call by call, after it has said why.
LINES_KEPT = 100
_LAST_LINES_S = 1.0


class Child(Protocol):
    """One running worker."""

    pipe: Pipe
    pid: int | None

    @property
    def last_lines(self) -> Sequence[str]:
        """What it printed last, once it has ended."""

    def exit_code(self) -> int | None:
        """None while it runs; -N if signal N ended it."""

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, waiting for that at most `timeout_s`."""

    def terminate(self) -> None:
        """Ask it to end, whatever it does."""

    def kill(self) -> None:
        """End it, and all that it started."""


class ProcessChild:
    """A worker in a process of its own, in a session of its own so that Ctrl-C does not reach it.

    Linux kills it when the *thread* that made it ends (PR_SET_PDEATHSIG), so that thread must stay.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        number = theirs.fileno()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "modules.engine.host.worker", str(number), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                env=engine_environment(environment),
                **_inherit(number),
            )
        except OSError:
            self.pipe.close()
            raise
        finally:
            theirs.close()
        self.pid: int | None = self._process.pid
        assert self._process.stdout is not None  # it was asked for above
        self._printed: deque[str] = deque(maxlen=LINES_KEPT)
        self._relay = threading.Thread(
            target=relay,
            args=(self._process.stdout, self.pid, self._printed),
            name=f"engine {self.pid} log",
            daemon=True,
        )
        self._relay.start()

    @property
    def last_lines(self) -> Sequence[str]:
        """See Child. Waits a moment for what is on its way."""
        self._relay.join(_LAST_LINES_S)
        return tuple(self._printed)

    def exit_code(self) -> int | None:
        """See Child."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> bool:
        """See Child."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode is not None

    def terminate(self) -> None:
        """See Child."""
        self._process.terminate()

    def kill(self) -> None:
        """See Child."""
        if os.name != "nt":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()


class ThreadChild:
    """A worker in a thread of this process: same messages, same pickling, but nothing can kill it."""

    pid: int | None = None
    last_lines: Sequence[str] = ()

    def __init__(self) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._thread = threading.Thread(target=_serve, args=(theirs,), name="engine in process", daemon=True)
        self._thread.start()

    def exit_code(self) -> int | None:
        """See Child."""
        return None if self._thread.is_alive() else 0

    def wait(self, timeout_s: float) -> bool:
        """See Child."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def terminate(self) -> None:
        """See Child."""

    def kill(self) -> None:
        """Leave it behind: once the host's end of the pipe is closed it serves nobody."""
        if self._thread.is_alive():
            log.warning("An engine in a thread does not end; its memory stays in use")


def _serve(pipe: Pipe) -> None:
    """`serve` in a thread; the host hears of the end at once, as it does of a process's."""
    serve(pipe, on_host_gone=pipe.close)
    if sys.platform != "win32":
        # Closed it may not be: a thread of `serve` still reads it, until the host has closed its own end.
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_WR)


def engine_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of an engine process: one thread a physical core, GPUs numbered as in hardware.py, no network.

    The user's own OMP_NUM_THREADS, GOMP_SPINCOUNT and CUDA_DEVICE_ORDER win.
    """
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    threads = min(psutil.cpu_count(logical=False) or usable, usable)
    return {
        "OMP_NUM_THREADS": str(threads),
        spinning.NAME: spinning.FOR_TORCH,
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        **base,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TIKTOKEN_CACHE_DIR": "",  # none: it would be /tmp/data-gym-cache, whoever made that, and never be read anew
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path),
    }


def _inherit(number: int) -> dict[str, Any]:
    """Popen's options that let the child, and only it, inherit the pipe's end `number`."""
    if sys.platform == "win32":
        os.set_handle_inheritable(number, True)
        return {"startupinfo": subprocess.STARTUPINFO(lpAttributeList={"handle_list": [number]}), "close_fds": True}
    return {"pass_fds": (number,), "start_new_session": True}


def relay(output: IO[str], pid: int, printed: deque[str] | None = None) -> None:
    """Log what the engine process prints, at the level its line begins with, until it ends; keep it in `printed`."""
    levels = logging.getLevelNamesMapping()
    with output:
        for line in iter(lambda: output.readline(MAX_LINE), ""):
            if text := line.rstrip():
                if printed is not None:
                    printed.append(text)
                log.log(levels.get(text.split(" ", 1)[0], logging.INFO), "engine %d: %s", pid, text)
