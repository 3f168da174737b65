"""Bytes that Snug says against bytes that a loaded model has, family by family, to the byte.

tests/test_exact_bytes.py holds them to equality; benchmarks/memory_exact.py keeps them all as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import BitsAndBytesConfig

from modules.memory.forecasting.forecast import DType, RunSpec, buffer_bytes, kv_cache_bytes, weight_bytes
from modules.memory.model.meta import describe
from modules.memory.model.spec import ModelSpec, inspect
from tests.tiny_families import VOCAB, tiny_folder

PROMPT, CHUNK = 45, 20
QUANTIZED: tuple[tuple[str, RunSpec, dict[str, Any]], ...] = (
    ("int8", RunSpec("bfloat16", "int8"), {"load_in_8bit": True}),
    ("nf4", RunSpec("bfloat16", "nf4"), {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    ("fp4", RunSpec("bfloat16", "fp4"), {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    (
        "nf4, double",
        RunSpec("bfloat16", "nf4", double_quant=True),
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
)


@dataclass(frozen=True)
class Row:
    """One comparison, in bytes. `headers` is None where only the config was asked."""

    family: str
    what: str
    measured: int
    config: int
    headers: int | None = None

    @property
    def exact(self) -> bool:
        """Whether no byte is missing or too many."""
        return self.config == self.measured and self.headers in (None, self.measured)

    def __str__(self) -> str:
        found = [f"{self.family:17}", f"{self.what:22}", f"{self.measured:>10,}", f"{self.config:>10,}"]
        found.append(f"{self.headers:>10,}" if self.headers is not None else f"{'':>10}")
        return " ".join([*found, "exact" if self.exact else "MISS"])


def weights_and_cache(family: str, folder: Path, dtype: DType) -> Iterator[Row]:
    """Parameters and buffers of the loaded model; its cache after a prompt read whole, in chunks, and one step more."""
    target = tiny_folder(family, folder)
    headers, config = inspect(target), inspect(target / "config.json", describe=describe)
    model = load(headers, dtype=getattr(torch, dtype))
    run = RunSpec(dtype)
    stored = model.state_dict().keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name not in stored]
    everything = [*model.parameters(), *model.buffers()]
    own = distinct_bytes(everything) - distinct_bytes(buffers)
    yield Row(family, f"weights {dtype}", own, weight_bytes(config, run) - buffer_bytes(config, run),
              weight_bytes(headers, run))  # fmt: skip
    yield Row(family, f"with buffers {dtype}", distinct_bytes(everything), weight_bytes(config, run))
    for chunk in (PROMPT, CHUNK):
        if chunk != PROMPT and headers.is_encoder_decoder:
            continue
        measured = read_prompt(model, headers, chunk)
        expected = replace(run, prefill_chunk=PROMPT % chunk or chunk, context_tokens=PROMPT)
        yield Row(family, f"cache {dtype}, {chunk} at once", measured, kv_cache_bytes(config, expected, PROMPT),
                  kv_cache_bytes(headers, expected, PROMPT))  # fmt: skip


def quantized(family: str, folder: Path) -> Iterator[Row]:
    """A model quantized by bitsandbytes: packed weights, scales, code books, and all that it leaves alone."""
    target = tiny_folder(family, folder)
    headers, config = inspect(target), inspect(target / "config.json", describe=describe)
    for label, run, options in QUANTIZED:
        model = load(headers, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options))
        measured = distinct_bytes([*with_scales(model), *model.buffers()])
        yield Row(family, label, measured, weight_bytes(config, run))


def load(spec: ModelSpec, **options: Any) -> Any:
    """The model as the engine loads it."""
    auto: Any = transformers.AutoModelForSeq2SeqLM if spec.is_encoder_decoder else transformers.AutoModelForCausalLM
    return auto.from_pretrained(spec.path, device_map={"": "cpu"}, **options).eval()


def read_prompt(model: Any, spec: ModelSpec, chunk: int) -> int:
    """Bytes that the cache holds after a prompt of PROMPT tokens was read `chunk` at a time."""
    tokens = torch.arange(PROMPT).remainder(VOCAB - 4).add(3).unsqueeze(0)
    with torch.inference_mode():
        if spec.is_encoder_decoder:
            out = model(input_ids=tokens, decoder_input_ids=tokens, use_cache=True)
            return cache_bytes(out.past_key_values) + int(out.encoder_last_hidden_state.nbytes)
        cache: dict[str, Any] = {}
        for piece in torch.split(tokens, chunk, dim=1):
            out = model(input_ids=piece, use_cache=True, **cache)
            name = "past_key_values" if getattr(out, "past_key_values", None) is not None else "cache_params"
            cache = {name: getattr(out, name)}
    return cache_bytes(next(iter(cache.values())))


def cache_bytes(cache: object) -> int:
    """Bytes of every storage that a cache keeps alive, its integer counters aside."""
    return sum(_storages(cache, {}, depth=0).values())


def _storages(value: object, found: dict[int, int], depth: int) -> dict[int, int]:
    if isinstance(value, torch.Tensor):
        if value.numel() and value.is_floating_point():
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return found
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif depth < 6 and type(value).__module__.startswith("transformers") and hasattr(value, "__dict__"):
        inner = [item for name, item in vars(value).items() if "config" not in name]
    for item in inner:
        _storages(item, found, depth + 1)
    return found


def with_scales(model: Any) -> Iterator[torch.Tensor]:
    """Parameters and what bitsandbytes keeps beside them."""
    for parameter in model.parameters():
        yield parameter
        if isinstance(getattr(parameter, "SCB", None), torch.Tensor):
            yield parameter.SCB
        state = getattr(parameter, "quant_state", None)
        for part in [state, state.state2] if state is not None and state.nested else [state] if state else []:
            yield from (part.absmax, part.code)
        if state is not None and state.nested:
            yield state.offset


def distinct_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, shared ones once."""
    sizes = {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors if tensor.numel()}
    return sum(sizes.values())
