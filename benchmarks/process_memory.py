"""The whole engine process's peak memory on a CPU against its forecast, the load and a full context apart.

`python -m benchmarks.process_memory [--kinds bf16 fp32 int8 nf4 disk zero3] [--contexts 256 2048 8192] [--keep]`. Goal:
within 5 %, never forecast more than 3 % too low. Every case is a fresh engine process; its peak is the kernel's own
(VmHWM, set back once the model is loaded): all resident pages, those of libraries and of weights that are used where
they lie in their file included. `--keep` keeps the rows of earlier runs that this one does not measure.
"""

from __future__ import annotations

import argparse
import json
import time
import uuid
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from benchmarks.common import RESULTS, ROOT, STARTER, finish
from modules.engine.base import GenerationRequest
from modules.engine.host.host import EngineHost
from modules.engine.host.worker import LoadByName
from modules.hardware import read_inventory
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.sampling import GenerationParams
from modules.settings import LoadOptions
from modules.starter import fetch_gguf
from modules.units import MiB

FLAGS: dict[str, dict[str, object]] = {
    "bf16": {"dtype": "bf16"},
    "fp32": {"dtype": "fp32"},
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True},
    "disk": {"dtype": "bf16", "disk": True, "cpu_memory": "160MiB"},
    "zero3": {"dtype": "bf16", "deepspeed": True},
    "gguf": {"loader": "llamacpp"},
}
LOADS = {"transformers": "modules.engine.loading.huggingface:load", "deepspeed": "modules.engine.zero3.doors:load",
         "llamacpp": "modules.engine.llamacpp.engine:load"}  # fmt: skip
CONTEXTS = (256, 2048, 8192)
NEW_TOKENS = 8
# As many as it takes to fill the cache and what is kept beside it for conversations that wait.
CONVERSATIONS = 3


def status_bytes(pid: int, name: str) -> int:
    """A size from /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def make(kind: str, context: int, folder: Path) -> Plan:
    """The plan for one case on this machine's CPU."""
    options = LoadOptions.model_validate({"model": STARTER, "cpu": True, "ctx_size": context, **FLAGS[kind]})
    return make_plan(Question(inspect(folder), options, read_inventory(folder), Path(gettempdir())))


def fill_context(host: EngineHost, context: int, seed: int = 0) -> None:
    """A request that fills the context: a prompt, another for each `seed`, then a few tokens one by one."""
    ids = tuple(1000 + (index * 7919 + seed) % 40000 for index in range(context - NEW_TOKENS - 1))
    params = GenerationParams(max_new_tokens=NEW_TOKENS, ban_eos_token=True)
    with host.submit(GenerationRequest(uuid.uuid4().hex, "", ids, params)) as generation:
        _, finished = generation.result(timeout_s=1800)
    if finished.reason != "length":
        raise RuntimeError(f"the reply ended as {finished}")


def measure(kind: str, context: int, folder: Path) -> dict[str, Any]:
    """One case: bytes measured and forecast."""
    plan = make(kind, context, folder)
    budget = plan.budgets["cpu"]
    host = EngineHost.start(plan, LoadByName(LOADS[plan.loader]))
    try:
        pid = host.pid
        if pid is None:
            raise RuntimeError("the engine has no process")
        load = status_bytes(pid, "VmHWM")
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        loaded = status_bytes(pid, "VmRSS")
        started = time.perf_counter()
        for seed in range(CONVERSATIONS if budget.idle_cache else 1):
            fill_context(host, context, seed)
        run_s = time.perf_counter() - started
        run = status_bytes(pid, "VmHWM")
        file_backed = status_bytes(pid, "RssFile")
    finally:
        host.close()
    forecast_run = budget.resident + budget.transient
    return {
        "kind": kind,
        "context": context,
        "load_bytes": load,
        "loaded_bytes": loaded,
        "run_bytes": run,
        "file_backed_bytes": file_backed,
        "forecast_load_bytes": budget.load_peak,
        "forecast_run_bytes": forecast_run,
        "peak_ratio": round(budget.total / max(load, run), 4),
        "load_ratio": round(budget.load_peak / load, 4),
        "run_ratio": round(forecast_run / run, 4),
        "run_s": round(run_s, 1),
        "figures": {purpose: figure.bytes for purpose, figure in budget.figures.items()},
    }


def show(row: dict[str, Any]) -> None:
    """One line a case, in MiB."""
    sizes = {name: row[name] / MiB for name in row if name.endswith("_bytes")}
    print(
        f"{row['kind']:5} {row['context']:6,} | load {sizes['load_bytes']:7.1f} forecast "
        f"{sizes['forecast_load_bytes']:7.1f} | run {sizes['run_bytes']:7.1f} forecast "
        f"{sizes['forecast_run_bytes']:7.1f} = {row['run_ratio']:.3f} | peak {row['peak_ratio']:.3f} | "
        f"{row['run_s']} s",
        flush=True,
    )


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", default=list(FLAGS), choices=FLAGS)
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    folder = ROOT / "models" / STARTER
    rows = kept_rows() if arguments.keep else {}
    for kind in arguments.kinds:
        for context in arguments.contexts:
            model = fetch_gguf(ROOT / "models" / ".gguf") if kind == "gguf" else folder
            row = rows[kind, context] = measure(kind, context, model)
            show(row)
            ratios = [row["peak_ratio"] for row in rows.values()]
            result = {"lowest_ratio": min(ratios), "highest_ratio": max(ratios)}
            finish("process_memory", {**result, "rows": [rows[key] for key in sorted(rows)]})


def kept_rows() -> dict[tuple[str, int], dict[str, Any]]:
    """The rows of the last result by kind and context."""
    rows = json.loads((RESULTS / "process_memory.json").read_text())["rows"]
    return {(row["kind"], row["context"]): row for row in rows}


if __name__ == "__main__":
    main()
