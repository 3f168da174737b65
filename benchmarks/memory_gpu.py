"""Forecasts held against torch's CUDA allocator: random weights of 1B, 7B and 14B, bf16, int8 and nf4, three contexts.

Each case loads through the engine's own loader in a fresh process, reads a prompt that fills the context, writes a few
tokens and prints max_memory_allocated and max_memory_reserved. Without a GPU nothing is measured and nothing written.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, finish
from benchmarks.gpu import make_model
from modules.hardware import read_inventory
from modules.memory.dryruns import DryRuns
from modules.memory.planner import Question, make_plan
from modules.memory.spec import inspect
from modules.settings import LoadOptions

KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bf16"}, "int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True},
}  # fmt: skip
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
    """Every shape, kind and context; prints each row and keeps them under results/."""
    if not torch.cuda.is_available():
        print("There is no GPU here: nothing was measured and nothing written.")
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runs = DryRuns(folder / "dryruns")
        for shape in shapes:
            path = make_model(folder, shape)
            for kind in kinds:
                rows += [_compare(path, shape, kind, context, runs, folder) for context in contexts]
            _remove(path)
        runs.close()
    fits = {name: [abs(row[f"{name}_ratio"] - 1) for row in rows] for name in ("allocated", "reserved")}
    summary = {name: {"median": statistics.median(errors), "worst": max(errors)} for name, errors in fits.items()}
    print(summary)
    finish("memory-gpu", {"gpu": torch.cuda.get_device_name(), "summary": summary, "rows": rows})


def _compare(path: Path, shape: str, kind: str, context: int, runs: DryRuns, folder: Path) -> dict[str, Any]:
    plan = plan_case(path, kind, context, folder)
    peaks = runs.measure(plan.spec, plan.run, kind="cuda")
    tensors = peaks.weights + peaks.kv_cache + max(peaks.prefill_peak, peaks.decode_peak)
    command = [sys.executable, "-m", "benchmarks.memory_gpu", str(path), kind, str(context), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=CASE_S, check=True)
    real = json.loads(done.stdout.splitlines()[-1])
    (budget,) = (budget for device, budget in plan.budgets.items() if device.startswith("cuda"))
    reserved = budget.total - budget.context
    row = {
        "shape": shape, "kind": kind, "context": context, **real, "dry_run": tensors, "forecast_reserved": reserved,
        "allocated_ratio": round(tensors / real["allocated"], 4),
        "reserved_ratio": round(reserved / real["reserved"], 4),
    }  # fmt: skip
    print(row, flush=True)
    return row


def plan_case(path: Path, kind: str, context: int, folder: Path) -> Any:
    """The plan for one case on this machine."""
    options = LoadOptions(model=path.name, ctx_size=context, **KINDS[kind])
    return make_plan(Question(inspect(path), options, read_inventory(folder), folder))


def run_case(path: Path, kind: str, context: int, folder: Path) -> dict[str, int]:
    """One load and one reply in this process: bytes at most, allocated and reserved."""
    from modules.engine.base import Finished, GenerationRequest
    from modules.engine.host import EngineHost
    from modules.models.starting import load_engine_for
    from modules.sampling import GenerationParams

    plan = plan_case(path, kind, context, folder)
    host = EngineHost.start(plan, load_engine_for(plan), in_process=True)
    try:
        torch.cuda.reset_peak_memory_stats()
        params = GenerationParams(temperature=0, max_new_tokens=WRITTEN, ban_eos_token=True)
        ids = tuple(3 + index % 250 for index in range(context - WRITTEN))
        for event in host.submit(GenerationRequest("memory", "bench", ids, params)):
            if isinstance(event, Finished) and event.error is not None:
                raise event.error
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    finally:
        host.close()


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


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
