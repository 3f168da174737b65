"""Makes a model of many like layers one of few, for runs in which each layer does what the one before it did.

What lives beyond weights and caches while one layer computes does not depend on how many come before it. Layers count
as alike if their modules, shapes and settings are; the beginning of a stack is kept until each kind has occurred.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from torch import nn

from modules.memory.dryruns.live_bytes import tensor_bytes

# Stacks up to this long are run whole.
SHORT_STACK = 4
_PLACE_NAMES = frozenset({"layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "idx", "layer_num"})


@dataclass(frozen=True, slots=True)
class Shortened:
    """`weights`: bytes of the whole model. `repeats`: how many decoder layers each that is left stands for."""

    weights: int
    repeats: dict[int, int]


def shorten(model: Any) -> Shortened:
    """Keep of each stack of layers in `model` what is needed to meet every kind of layer."""
    weights = tensor_bytes([*model.parameters(), *model.buffers()])
    repeats: dict[int, int] = {}
    for name, stack in _stacks(model):
        kinds = _kinds(model.config, stack)
        kept = max(2, max(kinds.index(kind) for kind in set(kinds)) + 1)
        if len(stack) <= SHORT_STACK:
            kept = len(stack)
        _keep(model, name, stack, kept)
        repeats = _repeats(kinds, kept)
    return Shortened(weights, repeats)


def like_layers(model: Any) -> int:
    """How many layers `model` has if they are one stack and all alike; 0 where they are not."""
    stacks = _stacks(model)
    if len(stacks) != 1 or len(set(_kinds(model.config, stacks[0][1]))) != 1:
        return 0
    return len(stacks[0][1])


def keep_layers(model: Any, layers: int) -> None:
    """Keep the first `layers` of every stack."""
    for name, stack in _stacks(model):
        _keep(model, name, stack, layers)


def _keep(model: Any, name: str, stack: nn.ModuleList, layers: int) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.ModuleList(list(stack)[:layers]))


def _kinds(config: Any, stack: nn.ModuleList) -> list[Hashable]:
    return [_kind(config, index, len(stack), layer) for index, layer in enumerate(stack)]


def _repeats(kinds: list[Hashable], kept: int) -> dict[int, int]:
    """The first layer of each kind stands for those that are gone, too."""
    gone = Counter(kinds[kept:])
    return {index: 1 + (gone[kind] if kinds.index(kind) == index else 0) for index, kind in enumerate(kinds[:kept])}


def _stacks(model: Any) -> list[tuple[str, nn.ModuleList]]:
    """The lists of layers that lie in no other list; an encoder's come before the decoder's."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other, _ in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) > 1:
            found.append((name, module))
    return found


def _kind(config: Any, index: int, length: int, layer: nn.Module) -> Hashable:
    """What makes a layer alike: classes, shapes, plain settings, and what the config says of its place."""
    text = config.get_text_config(decoder=True)
    stated = getattr(text, "layer_types", None)
    parts = [
        (name, type(module).__name__, tuple(_settings(module)), tuple(_shapes(module)))
        for name, module in layer.named_modules()
    ]
    return str(stated[index]) if isinstance(stated, list) and len(stated) == length else "", tuple(parts)


def _settings(module: nn.Module) -> list[tuple[str, Hashable]]:
    return [
        (name, value)
        for name, value in vars(module).items()
        if name not in _PLACE_NAMES and isinstance(value, bool | int | str | None)
    ]


def _shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return [(name, tuple(tensor.shape)) for name, tensor in tensors]
