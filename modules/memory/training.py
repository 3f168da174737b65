"""What one training step of a model needs: full, LoRA or QLoRA. Formulas, each with its source.

Pure arithmetic over a ModelSpec and a TrainingRun. Snug trains nothing: these figures are for people who plan to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modules.memory.budget import Budget, Figure, Purpose
from modules.memory.forecast import DType, RunSpec, weight_bytes
from modules.memory.spec import ModelSpec

TrainingMode = Literal["full", "lora", "qlora"]
Optimizer = Literal["adamw", "adam8bit", "sgd"]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """How a model is to be trained: `batch` sequences of `tokens` tokens a step.

    `mode` "lora" trains adapters of `rank` beside a frozen base of `dtype`, "qlora" beside one of nf4 with double
    quantization. `checkpointing` keeps only each layer's input and computes the rest again on the way back.
    """

    mode: TrainingMode = "full"
    batch: int = 1
    tokens: int = 512
    optimizer: Optimizer = "adamw"
    checkpointing: bool = False
    rank: int = 16
    dtype: DType = "bfloat16"
    attention: str = "sdpa"


def training_budget(spec: ModelSpec, run: TrainingRun) -> Budget:
    """The Budget of one device that trains `spec` as `run` says."""
    figures: dict[Purpose, Figure] = {"weights": Figure(weight_bytes(spec, RunSpec(run.dtype)), "exact")}
    return Budget.of(figures)
