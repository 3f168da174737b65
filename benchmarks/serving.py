"""Alone and with eight at once: Snug's transformers engine and `transformers serve --continuous-batching`, both in one
run, turn about, the same weights in bf16 and the same client.

`python -m benchmarks.serving [--repeats 5]`. Goals in GOALS, each a ratio Snug over the other (of times: at most).
The other's replies are greedy, its cheapest; in the row of eight each of Snug's has a sampler and a seed of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.chat_latency import SENTENCE
from benchmarks.common import ROOT, STARTER, Measured, finish, measure, median, snug, spread
from tests.peers import transformers_serve

GOALS = {
    "decode, 1 user, tok/s": (">=", 1.05),
    "decode, 1 user, after 2,200 tokens, tok/s": (">=", 1.1),
    "8 users together, tok/s": (">=", 1.0),
    "first token at turn 10, two chats interleaved, ms": ("<=", 0.8),
    "worst first token of 8 over one user's (Snug), ms": ("<=", 2.5),
}
USERS = 8
NEW_TOKENS = 64
TURNS = 10
MIXED: list[dict[str, Any]] = [
    {"temperature": 0.7, "top_p": 0.9, "seed": 1},
    {"temperature": 1.0, "min_p": 0.05, "seed": 2},
    {"temperature": 0.8, "top_k": 40, "repetition_penalty": 1.1, "seed": 3},
    {"temperature": 0},
    {"temperature": 1.2, "typical_p": 0.9, "seed": 4},
    {"temperature": 0.9, "mirostat_mode": 2, "seed": 5},
    {"temperature": 0.8, "dry_multiplier": 0.8, "seed": 6},
    {"temperature": 1.0, "xtc_probability": 0.5, "top_p": 0.95, "seed": 7},
]


@dataclass(frozen=True, slots=True)
class Side:
    """A server to ask: its address, the name of the model there, and what its requests have beside the others'."""

    base: str
    model: str
    extra: dict[str, Any]

    def chat(self, messages: list[dict[str, str]], new_tokens: int, **extra: Any) -> tuple[Measured, str]:
        """One streamed reply, greedy unless `extra` says otherwise."""
        body = {"model": self.model, "messages": messages, "max_tokens": new_tokens, "temperature": 0}
        return measure(self.base, "/v1/chat/completions", {**body, **self.extra, **extra})


def user(text: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": text}]


def alone(side: Side, run: int) -> float:
    """Tokens a second of a short conversation."""
    return side.chat(user(f"Write a long story about lighthouse number {run}."), NEW_TOKENS)[0].tokens_per_s


def alone_long(side: Side, run: int) -> float:
    """Tokens a second behind about 2,200 tokens."""
    return side.chat(user(f"{run}. " + SENTENCE * 96 + "Write a long story about it."), NEW_TOKENS)[0].tokens_per_s


def together(side: Side, run: int, *, mixed: bool) -> tuple[float, float]:
    """Eight at once: tokens a second of all, and the worst first token in seconds."""

    def one(number: int) -> Measured:
        extra = MIXED[number] if mixed else {}
        return side.chat(user(f"Write a story about number {run}{number}."), NEW_TOKENS, **extra)[0]

    started = time.perf_counter()
    with ThreadPoolExecutor(USERS) as pool:
        replies = list(pool.map(one, range(USERS)))
    took = time.perf_counter() - started
    return sum(reply.completion_tokens for reply in replies) / took, max(reply.first_token_s for reply in replies)


def last_turns(side: Side, run: int) -> float:
    """Seconds to the first token at turn 10, median of two chats that take turns and grow to about 2,200 tokens."""
    chats: list[list[dict[str, str]]] = [[], []]
    firsts = [0.0, 0.0]
    for turn in range(1, TURNS + 1):
        for number, messages in enumerate(chats):
            text = f"Log {run}{number}. Note {turn}. " + SENTENCE * 8 + "What comes next?"
            messages.append({"role": "user", "content": text})
            figures, reply = side.chat(messages, 24)
            messages.append({"role": "assistant", "content": reply})
            firsts[number] = figures.first_token_s
    return median(firsts)


def compare(repeats: int) -> list[dict[str, Any]]:
    """All rows; each side's measurements take turns, and the first of each is thrown away."""
    with ExitStack() as stack:
        flags = ("--dtype", "bf16", "--speculate", "off")  # the other does not guess ahead either
        ours = Side(stack.enter_context(snug(*flags)), STARTER, {"ban_eos_token": True})
        model = ROOT / "models" / STARTER
        # 16,384 tokens of cache: by default it takes most of the memory.
        batching = ("--continuous-batching", "--dtype", "bfloat16", "--cb-num-blocks", "64")
        other = Side(stack.enter_context(transformers_serve(model, *batching)), str(model), {})
        names = list(GOALS)
        rows = [
            _row(names[0], *_turns(partial(alone, ours), partial(alone, other), repeats)),
            _row(names[1], *_turns(partial(alone_long, ours), partial(alone_long, other), repeats)),
        ]
        crowd, crowd_there = _turns(partial(together, ours, mixed=True), partial(together, other, mixed=False), repeats)
        rows.append(_row(names[2], [speed for speed, _ in crowd], [speed for speed, _ in crowd_there]))
        rows.append(_row(names[3], *_turns(partial(last_turns, ours), partial(last_turns, other), max(2, repeats // 2)),
                         unit=1000))  # fmt: skip
        ones = [ours.chat(user(f"Write a story about number {run}x."), 8)[0].first_token_s for run in range(repeats)]
        rows.append(_row(names[4], [worst for _, worst in crowd], ones, unit=1000))
    return rows


def _turns(ours: Callable[[int], Any], theirs: Callable[[int], Any], repeats: int) -> tuple[list[Any], list[Any]]:
    pairs = [(ours(run), theirs(run)) for run in range(repeats + 1)][1:]
    return [mine for mine, _ in pairs], [other for _, other in pairs]


def _row(what: str, ours: list[float], theirs: list[float], *, unit: float = 1) -> dict[str, Any]:
    ours, theirs = [value * unit for value in ours], [value * unit for value in theirs]
    sign, goal = GOALS[what]
    ratio = median(ours) / median(theirs)
    reached = ratio >= goal if sign == ">=" else ratio <= goal
    print(f"{what:52} Snug {spread(ours):22} other {spread(theirs):22} × {ratio:.2f} ({sign} {goal}: {reached})",
          flush=True)  # fmt: skip
    return {
        "what": what, "snug": [round(value, 2) for value in ours], "other": [round(value, 2) for value in theirs],
        "ratio": round(ratio, 3), "goal": f"{sign} {goal}", "reached": reached,
    }  # fmt: skip


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    finish("serving", {"rows": compare(parser.parse_args().repeats)})


if __name__ == "__main__":
    main()
