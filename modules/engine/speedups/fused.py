"""Linear layers that read the same states, computed as one while few tokens are read: q, k and v; gate and up.

A decode step of a small model on a CPU waits for the start of its products more than for their sums. The weights of
such layers are laid one behind the other and each layer keeps its own part of them, so that no byte is held twice, and
prompts, hooks put on later and merged adapters meet the layers as they were. Larger layers gain nothing and stay where
they are, which for 16- and 32-bit weights is the model's own file. Of bitsandbytes' layers those are joined that its
own first forward has brought into their last form. docs/log.md has what it gives.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import nn

from modules.engine.loops.loaded import LoadedModel
from modules.engine.process.mappings import MappedFiles
from modules.engine.speedups.hooks import is_unhooked
from modules.engine.speedups.linears import product_of
from modules.units import MiB

Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names under which families keep layers that read the same states."""
LARGEST_BYTES = 16 * MiB
"""Of the weights of a group; above that a product lasts so long that its start no longer counts."""
MOST_TOKENS = 8
"""Tokens in one call; a prompt's chunk has enough work in each product, and its results would lie apart in memory."""


@torch.no_grad()
def fuse_linears(loaded: LoadedModel) -> int:
    """Let the model's small linear layers that read the same states be computed together. How many groups there are."""
    if loaded.device.type != "cpu":
        return 0
    groups = [group for module in loaded.model.modules() for group in _groups(module)]
    files = MappedFiles()
    for index, layers in enumerate(groups, 1):
        together = FusedLinears(layers)
        for part, layer in enumerate(layers):
            layer.forward = together.forward_of(part)
        files.let_go_at(index / len(groups))
    return len(groups)


class FusedLinears:
    """Layers of one kind that are called with the same states, one after the other. For one thread.

    The first that is called computes for all; whoever is called with other states computes anew.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._in_features = layers[0].in_features
        self._sizes = [layer.out_features for layer in layers]
        self._all, self._alone = _JOIN[_kind(layers[0])](layers, self._sizes)
        self._states: torch.Tensor | None = None
        self._results: list[torch.Tensor | None] = []

    def forward_of(self, part: int) -> Product:
        """The forward of the `part`-th layer: states `(…, in_features)` to `(…, out_features)`."""
        alone, most = self._alone[part], MOST_TOKENS * self._in_features

        def forward(states: torch.Tensor) -> torch.Tensor:
            return alone(states) if states.numel() > most else self._take(part, states)

        return forward

    def _take(self, part: int, states: torch.Tensor) -> torch.Tensor:
        result = self._results[part] if states is self._states else None
        if result is None:
            self._states, self._results = states, list(torch.split(self._all(states), self._sizes, -1))
            result = self._results[part]
        assert result is not None
        self._results[part] = None
        if not any(kept is not None for kept in self._results):
            self._states = None
        return result


def _groups(module: nn.Module) -> list[list[Any]]:
    """The groups among the children of `module` that can be computed together."""
    found = []
    for names in TOGETHER:
        layers = [layer for name in names if isinstance(layer := getattr(module, name, None), nn.Module)]
        if len(layers) == len(names) and _can_be_joined(layers):
            found.append(layers)
    return found


def _can_be_joined(layers: Sequence[Any]) -> bool:
    likeness = {_likeness(layer) for layer in layers}
    if None in likeness or len(likeness) > 1:
        return False
    size: int = sum(layer.weight.nbytes for layer in layers)
    return size <= LARGEST_BYTES


def _likeness(layer: Any) -> tuple[Any, ...] | None:
    """What layers must have in common to be joined; None for one that cannot be."""
    kind = _kind(layer)
    if not kind or not is_unhooked(layer) or layer.weight.device.type != "cpu":
        return None
    options: tuple[Any, ...] = ()
    if kind == "int8":
        options = (layer.state.threshold,)
    elif kind == "packed 4-bit":
        state = layer.weight.quant_state
        options = (state.blocksize, state.quant_type, layer.compute_dtype)
    return (kind, layer.in_features, layer.bias is None, layer.weight.dtype, *options)


def _kind(layer: Any) -> str:
    """Which of the ways of joining is for this layer; "" for none.

    bitsandbytes' layers are told by their names, as the library need not be there.
    """
    if type(layer) is nn.Linear:
        return "plain"
    if not type(layer).__module__.startswith("bitsandbytes."):
        return ""
    if type(layer).__name__ == "Linear8bitLt" and layer.state.CB is not None and not layer.state.has_fp16_weights:
        return "int8"
    if type(layer).__name__ == "Linear4bit" and getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        return "packed 4-bit"
    return ""


def _join_plain(layers: Sequence[Any], sizes: list[int]) -> tuple[Product, list[Product]]:
    first = layers[0]
    whole: Any = nn.Linear(first.in_features, sum(sizes), bias=first.bias is not None, device="meta")
    whole.weight = _parameter(torch.cat([layer.weight for layer in layers]))
    for layer, part in zip(layers, torch.split(whole.weight, sizes), strict=True):
        layer.weight = _parameter(part)
    whole.bias = _joined_bias(layers, sizes)
    return product_of(whole), [product_of(layer) for layer in layers]


def _join_int8(layers: Sequence[Any], sizes: list[int]) -> tuple[Product, list[Product]]:
    """Weights `(out_features, in_features)` in int8 with one scale a row."""
    first = layers[0]
    options = {"has_fp16_weights": False, "threshold": first.state.threshold, "device": "meta"}
    whole = type(first)(first.in_features, sum(sizes), bias=first.bias is not None, **options).eval()
    state = whole.state
    state.CB = torch.cat([layer.state.CB for layer in layers])
    state.SCB = torch.cat([layer.state.SCB for layer in layers])
    whole.weight = type(first.weight)(state.CB, requires_grad=False, has_fp16_weights=False)
    for layer, weights, scales in zip(layers, state.CB.split(sizes), state.SCB.split(sizes), strict=True):
        layer.state.CB = layer.weight.data = weights
        layer.state.SCB = scales
    whole.bias = _joined_bias(layers, sizes)
    return product_of(whole), [product_of(layer) for layer in layers]


def _join_packed_4bit(layers: Sequence[Any], sizes: list[int]) -> tuple[Product, list[Product]]:
    """Weights `(out_features, in_features / 2)` in bytes, of 32 rows mixed, with scales `(blocks, out_features)`."""
    import bitsandbytes  # it is there, the layers are its

    weights = torch.cat([layer.weight.data for layer in layers])
    state = copy.copy(layers[0].weight.quant_state)
    state.shape = torch.Size((sum(sizes), layers[0].in_features))
    state.absmax = torch.cat([layer.weight.quant_state.absmax for layer in layers], 1)
    parts = zip(layers, torch.split(weights, sizes), torch.split(state.absmax, sizes, 1), strict=True)
    for layer, part, scales in parts:
        layer.weight.data, layer.weight.quant_state.absmax = part, scales
    bias, compute = _joined_bias(layers, sizes), layers[0].compute_dtype

    def whole(states: torch.Tensor) -> torch.Tensor:
        given = states.to(compute)
        made: torch.Tensor = bitsandbytes.matmul_4bit(
            given, weights, quant_state=state, bias=None if bias is None else bias.to(given.dtype)
        )
        return made.to(states.dtype)

    return whole, [_with_whole_scales(layer) for layer in layers]


def _with_whole_scales(layer: Any) -> Product:
    """The layer's own product, for which its scales must lie in one piece."""
    state = layer.weight.quant_state
    scales = state.absmax

    def product(states: torch.Tensor) -> torch.Tensor:
        state.absmax = scales.contiguous()
        try:
            return type(layer).forward(layer, states)  # type: ignore[no-any-return]
        finally:
            state.absmax = scales

    return product


def _joined_bias(layers: Sequence[Any], sizes: list[int]) -> nn.Parameter | None:
    if layers[0].bias is None:
        return None
    whole = _parameter(torch.cat([layer.bias for layer in layers]))
    for layer, part in zip(layers, torch.split(whole, sizes), strict=True):
        layer.bias = _parameter(part)
    return whole


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


_JOIN = {"plain": _join_plain, "int8": _join_int8, "packed 4-bit": _join_packed_4bit}
