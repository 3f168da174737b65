"""A plan as vLLM's command line and environment, and its log as the progress of a load. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from modules.engine.base import Progress
from modules.errors import LoadFailed, NotAvailableHere, OutOfMemory, SnugError
from modules.memory.forecasting.forecast import DTYPE_FLAGS, DType
from modules.memory.planning.planner import Plan
from modules.units import GiB

INSTALL = "Install it in an environment of its own and name that: --vllm-python /path/bin/python (docs/scale.md)."
_DTYPES: dict[DType, str] = {dtype: dtype for dtype in DTYPE_FLAGS}
# What is ours alone: vLLM's Python must not find Snug's packages, nor Snug's ways with threads.
_OURS = ("PYTHONPATH", "OMP_NUM_THREADS", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES")
_STAGES: tuple[tuple[str, str, float], ...] = (
    ("Resolved architecture", "Starting vLLM's engine", 0.15),
    ("Starting to load model", "Loading weights", 0.3),
    ("Loading weights took", "Weights are loaded", 0.55),
    ("Warming up model", "Compiling; the first time this takes a minute or two", 0.6),
    ("torch.compile", "Compiling; the first time this takes a minute or two", 0.65),
    ("Capturing CUDA graph", "Capturing CUDA graphs", 0.8),
    ("KV cache size", "Making room for conversations", 0.9),
    ("Starting vLLM", "Starting its server", 0.95),
)
_SHARDS = re.compile(r"checkpoint shards:\s+(\d+)%")
_MEMORY = re.compile(
    r"out of memory|OutOfMemory|No available memory|larger than the available KV cache|Cannot allocate"
)
_FREE = re.compile(r"Free memory on device .* is less than desired|not enough memory|MemoryError", re.IGNORECASE)


def serve_command(plan: Plan, python: Path, port: int, *, gpu_total_bytes: int = 0) -> list[str]:
    """vLLM's OpenAI server on loopback, within the plan's limits. Its key is in the environment, never here."""
    run = plan.run
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(plan.spec.path.resolve()),
        "--served-model-name", plan.spec.name, "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", str(run.context_tokens), "--dtype", _DTYPES[run.dtype],
        "--enable-tokenizer-info-endpoint", "--enable-prompt-tokens-details",
    ]  # fmt: skip
    if run.quantization != "none" and plan.spec.prequantized == "none":
        command += ["--quantization", "bitsandbytes"]
    if plan.trust_remote_code:
        command.append("--trust-remote-code")
    gpu = _gpu_of(plan)
    if gpu and gpu_total_bytes:
        command += ["--gpu-memory-utilization", f"{utilization(plan, gpu, gpu_total_bytes):.3f}"]
    return command


def utilization(plan: Plan, gpu: str, total_bytes: int) -> float:
    """The share of the GPU that vLLM may take: what the plan needs, rounded up to a thousandth, at most 0.95."""
    return min(0.95, math.ceil(1000 * plan.budgets[gpu].total / total_bytes) / 1000)


def serve_environment(plan: Plan, key: str, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of vLLM's server: nothing is fetched or reported; on a CPU the plan's KV cache, in whole GiB."""
    environment = {name: value for name, value in base.items() if name not in _OURS}
    environment |= {
        "VLLM_API_KEY": key,
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TIKTOKEN_CACHE_DIR": "",
        "PYTHONUNBUFFERED": "1",
    }
    gpu = _gpu_of(plan)
    if gpu:
        return environment | {"CUDA_VISIBLE_DEVICES": gpu.partition(":")[2]}
    cache = plan.budgets["cpu"].kv_cache if "cpu" in plan.budgets else 0
    return environment | {"VLLM_CPU_KVCACHE_SPACE": str(max(1, math.ceil(cache / GiB))), "VLLM_TARGET_DEVICE": "cpu"}


def stage_of(line: str) -> Progress | None:
    """How far a load is, by a line of vLLM's log; None for one that says nothing of it."""
    if shards := _SHARDS.search(line):
        return Progress("Loading weights", 0.3 + 0.25 * int(shards[1]) / 100)
    return next((Progress(text, fraction) for mark, text, fraction in _STAGES if mark in line), None)


def failure(name: str, lines: list[str], code: int | None) -> SnugError:
    """Why vLLM ended before it could answer, by the last lines of its log."""
    log = "\n".join(lines)
    if "No module named 'vllm" in log or "No module named vllm" in log:
        return NotAvailableHere("vLLM is not installed there.", remedy=INSTALL, param="vllm_python")
    if _MEMORY.search(log) or _FREE.search(log):
        return OutOfMemory(
            f"Memory ran out while vLLM loaded {name}.",
            remedy="Choose a shorter --ctx-size, fewer bits or another loader, or close other programs.",
        )
    errors = [line for line in lines if re.search(r"\b\w*(Error|Exception)\b: ", line)]
    brief = " ".join((errors or lines or ["it said nothing"])[-1].split())[-200:]
    return LoadFailed(
        f"vLLM ended before it answered ({'it was killed' if code and code > 128 else f'exit code {code}'}): {brief}",
        remedy="The log says more; --loader transformers is another way to run this model.",
    )


def _gpu_of(plan: Plan) -> str:
    """The one GPU that the plan uses, "" for none."""
    return next((device for device in plan.budgets if device.startswith("cuda")), "")
