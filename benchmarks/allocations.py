"""What real runs allocate on the CPU, byte by byte, from torch.profiler's allocator events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True, slots=True)
class Allocated:
    """Bytes beyond what was there before: the most at once, and what is still there."""

    peak: int
    kept: int


def measure(run: Callable[[], Any]) -> tuple[Any, Allocated]:
    """What `run` gives, and what it allocated until it returned."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return result, Allocated(peak, live)


def real_model(config: Any, dtype: torch.dtype, attention: str) -> Any:
    """A model of `config` with random weights; eager where the family has no `attention`."""
    import transformers

    auto: Any = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    try:
        return auto.from_config(config, dtype=dtype, attn_implementation=attention).eval()
    except ValueError:
        return auto.from_config(config, dtype=dtype, attn_implementation="eager").eval()


def tensors_bytes(model: Any) -> int:
    """What a real model's parameters and buffers take, bitsandbytes' quantization data included, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        state = getattr(weight, "quant_state", None)
        nested = getattr(state, "state2", None)
        tensors += [getattr(state, name, None) for name in ("absmax", "code", "offset")]
        tensors += [getattr(nested, name, None) for name in ("absmax", "code")]
        tensors += [getattr(getattr(module, "state", None), name, None) for name in ("CB", "SCB")]
        tensors += [getattr(weight, name, None) for name in ("CB", "SCB")]
    storages = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, torch.Tensor)]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
