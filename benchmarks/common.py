"""What the benchmarks share: a server of our own, a client that measures streams, and honest printing."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.server_rig import free_port, wait_until_ready

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
STARTER = "SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class Measured:
    """One streamed reply, seen from the client: seconds to the first token, tokens a second after it."""

    first_token_s: float
    tokens_per_s: float
    completion_tokens: int
    cached_tokens: int


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate", "bitsandbytes")}
    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "cpu": cpu,
        "cores": psutil.cpu_count(logical=False),
        "ram_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **versions,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


@contextmanager
def snug(*flags: str, model: str = STARTER, timeout_s: float = 300) -> Iterator[str]:
    """A Snug server with `flags`, ready to answer; yields its base address and ends it afterwards."""
    port = free_port()
    with tempfile.TemporaryDirectory() as user_data, tempfile.TemporaryFile("w+") as log:
        command = [
            sys.executable, "server.py", "--model", model, "--listen-port", str(port), "--user-data-dir", user_data,
            *flags,
        ]  # fmt: skip
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        base = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready("the server", process, log, lambda: _is_ready(base), timeout_s)
            yield base
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_ready(base: str) -> bool:
    try:
        return bool(httpx.get(f"{base}/health", timeout=5).json().get("ready"))
    except (httpx.HTTPError, ValueError):
        return False


def measure(base: str, path: str, body: dict[str, Any], *, key: str = "") -> tuple[Measured, str]:
    """Stream one request to an OpenAI-compatible endpoint; returns the figures and the text.

    Lines are only noted while they come and read afterwards: the client shares the machine with what it measures.
    """
    lines: list[tuple[float, bytes]] = []
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=600)
    with contextlib.closing(connection):
        start = time.perf_counter()
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request("POST", path, json.dumps(request), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        while line := response.readline():
            lines.append((time.perf_counter(), line))
    text, times = "", []
    usage: dict[str, Any] = {}
    for at, line in lines:
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"]))
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            if piece := choice.get("text") or choice.get("delta", {}).get("content"):
                times.append(at)
                text += piece
    tokens = usage.get("completion_tokens") or len(times)  # not every server counts
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    speed = (tokens - 1) / (times[-1] - times[0]) if tokens > 1 and times[-1] > times[0] else 0.0
    return Measured(times[0] - start, speed, tokens, cached), text


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """`median (min–max)` with three digits."""
    return f"{median(values):.3g} ({min(values):.3g}–{max(values):.3g})"


def finish(name: str, result: dict[str, Any]) -> None:
    """Keep the result under results/ and print it as the last line."""
    print(json.dumps(keep(name, result)))


def keep(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Keep the result under results/, with what it was taken on; what was written."""
    command = " ".join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    record = {"benchmark": name, "command": command, "machine": machine(), **result}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return record
