"""The doors to DeepSpeed ZeRO-3: `load` on rank 0, `follow` on every other rank of the deepspeed launcher.

In every rank server.py stays small and has a child process for the model. Rank 0's gets its plans from the
ModelManager; the others get them from rank 0's, and live no longer than it does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time

import psutil

from modules.engine.base import Engine, OnProgress, Progress
from modules.engine.host.child import engine_environment, relay
from modules.engine.zero3.ranks import Begin, Leader, World
from modules.memory.planning.planner import Plan
from modules.settings import Settings

log = logging.getLogger(__name__)

LAST_WORDS_S = 3.0
LOOK_S = 1.0


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


def follow(settings: Settings) -> int:
    """Be a rank above 0 until the launcher or rank 0's server is gone: one follower process after the other."""
    if settings.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(settings.local_rank))
    rank = World.from_environment(os.environ).rank
    above = _those_above()
    log.info("Rank %d follows rank 0", rank)
    while True:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "modules.engine.zero3.follower", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=engine_environment(os.environ),
            start_new_session=True,
        )
        try:
            threading.Thread(target=relay, args=(process.stdout, process.pid), daemon=True).start()
            while process.poll() is None:
                if not all(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in above):
                    return 0
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(LOOK_S)
        finally:
            process.kill()
            process.wait()
        time.sleep(max(0.0, LOOK_S - (time.monotonic() - started)))


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
