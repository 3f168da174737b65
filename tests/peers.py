"""Servers that others wrote, as tests and benchmarks ask them: llama.cpp's own, and `transformers serve`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.server_rig import ROOT, free_port, wait_until_ready

_READ_ON = """
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def llama_server(code: str, *arguments: str) -> Iterator[str]:
    """llama.cpp's server in a process of its own; yields its base address.

    `code` imports xllamacpp and makes `params` of sys.argv, which holds `arguments`.
    """
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys\n{code}{_READ_ON}", *arguments], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@contextmanager
def transformers_serve(folder: Path, *flags: str, timeout_s: float = 180) -> Iterator[str]:
    """`transformers serve` with the model in `folder`, ready to answer; yields its base address."""
    port = free_port()
    command = [
        sys.executable, str(Path(sys.executable).with_name("transformers")), "serve", str(folder),
        "--host", "127.0.0.1", "--port", str(port), *flags,
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )  # fmt: skip
        try:
            base = f"http://127.0.0.1:{port}"
            wait_until_ready("transformers serve", process, log, lambda: _answers(base), timeout_s)
            yield base
        finally:
            process.kill()
            process.wait(30)


def _answers(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False
