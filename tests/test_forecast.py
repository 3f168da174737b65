"""Bytes of weights, cache and buffers, against published sizes, real headers and real bitsandbytes matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from modules.memory.forecasting.forecast import (
    RunSpec,
    four_bit_bytes,
    int8_bytes,
    kv_cache_bytes,
    layer_cache_bytes,
    prefill_peak_bytes,
    weight_bytes,
)
from modules.memory.forecasting.kinds import quantizable
from modules.memory.model.spec import inspect
from modules.units import GiB
from tests.shapes import gptj, llama, make_spec, t5_3b

FP16 = RunSpec("float16")


@pytest.mark.parametrize(("size", "each"), [("7B", 524_288), ("13B", 819_200), ("33B", 1_597_440), ("65B", 2_621_440)])
def test_the_kv_cache_of_a_token_is_what_llama_publishes(size: Literal["7B", "13B", "33B", "65B"], each: int) -> None:
    assert kv_cache_bytes(llama(size), FP16, 1) == each
    assert kv_cache_bytes(llama(size), FP16, 1000) == 1000 * each


@pytest.mark.parametrize(
    ("size", "half_gb", "int8_gb"),
    [("7B", 13.48, 7.01), ("13B", 26.03, 13.35), ("33B", 65.06, 32.97), ("65B", 130.57, 65.84)],
)
def test_the_weights_of_llama_in_16_and_8_bits(
    size: Literal["7B", "13B", "33B", "65B"], half_gb: float, int8_gb: float
) -> None:
    assert weight_bytes(llama(size), FP16) / 1e9 == pytest.approx(half_gb, abs=0.006)
    assert weight_bytes(llama(size), RunSpec("float16", "int8")) / 1e9 == pytest.approx(int8_gb, abs=0.006)


def test_llama_7b_in_four_bits_is_3_88_gib_and_3_60_with_double_quantization() -> None:
    assert weight_bytes(llama("7B"), RunSpec("float16", "nf4")) / GiB == pytest.approx(3.88, abs=0.006)
    assert weight_bytes(llama("7B"), RunSpec("float16", "fp4", double_quant=True)) / GiB == pytest.approx(
        3.60, abs=0.006
    )


def test_gptj_has_its_6_05_billion_weights_at_16_bits() -> None:
    # Without its biases, 0.01 % of the whole.
    assert weight_bytes(gptj(), FP16) == pytest.approx(2 * 6_050_882_784, rel=2e-4)


@pytest.mark.parametrize("shape", [(64, 64), (100, 36), (33, 65), (512, 1536)])
def test_quantized_matrices_have_the_bytes_that_bitsandbytes_gives_them(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for double in (False, True):
        packed, state = functional.quantize_4bit(matrix, quant_type="nf4", compress_statistics=double)
        parts = [packed, state.absmax, state.code]
        parts += [state.state2.absmax, state.state2.code, state.offset] if double else []
        assert four_bit_bytes(matrix.numel(), double_quant=double) == sum(part.nbytes for part in parts)
    rows, scales, _ = functional.int8_vectorwise_quant(matrix.half())
    assert int8_bytes(*shape) == rows.nbytes + scales.nbytes


@pytest.mark.model
def test_the_starter_model_has_the_bytes_of_its_file(starter_model: Path) -> None:
    spec = inspect(starter_model)
    assert weight_bytes(spec, RunSpec("bfloat16")) == 269_030_016
    assert weight_bytes(spec, RunSpec("float32")) == 2 * 269_030_016
    # 30 layers × 2 (K and V) × 3 heads × 64 × 2 bytes
    assert kv_cache_bytes(spec, RunSpec("bfloat16"), 8192) == 30 * 2 * 3 * 64 * 2 * 8192


def test_grouped_heads_make_the_cache_smaller_and_more_tokens_never_do() -> None:
    assert kv_cache_bytes(llama("70B"), FP16, 1) == 80 * 2 * 8 * 128 * 2
    sizes = [kv_cache_bytes(llama("70B"), FP16, tokens) for tokens in (1, 2, 100, 4096)]
    assert sizes == sorted(sizes)


def test_a_sliding_layer_keeps_its_window_and_the_chunk_being_read() -> None:
    spec = replace(llama("7B"), layer_kinds=("sliding",) * 31 + ("full",), sliding_window=1024)
    run = RunSpec("float16", prefill_chunk=512)
    assert layer_cache_bytes(spec, run, 0, 100) == 100 * 16384
    assert layer_cache_bytes(spec, run, 0, 9000) == (1023 + 512) * 16384
    assert layer_cache_bytes(spec, run, 31, 9000) == 9000 * 16384


def test_a_recurrent_layer_costs_the_same_at_any_length_and_a_shared_one_nothing() -> None:
    spec = replace(llama("7B"), layer_kinds=("recurrent", "shared") * 16, state_elements=100, state_fp32=10)
    assert layer_cache_bytes(spec, FP16, 0, 1) == layer_cache_bytes(spec, FP16, 0, 10**6) == 240
    assert layer_cache_bytes(spec, FP16, 1, 1000) == 0


def test_an_encoder_decoder_keeps_two_caches_a_layer_and_the_encoders_output() -> None:
    assert kv_cache_bytes(t5_3b(), FP16, 10) == 10 * (24 * 2 * 2 * 32 * 128 * 2 + 1024 * 2)


def test_the_tied_table_of_t5_is_counted_once_and_its_wo_is_not_quantized() -> None:
    spec = t5_3b()
    kept = 32128 * 1024 + 48 * 16384 * 1024 + 2 * 1024
    total = weight_bytes(spec, RunSpec("bfloat16")) // 2
    assert weight_bytes(spec, RunSpec("bfloat16", "int8")) == kept * 2 + sum(
        int8_bytes(*t.shape) for t in spec.tensors if t.block and not t.name.endswith("wo.weight")
    )
    assert quantizable(spec).share == pytest.approx(1 - kept / total)


def test_experts_and_falcon_layers_are_out_of_reach_of_bitsandbytes() -> None:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (1000, 64)}
    shapes |= {f"model.layers.0.mlp.experts.{i}.up_proj": (128, 64) for i in range(8)}
    shapes |= {"model.layers.0.mlp.gate": (8, 64), "model.layers.0.mlp.shared_expert.up_proj": (128, 64)}
    shapes["model.layers.0.self_attn.q_proj"] = (64, 64)
    config = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 1000}
    spec = replace(make_spec("moe", "qwen2_moe", config, shapes, dtype="BF16"), experts=8)
    total = sum(t.size_bytes for t in spec.tensors) // 2
    assert quantizable(spec).share == pytest.approx((128 * 64 + 64 * 64) / total)
    assert quantizable(replace(spec, model_type="falcon")).share == 0


def test_eager_attention_pays_for_its_scores_and_sdpa_does_not() -> None:
    spec = llama("7B")
    sdpa = prefill_peak_bytes(spec, RunSpec("float16", context_tokens=4096), with_head=False)
    eager = prefill_peak_bytes(spec, RunSpec("float16", context_tokens=4096, attention="eager"), with_head=False)
    assert sdpa == 512 * 2 * (4 * 4096 + 3 * 11008)
    assert eager == 32 * 512 * 4096 * 10 + 512 * 2 * (4 * 4096 + 2 * 128 * 64)


def test_the_logits_of_a_huge_vocabulary_can_be_the_peak() -> None:
    spec = replace(llama("7B"), vocab_size=20_000_000)
    assert prefill_peak_bytes(spec, FP16, with_head=True) == 20_000_000 * 6
