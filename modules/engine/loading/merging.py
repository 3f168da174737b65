"""LoRA adapters merged into a model that is loaded: W + scale·α/r·B·A, computed in fp32 and rounded once.

What is merged costs nothing later, neither bytes nor time. The headers are checked again: files may have changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from safetensors import safe_open

from modules.engine.process.mappings import MappedFiles
from modules.memory.model.peft_lora import WEIGHTS, Change, read_changes
from modules.memory.planning.merging import STEP_BYTES
from modules.memory.planning.planner import Plan


@torch.no_grad()
def merge_loras(plan: Plan, model: Any, tell: Callable[[float], None]) -> None:
    """Change the weights of `model` by the adapters of `plan`; `tell` hears how far it is. Raises BadLora.

    Changed weights lie in memory of their own: where the file was mapped its pages are let go.
    """
    files = MappedFiles()
    todo = [(lora, change) for lora in plan.loras for change in read_changes(lora.path, plan.spec)[0]]
    for number, (lora, change) in enumerate(todo, 1):
        with safe_open(lora.path / WEIGHTS, framework="pt") as file:
            a, b = file.get_tensor(change.a), file.get_tensor(change.b)
        parameter = model.get_parameter(change.weight)
        parameter.data = _changed(parameter.data, a, b, change, lora.scale)
        files.let_go_at(number / len(todo))
        tell(number / len(todo))


def _changed(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, change: Change, scale: float) -> torch.Tensor:
    """`weight` (out, in), or (in, out) where it is `transposed`, with the product of B (out, r) and A (r, in) in it."""
    a, b = (one.to(weight.device, torch.float32) for one in (a, b))
    left, right = (a.T, b.T) if change.transposed else (b, a)
    made = torch.empty_like(weight)
    step = max(1, STEP_BYTES // (4 * weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        made[rows] = weight[rows].float() + scale * change.factor * (left[rows] @ right)
    return made
