"""What an engine of a comparison took beside its forecast, and whose tokens are those of whom."""

from __future__ import annotations

import hashlib
from pathlib import Path

from modules.compare.values import Memory
from modules.engine.base import EngineStats, ModelInfo
from modules.hardware import Inventory
from modules.measuring import entries_after_use
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.planner import Plan

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt")


def memory_of(plan: Plan, info: ModelInfo, stats: EngineStats, machine: Inventory) -> tuple[Memory, ...]:
    """Peaks beside the forecast for as much context as was used; where no peak is told, what it holds beside all."""
    entries = entries_after_use(plan, info, stats, machine)
    if entries:
        return tuple(Memory(entry.device, entry.forecast_bytes, entry.measured_bytes) for entry in entries)
    now = {"cpu": stats.rss_bytes, **stats.gpu_bytes}
    return tuple(
        Memory(device, plan.budgets[device].total if device in plan.budgets else 0, size)
        for device, size in now.items()
        if size
    )


def vocabulary_of(spec: ModelSpec) -> str:
    """A text that two models share only if their tokenizers are the same files; "" where there are none to look at."""
    if spec.source == "remote":
        return ""
    if spec.path.is_file():
        return str(spec.path)
    found = [file for name in _TOKENIZERS if (file := spec.path / name).is_file()]
    return hashlib.blake2b(b"".join(map(_digest, found)), digest_size=16).hexdigest() if found else ""


def _digest(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "blake2b").digest()
    except OSError:
        return str(file).encode()
