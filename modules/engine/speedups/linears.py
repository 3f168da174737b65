"""fp32 products on AMD's CPUs by oneDNN instead of MKL, which takes its slowest path there: 1.1 to 3.3 times as fast.

MKL's matrix-vector product on a CPU that is not Intel's reads weights at 11 GB/s where the memory gives 28; oneDNN's
reads 20 to 25, and its products of many rows are faster too (docs/log.md). The sums are the same but for their order.
Only plain linear layers are touched, whose weights nobody moves; bf16 goes through oneDNN anyway, and on Intel's CPUs,
where nobody has measured, everything stays as it is.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from modules.engine.loops.loaded import LoadedModel
from modules.engine.speedups.hooks import is_unhooked

CPUINFO = Path("/proc/cpuinfo")


def speed_up_linears(loaded: LoadedModel) -> int:
    """Let the model's fp32 linear layers be computed by oneDNN where that is faster. How many were changed."""
    if loaded.device.type != "cpu" or not prefers_onednn():
        return 0
    linears = [module for module in loaded.model.modules() if _is_plain_fp32(module)]
    for linear in linears:
        linear.forward = product_of(linear)
    return len(linears)


def product_of(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """The fastest way to call `layer` whose result is the layer's own, but for the order of its sums."""
    if _is_plain_fp32(layer) and prefers_onednn():
        return partial(onednn_linear, layer)
    return partial(type(layer).forward, layer)


def onednn_linear(linear: Any, states: torch.Tensor) -> torch.Tensor:
    """`linear` of `states` `(…, in_features)` in fp32."""
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(states, linear.weight, linear.bias, "none", [], "")
    return result


@cache
def prefers_onednn() -> bool:
    """Whether torch would ask MKL for fp32 products, on a CPU where MKL is slow, and can ask oneDNN instead."""
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_both and is_amd() and _works()


@torch.inference_mode()
def _works() -> bool:
    """Whether torch's own name for oneDNN's product, which no release promises, computes what a linear layer does."""
    linear, states = torch.nn.Linear(2, 3), torch.ones(1, 2)
    try:
        return torch.allclose(onednn_linear(linear, states), linear(states), atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):
        return False


def is_amd(cpuinfo: Path = CPUINFO) -> bool:
    """Whether AMD made this CPU."""
    try:
        return "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return "AuthenticAMD" in platform.processor()


def _is_plain_fp32(module: Any) -> bool:
    """Whether it is torch's own layer, in fp32, on the CPU, and nobody has put hooks around it."""
    if type(module) is not torch.nn.Linear or module.weight.dtype != torch.float32:
        return False
    return module.weight.device.type == "cpu" and is_unhooked(module)
