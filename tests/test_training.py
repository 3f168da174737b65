"""The forecast of a training step, against torch's own memory events of a real step on small models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaForCausalLM
from transformers.models.llama.configuration_llama import LlamaConfig

from modules.memory.forecasting.forecast import CPU_PROCESS_BYTES
from modules.memory.forecasting.training import TrainingRun, moments, saved_per_token, training_budget
from modules.memory.model.spec import ModelSpec, TensorInfo

TORCH = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def llama(*, hidden: int, inner: int, heads: int, kv_heads: int, layers: int, vocab: int) -> ModelSpec:
    """A Llama with untied tables and heads of 64."""
    tensors = [TensorInfo("model.embed_tokens.weight", (vocab, hidden), "BF16", 0)]
    shapes = {
        "self_attn.q_proj": (heads * 64, hidden), "self_attn.k_proj": (kv_heads * 64, hidden),
        "self_attn.v_proj": (kv_heads * 64, hidden), "self_attn.o_proj": (hidden, heads * 64),
        "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner),
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    for block in (f"model.layers.{number}" for number in range(layers)):
        tensors += [TensorInfo(f"{block}.{name}.weight", shape, "BF16", 0, block) for name, shape in shapes.items()]
    tensors += [TensorInfo("model.norm.weight", (hidden,), "BF16", 0)]
    tensors += [TensorInfo("lm_head.weight", (vocab, hidden), "BF16", 0)]
    return ModelSpec(
        name="tiny", path=Path(), source="safetensors", architecture="LlamaForCausalLM", model_type="llama",
        is_encoder_decoder=False, tensors=tuple(tensors), layers=layers, hidden_size=hidden, intermediate_size=inner,
        attention_heads=heads, kv_heads=kv_heads, head_dim=64, vocab_size=vocab, max_context=4096,
        tied_embeddings=False, stored_dtype="bfloat16", kv_elements=2 * kv_heads * 64, layer_kinds=("full",),
    )  # fmt: skip


SHORT_TABLE = llama(hidden=512, inner=1024, heads=8, kv_heads=2, layers=4, vocab=1000)
LONG_TABLE = llama(hidden=256, inner=1024, heads=4, kv_heads=4, layers=8, vocab=8000)


def build(spec: ModelSpec, run: TrainingRun) -> Any:
    """The model of `spec`, to be trained whole."""
    config = LlamaConfig(
        hidden_size=spec.hidden_size, intermediate_size=spec.intermediate_size, head_dim=64,
        num_attention_heads=spec.attention_heads, num_key_value_heads=spec.kv_heads,
        num_hidden_layers=spec.layers, vocab_size=spec.vocab_size, tie_word_embeddings=False,
    )  # fmt: skip
    kind: Any = LlamaForCausalLM
    model = kind(config).to(TORCH[run.dtype]).train()
    if run.checkpointing:
        model.activation_checkpointing_enable()
    return model


def measured_step(spec: ModelSpec, run: TrainingRun) -> tuple[int, int]:
    """Bytes of a second step beyond weights and optimizer states: kept when the way back begins, and the most."""
    model = build(spec, run)
    kinds: Any = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    optimizer = kinds[run.optimizer](model.parameters(), foreach=True)
    ids = torch.ones((run.batch, run.tokens), dtype=torch.long)

    def step() -> None:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        with record_function("the way back"):
            loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step()
    events = sorted(
        (event.start_ns(), event.name(), event.nbytes() if event.name() == "[memory]" else 0)
        for event in trace.profiler.kineto_results.events()
        if event.name() in ("[memory]", "the way back")
    )
    live = kept = peak = 0
    for _, name, size in events:
        kept = live if name == "the way back" else kept
        live += size
        peak = max(peak, live)
    return kept, peak


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_a_layer_keeps_for_the_way_back_is_byte_exact(dtype: Any) -> None:
    run = TrainingRun(tokens=256, dtype=dtype, optimizer="sgd")
    short, long = replace(SHORT_TABLE, layers=2), SHORT_TABLE
    per_layer = (measured_step(long, run)[0] - measured_step(short, run)[0]) / 2
    assert saved_per_token(SHORT_TABLE, run) * 256 == per_layer


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "tokens"), [(SHORT_TABLE, 128), (SHORT_TABLE, 1024), (LONG_TABLE, 1024)])
@pytest.mark.parametrize(
    ("dtype", "optimizer", "checkpointing"),
    [
        ("bfloat16", "adamw", False), ("bfloat16", "sgd", False), ("bfloat16", "adamw", True),
        ("float32", "adamw", False), ("float32", "sgd", True),
    ],
)  # fmt: skip
def test_a_step_takes_what_is_forecast_within_three_percent(
    spec: ModelSpec, tokens: int, dtype: Any, optimizer: Any, checkpointing: bool
) -> None:
    run = TrainingRun(tokens=tokens, dtype=dtype, optimizer=optimizer, checkpointing=checkpointing)
    budget = training_budget(spec, run, context=0)
    _, peak = measured_step(spec, run)
    assert budget.total / (budget.weights + budget.optimizer + peak) == pytest.approx(1, abs=0.03)


def test_full_training_keeps_a_gradient_and_two_states_for_each_weight() -> None:
    budget = training_budget(LONG_TABLE, TrainingRun())
    assert budget.gradients == budget.weights
    assert budget.optimizer == 2 * budget.weights
    assert budget.figures["optimizer"].method == "exact"
    assert training_budget(LONG_TABLE, TrainingRun(optimizer="sgd")).optimizer == 0


def test_a_cpu_is_not_said_to_have_a_cuda_context() -> None:
    gpu = training_budget(LONG_TABLE, TrainingRun())
    cpu = training_budget(LONG_TABLE, TrainingRun(), context=CPU_PROCESS_BYTES)
    assert "CUDA" in gpu.figures["context"].formula
    assert "CUDA" not in cpu.figures["context"].formula


def test_8_bit_adam_keeps_a_byte_a_state_and_small_tensors_in_fp32() -> None:
    run = TrainingRun(optimizer="adam8bit")
    block = sum(
        2 * (size + 4 * size // 256) if size >= 4096 else 8 * size
        for size in (512 * 512, 128 * 512, 128 * 512, 512 * 512, *(3 * (1024 * 512,)), 512, 512)
    )
    table = 1000 * 512
    assert training_budget(SHORT_TABLE, run).optimizer == 4 * block + 2 * 2 * (table + 4 * table // 256) + 8 * 512


def test_adapters_have_gradients_and_states_and_the_base_has_none() -> None:
    full, lora = (training_budget(LONG_TABLE, TrainingRun(mode=mode)) for mode in ("full", "lora"))
    adapters = 8 * 16 * (4 * (256 + 256) + 3 * (256 + 1024))
    assert lora.gradients == 4 * adapters
    assert lora.optimizer == 8 * adapters
    assert lora.weights == full.weights + 4 * adapters
    assert lora.total < full.total


def test_qlora_packs_the_base_and_needs_one_matrix_unpacked() -> None:
    lora, qlora = (training_budget(LONG_TABLE, TrainingRun(mode=mode)) for mode in ("lora", "qlora"))
    assert qlora.weights < lora.weights
    assert 0 < qlora.quant_meta < qlora.weights
    assert qlora.dequant_buffer == 256 * 1024 * 2
    assert qlora.gradients == lora.gradients


def test_checkpointing_keeps_one_input_a_layer() -> None:
    plain, checkpointed = (moments(LONG_TABLE, TrainingRun(checkpointing=on, tokens=1024)) for on in (False, True))
    saved = 8 * 1024 * (saved_per_token(LONG_TABLE, TrainingRun(tokens=1024)) - 2 * 256)
    assert plain["loss"] - checkpointed["loss"] == saved


def test_the_formula_says_when_a_step_is_fullest() -> None:
    short, long = (training_budget(LONG_TABLE, TrainingRun(tokens=tokens)) for tokens in (16, 2048))
    assert "optimizer" in short.figures["activations"].formula
    assert "loss" in long.figures["activations"].formula
