"""The formulas as text: worked out with their own numbers they give the figure."""

from __future__ import annotations

import ast
import operator
import re
from dataclasses import replace
from pathlib import Path

import pytest

from modules.memory.forecasting.budget import Purpose
from modules.memory.forecasting.figures import device_budget
from modules.memory.forecasting.forecast import Quantization, RunSpec, prefill_peak_bytes
from modules.memory.forecasting.formulas import formula_text
from modules.memory.forecasting.process import process_figures
from modules.memory.model.model_spec import ModelSpec, TensorInfo
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from tests.fakes import fake_inventory, fake_spec

INNER = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64), "mlp.gate_proj": (130, 64), "mlp.up_proj": (130, 64), "mlp.down_proj": (64, 130),
}  # fmt: skip


def llama() -> ModelSpec:
    """Two layers of plain matrices, of which bitsandbytes takes all."""
    tensors = [TensorInfo("model.embed_tokens.weight", (260, 64), "BF16", 260 * 64 * 2)]
    for layer in range(2):
        at = f"model.layers.{layer}."
        tensors += [
            TensorInfo(f"{at}{name}.weight", shape, "BF16", shape[0] * shape[1] * 2, at[:-1])
            for name, shape in INNER.items()
        ]
    return replace(fake_spec(), tensors=tuple(tensors), intermediate_size=130, kv_elements=64)


def worked_out(text: str) -> float:
    """The value of a formula: words left out, · is times."""
    bare = text.partition(": ")[2] or text
    kept = re.findall(r"[\d,]*\d|½|[·+()]", bare)
    spelled = {"·": "*", "½": "0.5"}
    return value(ast.parse("".join(spelled.get(word, word.replace(",", "")) for word in kept), mode="eval").body)


def value(node: ast.expr) -> float:
    """Sums and products only."""
    if isinstance(node, ast.Constant):
        return float(str(node.value))
    assert isinstance(node, ast.BinOp)
    work = {ast.Mult: operator.mul, ast.Add: operator.add}[type(node.op)]
    return float(work(value(node.left), value(node.right)))


@pytest.mark.parametrize(
    "flags",
    [{}, {"load_in_8bit": True}, {"load_in_4bit": True}, {"load_in_4bit": True, "use_double_quant": True},
     {"dtype": "fp32"}, {"attn_implementation": "eager"}],
)  # fmt: skip
def test_every_formula_gives_its_figure(flags: dict[str, object]) -> None:
    options = LoadOptions.model_validate(flags)
    inventory = fake_inventory((24,))
    plan = make_plan(Question(llama(), options, inventory, Path("cache")))
    checked: set[Purpose] = set()
    for budget in plan.budgets.values():
        for purpose, figure in budget.figures.items():
            text = figure.formula or formula_text(purpose, plan.spec, plan.run, figure.bytes)
            if purpose == "context":
                assert text
                continue
            assert worked_out(text) == figure.bytes, (purpose, text)
            checked.add(purpose)
    assert {"weights", "kv_cache", "prefill_peak"} <= checked
    assert ("quant_meta" in checked) == ("load_in_8bit" in flags or "load_in_4bit" in flags)


def test_the_formula_of_llama_cpps_buffer_gives_its_figure() -> None:
    run = RunSpec("float16", context_tokens=8192, runtime="llamacpp")
    text = formula_text("prefill_peak", llama(), run, prefill_peak_bytes(llama(), run, with_head=True))
    assert worked_out(text) == prefill_peak_bytes(llama(), run, with_head=True)
    figures = device_budget(llama(), run, "cpu").figures
    assert set(figures) == {"prefill_peak", "context"} and "llama.cpp" in figures["context"].formula


@pytest.mark.parametrize("quantization", ["none", "int8"])
@pytest.mark.parametrize("tokens", [256, 8192])
def test_the_formulas_of_a_process_on_the_cpu_give_its_figures(quantization: Quantization, tokens: int) -> None:
    run = RunSpec("bfloat16", quantization, context_tokens=tokens)
    figures = process_figures(llama(), run, computes=True, deepspeed=True)
    assert {"context", "allocator"} <= set(figures)
    for purpose, figure in figures.items():
        assert worked_out(figure.formula) == figure.bytes, (purpose, figure.formula)


def test_what_a_device_holds_of_a_whole_is_called_its_part() -> None:
    text = formula_text("kv_cache", llama(), RunSpec("bfloat16", context_tokens=1024), 1024)
    assert text.startswith("this device's part of 256 KiB = 2 layers · 2 · 2 heads · 16 · 1,024 tokens · 2 B")


def test_a_figure_from_elsewhere_gets_no_formula() -> None:
    run = RunSpec("bfloat16", context_tokens=1024)
    assert formula_text("prefill_peak", llama(), run, prefill_peak_bytes(llama(), run, with_head=True) + 1) == ""
    assert formula_text("activations", llama(), run, 5) == ""
