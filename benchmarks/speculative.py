"""Guessing ahead: tokens a second through the API with prompt lookup and without, both servers taking turns.

Greedy and sampled, on text that repeats (a text said again, code changed here and there) and on text that does not (a
story, an explanation): the first shows the gain, the second what guessing costs where it does not help.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.common import ROOT, STARTER, finish, measure, median, snug, spread

NEW_TOKENS = 192
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 0.8, "top_p": 0.95, "seed": 1},
}


def prompts() -> dict[str, str]:
    """What is asked, by what it is."""
    prose = (ROOT / "tests/data/prose.txt").read_text(encoding="utf-8")[:900]
    code = (ROOT / "modules/units.py").read_text(encoding="utf-8")[:1500]
    return {
        "repeat": f"Repeat this text word for word:\n\n{prose}",
        "code": f"Rename parse_size to read_size in this code. Answer with the whole code.\n\n```python\n{code}\n```",
        "story": "Write a story about a lighthouse keeper who finds a strange letter.",
        "essay": "Explain how tides work.",
    }


def compare(dtype: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each kind of text and of sampling in one precision."""
    rows = []
    with snug("--dtype", dtype) as on, snug("--dtype", dtype, "--speculate", "off") as off:
        for kind, text in prompts().items():
            for sampling, given in SAMPLINGS.items():
                body = {
                    "model": STARTER, "messages": [{"role": "user", "content": text}], "max_tokens": NEW_TOKENS,
                    "ban_eos_token": True, **given,
                }  # fmt: skip
                rows.append(_row(dtype, kind, sampling, on, off, body, repeats))
    return rows


def _row(dtype: str, kind: str, sampling: str, on: str, off: str, body: dict[str, Any], repeats: int) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {on: [], off: []}
    texts: dict[str, str] = {}
    for index in range(repeats + 1):
        for base in (on, off) if index % 2 else (off, on):
            measured, texts[base] = measure(base, "/v1/chat/completions", body)
            if index:  # the first reads the prompt
                speeds[base].append(measured.tokens_per_s)
    ratios = [a / b for a, b in zip(speeds[on], speeds[off], strict=True)]
    row = {
        "dtype": dtype, "text": kind, "sampling": sampling, "guessing": speeds[on], "plain": speeds[off],
        "ratio": median(ratios), "same_text": texts[on] == texts[off],
    }  # fmt: skip
    print(
        f"{dtype} {kind:6} {sampling:7} tok/s: guessing {spread(speeds[on]):22} plain {spread(speeds[off]):22} "
        f"× {row['ratio']:.2f}{'' if row['same_text'] else '   (another text)'}",
        flush=True,
    )
    return row


def main() -> None:
    """Compare in every precision asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", choices=("bf16", "fp32"), default=["bf16", "fp32"])
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    rows = [row for dtype in asked.dtypes for row in compare(dtype, asked.repeats)]
    goal = "text that repeats: above 1; other text: at least 0.97; in fp32 the same text"
    finish("speculative", {"new_tokens": NEW_TOKENS, "rows": rows, "goal": goal})


if __name__ == "__main__":
    main()
