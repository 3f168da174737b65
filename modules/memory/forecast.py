"""How many bytes a run of a model needs on a device, by what they are for. Formulas, each with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DType = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "int8", "nf4", "fp4"]


@dataclass(frozen=True, slots=True)
class RunSpec:
    """How a model is to be run."""

    dtype: DType
    quantization: Quantization = "none"
    double_quant: bool = False
    compute_dtype: DType = "bfloat16"
    context_tokens: int = 4096
    prefill_chunk: int = 512
    attention: str = "sdpa"


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes on one device."""

    weights: int = 0
    kv_cache: int = 0
    prefill_peak: int = 0
    context: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.kv_cache + self.prefill_peak + self.context
