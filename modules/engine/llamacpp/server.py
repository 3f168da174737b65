"""llama.cpp's server inside this process, spoken to through a socket that nobody else can open.

It loads one GGUF file and decodes several rows at once. On Windows, where Python knows no Unix sockets, it listens on
a port of the loopback that the system picks; everywhere it answers only to a key drawn at each load.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modules.engine.llamacpp.gpus import Devices, check_gpus, find_full, most_taken, taken_bytes
from modules.engine.llamacpp.load_log import LoadLog, hear_load
from modules.engine.llamacpp.question import Question
from modules.engine.llamacpp.shortage import find_shortage
from modules.engine.llamacpp.stream import Stream
from modules.engine.process.spinning import spin_as_llamacpp_should
from modules.errors import LoadFailed, OutOfMemory, SnugError
from modules.memory.forecasting.budget import Budget
from modules.memory.planning.idle_cache import idle_limit_bytes
from modules.memory.planning.planner import Plan

_UNIX = "unix://"


class LlamaServer:
    """A loaded file. Every method may be called from any thread.

    `gpu_bytes` is what the load took of each GPU, `weights` what of each device is tensors; {} where nobody says.
    """

    def __init__(self, plan: Plan, *, by_mean: bool = False) -> None:
        """Load the file of `plan`, whose header is checked, a draft model with the same vocabulary, and adapters that
        fit it. Embeddings, where the plan makes them, are what the file says, or with `by_mean` the mean.

        Raises NotAvailableHere where llama.cpp sees too few GPUs, LoadFailed or OutOfMemory. Holds Python's lock
        meanwhile.
        """
        spin_as_llamacpp_should()
        import xllamacpp

        from modules.memory.dryruns.llamacpp_params import apply, embed, load_params, speculate

        before = xllamacpp.get_device_info() if plan.gpu_layers else []
        if plan.gpu_layers:
            check_gpus(before, plan.gpu_layers)
        self.guesses = plan.speculate != "off"
        self._key = secrets.token_urlsafe(32)
        params = load_params(plan.spec.path, plan.run, plan.gpu_layers, idle_bytes=idle_limit_bytes(plan.budgets))
        if self.guesses:
            speculate(params, None if plan.draft is None else plan.draft.path)
        if plan.embeds:
            embed(params, by_mean=by_mean)
        apply(params, plan.loras)
        params.api_keys = [self._key]
        self._folder = Path(tempfile.mkdtemp(prefix="snug-"))  # readable for this user alone
        if hasattr(socket, "AF_UNIX"):
            params.hostnames = [str(self._folder / "llama.sock")]
        try:
            with hear_load(self._folder) as heard:
                params.verbosity = heard.verbosity
                self._server: Any = xllamacpp.Server(params)
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise _failure(plan, error, heard, xllamacpp.get_device_info()) from error
        self._address: str = self._server.listening_address
        self.weights = heard.weights
        after = xllamacpp.get_device_info() if plan.gpu_layers else []
        self.gpu_bytes = most_taken(taken_bytes(before, after), heard.buffers)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The answer of one endpoint, JSON; POST where there is a `body`."""
        return self.begin(path, body).answer()

    def begin(self, path: str, body: Mapping[str, Any] | None = None) -> Question:
        """`ask` whose answer can be waited for, or given up."""
        return Question(self._open(), path, self._headers, body)

    def stream(self, body: Mapping[str, Any]) -> Stream:
        """Begin a completion."""
        return Stream(self._open(), "/completion", self._headers, {**body, "stream": True})

    def close(self) -> None:
        """Free the model."""
        self._server = None
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}

    def _open(self) -> socket.socket:
        """A connection to the server."""
        if self._address.startswith(_UNIX):
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connected.connect(self._address.removeprefix(_UNIX))
            return connected
        host, _, port = self._address.rpartition("/")[2].rpartition(":")
        return socket.create_connection((host, int(port)))


def _failure(plan: Plan, error: Exception, heard: LoadLog, devices: Devices) -> SnugError:
    """Why the file of `plan` was not loaded."""
    name, fewer = plan.spec.path.name, "fewer --gpu-layers" if plan.gpu_layers else ""
    short = find_shortage(heard.lines) or find_full(devices, _bytes_of_gpus(plan))
    if short or isinstance(error, MemoryError):
        return OutOfMemory(
            f"Memory ran out while llama.cpp loaded {name}{f': {short}' if short else ''}.",
            remedy=f"Close other programs, or use {fewer or 'a shorter --ctx-size'}.",
        )
    cause = f": {heard.cause}" if heard.cause else ""
    instead = f"with {fewer} or --loader transformers" if fewer else "--loader transformers"
    return LoadFailed(f"llama.cpp could not load {name}{cause}.", remedy=f"The log has the details; try {instead}.")


def _bytes_of_gpus(plan: Plan) -> list[int]:
    """What is planned for each GPU, the context that its driver keeps left out."""
    budgets = [plan.budgets.get(f"cuda:{number}", Budget()) for number in range(len(plan.gpu_layers))]
    return [budget.total - budget.context for budget in budgets]
