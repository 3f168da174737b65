"""A vLLM server of Snug's own: started on loopback with a random key, watched, ended with whoever started it."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from modules.engine.base import OnProgress, Progress
from modules.engine.vllm import supervise
from modules.engine.vllm.command import INSTALL, failure, serve_command, serve_environment, stage_of
from modules.errors import NotAvailableHere
from modules.memory.planning.planner import Plan

log = logging.getLogger(__name__)

SUPERVISOR = Path(supervise.__file__)
AWAY = "/"
"""Where vLLM's Python starts: it would find packages in the folder that it starts in."""
LOOK_S = 60.0
END_S = 15.0
_LAST_LINES = 60
_ASK_VERSION = "import importlib.metadata as m; print(m.version('vllm'))"


class VllmServer:
    """A running server. `url` and `key` are how to talk to it."""

    def __init__(
        self,
        plan: Plan,
        python: Path,
        on_progress: OnProgress,
        *,
        gpu_total_bytes: int = 0,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Start it and return at once; `wait` tells the rest. `on_end` is told why if it ends before `close`, later.

        Raises NotAvailableHere where `python` or vLLM is not there.
        """
        check_installed(python)
        self.key = secrets.token_urlsafe(32)
        self._port = _free_port()
        self.url = f"http://127.0.0.1:{self._port}/v1"
        self._name = plan.spec.name
        self._on_progress = on_progress
        self._on_end = on_end
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._closing = False
        self._ready = False
        command = serve_command(plan, python, self._port, gpu_total_bytes=gpu_total_bytes)
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SUPERVISOR.resolve()), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=serve_environment(plan, self.key, os.environ),
            cwd=AWAY,
            start_new_session=True,
        )
        threading.Thread(target=self._listen, name="vLLM's log", daemon=True).start()

    def wait(self, answers: Callable[[], bool], poll_s: float = 0.5) -> None:
        """Return once `answers`, which is asked only when the port is vLLM's: until it listens, which takes a while,
        any user of the machine can read the port's number in its command line, and listen there.

        Raises SnugError if the server ends before that.
        """
        while not (self._listens() and answers()):
            try:
                code = self._process.wait(poll_s)
            except subprocess.TimeoutExpired:
                continue
            raise failure(self._name, list(self._lines), code)
        self._ready = True

    def rss_bytes(self) -> int:
        """What its processes hold together."""
        total = 0
        for process in self._processes():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def _listens(self) -> bool:
        """Whether it is one of its processes that listens on the port; also where the system does not say."""
        for process in self._processes():
            try:
                sockets = process.net_connections("tcp")
            except psutil.AccessDenied:
                return True
            except psutil.Error:  # it has ended
                continue
            if any(one.status == psutil.CONN_LISTEN and one.laddr.port == self._port for one in sockets):
                return True
        return False

    def _processes(self) -> list[psutil.Process]:
        """vLLM and what it has started, without their supervisor."""
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.Error:
            return []

    def close(self) -> None:
        """End it, and all that it started."""
        self._closing = True
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            log.warning("vLLM's supervisor does not end; it is killed")
            self._process.kill()
            self._process.wait(END_S)

    def _listen(self) -> None:
        """Log what it prints, and make progress of it, until it ends."""
        assert self._process.stdout is not None  # it was asked for above
        told: Progress | None = None
        for line in self._process.stdout:
            if not (text := line.rstrip()):
                continue
            self._lines.append(text)
            log.info("vLLM: %s", text[:1000])
            step = stage_of(text)
            if step is not None and not self._ready and (told is None or step.fraction > told.fraction):
                told = step
                self._on_progress(step)
        code = self._process.wait()
        if self._ready and not self._closing:
            self._on_end(f"vLLM ended (exit code {code}): {' '.join(' '.join(list(self._lines)[-1:]).split())[:200]}")


def check_installed(python: Path) -> str:
    """The version of vLLM that `python` has. Raises NotAvailableHere."""
    try:
        asked = subprocess.run(
            [str(python), "-c", _ASK_VERSION], capture_output=True, cwd=AWAY, text=True, timeout=LOOK_S, check=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        missing = isinstance(error, OSError)
        problem = "there is no such program" if missing else "vLLM is not installed there"
        raise NotAvailableHere(f"--loader vllm with {python}: {problem}.", remedy=INSTALL, param="loader") from error
    return asked.stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
