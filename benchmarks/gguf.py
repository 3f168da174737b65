"""One GGUF file three ways in one run, turn about: Snug through llama.cpp, llama.cpp's own server at its defaults, and
Snug through transformers (unpacked to 16 bits).

`python -m benchmarks.gguf [--repeats 5]`. Goals: decode ≥ 0.97 × llama.cpp's server, first token at most 10 ms later.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Measured, finish, measure, median, snug, spread
from benchmarks.decode import prompt_ids
from modules.starter import fetch_gguf

CONTEXTS = (100, 2000)
NEW_TOKENS = 64
BARE = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.verbosity = sys.argv[1], 8192, 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def bare_server(file: Path) -> Iterator[str]:
    """llama.cpp's server with what it chooses by itself; yields its base address."""
    process = subprocess.Popen(
        [sys.executable, "-c", BARE, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the server has no output")
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def compare(file: Path, repeats: int) -> list[dict[str, Any]]:
    """Rows of all three sides."""
    where = ("--model-dir", str(file.parent), "--ctx-size", "8192")
    with ExitStack() as stack:
        bases = {
            "Snug, llama.cpp": stack.enter_context(snug(*where, "--loader", "llamacpp", model=file.name)),
            "llama.cpp's server": stack.enter_context(bare_server(file)),
            "Snug, transformers": stack.enter_context(snug(*where, "--loader", "transformers", model=file.name)),
        }
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
            rows += [row(name, context, figures, seen["llama.cpp's server"]) for name, figures in seen.items()]
    return rows


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
        f"{name:20} {context:5} tokens | {spread(speeds)} tok/s | first token {spread(firsts)} s | {shown['ratio']} ×"
    )
    return shown


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    finish("gguf", {"rows": compare(fetch_gguf(ROOT / "models" / ".gguf"), arguments.repeats)})


if __name__ == "__main__":
    main()
