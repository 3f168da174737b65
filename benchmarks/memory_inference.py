"""Prefill and decode of tiny models of many families, plain and quantized, held against real allocations on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BitsAndBytesConfig, DynamicCache

from benchmarks.allocations import measure, real_model, tensors_bytes
from benchmarks.memory_rows import Row
from modules.engine.loops.rows import CausalRow, EncoderDecoderRow
from modules.memory.dryruns.dryrun import DTYPES, Counted, count_run, fake_model
from modules.memory.forecasting.forecast import DType, Quantization, RunSpec
from tests.tiny_models import CAUSAL, ENCODER_DECODER, FURTHER, tiny_config

FAMILIES = (*CAUSAL, *FURTHER, *ENCODER_DECODER)
QUANTIZED_FAMILIES = ("llama", "qwen3", "gpt_neox", "opt", "phi3", "gemma3", "gpt2")
PROMPTS = (96, 384, 1000)
BOTH: tuple[DType, DType] = ("float32", "bfloat16")
FORMATS: tuple[tuple[Quantization, bool], ...] = (("nf4", False), ("nf4", True), ("int8", False))
_CPU = torch.device("cpu")
# bitsandbytes' kernels want wider matrices than the tiny models have.
_WIDE: dict[str, dict[str, Any]] = {
    "opt": {"hidden_size": 128, "ffn_dim": 256, "word_embed_proj_dim": 128, "num_hidden_layers": 3},
    "gpt2": {"n_embd": 128, "n_inner": 256, "n_layer": 3},
}
_WIDE_LLAMA = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3}


def write_config(folder: Path, family: str, **changes: Any) -> Path:
    """The config file of a tiny model, in a folder of its own."""
    path = folder / f"{family}{len(list(folder.iterdir()))}"
    tiny_config(family, **changes).save_pretrained(path)
    return path / "config.json"


def read_prompt(model: Any, tokens: int) -> Any:
    """A row of `model` that has read `tokens` tokens at once into a plain cache; its logits stay with it."""
    if model.config.is_encoder_decoder:
        encoded = EncoderDecoderRow(model, _CPU, [1] * tokens)
        return encoded, encoded.read([1]).float()
    row = CausalRow(model, _CPU, DynamicCache(config=model.config))
    return row, row.read([1] * tokens).float()


def compare(model: Any, counted: Counted, family: str, way: str, tokens: int) -> Iterator[Row]:
    """Prefill and decode of a real model held against what was counted. All that lives beyond weights is compared."""
    with torch.no_grad():
        read_prompt(model, 4)  # a first call leaves things behind: tables, repacked weights
        (row, logits), prefill = measure(lambda: read_prompt(model, tokens))
        kept = prefill.kept - logits.nbytes
        del logits
        _, decode = measure(lambda: row.read([1]).float())
    yield Row("prefill", family, way, tokens, counted.kv_cache + counted.prefill_peak, prefill.peak)
    yield Row("decode", family, way, tokens, counted.kv_cache + counted.decode_peak, kept + decode.peak)


def count(file: Path, run: RunSpec, tokens: int) -> Counted:
    """The dry run of a whole prompt into a plain cache."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        return count_run(fake_model(file, run, "cpu"), tokens, tokens, cache="dynamic")


def compare_family(folder: Path, family: str) -> Iterator[Row]:
    """One family, with sdpa and eager, in fp32 and bf16, at three lengths."""
    file = write_config(folder, family)
    for attention, dtype in product(("sdpa", "eager"), BOTH):
        model = real_model(tiny_config(family), DTYPES[dtype], attention)
        used = model.config._attn_implementation
        if used != attention:  # the family has no sdpa: its row comes with eager
            continue
        for tokens in PROMPTS:
            counted = count(file, RunSpec(dtype, attention=attention), tokens)
            yield from compare(model, counted, family, f"{used} {dtype}", tokens)


def compare_quantized(folder: Path, family: str) -> Iterator[Row]:
    """bitsandbytes on the CPU: the model after its first use, and its peaks."""
    wide = _WIDE.get(family, _WIDE_LLAMA)
    file = write_config(folder, family, **wide)
    stored = file.parent / "weights"
    real_model(tiny_config(family, **wide), torch.float32, "sdpa").save_pretrained(stored)
    for (quantization, double_quant), dtype in product(FORMATS, BOTH):
        model = load_quantized(stored, quantization, DTYPES[dtype], double_quant=double_quant)
        with torch.no_grad():
            read_prompt(model, 4)
        way = f"{quantization}{' double quant' if double_quant else ''} {dtype}"
        run = RunSpec(dtype, quantization, double_quant=double_quant, compute_dtype=dtype)
        for tokens in PROMPTS:
            counted = count(file, run, tokens)
            yield from compare(model, counted, family, way, tokens)
        yield Row("weights", family, way, 0, counted.weights, tensors_bytes(model))


def load_quantized(stored: Path, quantization: Quantization, dtype: torch.dtype, *, double_quant: bool = False) -> Any:
    """A model that bitsandbytes quantizes while it is loaded."""
    options: dict[str, Any] = {"load_in_8bit": True}
    if quantization == "nf4":
        options = {
            "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_use_double_quant": double_quant,
        }  # fmt: skip
    made: Any = BitsAndBytesConfig
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(stored, quantization_config=made(**options), dtype=dtype).eval()
