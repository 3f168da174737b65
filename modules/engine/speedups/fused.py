"""Linear layers that read the same states, computed as one while few tokens are read: q, k and v; gate and up.

A decode step of a small model on a CPU waits for the start of its products more than for their sums. The weights of
such layers are laid one behind the other and each layer keeps its own part of them, so that no byte is held twice, and
prompts, hooks put on later and merged adapters meet the layers as they were. Larger layers gain nothing and stay where
they are, which for 16- and 32-bit weights is the model's own file. docs/log.md has what it gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from modules.engine.loaded import LoadedModel
from modules.engine.mappings import MappedFiles
from modules.engine.speedups.hooks import is_unhooked
from modules.engine.speedups.linears import product_of

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names under which families keep layers that read the same states."""
LARGEST_BYTES = 16 * 2**20
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
    if groups:
        files.let_go()  # what the checks of the load have read
    for index, layers in enumerate(groups, 1):
        together = FusedLinears(layers)
        for part, layer in enumerate(layers):
            layer.forward = together.forward_of(part, layer)
        files.let_go_at(index / len(groups))
    return len(groups)


class FusedLinears:
    """Layers of one kind that are called with the same states, one after the other. For one thread.

    The first that is called computes for all; whoever is called with other states computes anew.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._all = product_of(_joined(layers))
        self._sizes = [layer.out_features for layer in layers]
        self._states: torch.Tensor | None = None
        self._results: list[torch.Tensor | None] = []

    def forward_of(self, part: int, layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """The forward of the `part`-th layer: states `(…, in_features)` to `(…, out_features)`."""
        alone = product_of(layer)

        def forward(states: torch.Tensor) -> torch.Tensor:
            if states.numel() > MOST_TOKENS * layer.in_features:
                return alone(states)
            return self._take(part, states)

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
    first = layers[0]
    alike = all(
        type(layer) is type(first)
        and is_unhooked(layer)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == first.weight.dtype
        and layer.in_features == first.in_features
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )
    if not alike or sum(layer.weight.nbytes for layer in layers) > LARGEST_BYTES:
        return False
    return type(first) is nn.Linear or (_is_int8(first) and not first.state.has_fp16_weights)


def _is_int8(layer: Any) -> bool:
    """Whether it is bitsandbytes' layer for LLM.int8(); told by its name, as bitsandbytes need not be there."""
    return type(layer).__name__ == "Linear8bitLt" and type(layer).__module__.startswith("bitsandbytes.")


def _joined(layers: Sequence[Any]) -> Any:
    """One layer of the same kind over the outputs of all of them, whose weights theirs are parts of from now on."""
    first, sizes = layers[0], [layer.out_features for layer in layers]
    has_bias = first.bias is not None
    options: dict[str, Any] = {"bias": has_bias, "device": "meta"}
    if _is_int8(first):
        options |= {"has_fp16_weights": False, "threshold": first.state.threshold}
    whole = type(first)(first.in_features, sum(sizes), **options).eval()
    if has_bias:
        whole.bias = _parameter(torch.cat([layer.bias for layer in layers]))
        for layer, part in zip(layers, whole.bias.split(sizes), strict=True):
            layer.bias = _parameter(part)
    if _is_int8(first):
        _join_int8(layers, whole, sizes)
        return whole
    whole.weight = _parameter(torch.cat([layer.weight for layer in layers]))
    for layer, part in zip(layers, whole.weight.split(sizes), strict=True):
        layer.weight = _parameter(part)
    return whole


def _join_int8(layers: Sequence[Any], whole: Any, sizes: Sequence[int]) -> None:
    """Weights `(out_features, in_features)` in int8 with one scale a row, in the state that a first forward leaves."""
    for layer in layers:
        if layer.weight.CB is not None:
            layer.init_8bit_state()
    whole.state.CB = torch.cat([layer.state.CB for layer in layers])
    whole.state.SCB = torch.cat([layer.state.SCB for layer in layers])
    whole.weight = type(layers[0].weight)(whole.state.CB, requires_grad=False, has_fp16_weights=False)
    parts = zip(layers, whole.state.CB.split(sizes), whole.state.SCB.split(sizes), strict=True)
    for layer, weights, scales in parts:
        layer.state.CB = layer.weight.data = weights
        layer.state.SCB = scales


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
