"""What the tests of loading share: plans for real folders, models spread over devices, perplexity."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from modules.engine.base import Progress
from modules.hardware import Inventory
from modules.memory.model.spec import inspect
from modules.memory.planning.placement import make_groups
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.settings import LoadOptions
from tests.fakes import fake_inventory

PROSE = Path(__file__).parent / "data" / "prose.txt"


def plan_of(path: Path, *, inventory: Inventory | None = None, cache: Path | None = None, **flags: Any) -> Plan:
    """The plan for `path` under `flags`, on a machine without a GPU unless `inventory` says otherwise."""
    options = LoadOptions.model_validate(flags)
    return make_plan(Question(inspect(path), options, inventory or fake_inventory(), cache or path.parent / "cache"))


def spread(path: Path, *devices: str, cache: Path | None = None, **flags: Any) -> Plan:
    """A plan that deals the blocks out to `devices` in equal runs, the rest to the first of them."""
    plan = plan_of(path, cache=cache, **flags)
    groups = make_groups(plan.spec, plan.run)
    blocks = [group for group in groups if group.kind == "block"]
    where = {group: devices[number * len(devices) // len(blocks)] for number, group in enumerate(blocks)}
    placement = {module: where.get(group, devices[0]) for group in groups for module in group.modules}
    return replace(plan, placement=placement, disk_cache_dir=cache or path.parent / "cache")


def plain_model(folder: Path, dtype: torch.dtype, device: str = "cpu") -> Any:
    """The causal model in `folder` as transformers alone loads it."""
    auto: Any = AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=dtype, device_map={"": device}).eval()


def quiet(_: Progress) -> None:
    """Nobody looks."""


@torch.inference_mode()
def perplexity(model: Any, tokenizer: Any, *, tokens: int = 512) -> float:
    """exp of the mean negative log-likelihood of the prose's first `tokens` tokens."""
    device = next(parameter.device for parameter in model.parameters() if parameter.device.type != "meta")
    ids = tokenizer(PROSE.read_text(encoding="utf-8"), return_tensors="pt").input_ids[:, :tokens].to(device)
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:].to(logits.device)).item())


@torch.inference_mode()
def widest_tie(model: Any, prompt: list[int], ours: list[int], theirs: list[int]) -> float:
    """How far apart, in logits of `model`, the tokens are at which two greedy continuations first differ; 0 if equal.

    Rounding of 16-bit arithmetic may turn a tie either way; from there on two correct texts differ.
    """
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            logits = model(input_ids=torch.tensor([prompt + theirs[:number]]), use_cache=False).logits[0, -1].float()
            return abs(float(logits[one] - logits[other]))
    return 0.0
