"""The ways of loading that need a GPU: run with `pytest -m gpu`; skipped where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from modules.engine.base import Engine, TextPiece
from modules.hardware import read_inventory
from modules.memory.planning.planner import Plan
from modules.units import MiB
from tests.conftest import STARTER_MODEL
from tests.loading_rig import perplexity, plain_model, plan_of, spread
from tests.loop_rig import Ask, greedy

pytestmark = [pytest.mark.gpu, pytest.mark.model]

TURN = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def answer(engine: Engine) -> Ask:
    """The engine's reply to TURN."""
    return Ask("r1", engine.encode([TextPiece(TURN, template=True)]), greedy(16)).run(engine)


def plan_here(tmp_path: Path, **flags: Any) -> Plan:
    """The starter model on this machine's own GPUs."""
    return plan_of(STARTER_MODEL, inventory=read_inventory(tmp_path), cache=tmp_path, ctx_size=1024, **flags)


@pytest.mark.parametrize(
    ("flags", "most_mib", "most_perplexity"),
    [
        ({"dtype": "bf16"}, 265, 1.01),
        ({"load_in_8bit": True}, 165, 1.06),
        ({"load_in_4bit": True}, 120, 1.40),
        ({"load_in_4bit": True, "use_double_quant": True}, 110, 1.40),
        ({"load_in_4bit": True, "quant_type": "fp4"}, 120, 1.70),
    ],
    ids=["bf16", "int8", "nf4", "nf4-double", "fp4"],
)
def test_the_whole_model_on_one_gpu(
    flags: dict[str, Any], most_mib: int, most_perplexity: float, started: Any, tmp_path: Path
) -> None:
    engine = started(plan_here(tmp_path, **flags))
    assert set(engine.info.placement) == {"cuda:0"}
    assert engine.info.placement["cuda:0"] < most_mib * MiB
    assert engine.info.peak_bytes < 2 * most_mib * MiB
    assert "Paris" in answer(engine).text
    engine.close()
    model = engine.loaded.model
    plain = plain_model(STARTER_MODEL, torch.bfloat16, "cuda:0")
    tokenizer = AutoTokenizer.from_pretrained(STARTER_MODEL)
    assert perplexity(model, tokenizer) / perplexity(plain, tokenizer) < most_perplexity


@pytest.mark.parametrize("devices", [("cuda:0", "cpu"), ("cuda:0", "disk"), ("cuda:0", "cpu", "disk")])
def test_a_model_split_over_gpu_cpu_and_disk_says_what_the_whole_one_says_in_fp32(
    devices: tuple[str, ...], started: Any, tmp_path: Path
) -> None:
    whole = started(plan_here(tmp_path, dtype="fp32"))
    expected = answer(whole).tokens
    split = started(spread(STARTER_MODEL, *devices, cache=tmp_path, dtype="fp32", ctx_size=1024))
    assert set(split.info.placement) == set(devices)
    assert answer(split).tokens == expected


@pytest.mark.parametrize("flags", [{"load_in_8bit": True}, {"load_in_4bit": True}], ids=["int8", "nf4"])
def test_a_quantized_model_split_over_gpu_and_cpu_answers(flags: dict[str, Any], started: Any, tmp_path: Path) -> None:
    engine = started(spread(STARTER_MODEL, "cuda:0", "cpu", cache=tmp_path, ctx_size=1024, **flags))
    assert set(engine.info.placement) == {"cuda:0", "cpu"}
    assert "Paris" in answer(engine).text
