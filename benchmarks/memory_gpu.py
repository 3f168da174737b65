"""Forecasts held against torch's CUDA allocator: random weights of 1B, 7B and 14B, bf16, int8 and nf4, three contexts.

Each case loads through the engine's own loader in a fresh process, reads a prompt that fills the context, writes a few
tokens and prints max_memory_allocated and max_memory_reserved. Without a GPU nothing is measured and nothing written.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import RESULTS, ROOT, keep
from benchmarks.gpu import make_model
from modules.errors import SnugError
from modules.hardware import read_inventory
from modules.memory.dryruns.asking import DryRuns
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions

KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bf16"}, "int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True},
}  # fmt: skip
_NAME = "memory-gpu"
MEASURED_SHAPES = ("1b", "7b", "14b")
CONTEXTS = (512, 4096, 16384)
WRITTEN = 8
CASE_S = 1200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be chosen of `compare_on_gpu`'s cases."""
    parser.add_argument("--shapes", nargs="+", choices=MEASURED_SHAPES, default=list(MEASURED_SHAPES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--contexts", nargs="+", type=int, default=list(CONTEXTS))


def compare_on_gpu(shapes: Sequence[str], kinds: Sequence[str], contexts: Sequence[int]) -> None:
    """These cases; prints each row and keeps it under results/, beside earlier ones of a GPU of this name."""
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured and nothing written.")
        return
    rows = _kept_rows(torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as scratch, closing(DryRuns(Path(scratch) / "dryruns")) as runs:
        folder = Path(scratch)
        for shape in shapes:
            path = make_model(folder, shape)
            for kind, context in product(kinds, contexts):
                row = compare_case(path, (shape, kind, context), runs, folder)
                print(row, flush=True)
                rows = [old for old in rows if _case(old) != _case(row)] + [row]
                _keep(rows)
            shutil.rmtree(path)
    print(summary(rows))


def compare_case(path: Path, case: tuple[str, str, int], runs: DryRuns, folder: Path) -> dict[str, Any]:
    """One row, with "error" instead of figures where the model does not fit on the GPU whole, or the case fails."""
    shape, kind, context = case
    row: dict[str, Any] = {"shape": shape, "kind": kind, "context": context}
    try:
        plan = plan_case(path, kind, context, folder)
        peaks = runs.measure(plan.spec, plan.run, kind="cuda")
    except SnugError as error:
        return {**row, "error": error.message}
    used = [device for device, budget in plan.budgets.items() if budget.weights]
    if used != ["cuda:0"]:
        return {**row, "error": f"planned over {', '.join(used)}"}
    command = [sys.executable, "-m", "benchmarks.memory_gpu", str(path), kind, str(context), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CASE_S, check=False)
    if done.returncode:
        return {**row, "error": done.stderr.strip().splitlines()[-1]}
    real = json.loads(done.stdout.splitlines()[-1])
    tensors = peaks.weights + peaks.kv_cache + max(peaks.prefill_peak, peaks.decode_peak)
    budget = plan.budgets["cuda:0"]
    reserved = budget.total - budget.context
    return {
        **row, **real, "dry_run": tensors, "forecast_reserved": reserved,
        "allocated_ratio": round(tensors / real["allocated"], 4),
        "reserved_ratio": round(reserved / real["reserved"], 4),
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far off forecasts are, of what was measured: the median and the worst error, 0.02 for 2 %."""
    found: dict[str, Any] = {"rows": len(rows), "failed": sum("error" in row for row in rows)}
    for name in ("allocated", "reserved"):
        errors = [abs(row[f"{name}_ratio"] - 1) for row in rows if "error" not in row]
        found[name] = {"median": statistics.median(errors), "worst": max(errors)} if errors else {}
    return found


def _case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["shape"], row["kind"], row["context"]


def _keep(rows: list[dict[str, Any]]) -> None:
    keep(_NAME, {"gpu": torch.cuda.get_device_name(), "summary": summary(rows), "rows": rows})


def _kept_rows(gpu: str) -> list[dict[str, Any]]:
    """What earlier runs measured on a GPU of this name."""
    try:
        record = json.loads((RESULTS / f"{_NAME}.json").read_text())
        return list(record["rows"]) if record["gpu"] == gpu else []
    except (OSError, ValueError, KeyError):
        return []


def plan_case(path: Path, kind: str, context: int, folder: Path) -> Any:
    """The plan for one case on this machine."""
    options = LoadOptions(model=path.name, ctx_size=context, **KINDS[kind])
    return make_plan(Question(inspect(path), options, read_inventory(folder), folder))


def run_case(path: Path, kind: str, context: int, folder: Path) -> dict[str, int]:
    """One load and one reply in this process: bytes at most, allocated and reserved; without a GPU both are 0."""
    from modules.engine.base import Degraded, Finished, GenerationRequest
    from modules.engine.host.host import EngineHost
    from modules.models.starting import load_engine_for
    from modules.sampling import GenerationParams

    plan = plan_case(path, kind, context, folder)
    host = EngineHost.start(plan, load_engine_for(plan), in_process=True)
    try:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        params = GenerationParams(temperature=0, max_new_tokens=WRITTEN, ban_eos_token=True)
        ids = tuple(3 + index % 250 for index in range(context - WRITTEN))
        for event in host.submit(GenerationRequest("memory", "bench", ids, params)):
            if isinstance(event, Degraded):
                raise RuntimeError(f"the reply did not run as planned: {event}")
            if isinstance(event, Finished) and event.error is not None:
                raise event.error
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    finally:
        host.close()


def main() -> None:
    """One case, for the process that asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("context", type=int)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(json.dumps(run_case(arguments.path, arguments.kind, arguments.context, arguments.folder)))


if __name__ == "__main__":
    main()
