"""The most tokens a second that this machine's memory allows: what it reads a second, over what a token has to read.

`python -m benchmarks.limit [--repeats 4]` measures the bandwidth as Snug itself does (a sum over 512 MiB; the best
counts, earlier runs on this machine included, since nothing hastens it) and keeps it with the bytes of the models that
the other benchmarks run; table.py divides. A token reads every weight at the width that it is stored in, and the keys
and values of what came before it in its own row. A CPU's caches can beat this for models that fit into them, and so can
guessing ahead: it is the limit of one token a pass over weights that come from memory.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, ROOT, STARTER, finish, machine
from modules.hardware import read_inventory
from modules.machine_speeds import measure
from modules.memory.forecasting.forecast import RunSpec, kv_traffic_bytes
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.placement import make_groups
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from modules.starter import fetch_gguf

SAME_MACHINE = ("cpu", "cores", "ram_gib")
KINDS: dict[str, dict[str, Any]] = {
    "bf16": {"dtype": "bf16"}, "fp32": {"dtype": "fp32"}, "int8": {"load_in_8bit": True}, "nf4": {"load_in_4bit": True},
}  # fmt: skip
LONG = 1024  # tokens over which the cache's bytes are averaged; whole pages in every engine


def bytes_a_token(spec: ModelSpec, run: RunSpec) -> dict[str, float]:
    """What each token reads of a model that runs as `run`: `weights`, and `cache` for each token before it."""
    return {
        "weights": sum(group.read for group in make_groups(spec, run)),
        "cache": kv_traffic_bytes(spec, run, LONG) / LONG,
    }


def tokens_per_s(read_Bps: float, size: dict[str, float], context: float, *, rows: int = 1) -> float:
    """The limit of `rows` conversations together, each with `context` tokens before the one that is written."""
    return rows * read_Bps / (size["weights"] + rows * context * size["cache"])


def is_same_machine(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two results were taken on machines alike."""
    return all(first.get(name) == second.get(name) for name in SAME_MACHINE)


def planned(path: Path, options: dict[str, Any]) -> dict[str, float]:
    """`bytes_a_token` of a model as Snug loads it with `options`."""
    spec = inspect(path)
    question = Question(spec, LoadOptions(model=path.name, **options), read_inventory(path.parent), path.parent)
    return bytes_a_token(spec, make_plan(question).run)


def earlier(here: dict[str, Any]) -> list[float]:
    """What was measured on this machine before."""
    file = RESULTS / "limit.json"
    kept = json.loads(file.read_text()) if file.exists() else {"machine": {}}
    return list(kept["read_Bps_all"]) if is_same_machine(kept["machine"], here) else []


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=4)
    found = [measure() for _ in range(parser.parse_args().repeats)]
    rates = [one["cpu"]["read_Bps"] for one in found if "cpu" in one]
    if not rates:
        raise SystemExit("The bandwidth could not be measured.")
    rates += earlier(machine())
    models = {kind: planned(ROOT / "models" / STARTER, options) for kind, options in KINDS.items()}
    models["gguf"] = planned(fetch_gguf(ROOT / "models" / ".gguf"), {"loader": "llamacpp"})
    for kind, size in models.items():
        limits = ", ".join(f"{tokens_per_s(max(rates), size, context):.3g} after {context:,}" for context in (0, 2000))
        print(f"{kind:5} {size['weights'] / 2**20:6.0f} MiB of weights, {size['cache']:7.0f} B a token: {limits} tok/s")
    print(f"{max(rates) / 1e9:.1f} GB/s on {machine()['cpu']}")
    finish("limit", {"read_Bps": max(rates), "read_Bps_all": rates, "models": models})


if __name__ == "__main__":
    main()
