"""Writes docs/memory.md and its pictures: `python -m docs.make_memory`. A test keeps them true.

docs/memory_page/page.md is the text; `{{name}}` in it is a figure or a table that Snug's planner, its formulas or
benchmarks/results/ give. No network, no weights; the same files make the same page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from docs.memory_page import accuracy, gpu_guide, low_vram, sixteen, slides, sparse
from docs.memory_page.asking import FP16, INT8, NF4, on_one_gpu, plans
from docs.memory_page.models import Models, read_models
from docs.memory_page.picture import Bar, Line, draw
from docs.memory_page.text import gb, gib
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes
from modules.memory.known_gpus import find_gpu
from modules.memory.planning.problem import margin
from modules.units import GiB, format_size

_HERE = Path(__file__).parent
_TEXT = _HERE / "memory_page" / "page.md"
_RESULTS = _HERE.parent / "benchmarks" / "results"
_MADE = "<!-- Made by `python -m docs.make_memory` from docs/memory_page/page.md; do not edit. -->\n\n"
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_MODEL, _TOKENS = "Llama-2-7B", 4096
_CARDS = ("RTX 4060", "RTX 3060", "RTX A4000")


def render() -> dict[str, str]:
    """The page and its pictures: name of the file in docs/ → its content. Raises ValueError for what does not match."""
    models = read_models()
    values = {
        **_minute(models), **gpu_guide.render(models), **sixteen.render(models), **low_vram.render(models),
        **slides.render(models), **sparse.render(), "accuracy": accuracy.render(_RESULTS),
        "guide_tokens": f"{gpu_guide.TOKENS:,}", "sixteen_tokens": f"{sixteen.CONTEXT:,}",
    }  # fmt: skip
    return {
        "memory.md": _MADE + fill(_TEXT.read_text(encoding="utf-8"), values),
        "memory-7b.svg": _seven_picture(models),
        "memory-13b.svg": slides.picture(models),
    }


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with every `{{name}}` replaced. Raises ValueError where a name has no value, or a value no place."""
    named = set(_PLACE.findall(text))
    if named != values.keys():
        raise ValueError(f"page.md and its values differ in: {', '.join(sorted(named ^ values.keys()))}")
    return _PLACE.sub(lambda found: values[found[1]], text)


def _minute(models: Models) -> dict[str, str]:
    """The figures of the first section."""
    spec = models[_MODEL]
    budget = on_one_gpu(spec, FP16, _TOKENS)
    rest = budget.total - budget.weights - budget.kv_cache - budget.context
    on_cpu = plans(spec, [], cpu=True).plans[0].budgets["cpu"]
    return {
        "cpu_context": format_size(on_cpu.context), "least_margin": format_size(margin(0)),
        "seven_params": f"{sixteen.parameters(spec):,}",
        "seven_gib": gib(budget.weights), "seven_gb": gb(budget.weights),
        "seven_kv_token": format_size(kv_cache_bytes(spec, RunSpec("float16"), 1)), "seven_kv": gib(budget.kv_cache),
        "seven_tokens": f"{_TOKENS:,}", "seven_peak": format_size(rest), "seven_context": format_size(budget.context),
    }  # fmt: skip


def _seven_picture(models: Models) -> str:
    spec = models[_MODEL]
    bars = [Bar(way.title, on_one_gpu(spec, way, _TOKENS), f"{gib(way.weights(spec))} of weights")
            for way in (FP16, INT8, NF4)]  # fmt: skip
    sizes = [find_gpu(card).total_bytes for card in _CARDS]
    lines = [Line(f"a {round(size / GiB)} GB card", size) for size in sizes]
    return draw(f"Llama-2-7B on one GPU, with {_TOKENS:,} tokens of conversation", bars, lines)


def write(folder: Path) -> None:
    """Write every file of `render` into `folder`."""
    for name, content in render().items():
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    write(_HERE)
