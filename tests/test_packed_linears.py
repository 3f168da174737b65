"""bf16 weights in oneDNN's order: the same numbers but for rounding, the same memory, and only where that is safe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modules.engine.process.footprint import weight_bytes_by_device
from modules.engine.speedups import packed
from modules.engine.speedups.packed import can_pack, pack_linears
from tests.loop_rig import load
from tests.tiny_models import tiny_model

needs_packing = pytest.mark.skipif(not can_pack(), reason="oneDNN has no bf16 products for this CPU")


@needs_packing
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (576, 192), (49, 1536)])
@torch.inference_mode()
def test_products_differ_by_rounding_only(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=bias, dtype=torch.bfloat16)
    product = packed.packed_product_of(linear)
    for tokens in (1, 2, 33, 513):
        states = torch.randn(1, tokens, shape[0], dtype=torch.bfloat16)
        torch.testing.assert_close(product(states), linear(states), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(product(states[0]), linear(states[0]), rtol=2e-2, atol=2e-2)


@needs_packing
@torch.inference_mode()
def test_a_model_computes_the_same_and_its_bytes_are_told_as_before(tmp_path: Path) -> None:
    loaded = load(tiny_model("llama", tmp_path), dtype=torch.bfloat16)
    ids = torch.arange(1, 40)[None]
    before, held = loaded.model(input_ids=ids).logits.float(), weight_bytes_by_device(loaded.model, {"": "cpu"})
    fractions: list[float] = []
    count = pack_linears(loaded, fractions.append)
    linears = [module for module in loaded.model.modules() if type(module) is nn.Linear]
    assert count == len(fractions) == sum(linear.weight.device.type == "meta" for linear in linears) > 0
    assert fractions[-1] == 1
    spread = before.std()
    assert (loaded.model(input_ids=ids).logits.float() - before).abs().max() < 0.1 * spread
    assert weight_bytes_by_device(loaded.model, {"": "cpu"}) == held
    assert loaded.model.device.type == "cpu"
    assert pack_linears(loaded) == 0  # once is enough


@needs_packing
def test_shared_first_hooked_and_other_weights_stay() -> None:
    model = nn.Module()
    model.first = nn.Linear(32, 32, dtype=torch.bfloat16)
    model.table = nn.Embedding(32, 32, dtype=torch.bfloat16)
    model.head = nn.Linear(32, 32, bias=False, dtype=torch.bfloat16)
    model.head.weight = model.table.weight
    model.hooked = nn.Linear(32, 32, dtype=torch.bfloat16)
    model.hooked.register_forward_pre_hook(lambda *_: None)
    model.wide = nn.Linear(32, 32)
    model.away = nn.Linear(32, 32, dtype=torch.bfloat16, device="meta")
    model.plain = nn.Linear(32, 32, dtype=torch.bfloat16)
    assert packed._layers(model) == [model.plain]


def test_nothing_changes_where_torchs_inner_operation_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(*_: object) -> torch.Tensor:
        raise RuntimeError("expected at most 5 arguments")

    monkeypatch.setattr(packed, "_packed_linear", moved)
    can_pack.cache_clear()
    assert not can_pack()
    monkeypatch.setattr(packed, "_packed_linear", lambda *_: torch.zeros(1, 32))
    can_pack.cache_clear()
    assert not can_pack()
    can_pack.cache_clear()


CHILD = """
import sys
from pathlib import Path

import psutil, torch
from modules.engine.speedups.packed import pack_linears
from tests.loop_rig import load

loaded = load(Path(sys.argv[1]), dtype=torch.bfloat16)
for parameter in loaded.model.parameters():
    parameter.float().sum()
before = psutil.Process().memory_info().rss
pack_linears(loaded)
print(psutil.Process().memory_info().rss - before)
"""


@needs_packing
@pytest.mark.skipif(sys.platform != "linux", reason="pages of files are let go on Linux")
def test_no_byte_is_held_twice(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny_model("llama", tmp_path)
    folder = next(tmp_path.glob("*/config.json")).parent
    config = LlamaConfig.from_pretrained(folder)
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 512, 2048, 12
    config.head_dim = 512 // config.num_attention_heads
    model: Any = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in model.model.layers.parameters())
    model.save_pretrained(folder)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert weights > 60 * 2**20
    assert int(done.stdout) < weights / 4
