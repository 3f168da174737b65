"""A real server.py in a process of its own, on a free loopback port, with the starter model."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A loopback port that nobody uses at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(
    name: str, process: subprocess.Popen[Any], log: IO[str], is_ready: Callable[[], bool], timeout_s: float
) -> None:
    """Block until `is_ready`. Raises RuntimeError with the end of `log` if `process` ends first, or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise RuntimeError(f"{name} did not become ready:\n{log.read()[-3000:]}")
        time.sleep(0.2)


@dataclass
class RunningServer:
    """A started server: its process, what it printed, and where it is."""

    process: subprocess.Popen[str]
    base: str
    started: float
    output: list[str] = field(default_factory=list)
    printed: threading.Event = field(default_factory=threading.Event)

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return "".join(self.output)

    @property
    def address(self) -> str:
        """The address that it printed."""
        found = re.search(r"Snug is at (\S+)", self.text)
        assert found is not None, self.text
        return found[1]

    def tree(self) -> list[psutil.Process]:
        """The server and all its descendants."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    def wait_for_page(self, timeout_s: float = 60) -> None:
        """Block until the address was printed."""
        assert self.printed.wait(timeout_s), self.text

    def wait_for_text(self, text: str, timeout_s: float = 60) -> None:
        """Block until `text` was printed."""
        deadline = time.monotonic() + timeout_s
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)

    def wait_until_ready(self, timeout_s: float = 180) -> None:
        """Block until a model answers."""
        deadline = time.monotonic() + timeout_s
        while True:
            health = httpx.get(f"{self.base}/health", timeout=30).json()
            if health["ready"]:
                return
            assert health["state"] in ("loading", "empty"), health
            assert time.monotonic() < deadline, (health, self.text)
            time.sleep(0.1)

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout_s)

    def interrupt(self, timeout_s: float = 60) -> int:
        """Ctrl-C, which reaches every process of a terminal's foreground group; returns the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(timeout=timeout_s)

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.output.append(line)
            if "Snug is at" in line:
                self.printed.set()
        self.printed.set()


@contextmanager
def running_server(
    user_data: Path, *flags: str, command: tuple[str, ...] = (sys.executable,), environment: Mapping[str, str] = {}
) -> Iterator[RunningServer]:
    """Start `command server.py flags`; afterwards nothing of it is left."""
    port = free_port()
    arguments = [*command, "server.py", "--listen-port", str(port), "--user-data-dir", str(user_data), *flags]
    process = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )  # fmt: skip
    server = RunningServer(process, f"http://127.0.0.1:{port}", time.monotonic())
    reader = threading.Thread(target=server._read, daemon=True)
    reader.start()
    try:
        yield server
    finally:
        tree = server.tree() if process.poll() is None else []
        try:
            server.stop()
        except subprocess.TimeoutExpired:
            pass
        for left in tree:
            if left.is_running():
                left.kill()
        process.wait(timeout=30)
        reader.join(timeout=30)
