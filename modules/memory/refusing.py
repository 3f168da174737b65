"""What to say where nothing fits: what is needed against what is free, and the smallest changes under which it would.

Pure. Every change that is named was tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from modules.errors import DiskFull, OutOfMemory, SnugError
from modules.memory.candidates import asks_to_split
from modules.memory.choosing import Ranked, lacks
from modules.memory.fitting import LEAST_CONTEXT, Problem
from modules.settings import LoadOptions
from modules.units import GiB, format_size, parse_size

Fits = Callable[[LoadOptions], bool]
_CHANGES_NAMED = 3


def refusal(problem: Problem, found: Sequence[Ranked], fits: Fits) -> SnugError:
    """The error for a model of which no way in `found` fits; `fits` tries other options."""
    asked = problem.options.disk or problem.options.deepspeed
    full = next((one for one in found if asked and set(one.solution.short) == {"disk"}), None)
    if full is not None:
        return _disk_full(problem, full)
    name, places = problem.spec.name, [*problem.gpus, problem.cpu]
    free = " and ".join(f"{format_size(device.free_bytes)} on {device.id}" for device in places)
    needs = _needs(found)
    return OutOfMemory(
        f"{name} does not fit: {needs}; free are {free}{_limits(problem)}.",
        remedy=_smallest_changes(problem, fits),
    )


def _needs(found: Sequence[Ranked]) -> str:
    """`it needs 13 GiB weights + 2 GiB KV cache for 4096 tokens + … = 15.3 GiB; 4-bit (nf4), the smallest, lacks …`."""
    first = found[0]
    budgets = first.solution.budgets.values()
    parts = [
        (sum(budget.weights + budget.quant_meta for budget in budgets), "weights"),
        (sum(budget.kv_cache for budget in budgets), f"KV cache for {first.context} tokens"),
        (max(budget.transient for budget in budgets), "buffers"),
    ]
    shown = " + ".join(f"{format_size(size)} {what}" for size, what in parts)
    text = f"{first.solution.way.label} it needs {shown} = {format_size(sum(size for size, _ in parts))}"
    text = text.removeprefix("16-bit ")
    least = min(found, key=lacks)
    if least.solution.way.label != first.solution.way.label:
        text += f"; even {least.solution.way.label} lacks {format_size(lacks(least))}"
    return text


def _disk_full(problem: Problem, one: Ranked) -> DiskFull:
    """The disk is all that is too small."""
    needed = one.solution.short["disk"] + problem.usable("disk")
    zero3 = one.solution.way.place == "zero3"
    return DiskFull(
        f"{problem.spec.name}: {format_size(needed)} must go to {problem.disk.name}, "
        f"which has {format_size(problem.disk.free_bytes)} free.",
        remedy=f"Choose another disk with {'--nvme-offload-dir' if zero3 else '--disk-cache-dir'}, or free some space.",
        param="nvme_offload_dir" if zero3 else "disk_cache_dir",
    )


def _limits(problem: Problem) -> str:
    """The user's limits, as they were given."""
    gpu, cpu = problem.options.gpu_memory, problem.options.cpu_memory
    limits = [f"--gpu-memory {' '.join(map(format_size, gpu))}"] if gpu else []
    limits += [f"--cpu-memory {format_size(cpu)}"] if cpu is not None else []
    return f", within {' and '.join(limits)}" if limits else ""


def _smallest_changes(problem: Problem, fits: Fits) -> str:
    """Up to three changes under each of which the model fits, the cheapest first."""
    named: list[str] = []
    for text, changes in _changes(problem, fits):
        repeated = any(other.split()[0] == text.split()[0] for other in named)
        if not repeated and fits(problem.options.model_copy(update=changes)):
            named.append(text)
        if len(named) == _CHANGES_NAMED:
            break
    if not named:
        return "No flag makes it fit here; choose a smaller model."
    return f"It would fit with {', or with '.join(named)}."


def _changes(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, object]]]:
    """Changes of flags that can save memory, the cheapest first, each with how to say it."""
    options, spec = problem.options, problem.spec
    flagged = options.load_in_8bit or options.load_in_4bit
    free_to_quantize = spec.prequantized == "none" and spec.source == "safetensors" and not options.deepspeed
    if options.gpu_memory:
        yield from _roomier(problem, fits)
    if options.cpu_memory is not None:
        yield "no --cpu-memory", {"cpu_memory": None}
    if options.ctx_size is not None:
        for tokens in (8192, 4096, 2048, LEAST_CONTEXT):
            if tokens < options.ctx_size:
                yield f"--ctx-size {tokens}", {"ctx_size": tokens}
    if options.deepspeed and options.nvme_offload_dir is None:
        yield "--nvme-offload-dir FOLDER", {"nvme_offload_dir": problem.disk.name}
    if options.dtype == "fp32" and not flagged:
        yield "--dtype bf16", {"dtype": "bf16"}
    if free_to_quantize and not flagged:
        yield "--load-in-8bit", {"load_in_8bit": True}
    if free_to_quantize and not options.load_in_4bit:
        yield "--load-in-4bit", {"load_in_8bit": False, "load_in_4bit": True, "quant_type": None}
    if flagged and problem.gpus and not asks_to_split(options):
        yield "--auto-devices (part of it then stays on the CPU)", {"auto_devices": True}
    if not options.disk and not options.deepspeed and (not flagged or problem.gpus):
        yield "--disk (slow: the rest is read from disk for every token)", {"disk": True}
    if flagged and spec.prequantized == "none" and not problem.gpus:
        plain: dict[str, object] = {"disk": True, "load_in_8bit": False, "load_in_4bit": False, "quant_type": None}
        yield "--disk instead of quantization", plain | {"use_double_quant": False, "compute_dtype": None}


def _roomier(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, object]]]:
    """The smallest --gpu-memory that would do, the same for each GPU, in steps of 0.1 GiB: halving, not counting up."""
    given = problem.options.gpu_memory or ()
    low, high = max(given) * 10 // GiB, max(gpu.free_bytes for gpu in problem.gpus) * 10 // GiB

    def limits(tenths: int) -> dict[str, object]:
        return {"gpu_memory": (parse_size(f"{tenths / 10:.1f}GiB"),) * len(given)}

    if high <= low or not fits(problem.options.model_copy(update=limits(high))):
        return
    while high - low > 1:
        middle = (low + high) // 2
        if fits(problem.options.model_copy(update=limits(middle))):
            high = middle
        else:
            low = middle
    yield f"--gpu-memory {high / 10:g}{'' if high % 10 == 0 else 'GiB'}", limits(high)
