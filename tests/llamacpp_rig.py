"""What the tests of llama.cpp's engine share: plans of small files, and requests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from modules.engine.llamacpp.engine import LlamaCppEngine, load
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan
from modules.sampling import GenerationParams

CONTEXT = 512
TEXT = "The harbour wakes before the town does. "


def plan_of(path: Path, context: int = CONTEXT, **run: Any) -> Plan:
    """`path` as it would run on the CPU; `run` changes its RunSpec."""
    return Plan(
        inspect(path), RunSpec("float16", context_tokens=context, prefill_chunk=64, **run), "llamacpp", {"": "cpu"}
    )


def ignore(_: object) -> None:
    """Nobody watches the load."""


@contextmanager
def engine_of(plan: Plan) -> Iterator[LlamaCppEngine]:
    """The engine of `plan`, for a while."""
    engine = load(plan, ignore)
    assert isinstance(engine, LlamaCppEngine)
    with closing(engine):
        yield engine


def long(tokens: int, **params: Any) -> GenerationParams:
    """A reply that ends at its limit only."""
    return GenerationParams(temperature=0, max_new_tokens=tokens, ban_eos_token=True, **params)
