"""`python supervise.py COMMAND…`: runs a command and ends it, with all that it started, as soon as
standard input ends: the engine process holds the other end, and so nothing outlives it, however it dies.

Standard library only. The command runs in a session of its own; its exit code is this program's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

END_S = 10.0


def main(command: list[str]) -> int:
    """Run `command` until it ends, or standard input does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end_with_input, args=(process,), daemon=True).start()
    code = process.wait()
    _signal_all(process, signal.SIGKILL)  # what it left behind
    return code if code >= 0 else 128 - code


def _end_with_input(process: subprocess.Popen[bytes]) -> None:
    """Ask the command to end once nobody holds our standard input, and insist after END_S."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _signal_all(process, signal.SIGTERM)
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        _signal_all(process, signal.SIGKILL)


def _signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    """To every process of the command's session that stayed in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
