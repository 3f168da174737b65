"""llama.cpp's server inside this process, spoken to through a socket that nobody else can open.

It loads one GGUF file and decodes several rows at once. On Windows, where Python knows no Unix sockets, it listens on
a port of the loopback that the system picks; everywhere it answers only to a key drawn at each load.
"""

from __future__ import annotations

import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.engine.llamacpp.gpus import check_gpus, check_room, taken_bytes
from modules.engine.llamacpp.question import Question
from modules.engine.llamacpp.stream import Stream
from modules.engine.process.spinning import spin_as_llamacpp_should
from modules.errors import LoadFailed, OutOfMemory
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.lora import Lora
from modules.memory.planning.drafts import Speculate

_UNIX = "unix://"


class LlamaServer:
    """A loaded file. Every method may be called from any thread. `gpu_bytes` is what the load took of each GPU."""

    def __init__(
        self, path: Path, run: RunSpec, *, gpu_layers: Sequence[int] = (), gpu_bytes: Sequence[int] = (),
        idle_bytes: int = 0, guess: Speculate = "off", draft: Path | None = None, loras: Sequence[Lora] = (),
        embeds: bool = False, by_mean: bool = False,
    ) -> None:  # fmt: skip
        """Load `path`, whose header is checked, `draft` beside it, which has the same vocabulary, and `loras`, which
        fit it; `gpu_layers` as in Plan, `gpu_bytes` what is planned for each GPU. `embeds`: it answers /v1/embeddings
        too, as the file says or `by_mean`.

        Conversations that wait may take `idle_bytes` beside the cache.

        Raises NotAvailableHere where llama.cpp sees too few GPUs, LoadFailed or OutOfMemory. Holds Python's lock
        meanwhile.
        """
        spin_as_llamacpp_should()
        import xllamacpp

        from modules.memory.dryruns.llamacpp_params import apply, embed, load_params, speculate

        before = xllamacpp.get_device_info() if gpu_layers else []
        if gpu_layers:
            check_gpus(before, gpu_layers)
        self.guesses = guess != "off"
        self._key = secrets.token_urlsafe(32)
        params = load_params(path, run, gpu_layers, idle_bytes=idle_bytes)
        if self.guesses:
            speculate(params, draft)
        if embeds:
            embed(params, by_mean=by_mean)
        apply(params, loras)
        params.api_keys = [self._key]
        params.verbosity = 1
        self._folder = Path(tempfile.mkdtemp(prefix="snug-"))  # readable for this user alone
        if hasattr(socket, "AF_UNIX"):
            params.hostnames = [str(self._folder / "llama.sock")]
        try:
            self._server: Any = xllamacpp.Server(params)
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            if isinstance(error, MemoryError):
                raise OutOfMemory("Memory ran out while llama.cpp loaded the file.") from error
            check_room(xllamacpp.get_device_info(), gpu_bytes)
            fewer = "with fewer --gpu-layers or " if gpu_layers else ""
            raise LoadFailed(
                f"llama.cpp could not load {path.name}.",
                remedy=f"The log has the details; try {fewer}--loader transformers.",
            ) from error
        self._address: str = self._server.listening_address
        self.gpu_bytes = taken_bytes(before, xllamacpp.get_device_info()) if gpu_layers else {}

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
