"""Decode speed through our API against plain `model.generate`, both sides in one run, turn about.

`python -m benchmarks.decode [--kinds bf16 fp32 int8 nf4] [--repeats 5]`. Goal: ≥ 1.0 × at 100 and at 2,000 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.common import ROOT, STARTER, finish, measure, median, snug, spread
from modules.engine.host.child import engine_environment

FLAGS = {
    "bf16": ["--dtype", "bf16"],
    "fp32": ["--dtype", "fp32"],
    "int8": ["--load-in-8bit"],
    "nf4": ["--load-in-4bit"],
}
CONTEXTS = (100, 2000)
NEW_TOKENS = 64


def prompt_ids(count: int) -> list[int]:
    """`count` ordinary token ids, none of them special, the same in every run."""
    return [1000 + (index * 7919) % 40000 for index in range(count)]


class Generate:
    """`model.generate` in its own process."""

    def __init__(self, kind: str) -> None:
        command = [sys.executable, "-m", "benchmarks.generate_worker", str(ROOT / "models" / STARTER), kind]
        # The engine's own threads: set only after the start, they lose several times more to other work on the machine.
        environment = engine_environment(os.environ)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, ids: list[int]) -> dict[str, Any]:
        """One generation's figures."""
        stdin, stdout = self.process.stdin, self.process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the worker has no pipes")
        stdin.write(json.dumps({"ids": ids, "new_tokens": NEW_TOKENS}) + "\n")
        stdin.flush()
        result: dict[str, Any] = json.loads(stdout.readline())
        return result

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


def compare(kind: str, repeats: int) -> list[dict[str, Any]]:
    """Rows of both sides for one kind of weights."""
    rows: list[dict[str, Any]] = []
    with snug(*FLAGS[kind], "--speculate", "off") as base:  # `generate` does not guess ahead either
        other = Generate(kind)
        try:
            for context in CONTEXTS:
                ids = prompt_ids(context)
                body = {
                    "model": STARTER, "prompt": ids, "max_tokens": NEW_TOKENS, "temperature": 0, "ban_eos_token": True,
                }  # fmt: skip
                ours, theirs = [], []
                for index in range(repeats + 1):
                    measured, _ = measure(base, "/v1/completions", body)
                    reference = other.run(ids)
                    if index:
                        ours.append(measured.tokens_per_s)
                        theirs.append(reference["tokens_per_s"])
                ratio = median([a / b for a, b in zip(ours, theirs, strict=True)])
                rows.append({"kind": kind, "context": context, "snug": ours, "generate": theirs, "ratio": ratio})
                print(
                    f"{kind:5} {context:5} tokens   tok/s: snug {spread(ours):24} generate {spread(theirs):24}"
                    f" × {ratio:.2f}",
                    flush=True,
                )
        finally:
            other.close()
    return rows


def main() -> None:
    """Compare every kind asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="+", choices=FLAGS, default=list(FLAGS))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = [row for kind in arguments.kinds for row in compare(kind, arguments.repeats)]
    finish("decode", {"new_tokens": NEW_TOKENS, "rows": rows, "goal": "ratio >= 1.0"})


if __name__ == "__main__":
    main()
