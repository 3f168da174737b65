"""The doors to DeepSpeed ZeRO-3: `load` on rank 0, `follow` on every other rank of the deepspeed launcher.

In every rank server.py stays small and has a child process for the model. Rank 0's gets its plans from the
ModelManager; the others get them from rank 0's, and live no longer than it does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from multiprocessing.connection import Connection

import psutil

from modules.compiled import compiling_apart
from modules.engine.base import Engine, OnProgress, Progress
from modules.engine.host.child import engine_environment, relay
from modules.engine.host.verdicts import exit_words
from modules.engine.zero3.ranks import Begin, Leader, World
from modules.memory.planning.planner import Plan
from modules.settings import Settings

log = logging.getLogger(__name__)

LAST_WORDS_S = 3.0
LOOK_S = 1.0
_LAST_LINES = 3
_LAST_LINES_S = 1.0


def load(plan: Plan, on_progress: OnProgress) -> Engine:
    """Load `plan` on all ranks; runs in rank 0's engine process. Raises SnugError.

    When a rank is lost later, the process ends after LAST_WORDS_S: open replies fail, the next message reloads.
    """
    leader = Leader(World.from_environment(os.environ), on_broken=_end_soon)
    try:
        if leader.world.size > 1:
            on_progress(Progress(f"Waiting for {leader.world.size - 1} more ranks", 0.0))
        leader.gather()
        leader.send(Begin(plan))
        from modules.engine.zero3.engine import lead  # while the others import torch too

        return lead(plan, leader, on_progress)
    except BaseException:
        leader.close()
        raise


@compiling_apart()
def follow(settings: Settings) -> int:
    """Be a rank above 0 until the launcher or rank 0's server is gone: one follower process after the other."""
    if settings.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(settings.local_rank))
    rank = World.from_environment(os.environ).rank
    above = _those_above()
    log.info("Rank %d follows rank 0", rank)
    while True:
        started = time.monotonic()
        if not _live_once(rank, above):
            return 0
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - started)))


def _live_once(rank: int, above: list[psutil.Process]) -> bool:
    """One follower process, from its start to its end, of which rank 0 is told how that was. False: nobody is `above`
    any more.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "modules.engine.zero3.follower", str(os.getpid()), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=engine_environment(os.environ),
            start_new_session=True,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        said: deque[str] = deque(maxlen=_LAST_LINES)
        listener = threading.Thread(target=relay, args=(process.stdout, process.pid, said), daemon=True)
        listener.start()
        try:
            while process.poll() is None:
                if not all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in above):
                    return False
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            listener.join(_LAST_LINES_S)
            why = told_end(process.returncode, tuple(said))
            log.error("Rank %d: %s", rank, why)
            _tell_leader(ours, why)
    return True


def told_end(code: int, said: tuple[str, ...]) -> str:
    """How a follower ended, with what it said last."""
    last = " / ".join(line[:300] for line in said)
    return f"its process ended ({exit_words(code)})" + (f", after: {last}" if last else "")


def _tell_leader(ours: socket.socket, why: str) -> None:
    """Say `why` on the connection to rank 0 that the follower left here; nothing where it had none yet.

    Until then rank 0 has not seen it end. What the follower said of itself came first, and counts.
    """
    ours.setblocking(False)
    with contextlib.suppress(OSError):
        while numbers := socket.recv_fds(ours, 1, 1)[1]:  # one more for every attempt to connect
            for number in numbers:
                with contextlib.suppress(OSError), Connection(number) as link:
                    link.send_bytes(why.encode()[:10_000])


def _those_above() -> list[psutil.Process]:
    """The launcher, and rank 0's server where it runs on this machine."""
    launcher = psutil.Process().parent()
    if launcher is None:
        return []
    return [launcher, *(child for child in launcher.children() if _is_rank_0_server(child))]


def _is_rank_0_server(process: psutil.Process) -> bool:
    """Whether it runs the same command as this process, but for its rank."""
    try:
        same = _command_of(process) == _command_of(psutil.Process())
        return same and process.environ().get("RANK") == "0"
    except psutil.Error:
        return False


def _command_of(process: psutil.Process) -> list[str]:
    return [argument for argument in process.cmdline() if not argument.startswith("--local_rank=")]


def _end_soon(why: str) -> None:
    """End this process when the replies that failed have been told so."""
    log.error("The engine ends: %s", why)
    timer = threading.Timer(LAST_WORDS_S, os._exit, [1])
    timer.daemon = True
    timer.start()
