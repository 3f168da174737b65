"""bf16 weights on the CPU in the order in which oneDNN reads them: 1.3 to 1.6 times as fast for one token.

torch hands oneDNN a matrix as it lies in the file, and oneDNN reorders it for every product or reads it in a slower
way. Here that is done once. The layer keeps the shape of its weight and nothing of its bytes, so no byte is held twice;
who wants to change the weight finds it on torch's meta device, instead of changing what nobody reads. docs/log.md has
the figures by shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from modules.engine.loops.loaded import LoadedModel
from modules.engine.process.mappings import MappedFiles
from modules.engine.speedups.hooks import is_unhooked


@torch.no_grad()
def pack_linears(loaded: LoadedModel, tell: Callable[[float], None] = lambda _: None) -> int:
    """Put the model's bf16 linear layers in oneDNN's order, where it can. How many; `tell` hears how far it is.

    Weights that something else uses too, as a head that is the table of words, stay as they are.
    """
    if loaded.device.type != "cpu" or not can_pack():
        return 0
    layers = _layers(loaded.model)
    files = MappedFiles()
    for number, layer in enumerate(layers, 1):
        layer.forward = packed_product_of(layer)
        layer.weight = nn.Parameter(torch.empty_like(layer.weight, device="meta"), requires_grad=False)
        files.let_go_at(number / len(layers))
        tell(number / len(layers))
    return len(layers)


@cache
def can_pack() -> bool:
    """Whether this torch and this CPU can: torch's names for it, which no release promises, are tried."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    linear, states = nn.Linear(64, 32, dtype=torch.bfloat16), torch.ones(1, 64, dtype=torch.bfloat16)
    try:
        with torch.inference_mode():
            return torch.allclose(packed_product_of(linear)(states), linear(states), atol=1e-2)
    except (AttributeError, RuntimeError, TypeError):
        return False


def packed_product_of(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """States `(…, in_features)` to `(…, out_features)`, from a copy of the weight in oneDNN's order."""
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().contiguous(), 1)
    return partial(_packed_linear, packed, layer.bias)


def _packed_linear(packed: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, packed, bias, "none", [], "")
    return result


def _layers(model: Any) -> list[Any]:
    """The linear layers that can be packed. The model's first parameter stays: by it torch tells where a model is."""
    modules = list(model.modules())
    uses = Counter(id(parameter) for module in modules for parameter in module._parameters.values())
    first = next(model.parameters(), None)
    return [
        module for module in modules
        if type(module) is nn.Linear and is_unhooked(module) and module.weight.dtype == torch.bfloat16
        and module.weight.device.type == "cpu" and module.weight.numel()
        and uses[id(module.weight)] == 1 and module.weight is not first
    ]  # fmt: skip
