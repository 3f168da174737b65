"""A way of running as flags: what to type, or to set on the Model tab, to get exactly it again."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from modules.memory.forecasting.forecast import DTYPE_FLAGS
from modules.memory.planning.gguf_layers import count_units
from modules.memory.planning.problem import Problem, Solution
from modules.settings import LoadOptions, flag_name
from modules.units import GiB, MiB, parse_size


def options_for(problem: Problem, solution: Solution, *, wished_context: int, nvme_folder: Path) -> LoadOptions:
    """Load options under which `solution` is chosen on this machine; what the user gave stays."""
    options, way, run = problem.options, solution.way, solution.run
    changes: dict[str, Any] = {}
    if run.context_tokens < wished_context:
        changes["ctx_size"] = run.context_tokens
    if problem.spec.source == "gguf":
        changes["loader"] = "llamacpp" if run.runtime == "llamacpp" else "transformers"
    # A context, or limits for GPUs, that are asked for let Snug take smaller caches: not if the flags are to give this.
    if run.kv_cache != "plain" or run.context_tokens < wished_context or way.place in ("split", "gpus"):
        changes["kv_cache"] = run.kv_cache
    plain = run.quantization == "none"
    if run.runtime == "torch" and problem.spec.prequantized == "none":
        stored = problem.spec.stored_dtype
        if not options.bf16 and (plain or (stored == "float32" and run.dtype != stored)):
            changes["dtype"] = DTYPE_FLAGS[run.dtype]
        if not plain:
            changes["load_in_8bit" if run.quantization == "int8" else "load_in_4bit"] = True
            changes["use_double_quant"] = run.double_quant
    layers = gpu_layers(problem, solution)
    if way.place == "cpu" and problem.gpus:
        changes |= {"cpu": True, "auto_devices": False, "gpu_memory": None, "gpu_layers": None}
    if layers:
        changes["gpu_layers"] = sum(layers)
    if way.place in ("split", "gpus") and (not layers or len(problem.gpus) > 1):
        changes |= {"gpu_memory": gpu_memory(problem, solution), "auto_devices": False}
    if way.place == "zero3":
        changes |= {
            "deepspeed": True,
            "nvme_offload_dir": (options.nvme_offload_dir or nvme_folder) if way.disk else None,
        }
    elif way.disk:
        changes["disk"] = True
    return options.model_copy(update=changes)


def gpu_layers(problem: Problem, solution: Solution) -> tuple[int, ...]:
    """How many layers llama.cpp computes on each GPU of the machine, up to the last; () where it uses none."""
    if solution.way.loader != "llamacpp" or solution.way.place == "cpu" or solution.layout is None:
        return ()
    counts = list(count_units(solution.layout, [gpu.id for gpu in problem.gpus]))
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)


def gpu_memory(problem: Problem, solution: Solution) -> tuple[int, ...]:
    """The least --gpu-memory for each GPU up to the last used, in steps of 0.1 GiB: the search in one step.

    In steps of 1 MiB where so small a model's blocks would fit into what a tenth rounds up.
    """
    layout = solution.layout
    blocks = [group.loaded for group, _ in layout.places if group.kind == "block"] if layout else []
    small = len(problem.gpus) > 1 and min(blocks, default=GiB) < GiB // 10
    used = [gpu.id in solution.budgets for gpu in problem.gpus]
    count = max((number + 1 for number, is_used in enumerate(used) if is_used), default=0)
    sizes = []
    for number, gpu in enumerate(problem.gpus[:count]):
        budget = solution.budgets.get(gpu.id)
        needed = budget.total - budget.context if budget else 1
        given = problem.options.gpu_memory[number] if problem.options.gpu_memory else None
        rounded = -(-needed // MiB) * MiB if small else _tenths_up(needed)
        sizes.append(rounded if given is None else min(rounded, given))
    return tuple(sizes)


def _tenths_up(size: int) -> int:
    """The bytes of the smallest `N.N GiB` that hold `size`."""
    tenths = max(1, math.floor(size * 10 / GiB))
    while parse_size(f"{tenths / 10:.1f}GiB") < size:
        tenths += 1
    return parse_size(f"{tenths / 10:.1f}GiB")


def words(options: LoadOptions) -> tuple[str, ...]:
    """The command line that makes `options`, without the model: ("--load-in-4bit", "--gpu-memory", "9.4GiB")."""
    spoken: list[str] = []
    for name, field in LoadOptions.model_fields.items():
        value = getattr(options, name)
        if name == "model" or value == field.default:
            continue
        spoken.append(flag_name(name))
        if name in ("gpu_memory", "cpu_memory"):
            spoken += [_size_text(size) for size in (value if isinstance(value, tuple) else (value,))]
        elif isinstance(value, tuple):
            spoken += value
        elif value is not True:
            spoken.append(str(value))
    return tuple(spoken)


def _size_text(size: int) -> str:
    """`9.4GiB` where that is exact, else `8722MiB`, else bytes."""
    text = f"{math.ceil(size * 10 / GiB) / 10:.1f}GiB"
    if parse_size(text) == size:
        return text
    return f"{size}B" if size % MiB else f"{size // MiB}MiB"
