"""Layers of a GGUF file on a real GPU: run with `pytest -m gpu` where xllamacpp's build for GPUs is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modules.engine.base import TextPiece
from modules.hardware import Inventory, read_inventory
from modules.memory.llamacpp_build import GPU_BUILD, can_use_gpus
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.settings import LoadOptions
from modules.units import MiB
from tests.llamacpp_rig import TEXT, engine_of, long
from tests.loop_rig import Ask
from tests.tiny_models import tiny_gguf

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.skipif(not can_use_gpus(), reason=f"xllamacpp's build for GPUs is not installed: {GPU_BUILD}"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 M weights in 8 bits, with a cache of 512 MiB at 8,192 tokens."""
    folder = tmp_path_factory.mktemp("models")
    return tiny_gguf(folder, width=1024, inner=3072, layers=16, kind="Q8_0", context=8192, readable=True)


def plan_for(path: Path, machine: Inventory, **flags: object) -> Plan:
    options = LoadOptions.model_validate({"loader": "llamacpp", "ctx_size": 8192, **flags})
    return make_plan(Question(inspect(path), options, machine, Path("cache"), llamacpp_gpu=True))


@pytest.mark.parametrize("layers", [4, 17])
def test_a_card_holds_no_more_than_the_plan_says(path: Path, layers: int) -> None:
    before = read_inventory(path.parent)
    plan = plan_for(path, before, gpu_layers=layers)
    with engine_of(plan) as engine:
        Ask("fill", engine.encode([TextPiece(TEXT * 200)]), long(8)).run(engine)
        taken = before.gpus[0].free_bytes - read_inventory(path.parent).gpus[0].free_bytes
    budget = plan.budgets["cuda:0"]
    print(f"{layers} layers: {taken / MiB:.0f} MiB taken, {budget.total / MiB:.0f} MiB planned")
    assert budget.weights + budget.kv_cache < taken <= budget.total + budget.margin


def test_replies_on_the_card_are_those_of_the_cpu_and_come_faster(path: Path) -> None:
    machine = read_inventory(path.parent)
    replies = []
    for layers in (0, 8, 17):
        with engine_of(plan_for(path, machine, gpu_layers=layers)) as engine:
            replies.append(Ask("one", engine.encode([TextPiece(TEXT)]), long(16)).run(engine).tokens)
    assert replies[0][:4] == replies[1][:4] == replies[2][:4]  # sums round otherwise on a GPU
