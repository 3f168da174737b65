"""What Snug's planner and formulas say of a model on a card that is not here. No speeds are measured for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.hardware import Device, Inventory
from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.forecast import DType, Quantization, RunSpec, weight_bytes
from modules.memory.known_gpus import Gpu, find_gpu, imagine
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.planner import PlanTable, Question, list_plans
from modules.memory.planning.problem import margin
from modules.settings import LoadOptions
from modules.units import GiB

_ROOMY = "H200"
_DISK_BYTES, _RAM_BYTES, _CORES = 500 * GiB, 64 * GiB, 8


@dataclass(frozen=True, slots=True)
class Precision:
    """A way to keep weights: its name, the flags that ask for it, the bytes that it takes."""

    title: str
    flags: dict[str, Any]
    dtype: DType = "float16"
    quantization: Quantization = "none"
    double_quant: bool = False

    def weights(self, spec: ModelSpec) -> int:
        """Bytes of all weights of `spec`, scales of quantized ones included."""
        return weight_bytes(spec, RunSpec(self.dtype, self.quantization, double_quant=self.double_quant))


FP32 = Precision("32-bit", {"dtype": "fp32"}, "float32")
FP16 = Precision("16-bit", {"dtype": "fp16"})
INT8 = Precision("8-bit", {"load_in_8bit": True}, quantization="int8")
NF4 = Precision("4-bit", {"load_in_4bit": True}, quantization="nf4")
NF4_DOUBLE = Precision("4-bit, double quant", {"load_in_4bit": True, "use_double_quant": True},
                       quantization="nf4", double_quant=True)  # fmt: skip


def plans(spec: ModelSpec, cards: Sequence[str], *, ram_gib: int = 64, **options: Any) -> PlanTable:
    """Every way to run `spec` on a machine with these cards, under these flags; nothing else runs there."""
    here = Inventory((), _device("cpu", _RAM_BYTES), _device("disk", _DISK_BYTES), _CORES)
    machine = imagine(here, [find_gpu(card) for card in cards], ram_gib * GiB)
    asked = LoadOptions.model_validate({"model": spec.name, **options})
    return list_plans(Question(spec, asked, machine, Path("cache")))


def _device(kind: Any, size: int) -> Device:
    return Device(kind, kind, kind, size, size)


def on_one_gpu(spec: ModelSpec, precision: Precision, tokens: int) -> Budget:
    """The Budget of a GPU that holds the whole of `spec` with `tokens` tokens of context."""
    tokens = min(tokens, spec.max_context)
    chosen = plans(spec, [_ROOMY], ctx_size=tokens, **precision.flags).chosen
    if chosen is None:
        raise ValueError(f"{spec.name} does not fit {_ROOMY} as {precision.title}")
    return chosen.budgets["cuda:0"]


def fits(budget: Budget, card: Gpu) -> bool:
    """Whether Snug would put this much on that card, with its usual margin."""
    return budget.total <= card.free_bytes - margin(card.free_bytes)
