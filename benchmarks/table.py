"""The results of the benchmarks as one Markdown table: what, the limit, the peer and Snug, their ratio, the goal.

`python -m benchmarks.table` reads results/*.json, writes results/table.md and puts it into README.md between its marks.
What was not measured has no row; run.sh measures what this machine can.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import decode, gguf, serving, vllm
from benchmarks.common import RESULTS, ROOT, median
from benchmarks.limit import is_same_machine, tokens_per_s
from modules.files import atomic_write

BEGIN, END = "<!-- speed: benchmarks/table.py -->", "<!-- end of speed -->"
HEAD = ("what", "limit", "beside", "its figure", "Snug's", "ratio", "goal", "")
HALF_WAY = (45 + 78.7) / 2 / 78.7  # of the way from what transformers gave to what vLLM gave, on the first machine
# Rows of serving.py that decode: users, tokens of their prompts.
SERVING_ROWS = {
    "decode, 1 user, tok/s": (1, 40), "decode, 1 user, after 2,200 tokens, tok/s": (1, 2200),
    "8 users together, tok/s": (8, 40),
}  # fmt: skip


def rounded(value: float) -> str:
    """To three digits, above a thousand to whole numbers."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. `goal` is the ratio (or figure) to reach: at least it, or at most it where `most`. `limit`: the
    tokens a second that the memory's bandwidth allows, of rows that decode.
    """

    what: str
    beside: str
    other: str
    ours: str
    ratio: float
    goal: float
    most: bool = False
    unit: str = "×"
    limit: float | None = None

    @property
    def reached(self) -> bool:
        """Whether the goal is."""
        return self.ratio <= self.goal if self.most else self.ratio >= self.goal

    @property
    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        ratio = f"{self.ratio:.2f} ×" if self.unit == "×" else f"{self.ratio:.0f} {self.unit}"
        goal = f"{'≤' if self.most else '≥'} {self.goal:.3g} {self.unit}"
        limit = "" if self.limit is None else f"{rounded(self.limit)} tok/s"
        end = "reached" if self.reached else "missed"
        return self.what, limit, self.beside, self.other, self.ours, ratio, goal, end


def rows() -> Iterator[Row]:
    """Every row that there are results for, in the order in which people ask."""
    for part in (_gguf, _serving, _decode, _chat, _speculative, _vllm, _page, _gpu):
        yield from part()


def _read(name: str) -> dict[str, Any]:
    """The result `name`; empty where it was not measured."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def _limit(result: dict[str, Any], kind: str, context: int, new_tokens: int, *, users: int = 1) -> float | None:
    """The limit of such a row of `result`, in the middle of its reply; None where this machine's is not known."""
    known = _read("limit")
    if not known or not is_same_machine(known["machine"], result["machine"]):
        return None
    return tokens_per_s(known["read_Bps"], known["models"][kind], context + new_tokens / 2, rows=users)


def _gguf() -> Iterator[Row]:
    result = _read("gguf")
    found = {(row["side"], row["prompt_tokens"]): row for row in result.get("rows", [])}
    for (side, tokens), row in found.items():
        limit = _limit(result, "gguf", tokens, gguf.NEW_TOKENS)
        other = found["llama.cpp's server", tokens]
        figures = f"{other['tokens_per_s']} tok/s", f"{row['tokens_per_s']} tok/s"
        if side == "Snug, llama.cpp":
            yield Row(
                f"GGUF, decode after {tokens:,} tokens", "llama.cpp's server", *figures, row["ratio"], 0.97, limit=limit
            )
            yield Row(
                f"GGUF, first token, {tokens:,} tokens of prompt", "llama.cpp's server",
                f"{other['first_token_ms']:.0f} ms", f"{row['first_token_ms']:.0f} ms", row["first_token_later_ms"],
                10, most=True, unit="ms later",
            )  # fmt: skip
        elif side.endswith("our settings"):
            yield Row(
                f"GGUF, decode as we set llama.cpp, {tokens:,} tokens", "its defaults", *figures, row["ratio"], 1,
                limit=limit,
            )  # fmt: skip


def _serving() -> Iterator[Row]:
    result = _read("serving")
    for row in result.get("rows", []):
        sign, goal = row["goal"].split()
        limit = None
        if place := SERVING_ROWS.get(row["what"]):
            limit = _limit(result, "bf16", place[1], serving.NEW_TOKENS, users=place[0])
        beside = "Snug, one user" if "over one user" in row["what"] else "transformers serve, continuous batching"
        yield Row(
            f"transformers bf16: {row['what']}", beside, rounded(median(row["other"])), rounded(median(row["snug"])),
            row["ratio"], float(goal), most=sign == "<=", limit=limit,
        )  # fmt: skip


def _decode() -> Iterator[Row]:
    result = _read("decode")
    for row in result.get("rows", []):
        yield Row(
            f"transformers {row['kind']}: decode after {row['context']:,} tokens", "model.generate",
            f"{rounded(median(row['generate']))} tok/s", f"{rounded(median(row['snug']))} tok/s", row["ratio"], 1,
            limit=_limit(result, row["kind"], row["context"], decode.NEW_TOKENS),
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
            f"{rounded(median(row['plain']))} tok/s", f"{rounded(median(row['guessing']))} tok/s", row["ratio"],
            1 if repeats else 0.97,
        )  # fmt: skip


def _vllm() -> Iterator[Row]:
    result = _read("vllm")
    speeds = {
        (row["side"], row["users"], row["context"]): f"{rounded(row['tokens_per_s'])} tok/s"
        for row in result.get("rows", [])
    }
    for row in result.get("ratios", []):
        place, side = (row["users"], row["context"]), row.get("side", "Snug")
        users = "one user" if row["users"] == 1 else f"{row['users']} users together"
        what, goal = ("--loader vllm", 0.97) if side == "Snug" else ("bf16 by our own engine", HALF_WAY)
        yield Row(
            f"{what}, {users} after {row['context']:,} tokens", "vLLM's own server", speeds["vLLM", *place],
            speeds[side, *place], row["ratio"], goal,
            limit=_limit(result, "bf16", row["context"], vllm.NEW_TOKENS, users=row["users"]),
        )  # fmt: skip


def _page() -> Iterator[Row]:
    for row in _read("page").get("rows", []):
        yield Row(
            f"Last token to screen, {row['messages_before']} messages before", "", "", f"{row['median_ms']:.0f} ms",
            row["median_ms"], 100, most=True, unit="ms",
        )  # fmt: skip


def _gpu() -> Iterator[Row]:
    for file in sorted(RESULTS.glob("gpu-*.json")):
        result, shape = _read(file.stem), file.stem.removeprefix("gpu-")
        for row in result.get("rows", []):
            if "ratio" not in row:
                continue
            what = f"GPU, {shape} {row['kind']}: decode after {row['context']:,} tokens"
            ours, other = median(row["snug"]), median(row["generate"])
            context = row["context"] + result["new_tokens"] / 2
            limit = tokens_per_s(result["read_Bps"], result["models"][row["kind"]], context)
            figures = f"{rounded(other)} tok/s", f"{rounded(ours)} tok/s"
            yield Row(what, "model.generate", *figures, row["ratio"], 4, limit=limit)
            if row["kind"] in ("bf16", "bf16-static"):
                yield Row(what, "the limit", f"{rounded(limit)} tok/s", figures[1], ours / limit, 0.7, limit=limit)


def markdown(found: list[Row]) -> str:
    """The table, and what it was measured on."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells for row in found)]
    machines = {name: _read(name).get("machine", {}) for name in ("gguf", "serving", "decode")}
    machine: dict[str, Any] = next((one for one in machines.values() if one), {})
    where = f"{machine.get('cores')} cores of an {machine.get('cpu')}, {machine.get('ram_gib')} GiB, no GPU"
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    text = f"{table}\n\nSmolLM2-135M-Instruct on {where}; each row's two sides took turns in one run; medians.\n"
    if known := _read("limit"):
        text += (
            "Limit: what a token reads (weights as stored, keys and values before it) at the "
            f"{known['read_Bps'] / 1e9:.1f} GB/s measured here. A pass that checks guesses can beat it.\n"
        )
    return text


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
