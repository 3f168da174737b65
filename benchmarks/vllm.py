"""What Snug costs on top of vLLM: the vLLM server that `--loader vllm` starts, asked through Snug and asked directly,
turn about in one run; beside them Snug's own engine with the same weights.

`python -m benchmarks.vllm --vllm-python /path/bin/python [--repeats 5]`. Goals: through it ≥ 0.97 × of vLLM's decode;
by our own engine ≥ 0.79 ×, which is half of the way from 45 tok/s to the 78.7 that vLLM reached on the first machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from benchmarks.common import STARTER, Measured, finish, measure, median, snug, spread

CONTEXTS = (100, 1500)
USERS = 8
NEW_TOKENS = 96
CTX_SIZE = 4096
VLLM, OWN = "vLLM", "Snug's own engine"
WORDS = "The harbour wakes before the town does, and the gulls tell of it. "


@dataclass(frozen=True)
class Side:
    """One way to the model; `own` are its own words for "do not end by yourself"."""

    base: str
    own: dict[str, Any]
    key: str = ""

    def ask(self, text: str) -> Measured:
        """One completion."""
        body = {"model": STARTER, "prompt": text, "max_tokens": NEW_TOKENS, "temperature": 0, **self.own}
        return measure(self.base, "/v1/completions", body, key=self.key)[0]


def vllm_below(process: psutil.Process) -> Side:
    """The vLLM server that a Snug has started, by its command line and environment."""
    for child in process.children(recursive=True):
        line = child.cmdline()
        if "vllm.entrypoints.openai.api_server" in line and "supervise.py" not in " ".join(line):
            port = line[line.index("--port") + 1]
            return Side(f"http://127.0.0.1:{port}", {"ignore_eos": True}, child.environ()["VLLM_API_KEY"])
    raise RuntimeError("Snug has started no vLLM")


def row(context: int, sides: dict[str, Side], repeats: int) -> list[dict[str, Any]]:
    """One user, the sides taking turns; the first turn warms up."""
    seen: dict[str, list[Measured]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        # A beginning of its own: neither side finds what the other had read.
        for number, (name, side) in enumerate(sides.items()):
            measured = side.ask(f"{turn * len(sides) + number}. " + WORDS * (context // 16))
            if turn:
                seen[name].append(measured)
    return [
        {
            "users": 1,
            "context": context,
            "side": name,
            "tokens_per_s": median([one.tokens_per_s for one in all_of]),
            "tokens_per_s_all": [round(one.tokens_per_s, 2) for one in all_of],
            "first_token_ms": 1000 * median([one.first_token_s for one in all_of]),
        }
        for name, all_of in seen.items()
    ]


def together(sides: dict[str, Side], repeats: int) -> list[dict[str, Any]]:
    """USERS at once: tokens a second of all together."""
    seen: dict[str, list[float]] = {name: [] for name in sides}
    with ThreadPoolExecutor(USERS) as pool:
        for turn in range(repeats):
            for number, (name, side) in enumerate(sides.items()):
                texts = [f"{turn}.{number}.{user}. " + WORDS * 4 for user in range(USERS)]
                began = time.perf_counter()
                made = sum(one.completion_tokens for one in pool.map(side.ask, texts))
                seen[name].append(made / (time.perf_counter() - began))
    return [
        {"users": USERS, "context": 64, "side": name, "tokens_per_s": median(all_of), "tokens_per_s_all": all_of}
        for name, all_of in seen.items()
    ]


def main() -> None:
    """Measure and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    flags = ("--loader", "vllm", "--vllm-python", arguments.vllm_python, "--ctx-size", str(CTX_SIZE), "--dtype", "bf16")
    began = time.perf_counter()
    with snug(*flags, timeout_s=390) as base, snug("--dtype", "bf16", "--speculate", "off") as own:
        load_s = time.perf_counter() - began
        never_end = {"ban_eos_token": True}
        sides = {"Snug": Side(base, never_end), VLLM: vllm_below(psutil.Process()), OWN: Side(own, never_end)}
        steps: list[Callable[[], list[dict[str, Any]]]] = [
            *(partial(row, context, sides, arguments.repeats) for context in CONTEXTS),
            partial(together, sides, arguments.repeats),
        ]
        rows = [one for step in steps for one in step()]
    ratios = []
    vllms = {(one["users"], one["context"]): one for one in rows if one["side"] == VLLM}
    for ours in (one for one in rows if one["side"] != VLLM):
        theirs = vllms[ours["users"], ours["context"]]
        ratio = ours["tokens_per_s"] / theirs["tokens_per_s"]
        ratios.append(
            {"users": ours["users"], "context": ours["context"], "side": ours["side"], "ratio": round(ratio, 3)}
        )
        print(
            f"{ours['users']} users, {ours['context']} tokens: {ours['side']} {spread(ours['tokens_per_s_all'])} "
            f"tokens/s, vLLM {spread(theirs['tokens_per_s_all'])}: × {ratio:.3f}"
        )
    finish("vllm", {"load_s": round(load_s, 1), "ratios": ratios, "rows": rows})


if __name__ == "__main__":
    main()
