"""Training steps of tiny models held against real ones on the CPU: by dry run, and by the formulas that --plan shows.

LoRA and QLoRA with adapters of our own that are PEFT's (training_dryrun.Adapter); QLoRA's base is bitsandbytes' own.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.allocations import Allocated, measure, real_model, tensors_bytes
from benchmarks.memory_inference import BOTH, load_quantized, write_config
from benchmarks.memory_rows import Row
from modules.memory.dryruns.dryrun import DTYPES
from modules.memory.dryruns.training_dryrun import count_training, make_optimizer, make_trainable
from modules.memory.forecasting.training import Optimizer, TrainingMode, TrainingRun, training_budget
from modules.memory.model import meta
from modules.memory.model.spec import inspect
from tests.tiny_models import tiny_config

TRAINED_FAMILIES = ("llama", "gpt2", "qwen3", "gemma3", "opt")
LAYERS, TOKENS, RANK = 6, 256, 8
_MODES: tuple[TrainingMode, ...] = ("full", "lora", "qlora")
_OPTIMIZERS: tuple[Optimizer, ...] = ("adamw", "sgd")
_LAYER_TYPES = ["sliding_attention", "full_attention"] * (LAYERS // 2)


def changes_of(family: str) -> dict[str, Any]:
    """What makes a tiny model of `family` deep enough for a stack of like layers."""
    if family == "gpt2":
        return {"n_layer": LAYERS}
    types = {"layer_types": _LAYER_TYPES} if family == "gemma3" else {}
    return {"num_hidden_layers": LAYERS, **types}


def compare_training(folder: Path, family: str) -> Iterator[Row]:
    """The second of two steps, when the optimizer has its states: the most alive, weights included."""
    changes = changes_of(family)
    file = write_config(folder, family, **changes)
    stored = file.parent / "weights"
    real_model(tiny_config(family, **changes), torch.float32, "sdpa").save_pretrained(stored)
    spec = inspect(file)
    for mode, optimizer, checkpointing, dtype in product(_MODES, _OPTIMIZERS, (False, True), BOTH):
        run = TrainingRun(mode, 1, TOKENS, optimizer, checkpointing, RANK, dtype)
        real = real_step(load_base(stored, run), run)
        way = f"{mode} {optimizer} {dtype}{' checkpoints' if checkpointing else ''}"
        yield Row("training", family, way, TOKENS, count_training(file, run).peak, real)
        yield Row("training formula", family, way, TOKENS, training_budget(spec, run, context=0).total, real)


def load_base(stored: Path, run: TrainingRun) -> Any:
    """The stored model as `run` starts from it."""
    import transformers

    if run.mode == "qlora":
        return load_quantized(stored, "nf4", DTYPES[run.dtype], double_quant=True)
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(stored, dtype=DTYPES[run.dtype])


def real_step(model: Any, run: TrainingRun) -> int:
    """The most bytes alive in two steps of training `model`."""
    targets = [f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"]
    trained = make_trainable(model, run, targets or sorted(meta.replaceable(model)))
    optimizer = make_optimizer(trained, run)
    ids = torch.ones((run.batch, run.tokens), dtype=torch.long)

    def train() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()

    found: tuple[None, Allocated] = measure(train)
    return tensors_bytes(model) + found[1].peak
