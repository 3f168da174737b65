"""Which layers may be computed in another way at all."""

from __future__ import annotations

from typing import Any


def is_unhooked(module: Any) -> bool:
    """Whether nobody (offload, DeepSpeed, an adapter, another speed-up) has put hooks or a forward around it."""
    return not (hasattr(module, "_hf_hook") or "forward" in vars(module) or module._forward_pre_hooks)
