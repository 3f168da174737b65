"""The results of the benchmarks as one Markdown table: what, against whom, the goal, both figures, their ratio.

`python -m benchmarks.table` reads results/*.json, writes results/table.md and puts it into README.md between its marks.
What was not measured has no row; run.sh measures what this machine can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.common import RESULTS, ROOT, median
from modules.files import atomic_write

BEGIN, END = "<!-- speed: benchmarks/table.py -->", "<!-- end of speed -->"
HEAD = ("what", "beside", "its figure", "Snug's", "ratio", "goal", "")


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `goal` is the ratio (or figure) to reach: at least it, or at most it where `most`."""

    what: str
    beside: str
    other: str
    ours: str
    ratio: float
    goal: float
    most: bool = False
    unit: str = "×"

    @property
    def reached(self) -> bool:
        """Whether the goal is."""
        return self.ratio <= self.goal if self.most else self.ratio >= self.goal

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        ratio = f"{self.ratio:.2f} ×" if self.unit == "×" else f"{self.ratio:.0f} {self.unit}"
        goal = f"{'≤' if self.most else '≥'} {self.goal:g} {self.unit}"
        return self.what, self.beside, self.other, self.ours, ratio, goal, "reached" if self.reached else "missed"


def rows() -> Iterator[Row]:
    """Every row that there are results for, in the order in which people ask."""
    for part in (_gguf, _serving, _decode, _chat, _speculative, _vllm, _page, _gpu):
        yield from part()


def _read(name: str) -> dict[str, Any]:
    """The result `name`; empty where it was not measured."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _gguf() -> Iterator[Row]:
    found = {(row["side"], row["prompt_tokens"]): row for row in _read("gguf").get("rows", [])}
    for (side, tokens), row in found.items():
        other = found["llama.cpp's server", tokens]
        figures = f"{other['tokens_per_s']} tok/s", f"{row['tokens_per_s']} tok/s"
        if side == "Snug, llama.cpp":
            yield Row(f"GGUF, decode after {tokens:,} tokens", "llama.cpp's server", *figures, row["ratio"], 0.97)
            yield Row(
                f"GGUF, first token, {tokens:,} tokens of prompt", "llama.cpp's server",
                f"{other['first_token_ms']:.0f} ms", f"{row['first_token_ms']:.0f} ms", row["first_token_later_ms"],
                10, most=True, unit="ms later",
            )  # fmt: skip
        elif side.endswith("our settings"):
            yield Row(f"GGUF, decode as we set llama.cpp, {tokens:,} tokens", "its defaults", *figures, row["ratio"], 1)


def _serving() -> Iterator[Row]:
    for row in _read("serving").get("rows", []):
        sign, goal = row["goal"].split()
        beside = "Snug, one user" if "over one user" in row["what"] else "transformers serve, continuous batching"
        yield Row(
            f"transformers bf16: {row['what']}", beside, f"{median(row['other']):.3g}", f"{median(row['snug']):.3g}",
            row["ratio"], float(goal), most=sign == "<=",
        )  # fmt: skip


def _decode() -> Iterator[Row]:
    for row in _read("decode").get("rows", []):
        yield Row(
            f"transformers {row['kind']}: decode after {row['context']:,} tokens", "model.generate",
            f"{median(row['generate']):.3g} tok/s", f"{median(row['snug']):.3g} tok/s", row["ratio"], 1,
        )  # fmt: skip


def _chat() -> Iterator[Row]:
    result = _read("chat_latency")
    if result:
        second, tenth = (f"{1000 * median(result['first_token_s'][turn]):.0f} ms" for turn in (1, 9))
        yield Row("First token, turn 10 of a growing chat", "its turn 2", second, tenth, result["turn10_over_turn2"],
                  1.6, most=True)  # fmt: skip


def _speculative() -> Iterator[Row]:
    for row in _read("speculative").get("rows", []):
        repeats = row["text"] in ("repeat", "code")
        yield Row(
            f"Guessing ahead, {row['dtype']}, {row['sampling']}: {row['text']}", "Snug without",
            f"{median(row['plain']):.3g} tok/s", f"{median(row['guessing']):.3g} tok/s", row["ratio"],
            1 if repeats else 0.97,
        )  # fmt: skip


def _vllm() -> Iterator[Row]:
    result = _read("vllm")
    speeds = {
        (row["side"], row["users"], row["context"]): f"{row['tokens_per_s']:.3g} tok/s"
        for row in result.get("rows", [])
    }
    for row in result.get("ratios", []):
        place, side = (row["users"], row["context"]), row.get("side", "Snug")
        users = "one user" if row["users"] == 1 else f"{row['users']} users together"
        what, goal = ("--loader vllm", 0.97) if side == "Snug" else ("bf16 by our own engine", 0.79)
        yield Row(
            f"{what}, {users} after {row['context']:,} tokens", "vLLM's own server", speeds["vLLM", *place],
            speeds[side, *place], row["ratio"], goal,
        )  # fmt: skip


def _page() -> Iterator[Row]:
    for row in _read("page").get("rows", []):
        yield Row(
            f"Last token to screen, {row['messages_before']} messages before", "", "", f"{row['median_ms']:.0f} ms",
            row["median_ms"], 100, most=True, unit="ms",
        )  # fmt: skip


def _gpu() -> Iterator[Row]:
    for row in _read("gpu").get("rows", []):
        if row.get("ratio"):
            yield Row(
                f"GPU, {row['shape']} {row['kind']}: decode after {row['context']:,} tokens", "model.generate",
                f"{row['generate']:.3g} tok/s", f"{row['snug']:.3g} tok/s", row["ratio"], 4,
            )  # fmt: skip


def markdown(found: list[Row]) -> str:
    """The table, and what it was measured on."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in found)]
    machines = {name: _read(name).get("machine", {}) for name in ("gguf", "serving", "decode")}
    machine: dict[str, Any] = next((one for one in machines.values() if one), {})
    where = f"{machine.get('cores')} cores of an {machine.get('cpu')}, {machine.get('ram_gib')} GiB, no GPU"
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{table}\n\nSmolLM2-135M-Instruct on {where}; each row's two sides took turns in one run; medians.\n"


def main() -> None:
    """Write the table."""
    text = markdown(list(rows()))
    atomic_write(RESULTS / "table.md", text)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    if rest:
        atomic_write(readme, f"{before}{BEGIN}\n{text}{END}{after}")
    print(text)


if __name__ == "__main__":
    main()
