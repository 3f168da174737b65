"""A process that answers one question at a time and is killed when it takes too long: started when first asked, and
again after it was killed.

A message is four bytes of length (big endian) and that many bytes of ASCII JSON, both ways; the first one, from the
process, says that it is ready. What the questions mean is not known here.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

_ROOT = Path(__file__).parent.parent
_KEPT_VARIABLES = ("PATH", "HOME", "USERPROFILE", "SYSTEMROOT", "TMPDIR", "TEMP", "TZ", "LD_LIBRARY_PATH")


def bare_environment() -> dict[str, str]:
    """What a helper needs to find Python's packages and this one, no network; none of the user's secrets."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return {**kept, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class WorkerEnded(Exception):
    """The process ended before its answer was whole."""


class WorkerLate(WorkerEnded):
    """It took too long and was killed."""


class WorkerDoesNotStart(WorkerEnded):
    """It ended, or said nothing, before it was ready."""


class KillableWorker:
    """The process that `command` starts, with no more environment than `environment`. Safe from any thread."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], *, start_s: float) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._start_s = start_s
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, payload: bytes, *, timeout_s: float) -> dict[str, Any]:
        """The answer to `payload`, JSON. Raises WorkerLate, WorkerDoesNotStart or WorkerEnded; all of them end it."""
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            expired = threading.Event()
            clock = _kill_after(timeout_s, process, expired)
            try:
                process.stdin.write(len(payload).to_bytes(4, "big") + payload)
                process.stdin.flush()
                return _receive(process)
            except (OSError, EOFError, ValueError) as error:
                self._kill()
                raise (WorkerLate if expired.is_set() else WorkerEnded)(str(error)) from error
            finally:
                clock.cancel()
                if expired.is_set():  # it may have struck in the moment of the answer
                    self._kill()

    @property
    def rss_bytes(self) -> int:
        """RAM that the process holds; 0 without one."""
        process = self._process
        try:
            return int(psutil.Process(process.pid).memory_info().rss) if process and process.poll() is None else 0
        except psutil.Error:
            return 0

    def close(self) -> None:
        """End the process once it has answered. A later question starts it again."""
        with self._lock:
            self._kill()

    def kill(self) -> None:
        """End the process at once; who waits for its answer gets WorkerEnded."""
        process = self._process
        if process is not None:
            _end(process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            return self._start()
        return self._process

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            process = self._process = subprocess.Popen(  # known at once, so that it can be killed while it starts
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=sys.platform != "win32",  # so that what it starts ends with it
            )
        except OSError as error:  # no memory, too many processes
            raise WorkerDoesNotStart(str(error)) from error
        clock = _kill_after(self._start_s, process, threading.Event())
        try:
            _receive(process)
        except (EOFError, ValueError) as error:
            _end(process)
            process.communicate()
            raise WorkerDoesNotStart(str(error)) from error
        finally:
            clock.cancel()
        return process

    def _kill(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process.communicate()
            self._process = None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill `process` and, where the system knows groups, all that it started."""
    if sys.platform != "win32" and process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _kill_after(seconds: float, process: subprocess.Popen[bytes], expired: threading.Event) -> threading.Timer:
    """A running clock that kills `process` and sets `expired`."""

    def strike() -> None:
        expired.set()
        _end(process)

    clock = threading.Timer(seconds, strike)
    clock.daemon = True
    clock.start()
    return clock


def _receive(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """One message. Raises EOFError if the process ends before it is whole."""
    assert process.stdout is not None
    header = process.stdout.read(4)
    length = int.from_bytes(header, "big")
    payload = process.stdout.read(length)
    if len(header) < 4 or len(payload) < length:
        raise EOFError
    message: dict[str, Any] = json.loads(payload)
    return message
