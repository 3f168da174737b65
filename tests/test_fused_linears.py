"""Layers that read the same states computed as one: the same numbers, the same memory, and only where that holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modules.engine.loading.huggingface import keep_odd_layers_unpacked
from modules.engine.process.footprint import weight_bytes_by_device
from modules.engine.speedups import fused
from modules.engine.speedups.fused import MOST_TOKENS, FusedLinears, fuse_linears
from tests.loop_rig import load
from tests.tiny_models import tiny_model

KINDS = ["float32", "bfloat16", "int8", "nf4"]


def layers(kind: str, *, sizes: tuple[int, ...] = (96, 32, 32), bias: bool = False) -> list[Any]:
    """Layers of 64 features in, with random weights, as they are after a first forward."""
    return [_layer(kind, size, bias, seed) for seed, size in enumerate(sizes)]


@torch.no_grad()
def _layer(kind: str, size: int, bias: bool, seed: int) -> Any:
    torch.manual_seed(seed)
    plain = nn.Linear(64, size, bias=bias).requires_grad_(False)
    if kind in ("float32", "bfloat16"):
        return plain.to(getattr(torch, kind))
    import bitsandbytes

    if kind == "nf4" and not bitsandbytes.functional.has_avx512bf16():
        pytest.skip("bitsandbytes joins bytes of 4-bit weights only for CPUs with AVX-512 for bf16")
    layer: Any
    if kind == "int8":
        layer = bitsandbytes.nn.Linear8bitLt(64, size, bias=bias, has_fp16_weights=False, threshold=6.0)
    else:
        layer = bitsandbytes.nn.Linear4bit(64, size, bias=bias, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict(plain.to(torch.float16 if kind == "int8" else torch.bfloat16).state_dict())
    layer = layer.to("cpu").eval()
    layer(states(kind, 1))
    return layer


def states(kind: str, tokens: int, seed: int = 0) -> torch.Tensor:
    """Random states `(1, tokens, 32)`; one feature is an outlier that LLM.int8() keeps out of its int8 product."""
    torch.manual_seed(seed)
    made = torch.randn(1, tokens, 64)
    made[..., 5] *= 20
    return made.to(getattr(torch, kind if kind.startswith(("float", "bfloat")) else "bfloat16"))


def joined(group: list[Any]) -> list[Any]:
    together = FusedLinears(group)
    return [together.forward_of(part) for part in range(len(group))]


@pytest.mark.parametrize("tokens", [1, 2, MOST_TOKENS, MOST_TOKENS + 1, 64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_every_layer_computes_what_it_did(kind: str, bias: bool, tokens: int) -> None:
    group = layers(kind, bias=bias)
    given = states(kind, tokens)
    before = [layer(given) for layer in group]
    for forward, expected in zip(joined(group), before, strict=True):
        torch.testing.assert_close(forward(given), expected, rtol=1e-2, atol=1e-2 if kind != "float32" else 1e-5)


@torch.inference_mode()
def test_one_product_serves_all_and_nothing_is_kept_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Tensor] = []
    together = FusedLinears(group := layers("float32"))
    product = together._all

    def counted(states: torch.Tensor) -> torch.Tensor:
        calls.append(states)
        return product(states)

    monkeypatch.setattr(together, "_all", counted)
    forwards = [together.forward_of(part) for part in range(len(group))]
    for number in range(3):
        given = states("float32", 1, number)
        for forward in forwards:
            forward(given)
    assert len(calls) == 3
    assert together._states is None


@torch.inference_mode()
def test_other_states_or_another_order_give_each_its_own() -> None:
    group = layers("float32")
    first, second = states("float32", 1), states("float32", 1, 1)
    expected = {
        (part, which): layer(given) for part, layer in enumerate(group) for which, given in ((0, first), (1, second))
    }
    forwards = joined(group)
    for part, which in ((0, 0), (1, 1), (2, 0), (2, 1), (0, 1), (0, 1), (1, 0), (1, 1), (2, 1)):
        torch.testing.assert_close(forwards[part]((first, second)[which]), expected[part, which])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_no_byte_is_held_twice_and_a_changed_weight_is_seen(kind: str) -> None:
    group = layers(kind, bias=True)
    forwards = joined(group)
    storages = {layer.weight.untyped_storage()._cdata for layer in group}
    assert len(storages) == 1
    (group[1].weight.quant_state.absmax if kind == "nf4" else group[1].weight).zero_()
    group[1].bias.fill_(3.0)
    given = states(kind, 1)
    forwards[0](given)
    assert (forwards[1](given) == 3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_models_logits_stay(dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = load(tiny_model("llama", tmp_path), dtype=dtype)
    ids = torch.arange(1, 40)[None]
    plain, plain_one = loaded.model(input_ids=ids).logits, loaded.model(input_ids=ids[:, :1]).logits
    held = weight_bytes_by_device(loaded.model, {"": "cpu"})
    assert fuse_linears(loaded) == 2 * loaded.model.config.num_hidden_layers
    assert torch.equal(loaded.model(input_ids=ids).logits, plain)  # a prompt is read as before
    torch.testing.assert_close(loaded.model(input_ids=ids[:, :1]).logits, plain_one, rtol=1e-2, atol=1e-2)
    assert weight_bytes_by_device(loaded.model, {"": "cpu"}) == held
    assert fuse_linears(loaded) == 0  # once is enough


@pytest.mark.parametrize("family", ["opt", "bart", "t5", "gpt_neox", "mixtral"])
@torch.inference_mode()
def test_families_with_biases_other_names_or_two_sources_compute_the_same(family: str, tmp_path: Path) -> None:
    loaded = load(tiny_model(family, tmp_path))
    ids = torch.arange(1, 5)[None]
    given = {"input_ids": ids, **({"decoder_input_ids": ids[:, :2]} if loaded.is_encoder_decoder else {})}
    before = loaded.model(**given).logits
    fuse_linears(loaded)
    torch.testing.assert_close(loaded.model(**given).logits, before, rtol=1e-4, atol=1e-4)


def test_what_is_large_hooked_or_of_several_kinds_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fused._can_be_joined(layers("float32"))
    hooked = layers("float32")
    hooked[1].register_forward_pre_hook(lambda *_: None)
    assert not fused._can_be_joined(hooked)
    assert not fused._can_be_joined([*layers("float32")[:2], *layers("bfloat16")[2:]])
    assert not fused._can_be_joined([*layers("float32")[:2], *layers("float32", bias=True)[2:]])
    assert not fused._can_be_joined([*layers("float32")[:2], nn.Linear(63, 32, bias=False)])
    assert not fused._can_be_joined([nn.Linear(64, 8, device="meta"), nn.Linear(64, 8, device="meta")])
    monkeypatch.setattr(fused, "LARGEST_BYTES", 160 * 64 * 4 - 1)
    assert not fused._can_be_joined(layers("float32"))


@pytest.mark.parametrize(("rows", "columns"), [(48, 64), (64, 96), (64, 64)])
@torch.inference_mode()
def test_4_bit_layers_of_sizes_that_cannot_be_packed_run_all_the_same(rows: int, columns: int) -> None:
    import bitsandbytes

    torch.manual_seed(0)
    plain = nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer: Any = bitsandbytes.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.load_state_dict(plain.state_dict())
    model = nn.Sequential(layer).to("cpu").eval()
    keep_odd_layers_unpacked(model)
    given = torch.randn(1, 3, columns, dtype=torch.bfloat16)
    assert (model(given) - plain(given)).abs().mean() < 0.2 * plain(given).abs().mean()
