"""LoRA adapters and embeddings of llama.cpp in a plan: what they take, and on which device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.lora import Lora
from modules.memory.model.spec import inspect
from modules.memory.planning.native import embedding_figure, embedding_figures_beside_gpus
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.settings import LoadOptions
from tests.big_gguf import big_gguf
from tests.shapes import machine

LORA = Lora("pirate", Path("pirate.gguf"), 1.0, 40_000_000)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return big_gguf(tmp_path_factory.mktemp("models"), "7B")


def plan(file: Path, gpus: int, **flags: object) -> Plan:
    options = LoadOptions.model_validate({"model": file.name, "ctx_size": 4096, "loader": "llamacpp", **flags})
    loras = (LORA,) if options.lora else ()
    there = machine(gpus, 8, ram_gib=64)
    return make_plan(Question(inspect(file), options, there, file.parent, llamacpp_gpu=True, loras=loras))


@pytest.mark.parametrize(("gpus", "layers"), [(0, None), (1, 33), (2, 33), (1, 12)])
def test_each_device_that_may_hold_a_part_of_an_adapter_has_room_for_it(
    file: Path, gpus: int, layers: int | None
) -> None:
    split = {} if layers is None else {"gpu_layers": layers}
    without, beside = plan(file, gpus, **split), plan(file, gpus, lora=("pirate",), **split)
    assert {device: budget.adapters for device, budget in beside.budgets.items()} == dict.fromkeys(
        without.budgets, LORA.size_bytes
    )
    for device, budget in beside.budgets.items():
        assert (
            budget.total - budget.idle_cache
            == without.budgets[device].total - without.budgets[device].idle_cache + LORA.size_bytes
        )


def test_logits_for_embeddings_are_computed_where_the_output_lies_and_kept_in_memory(file: Path) -> None:
    spec, run = inspect(file), RunSpec("float16", context_tokens=4096, prefill_chunk=512, runtime="llamacpp")
    split = embedding_figures_beside_gpus(spec, run, ["cuda:0", "cuda:1"])
    assert set(split) == {"cuda:1", "cpu"}
    assert split["cuda:1"].bytes == 512 * spec.vocab_size * 4
    assert sum(figure.bytes for figure in split.values()) == embedding_figure(spec, run).bytes
    assert embedding_figure(spec, replace(run, context_tokens=128)).bytes * 4 == embedding_figure(spec, run).bytes
    beside = plan(file, 2, embeddings=True)
    assert {device for device, budget in beside.budgets.items() if budget.embeddings} == {"cuda:0", "cpu"}
