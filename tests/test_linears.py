"""fp32 products by oneDNN: the same numbers but for the order of their sums, and only where nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modules.engine.speedups import linears
from modules.engine.speedups.linears import is_amd, onednn_linear, prefers_onednn, speed_up_linears
from tests.loop_rig import load
from tests.tiny_models import tiny_model

has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
needs_onednn = pytest.mark.skipif(not has_onednn, reason="this torch has no oneDNN")


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (576, 192), (49, 1536)])
@torch.inference_mode()
def test_products_differ_by_rounding_only(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(*shape, bias=bias)
    for tokens in (1, 2, 33):
        states = torch.randn(1, tokens, shape[0])
        torch.testing.assert_close(onednn_linear(linear, states), linear(states), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(onednn_linear(linear, states[0]), linear(states[0]), rtol=1e-5, atol=1e-5)


@needs_onednn
@torch.inference_mode()
def test_a_model_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "prefers_onednn", lambda: True)
    loaded = load(tiny_model("llama", tmp_path), dtype=torch.float32)
    ids = torch.arange(1, 40)[None]
    before = loaded.model(input_ids=ids).logits
    plain = [module for module in loaded.model.modules() if type(module) is torch.nn.Linear]
    assert speed_up_linears(loaded) == len(plain) > 0
    torch.testing.assert_close(loaded.model(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
    assert speed_up_linears(loaded) == 0  # once is enough


def test_nothing_changes_where_mkl_is_not_known_to_be_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "prefers_onednn", lambda: False)
    assert speed_up_linears(load(tiny_model("llama", tmp_path), dtype=torch.float32)) == 0


@needs_onednn
def test_nothing_changes_where_torchs_inner_operation_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(linear: object, states: object) -> torch.Tensor:
        raise RuntimeError("expected at most 5 arguments")

    assert linears._works()
    monkeypatch.setattr(linears, "onednn_linear", moved)
    assert not linears._works()
    monkeypatch.setattr(linears, "onednn_linear", lambda *_: torch.zeros(1, 3))
    assert not linears._works()


def test_other_precisions_subclasses_and_hooked_layers_are_left_alone() -> None:
    class Other(torch.nn.Linear):
        pass

    assert linears._is_plain_fp32(torch.nn.Linear(2, 2))
    assert not linears._is_plain_fp32(Other(2, 2))
    assert not linears._is_plain_fp32(torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    assert not linears._is_plain_fp32(torch.nn.Linear(2, 2, device="meta"))
    hooked = torch.nn.Linear(2, 2)
    hooked.register_forward_pre_hook(lambda *_: None)
    assert not linears._is_plain_fp32(hooked)


def test_the_maker_of_a_cpu_is_read_from_the_kernel(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nvendor_id : AuthenticAMD\n")
    assert is_amd(cpuinfo)
    cpuinfo.write_text("processor : 0\nvendor_id : GenuineIntel\n")
    assert not is_amd(cpuinfo)
    if is_amd():
        assert prefers_onednn() == (has_onednn and torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]
