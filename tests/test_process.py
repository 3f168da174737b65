"""memory/forecasting/process.py: what an engine process takes beside its model, and the load for a moment."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from modules.memory.forecasting.figures import Held, device_budget
from modules.memory.forecasting.forecast import RunSpec, elements, is_quantizable
from modules.memory.forecasting.process import attention_bytes, conversion_bytes, process_figures
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from modules.units import MiB
from tests.fakes import fake_inventory

STARTER = Path("models/SmolLM2-135M-Instruct")
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(not STARTER.exists(), reason="the starter model is not there"),
]
RUN = RunSpec("bfloat16", context_tokens=8192)

QUANTIZE = """
import sys
from pathlib import Path
import torch
from modules.heap import prepare_load
import bitsandbytes as bnb
def size(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
prepare_load()
small = torch.randn(256, 256, dtype=torch.bfloat16)
large = torch.randn(4096, 4096, dtype=torch.bfloat16)
def quantize(matrix):
    if sys.argv[1] == "int8":
        return bnb.nn.Int8Params(matrix, requires_grad=False, has_fp16_weights=False).to("cpu")
    return bnb.nn.Params4bit(matrix, requires_grad=False, quant_type="nf4").to("cpu")
quantize(small)
before = size("VmRSS:")
Path("/proc/self/clear_refs").write_text("5")
kept = quantize(large)
print(size("VmHWM:") - before)
"""


@pytest.fixture(scope="module")
def starter() -> ModelSpec:
    return inspect(STARTER)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
@pytest.mark.parametrize(("quantization", "kept"), [("nf4", 0.5625), ("int8", 1.0)])
def test_quantizing_a_matrix_takes_what_the_formula_says(starter: ModelSpec, quantization: str, kept: float) -> None:
    done = subprocess.run([sys.executable, "-c", QUANTIZE, quantization], capture_output=True, text=True, check=True)
    matrix = next(tensor for tensor in starter.tensors if is_quantizable(starter, tensor))
    square = replace(starter, tensors=(replace(matrix, shape=(4096, 4096)),))
    run = replace(RUN, quantization=quantization)  # type: ignore[arg-type]
    forecast = conversion_bytes(square, run, device="cpu") + kept * 4096 * 4096
    assert 0.97 < forecast / int(done.stdout.split()[-1]) < 1.1


def test_a_change_of_dtype_alone_takes_nothing_beside(starter: ModelSpec) -> None:
    budget = device_budget(starter, replace(RUN, dtype="float32"), "cpu", Held(weights=500 * MiB))
    assert budget.load_peak == budget.resident


def test_a_large_matrix_makes_the_load_the_peak(starter: ModelSpec) -> None:
    matrix = next(tensor for tensor in starter.tensors if is_quantizable(starter, tensor))
    large = replace(starter, tensors=(replace(matrix, shape=(32_768, 8_192)),))
    budget = device_budget(large, replace(RUN, quantization="nf4"), "cpu", Held(weights=256 * MiB))
    assert budget.load_peak == budget.total == budget.resident + 14 * 32_768 * 8_192


def test_a_gpu_holds_the_matrix_as_it_was_while_it_is_quantized(starter: ModelSpec) -> None:
    largest = max(elements(tensor) for tensor in starter.tensors if is_quantizable(starter, tensor))
    assert conversion_bytes(starter, replace(RUN, quantization="nf4"), device="cuda:0") == 2 * largest


def test_the_scores_of_our_own_attention_grow_with_the_context(starter: ModelSpec) -> None:
    short, long = (attention_bytes(starter, replace(RUN, context_tokens=tokens)) for tokens in (2048, 8192))
    assert 4 * short > long > 2 * short
    assert attention_bytes(starter, replace(RUN, dtype="float32")) == 0


def test_zero3_gathers_its_largest_part_once_more_while_it_loads(starter: ModelSpec) -> None:
    options = LoadOptions.model_validate({"model": "any", "cpu": True, "deepspeed": True, "ctx_size": 1024})
    plan = make_plan(Question(starter, options, fake_inventory(), Path("cache")))
    budget = plan.budgets["cpu"]
    assert budget.load_peak == budget.resident + budget.offload_buffer
    assert "DeepSpeed" in budget.figures["context"].formula


def test_a_process_that_only_stores_has_no_peaks(starter: ModelSpec) -> None:
    assert set(process_figures(starter, RUN, computes=False)) == {"context"}


def test_every_figure_says_what_it_is_made_of(starter: ModelSpec) -> None:
    budget = device_budget(starter, RUN, "cpu", Held(weights=1))
    for purpose in ("context", "prefill_peak", "decode_peak", "allocator"):
        assert budget.figures[purpose].formula, purpose
