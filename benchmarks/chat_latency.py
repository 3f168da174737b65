"""Time to the first token over a ten-turn chat that grows to about 2,200 prompt tokens.

`python -m benchmarks.chat_latency [--repeats 3] [--flags …]`. Goal: turn 10 ≤ 1.6 × turn 2.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import STARTER, finish, measure, median, snug, spread

TURNS = 10
REPLY_TOKENS = 24
SENTENCE = "The keeper of the lighthouse wrote down wind, tide and passing ships each evening before the lamp was lit. "


def chat(base: str, salt: str) -> list[dict[str, float]]:
    """One chat from empty to about 2,200 tokens; a row a turn."""
    messages: list[dict[str, str]] = []
    rows = []
    for turn in range(1, TURNS + 1):
        messages.append({"role": "user", "content": f"{salt} Note {turn}. " + SENTENCE * 8 + "What comes next?"})
        body: dict[str, Any] = {
            "model": STARTER, "messages": messages, "max_tokens": REPLY_TOKENS, "temperature": 0, "ban_eos_token": True,
        }  # fmt: skip
        measured, text = measure(base, "/v1/chat/completions", body)
        messages.append({"role": "assistant", "content": text})
        rows.append({"first_token_s": measured.first_token_s, "cached_tokens": float(measured.cached_tokens)})
    return rows


def main() -> None:
    """Run the chat several times and print each turn's median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=["--dtype", "bf16"])
    arguments = parser.parse_args()
    with snug(*arguments.flags) as base:
        chat(base, "warm-up")
        chats = [chat(base, f"Log {index}.") for index in range(arguments.repeats)]
    turns = [[run[turn]["first_token_s"] for run in chats] for turn in range(TURNS)]
    for number, values in enumerate(turns, 1):
        cached = median([run[number - 1]["cached_tokens"] for run in chats])
        print(f"turn {number:2}   first token {spread([value * 1000 for value in values])} ms   {cached:.0f} cached")
    ratio = median(turns[9]) / median(turns[1])
    print(f"turn 10 / turn 2: × {ratio:.2f} (goal ≤ 1.6)")
    finish("chat_latency", {"first_token_s": turns, "turn10_over_turn2": ratio, "goal": "<= 1.6"})


if __name__ == "__main__":
    main()
