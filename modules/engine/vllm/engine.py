"""`--loader vllm`: a model of this machine through a vLLM server that Snug starts, keeps and ends, and asks as it asks
any other server (engine/remote).
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from modules.engine.base import EXIT_SERVER_GONE, Engine, EngineStats, ModelInfo, OnProgress, Progress
from modules.engine.remote.client import PATIENCE, RemoteClient
from modules.engine.remote.connecting import Found, find_out
from modules.engine.remote.engine import RemoteEngine, describe
from modules.engine.vllm.server import VllmServer
from modules.errors import ServerLost, SnugError
from modules.hardware import read_inventory
from modules.memory.planning.planner import Plan
from modules.remote_server import RemoteServer

log = logging.getLogger(__name__)
_LAST_WORDS_S = 1.0
# Its server is on this machine: one that does not take a connection is gone, and this process ends with it.
_PATIENCE = replace(PATIENCE, connect_s=5.0, return_s=2.0)


def load(plan: Plan, on_progress: OnProgress) -> Engine:
    """Start vLLM with `plan` and return an engine that asks it.

    Raises NotAvailableHere where vLLM is not installed, OutOfMemory, LoadFailed.
    """
    return start(plan, on_progress, on_end=_end_with_it)


def start(plan: Plan, on_progress: OnProgress, *, on_end: Callable[[str], None]) -> VllmEngine:
    """The same; `on_end` is told if vLLM ends by itself later on."""
    started = time.monotonic()
    on_progress(Progress("Starting vLLM", 0.05))
    python = Path(sys.executable) if plan.vllm_python is None else plan.vllm_python.absolute()
    server = VllmServer(plan, python, on_progress, gpu_total_bytes=_gpu_total(plan), on_end=on_end)
    client = RemoteClient(server.url, server.key, patience=_PATIENCE)
    try:
        server.wait(lambda: _answers(client))
        address = RemoteServer(server.url, context_tokens=plan.run.context_tokens)
        found = find_out(client, address)
        info = _info(plan, describe(plan, address, found, started), found)
        engine = VllmEngine(client, found, info, server)
    except BaseException:
        client.close()
        server.close()
        raise
    log.info("%s loaded by %s in %.1f s", plan.spec.name, found.title, info.load_s)
    on_progress(Progress("Ready", 1.0))
    return engine


class VllmEngine(RemoteEngine):
    """A RemoteEngine that owns the server which it asks."""

    def __init__(self, client: RemoteClient, found: Found, info: ModelInfo, server: VllmServer) -> None:
        super().__init__(client, found, info)
        self._server = server

    def stats(self) -> EngineStats:
        """How busy the engine is now, with the bytes that vLLM's processes hold."""
        stats = super().stats()
        return replace(stats, rss_bytes=stats.rss_bytes + self._server.rss_bytes())

    def close(self) -> None:
        """Cancel everything and end vLLM."""
        super().close()
        self._server.close()


def _answers(client: RemoteClient) -> bool:
    try:
        client.ask_now("/models")
    except ServerLost:
        return False
    except SnugError as error:
        log.info("vLLM is not ready: %s", error)
        return False
    return True


def _info(plan: Plan, info: ModelInfo, found: Found) -> ModelInfo:
    """What is to be said of a model that vLLM runs here."""
    budgets = {device: budget.weights + budget.quant_meta for device, budget in plan.budgets.items()}
    return replace(
        info,
        name=plan.spec.name,
        architecture=plan.spec.architecture,
        loop_reason=f"{found.title} in processes of its own decodes many conversations at once",
        dtype=plan.run.dtype,
        quantization=plan.run.quantization,
        placement=budgets,
        modules=dict(plan.placement),
        longest_context=plan.spec.max_context,
    )


def _gpu_total(plan: Plan) -> int:
    """All bytes of the GPU that the plan uses; 0 where it uses none."""
    gpus = read_inventory(plan.disk_cache_dir or Path.cwd()).gpus
    return next((gpu.total_bytes for gpu in gpus if gpu.id in plan.budgets), 0)


def _end_with_it(why: str) -> None:
    """Without vLLM this process is of no use: its host starts both again with the next request."""
    log.error("%s", why)
    time.sleep(_LAST_WORDS_S)  # the replies under way end with what the connection told
    os._exit(EXIT_SERVER_GONE)
