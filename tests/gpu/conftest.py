"""What the GPU tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from modules.engine.base import Engine
from modules.engine.loading.huggingface import load
from modules.memory.planning.planner import Plan
from tests.loading_rig import quiet


@pytest.fixture
def started() -> Iterator[Any]:
    """Load a plan; closed at the end of the test."""
    engines: list[Engine] = []

    def start(plan: Plan) -> Any:
        engines.append(load(plan, quiet))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()
