"""The low-VRAM guide (early 2023): the ladder 8-bit, 4-bit, CPU, disk, ZeRO-3, and two speeds."""

from __future__ import annotations

from docs.memory_page.asking import FP16, INT8, NF4, on_one_gpu, plans
from docs.memory_page.models import Models
from docs.memory_page.text import gib, table
from modules.memory.known_gpus import find_gpu
from modules.memory.planning.planner import Plan, PlanTable

CARD, RAM_GIB = "RTX 3090", 32
SMALL_CARD = "RTX 2060"
# The guide's own numbers.
SECONDS_A_WORD = 10
ZERO3_GB = 6
TOKENS_A_WORD = 1.3
"""Of English text, roughly."""


def render(models: Models) -> dict[str, str]:
    """The tables of this guide, by the name of their place on the page."""
    return {"low_vram_ladder": _ladder(models), "low_vram_claims": _claims(models)}


def _chosen(table_of_plans: PlanTable) -> Plan:
    if table_of_plans.chosen is None:
        raise ValueError(f"nothing fits: {table_of_plans.refusal}")
    return table_of_plans.chosen


def _ladder(models: Models) -> str:
    spec = models["LLaMA-13B"]
    free = find_gpu(CARD).free_bytes
    steps: list[tuple[str, str, str]] = []
    for precision, flag in ((FP16, "(none)"), (INT8, "--load-in-8bit"), (NF4, "--load-in-4bit")):
        total = on_one_gpu(spec, precision, spec.max_context).total
        told = f"{gib(free - total)} to spare" if total <= free else f"lacks {gib(total - free)}"
        steps.append((f"`{flag}`", gib(total), told))
    split = _chosen(plans(spec, [CARD], ram_gib=RAM_GIB, auto_devices=True, dtype="fp16"))
    steps.append(("`--auto-devices`", gib(split.budgets["cuda:0"].total),
                  f"{split.title}; Snug finds the limit at once: `{' '.join(split.flags)}`"))  # fmt: skip
    return table(("step", f"needs on the {CARD}:", f"of {gib(free)} free"), steps)


def _claims(models: Models) -> str:
    disk = _chosen(plans(models["OPT-30B"], [CARD], ram_gib=RAM_GIB, auto_devices=True, disk=True, dtype="fp16"))
    zero3 = _chosen(plans(models["GPT-J-6B"], [SMALL_CARD], ram_gib=RAM_GIB, deepspeed=True))
    split = _chosen(plans(models["GPT-J-6B"], [SMALL_CARD], ram_gib=RAM_GIB, auto_devices=True, dtype="fp16"))
    weights = FP16.weights(models["OPT-30B"])
    places = ", ".join(f"{gib(budget.weights)} on {device}" for device, budget in disk.budgets.items())
    slow, fast = (TOKENS_A_WORD / speed for speed in disk.tokens_per_s)
    on_gpu = zero3.budgets["cuda:0"].total
    rows = [
        ("try --gpu-memory 10, 9, 8, … until the error stops",
         "the limit is what is free, less KV cache, buffers and CUDA context; Snug solves for it",
         "both: theirs finds the same number by trying; a limit there bounded weights alone, here it includes the "
         "cache, and so the first try holds"),
        (f"with --disk a 30b model runs on an RTX 3090, {SECONDS_A_WORD} seconds a word",
         f"OPT-30B is {gib(weights)} in 16-bit; with {RAM_GIB} GiB of RAM: {places}. What lies elsewhere passes "
         f"through the GPU for each token: {fast:.0f} to {slow:.0f} s a word of {TOKENS_A_WORD} tokens",
         ("both: their figure is inside the range" if fast <= SECONDS_A_WORD <= slow else "open: the machines differ")
         + "; how much RAM they had is not told"),
        (f"GPT-J 6B with less than {ZERO3_GB}GB of VRAM with DeepSpeed ZeRO-3",
         f"the weights ({gib(zero3.budgets['cpu'].weights)}) stay in RAM; on the GPU {gib(on_gpu)}: KV cache "
         f"{gib(zero3.budgets['cuda:0'].kv_cache)}, runtime {gib(zero3.budgets['cuda:0'].context)}, the rest buffers",
         "theirs is a true upper bound"),
        ("… much faster than --auto-devices --gpu-memory 6",
         f"ZeRO-3 streams all weights for each token: {zero3.tokens_per_s[0]:.1f} to {zero3.tokens_per_s[1]:.1f} "
         f"tokens/s; {split.title}: {split.tokens_per_s[0]:.1f} to {split.tokens_per_s[1]:.1f}",
         "open: they saw it on a machine of 2023, where the split copied from pageable memory and ZeRO-3 from pinned "
         "memory and ahead of time; Snug's ranges are formulas and overlap"),
    ]  # fmt: skip
    return table(("they say", "Snug counts", "who is right"), rows)
