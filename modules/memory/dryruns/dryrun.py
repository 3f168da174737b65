"""Dry runs: the engine's own forward passes on a model without weights, counting what each operation would allocate.

The model of a checked config is built on the meta device, its tensors become fake ones (shapes, no bytes), and the last
chunk of a prompt, one token or a training step is run through it. Layers that are alike are run once. Runs in
worker.py's process; reads no weights and executes nothing that a config names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from modules.engine.loops.attention import prefer_cpu_attention
from modules.engine.loops.rows import CausalRow, EncoderDecoderRow, GrowingLayer, growing_cache
from modules.engine.speedups.norms import speed_up_norms
from modules.memory.dryruns.fake_linears import Kind, replace_linears
from modules.memory.dryruns.live_bytes import LiveBytes, tensor_bytes
from modules.memory.dryruns.shortening import keep_layers, shorten
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model import meta

CacheKind = Literal["pool", "growing", "dynamic"]
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes, as in dryruns.Peaks."""

    weights: int
    kv_cache: int
    prefill_peak: int
    decode_peak: int


class PoolLayer(GrowingLayer):
    """A layer's keys and values in memory that was set aside for the whole context, as pages are.

    `copies`: they are handed out as copies, as transformers' paged cache does on a GPU.
    """

    def __init__(self, tokens: int, *, copies: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tokens = tokens
        self.copies = copies

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """As GrowingLayer, with all of the room there from the start."""
        if self._key_room is None:
            self._key_room = key_states.new_empty((*key_states.shape[:2], self.tokens, key_states.shape[3]))
            self._value_room = value_states.new_empty((*value_states.shape[:2], self.tokens, value_states.shape[3]))
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return (keys.clone(), values.clone()) if self.copies else (keys, values)


def count_peaks(file: Path, run: RunSpec, kind: Kind) -> Counted:
    """What the engine would allocate with the model of config `file`, run as `run` says. Raises BadConfig and the like.

    `kind` is the device's.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = fake_model(file, run, kind)
        shortened = shorten(model)
        if run.attention == "sdpa" and kind == "cpu":
            use_engine_attention(model)
        counted = count_run(
            model, run.context_tokens, min(run.prefill_chunk, run.context_tokens), reply=run.context_tokens,
            repeats=shortened.repeats, kind=kind,
        )  # fmt: skip
    return Counted(shortened.weights, counted.kv_cache, counted.prefill_peak, counted.decode_peak)


def fake_model(file: Path, run: RunSpec, kind: Kind, *, layers: int = 0) -> Any:
    """The model of config `file` in fake tensors, in the precision of `run`; with its first `layers` layers, or all.

    Called under a FakeTensorMode. Raises BadConfig or UnsupportedModel.
    """
    model = meta.build(file, attention="eager" if run.attention == "eager" else None)
    if layers:
        keep_layers(model, layers)
    matrices = set(meta.replaceable(model)) if run.quantization != "none" else set()  # before tables are tied
    model.tie_weights()
    materialize(model, DTYPES[run.dtype])
    if run.quantization != "none":
        compute = DTYPES[run.compute_dtype]
        replace_linears(model, matrices, run.quantization, double_quant=run.double_quant, compute=compute, kind=kind)
    return model


def materialize(model: Any, dtype: torch.dtype) -> None:
    """Give every tensor of `model`, on the meta device, a place on the CPU; bf16 ones become `dtype`.

    Under a FakeTensorMode that place takes no memory. Shared tensors stay shared.
    """
    made: dict[int, torch.Tensor] = {}

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:
            kept = dtype if tensor.dtype == torch.bfloat16 else tensor.dtype
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=kept, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers, vars(module)):
            for name, tensor in tensors.items():
                if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                    tensors[name] = place(tensor)
    model.config.dtype = dtype


def use_engine_attention(model: Any) -> None:
    """Let `model` compute attention and norms as the engine does on the CPU."""
    loaded: Any = SimpleNamespace(model=model, device=torch.device("cpu"))
    prefer_cpu_attention(loaded, many_rows=False)
    speed_up_norms(loaded)


def count_run(
    model: Any,
    tokens: int,
    chunk: int,
    *,
    cache: CacheKind = "pool",
    reply: int = 1,
    repeats: Mapping[int, int] | None = None,
    kind: Kind = "cpu",
) -> Counted:
    """Bytes at the end of a context of `tokens` tokens read `chunk` tokens at a time. Called under a FakeTensorMode.

    `repeats`: how many layers of the real model each layer of `model` stands for, 1 where not named. `reply`: how many
    tokens an encoder-decoder comes to write.
    """
    counter = LiveBytes(inner=kind == "cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        counter.add(tensor)
    weights = counter.live
    with counter:
        if model.config.is_encoder_decoder:
            return _count_encoder_decoder(model, counter, tokens, reply, repeats or {})
        row = CausalRow(model, torch.device("cpu"), _new_cache(model, cache, tokens, copies=kind == "cuda"))
        if chunk < tokens:
            _fill(row, tokens - chunk, chunk)
        counter.begin()
        logits = row.read([1] * chunk).float()
        held, kept = _cache_bytes(row.cache, {}), _cache_bytes(row.cache, repeats or {})
        prefill_peak = counter.peak - weights - held
        del logits
        counter.begin()
        row.read([1]).float()
        decode_peak = counter.peak - weights - held
    if cache == "pool":
        kept = _without_spare(row.cache, repeats or {}, kept, tokens)
    return Counted(weights, kept, max(0, prefill_peak), max(0, decode_peak))


def _count_encoder_decoder(
    model: Any, counter: LiveBytes, tokens: int, reply: int, repeats: Mapping[int, int]
) -> Counted:
    """The encoder reads its whole input at once; the decoder's own cache grows with the reply."""
    weights = counter.begin()
    row = EncoderDecoderRow(model, torch.device("cpu"), [1] * tokens)
    logits = row.read([1]).float()
    cache, encoded = row._inputs["past_key_values"], row._inputs["encoder_outputs"]
    states = tensor_bytes([value for value in encoded.values() if isinstance(value, torch.Tensor)])
    own, crossed = cache.self_attention_cache, cache.cross_attention_cache
    held = states + _cache_bytes(own, {}) + _cache_bytes(crossed, {})
    read = _cache_bytes(crossed, repeats)
    kept = states + read + max(_cache_bytes(own, repeats), read * reply // tokens)
    prefill_peak = counter.peak - weights - held
    del logits
    counter.begin()
    row.read([1]).float()
    return Counted(weights, kept, max(0, prefill_peak), max(0, counter.peak - weights - held))


def _new_cache(model: Any, kind: CacheKind, tokens: int, *, copies: bool) -> Any:
    """An empty cache for `model`; only layers with full attention differ by `kind`."""
    if kind == "growing":
        return growing_cache(model.config)
    cache: Any = DynamicCache(config=model.config)
    if kind == "pool":
        cache.layers = [
            PoolLayer(tokens + 1, copies=copies) if type(layer) is DynamicLayer else layer for layer in cache.layers
        ]
    return cache


def _fill(row: CausalRow, tokens: int, chunk: int) -> None:
    """Let `row` hold `tokens` tokens: one is read, then the caches say that they hold more."""
    row.read([1])
    for layer in row.cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or not keys.numel():
            continue
        if isinstance(layer, PoolLayer):
            layer.keys, layer.values = layer._key_room[:, :, :tokens], layer._value_room[:, :, :tokens]  # type: ignore[index]
        elif isinstance(layer, DynamicSlidingWindowLayer):
            seen = layer.sliding_window - 1
            layer.keys, layer.values = (_empty(old, min(tokens, seen + chunk))[:, :, -seen:] for old in (keys, values))
            layer.cumulative_length = tokens
        else:
            layer.keys, layer.values = _empty(keys, tokens), _empty(values, tokens)


def _empty(old: torch.Tensor, tokens: int) -> torch.Tensor:
    return old.new_empty((*old.shape[:2], tokens, old.shape[3]))


def _cache_bytes(cache: Any, repeats: Mapping[int, int]) -> int:
    """What a cache's layers keep, each as often as it stands for a layer."""
    unnamed = 0 if repeats else 1  # layers of a shortened model that nothing runs through
    return sum(repeats.get(index, unnamed) * tensor_bytes(_tensors(layer)) for index, layer in enumerate(cache.layers))


def _without_spare(cache: Any, repeats: Mapping[int, int], kept: int, tokens: int) -> int:
    """`kept` without the one token that pools have room for beyond `tokens`."""
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, PoolLayer):
            kept -= repeats.get(index, 1) * (tensor_bytes(_tensors(layer)) // (tokens + 1))
    return kept


def _tensors(layer: CacheLayerMixin) -> list[torch.Tensor]:
    """The tensors that a cache layer of any kind holds."""
    found: list[torch.Tensor] = []
    for value in vars(layer).values():
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [item for item in values if isinstance(item, torch.Tensor)]
    return found
