"""Norms in fewer operations: the same bits, and only where nothing changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from modules.engine.speedups import norms
from modules.engine.speedups.norms import speed_up_norms
from tests.loop_rig import load
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 7, 64, 576, 4096])
@torch.inference_mode()
def test_every_bit_is_that_of_the_librarys_norm(dtype: torch.dtype, width: int) -> None:
    numbers = torch.Generator().manual_seed(width)
    norm = LlamaRMSNorm(width, 1e-5).to(dtype)
    norm.weight.data = torch.randn(width, generator=numbers).to(dtype)
    for tokens in (1, 2, 33, 256):
        for scale in (0.0, 1e-4, 1.0, 300.0):
            states = (torch.randn(1, tokens, width, generator=numbers) * scale).to(dtype)
            assert torch.equal(norms._forward(norm, states), norm(states)), (tokens, scale)


@torch.inference_mode()
def test_a_models_logits_stay_the_same_bits(tmp_path: Path) -> None:
    loaded = load(tiny_model("llama", tmp_path))
    ids = torch.arange(1, 40)[None]
    before = loaded.model(input_ids=ids).logits
    kinds = [type(module) for module in loaded.model.modules()]
    assert speed_up_norms(loaded) == kinds.count(LlamaRMSNorm) > 0
    assert torch.equal(loaded.model(input_ids=ids).logits, before)
    assert speed_up_norms(loaded) == 0  # once is enough


def test_what_computes_something_else_or_is_hooked_is_left_alone() -> None:
    assert not norms._is_plain_rms_norm(GemmaRMSNorm(8))
    assert not norms._is_plain_rms_norm(torch.nn.LayerNorm(8))
    assert not norms._is_plain_rms_norm(torch.nn.Module())
    hooked = LlamaRMSNorm(8)
    assert norms._is_plain_rms_norm(hooked)
    hooked.register_forward_pre_hook(lambda *_: None)
    assert not norms._is_plain_rms_norm(hooked)
