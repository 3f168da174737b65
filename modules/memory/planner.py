"""From a model, a machine and the user's flags to one Plan: what goes where, in which precision, and why.

Pure: it reads values and returns values. A value that says what will happen before a byte is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modules.memory.forecast import Budget, RunSpec
from modules.memory.spec import ModelSpec

Loader = Literal["transformers", "deepspeed"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that an engine needs to load a model. Picklable, torch-free; bytes are int.

    `placement` maps module names to "cuda:N", "cpu" or "disk", longest prefix wins ({"": "cpu"} is all on the CPU).
    `limits` are the most weight bytes that each device may hold; `budgets` what each device will hold, by purpose.
    """

    spec: ModelSpec
    run: RunSpec
    loader: Loader
    placement: dict[str, str]
    limits: dict[str, int] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    disk_cache_dir: Path | None = None
    nvme_offload_dir: Path | None = None
    trust_remote_code: bool = False
    fits: bool = True
    reasons: tuple[str, ...] = ()
