"""The accuracy tables, from whatever benchmarks/results/ holds: forecasts beside what was measured, misses included."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from docs.memory_page.text import table
from modules.units import MiB

Record = Mapping[str, Any]
_HALF, _TWO, _THREE = 0.005, 0.02, 0.03
_PRECISION = re.compile(" (?:bfloat16|float32)")


@dataclass(frozen=True, slots=True)
class Result:
    """One file of results: where it lies, what it compares, how to take it again, how to show it."""

    file: str
    title: str
    about: str
    command: str
    show: Callable[[_Source], str]


@dataclass(frozen=True, slots=True)
class _Source:
    """A record of a results file that names the file where a field is missing."""

    record: Record
    result: Result

    def get(self, name: str) -> Any:
        if name not in self.record:
            raise ValueError(
                f"benchmarks/results/{self.result.file}.json has no {name!r} where docs/memory_page/accuracy.py "
                f"expects one. Take it again: {self.result.command}"
            )
        return self.record[name]

    def rows(self) -> list[_Source]:
        return [_Source(row, self.result) for row in self.get("rows")]


def render(folder: Path) -> str:
    """Every result in `folder`, in the order of the page; what was not taken says so."""
    return "\n\n".join(_section(result, folder) for result in _RESULTS)


def _section(result: Result, folder: Path) -> str:
    head = f"### {result.title}\n\n{result.about}"
    file = folder / f"{result.file}.json"
    if not file.exists():
        return f"{head}\n\n*Not taken yet:* `{result.command}`"
    source = _Source(json.loads(file.read_text(encoding="utf-8")), result)
    machine = source.get("machine")
    libraries = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "bitsandbytes")
                          if name in machine)  # fmt: skip
    device = source.record.get("gpu") or f"{machine.get('cores')} cores of an {machine.get('cpu')}"
    note = f" Note: {source.record['note']}." if "note" in source.record else ""
    if source.record.get("missing"):
        note += f" No rows yet of {', '.join(source.record['missing'])}."
    taken = f"`{source.get('command')}`; {device}, {libraries}.{note}"
    return f"{head}\n\n{result.show(source)}\n\n{taken} Every row: benchmarks/results/{file.name}"


def _off(row: _Source) -> float:
    """How far a forecast is off: 0.01 is 1 % too much."""
    return float(row.get("forecast") / max(1, row.get("real"))) - 1


def _percent(value: float) -> str:
    shown = f"{100 * value:+.2f} %"
    return "exact" if value == 0 else "0.00 %" if shown in ("+0.00 %", "-0.00 %") else shown


def _worst(rows: Sequence[_Source]) -> float:
    return max((_off(row) for row in rows), key=abs)


def _kinds(source: _Source) -> str:
    """A line for each kind of comparison."""
    lines = []
    rows = source.rows()
    for kind in dict.fromkeys(row.get("what") for row in rows):
        mine = [row for row in rows if row.get("what") == kind]
        off = [abs(_off(row)) for row in mine]
        worst = max(mine, key=lambda row: abs(_off(row)))
        where = " ".join(str(worst.get(name)) for name in ("family", "way", "tokens"))
        lines.append(
            (str(kind), f"{len(mine)}", f"{100 * median(off):.2f} %", f"{sum(one <= _HALF for one in off)}",
             f"{sum(one <= _TWO for one in off)}", f"{sum(one <= _THREE for one in off)}", _percent(_off(worst)), where)
        )  # fmt: skip
    head = ("", "rows:", "median off:", "within 0.5 %:", "within 2 %:", "within 3 %:", "worst:", "which")
    return table(head, lines)


def _families(source: _Source) -> str:
    """The summary, and the worst row of each family."""
    rows = source.rows()
    kinds = list(dict.fromkeys(row.get("what") for row in rows))
    lines = []
    for family in dict.fromkeys(row.get("family") for row in rows):
        mine = [row for row in rows if row.get("family") == family]
        by_kind = [[row for row in mine if row.get("what") == kind] for kind in kinds]
        lines.append((family, f"{len(mine)}", *(_percent(_worst(some)) if some else "–" for some in by_kind)))
    head = ("family", "rows:", *(f"{kind}, worst:" for kind in kinds))
    return f"{_kinds(source)}\n\n{table(head, lines)}"


def _exact(source: _Source) -> str:
    """A line for each thing that was compared, whatever the precision."""
    kinds: dict[str, list[_Source]] = {}
    for row in source.rows():
        kinds.setdefault(_PRECISION.split(row.get("what"))[0], []).append(row)
    lines = [
        (
            kind,
            f"{len({row.get('family') for row in rows})}",
            f"{len(rows)}",
            f"{sum(row.get('exact') for row in rows)}",
        )
        for kind, rows in kinds.items()
    ]
    return table(("", "families:", "rows:", "exact to the byte:"), lines)


def _process(source: _Source) -> str:
    lines = []
    for row in source.rows():
        load, run = row.get("load_bytes"), row.get("run_bytes")
        sizes = (row.get("forecast_load_bytes"), load, row.get("forecast_run_bytes"), run)
        off = row.get("peak_ratio") - 1
        shown = (f"{size / MiB:,.0f}" if size else "–" for size in sizes)
        lines.append((row.get("kind"), f"{row.get('context'):,}", *shown, f"{100 * off:+.1f} %"))
    head = ("", "context:", "load, forecast:", "measured:", "run, forecast:", "measured MiB:", "peak off by:")
    return table(head, lines)


def _gpu(source: _Source) -> str:
    lines = []
    for row in source.rows():
        off = [f"{100 * (row.get(name) - 1):+.1f} %" for name in ("allocated_ratio", "reserved_ratio")]
        sizes = [f"{row.get(name) / 2**30:.2f}" for name in ("allocated", "reserved")]
        lines.append((row.get("shape"), row.get("kind"), f"{row.get('context'):,}", sizes[0], off[0], sizes[1], off[1]))
    head = ("shape", "", "context:", "allocated GiB:", "forecast off by:", "reserved GiB:", "forecast off by:")
    return table(head, lines)


_RESULTS = (
    Result("memory-exact", "Weights, caches and quantized matrices",
           "Tiny models of many families are loaded; their parameters, buffers, caches and bitsandbytes matrices are "
           "counted and held against what the config alone said.", "python -m benchmarks.memory_exact", _exact),
    Result("memory-families", "Reading a prompt and writing a token, family by family",
           "The dry run on fake tensors against torch.profiler's allocator events: sdpa and eager, fp32 and bf16, "
           "three prompt lengths. All that lives beyond the weights is compared; these models are tiny, so 1 % can be "
           "a few KB.", "python -m benchmarks.memory --parts families", _families),
    Result("memory-quantized", "The same with bitsandbytes, nf4 and int8", "Weights after the first use, too.",
           "python -m benchmarks.memory --parts quantized", _families),
    Result("memory-training", "A training step", "Full and LoRA, AdamW and SGD, with and without checkpointing.",
           "python -m benchmarks.memory --parts training", _families),
    Result("memory-loops", "The engine's own loops", "What serves people: rows over a paged cache, and one by one.",
           "python -m benchmarks.memory --parts loops", _families),
    Result("process_memory", "The whole engine process on a CPU",
           "The starter model; the kernel's own peak (VmHWM) of a fresh process.",
           "python -m benchmarks.process_memory", _process),
    Result("memory-gguf", "GGUF files", "llama.cpp's own dry fit against the buffers that it then allocates.",
           "python -m benchmarks.memory_gguf", _kinds),
    Result("memory-gpu", "On a GPU", "Random weights of 1B, 7B and 14B against torch's CUDA allocator.",
           "python -m benchmarks.memory --gpu", _gpu),
)  # fmt: skip
