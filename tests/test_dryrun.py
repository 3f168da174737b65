"""The dry run against what really is allocated, on tiny models; benchmarks/memory.py compares many more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache

from benchmarks.allocations import measure, real_model, tensors_bytes
from benchmarks.memory_inference import load_quantized
from benchmarks.memory_training import real_step
from modules.engine.loops.rows import CausalRow
from modules.errors import BadConfig
from modules.memory.dryruns.dryrun import DTYPES, count_peaks, count_run, fake_model
from modules.memory.dryruns.live_bytes import LiveBytes
from modules.memory.dryruns.training_dryrun import count_training
from modules.memory.forecasting.forecast import DType, Quantization, RunSpec
from modules.memory.forecasting.training import TrainingMode, TrainingRun
from tests.tiny_models import tiny_config

CPU = torch.device("cpu")


def config_file(folder: Path, family: str, **changes: Any) -> Path:
    """The config of a tiny model, alone in a folder."""
    tiny_config(family, **changes).save_pretrained(folder / family)
    return folder / family / "config.json"


def count_prompt(file: Path, run: RunSpec, tokens: int, **how: Any) -> Any:
    """A dry run of a whole prompt into a plain cache."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return count_run(fake_model(file, run, "cpu"), tokens, tokens, **{"cache": "dynamic", **how})


def read(model: Any, tokens: int) -> CausalRow:
    """`model` reads a prompt."""
    row = CausalRow(model, CPU, DynamicCache(config=model.config))
    row.read([1] * tokens).float()
    return row


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("gpt2", "sdpa"), ("falcon", "sdpa"), ("deepseek_v3", "sdpa"),
     ("gemma3", "sdpa"), ("mixtral", "sdpa"), ("mamba2", "sdpa")],
)  # fmt: skip
def test_prefill_and_decode_peaks_are_those_of_a_real_run(
    family: str, attention: str, dtype: DType, tmp_path: Path
) -> None:
    counted = count_prompt(config_file(tmp_path, family), RunSpec(dtype, attention=attention), 384)
    model = real_model(tiny_config(family), DTYPES[dtype], attention)
    with torch.no_grad():
        read(model, 4)
        row, prefill = measure(lambda: read(model, 384))
        _, decode = measure(lambda: row.read([1]).float())
    assert counted.weights == tensors_bytes(model)
    assert counted.kv_cache + counted.prefill_peak == pytest.approx(prefill.peak, rel=0.005)
    assert counted.kv_cache + counted.decode_peak == pytest.approx(prefill.kept + decode.peak, rel=0.005)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantized_models_hold_and_need_what_bitsandbytes_takes(quantization: Quantization, tmp_path: Path) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 256}
    file = config_file(tmp_path, "llama", **wide)
    real_model(tiny_config("llama", **wide), torch.float32, "sdpa").save_pretrained(tmp_path / "weights")
    model = load_quantized(tmp_path / "weights", quantization, torch.float32)
    counted = count_prompt(file, RunSpec("float32", quantization, compute_dtype="float32"), 384)
    with torch.no_grad():
        read(model, 4)
        _, prefill = measure(lambda: read(model, 384))
    assert counted.weights == tensors_bytes(model)
    assert counted.kv_cache + counted.prefill_peak == pytest.approx(prefill.peak, rel=0.02)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_training_step_takes_what_a_real_one_does(mode: TrainingMode, checkpointing: bool, tmp_path: Path) -> None:
    run = TrainingRun(mode, 1, 256, "adamw", checkpointing, 8, "float32")
    model = real_model(tiny_config("llama", num_hidden_layers=6), torch.float32, "sdpa")
    counted = count_training(config_file(tmp_path, "llama", num_hidden_layers=6), run)
    assert counted.peak == pytest.approx(real_step(model, run), rel=0.03)
    assert counted.peak == counted.weights + counted.gradients + counted.optimizer + counted.activations


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3"])
def test_like_layers_run_once_give_the_bytes_of_all_layers(family: str, tmp_path: Path) -> None:
    more = (
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 4} if family == "gemma3" else {}
    )
    file = config_file(tmp_path, family, num_hidden_layers=12, **more)
    run = RunSpec("float32", context_tokens=300, prefill_chunk=128, attention="eager")
    short = count_peaks(file, run, "cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        whole = count_run(fake_model(file, run, "cpu"), 300, 128)
    assert short == whole


def test_the_cache_of_a_known_model_is_its_formula(tmp_path: Path) -> None:
    file = config_file(tmp_path, "llama")
    counted = count_peaks(file, RunSpec("bfloat16", context_tokens=1000, prefill_chunk=128), "cpu")
    assert counted.kv_cache == 2 * 2 * 2 * 16 * 1000 * 2  # keys and values, layers, heads, head size, tokens, bytes


@pytest.mark.parametrize("family", ["t5", "mamba", "qwen3_next", "gpt_oss", "bloom"])
def test_families_of_every_kind_are_counted_in_chunks_on_both_kinds_of_device(family: str, tmp_path: Path) -> None:
    file = config_file(tmp_path, family)
    run = RunSpec("bfloat16", context_tokens=200, prefill_chunk=64)
    on_cpu, on_gpu = count_peaks(file, run, "cpu"), count_peaks(file, run, "cuda")
    assert min(on_cpu.weights, on_cpu.kv_cache, on_cpu.prefill_peak, on_cpu.decode_peak) > 0
    assert (on_gpu.weights, on_gpu.kv_cache) == (on_cpu.weights, on_cpu.kv_cache)


def test_a_config_that_no_model_can_be_built_of_is_named(tmp_path: Path) -> None:
    file = config_file(tmp_path, "llama")
    file.write_text(file.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 7'))
    with pytest.raises(BadConfig):
        count_peaks(file, RunSpec("float32"), "cpu")


def test_a_storage_counts_once_and_until_nothing_refers_to_it() -> None:
    counter = LiveBytes()
    with counter:
        numbers = torch.zeros(100)
        half = numbers[:50]
        assert counter.live == 400
        del numbers
        assert counter.live == 400
        del half
    assert (counter.live, counter.peak) == (0, 400)
