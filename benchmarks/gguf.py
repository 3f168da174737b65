"""One GGUF file in one run, turn about: Snug, llama.cpp's own server at its defaults, and that server as Snug sets it.

`python -m benchmarks.gguf [--repeats 5] [--transformers]`; the flag adds Snug through transformers, in 16 bits.
Goals: decode ≥ 0.97 × llama.cpp's server, first token at most 10 ms later; with our settings faster than with its own.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Measured, finish, measure, median, snug, spread
from benchmarks.decode import prompt_ids
from modules.hardware import read_inventory
from modules.memory.model.spec import inspect
from modules.memory.planning.idle_cache import idle_limit_bytes
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from modules.starter import fetch_gguf
from tests.peers import llama_server

CONTEXTS = (100, 2000)
CONTEXT_TOKENS = 8192
NEW_TOKENS = 96
SNUG, DEFAULTS, OURS = "Snug, llama.cpp", "llama.cpp's server", "llama.cpp's server, our settings"
PLAIN_PARAMS = """
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.verbosity = sys.argv[1], int(sys.argv[2]), 1
"""
OUR_PARAMS = """
import json
from pathlib import Path
from modules.engine.process.spinning import spin_as_llamacpp_should
spin_as_llamacpp_should()  # before the library that reads it is loaded
import xllamacpp
from modules.memory.dryruns.llamacpp_params import load_params
from modules.memory.forecasting.forecast import RunSpec
planned = json.loads(sys.argv[3])
run = RunSpec(
    "float16", context_tokens=int(sys.argv[2]), runtime="llamacpp", prefill_chunk=planned["prefill_chunk"]
)
params = load_params(Path(sys.argv[1]), run, idle_bytes=planned["idle_bytes"])
params.verbosity = 1
"""


def compare(file: Path, repeats: int, *, transformers: bool) -> list[dict[str, Any]]:
    """Rows of all sides."""
    given = (str(file), str(CONTEXT_TOKENS))
    where = ("--model-dir", str(file.parent), "--ctx-size", str(CONTEXT_TOKENS))
    with ExitStack() as stack:
        bases = {
            SNUG: stack.enter_context(snug(*where, "--loader", "llamacpp", model=file.name)),
            DEFAULTS: stack.enter_context(llama_server(PLAIN_PARAMS, *given)),
            OURS: stack.enter_context(llama_server(OUR_PARAMS, *given, json.dumps(planned_run(file)))),
        }
        if transformers:
            through = stack.enter_context(snug(*where, "--loader", "transformers", model=file.name))
            bases["Snug, transformers"] = through
        rows = []
        for context in CONTEXTS:
            seen: dict[str, list[Measured]] = {name: [] for name in bases}
            for turn in range(repeats + 1):
                for name, base in bases.items():
                    body: dict[str, Any] = {
                        "model": file.stem, "prompt": [1000 + turn, *prompt_ids(context)], "max_tokens": NEW_TOKENS,
                        "temperature": 0,
                    }  # fmt: skip
                    body["ban_eos_token" if name.startswith("Snug") else "ignore_eos"] = True
                    figures, _ = measure(base, "/v1/completions", body)
                    if turn:  # the first one warms up
                        seen[name].append(figures)
            rows += [row(name, context, figures, seen[DEFAULTS]) for name, figures in seen.items()]
    return rows


def planned_run(file: Path) -> dict[str, Any]:
    """What Snug's plan says of the run, as far as llama.cpp's settings come from it."""
    options = LoadOptions.model_validate({"model": file.name, "ctx_size": CONTEXT_TOKENS, "loader": "llamacpp"})
    question = Question(inspect(file), options, read_inventory(file.parent), file.parent)
    plan = make_plan(question)
    return {"prefill_chunk": plan.run.prefill_chunk, "idle_bytes": idle_limit_bytes(plan.budgets)}


def row(name: str, context: int, ours: list[Measured], theirs: list[Measured]) -> dict[str, Any]:
    """One side at one length, against llama.cpp's server."""
    speeds, firsts = [one.tokens_per_s for one in ours], [one.first_token_s for one in ours]
    shown = {
        "side": name,
        "prompt_tokens": context,
        "tokens_per_s": round(median(speeds), 1),
        "first_token_ms": round(1000 * median(firsts), 1),
        "ratio": round(median(speeds) / median([one.tokens_per_s for one in theirs]), 3),
        "first_token_later_ms": round(1000 * (median(firsts) - median([one.first_token_s for one in theirs])), 1),
    }
    print(
        f"{name:34} {context:5} tokens | {spread(speeds)} tok/s | first token {spread(firsts)} s | {shown['ratio']} ×"
    )
    return shown


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--transformers", action="store_true", help="also Snug through transformers, which is slow")
    arguments = parser.parse_args()
    file = fetch_gguf(ROOT / "models" / ".gguf")
    finish("gguf", {"rows": compare(file, arguments.repeats, transformers=arguments.transformers)})


if __name__ == "__main__":
    main()
