"""What to say where nothing fits: what is needed against what is free, and the smallest changes under which it would.

Pure. Every change that is named was tried: with it the model fits, with the next smaller one it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from modules.errors import DiskFull, OutOfMemory, SnugError
from modules.lora_names import name_of
from modules.memory.known_gpus import card_with, ram_with
from modules.memory.planning.choosing import Ranked, lacks
from modules.memory.planning.explaining import place_name, sum_words, title
from modules.memory.planning.problem import CONTEXT_STEP, LEAST_CONTEXT, Problem, Solution, margin
from modules.settings import LoadOptions
from modules.units import GiB, format_size, parse_size

_CHANGES_NAMED = 3
# Bits a weight of Llama 2 in Q4_K_M, as llama.cpp publishes them.
_GGUF_BITS = 4.85
# Sizes are named in tenths of a GiB.
_TENTHS = 10


class Fits(Protocol):
    """Whether anything that may be chosen fits under other options, with so many bytes more on each such device."""

    def __call__(self, options: LoadOptions, *, more_cpu: int = 0, more_gpu: int = 0) -> bool:
        """Try it."""


def refusal(problem: Problem, found: Sequence[Ranked], cut: Sequence[Ranked], fits: Fits) -> SnugError:
    """The error for a model of which no way in `found` fits, nor any of `cut`, which are those cut down as far as Snug
    does unasked; `fits` tries other options.
    """
    asked = problem.options.disk or problem.options.deepspeed
    full = next((one for one in found if asked and set(one.solution.short) == {"disk"}), None)
    if full is not None:
        return _disk_full(problem, full)
    places = [*problem.gpus, problem.cpu]
    free = " and ".join(
        f"{format_size(device.free_bytes)} {place_name(problem, device.id, preposition=True)}" for device in places
    )
    told = f"{problem.spec.name} does not fit: {_needs(found[0])}; free are {free}{_limits(problem)}."
    nearest = _nearest(problem, cut)
    return OutOfMemory(
        f"{told} {_lacking_words(problem, nearest)}" if nearest else told,
        remedy=_smallest_changes(problem, nearest, fits),
    )


def _needs(first: Ranked) -> str:
    """`it needs 13 GiB weights + 2 GiB KV cache for 4,096 tokens + … = 15.3 GiB`."""
    budgets = first.solution.budgets.values()
    total = sum(budget.total for budget in budgets)
    parts = [
        (sum(budget.weights + budget.quant_meta for budget in budgets), "weights"),
        (sum(budget.kv_cache for budget in budgets), f"KV cache for {first.context:,} tokens"),
        (sum(budget.adapters for budget in budgets), "LoRA adapters"),
        (sum(budget.draft for budget in budgets), "draft model"),
        (sum(budget.embeddings for budget in budgets), "for embeddings"),
        (sum(budget.context for budget in budgets), "libraries"),
    ]
    loading = sum(budget.loading for budget in budgets)
    parts.append((total - loading - sum(size for size, _ in parts), "buffers"))
    parts.append((loading, "more while loading"))
    shown = " + ".join(f"{format_size(size)} {what}" for size, what in parts if size)
    text = f"{first.solution.way.label} it needs {shown} = {format_size(total)}"
    return text.removeprefix("16-bit ")


def _nearest(problem: Problem, cut: Sequence[Ranked]) -> Solution | None:
    """What lacks least; with disk or DeepSpeed only where asked for."""
    options = problem.options
    tried = [
        one for one in cut
        if one.solution.way.disk <= options.disk and (one.solution.way.place == "zero3") <= options.deepspeed
    ]  # fmt: skip
    nearest = min(tried, key=lacks, default=None)
    return nearest.solution if nearest else None


def _lacking_words(problem: Problem, nearest: Solution) -> str:
    """`The nearest way, 4-bit (nf4) on the CPU with 1,024 tokens, takes … = 6.1 GiB in CPU memory: …`."""
    told = []
    for device, size in nearest.short.items():
        budget, where = nearest.budgets[device], place_name(problem, device, preposition=True)
        kept = margin(problem.device(device).free_bytes + size)
        told.append(
            f"takes {sum_words(device, budget)} = {format_size(budget.total)} {where} and lacks "
            f"{format_size(size, up=True)} there ({format_size(kept)} are kept free)"
        )
    which = f"{title(problem, nearest)} with {nearest.run.context_tokens:,} tokens of context"
    return f"The nearest way, {which}, {' and '.join(told)}."


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


def _smallest_changes(problem: Problem, nearest: Solution | None, fits: Fits) -> str:
    """Up to three changes under each of which the model fits, the cheapest first; then how much memory would do."""
    named: list[str] = []
    for text, changes in _changes(problem, fits):
        repeated = any(_flag_in(other) == _flag_in(text) for other in named)
        if not repeated and fits(problem.options.model_copy(update=changes)):
            named.append(text if text.startswith("without ") else f"with {text}")
        if len(named) == _CHANGES_NAMED:
            break
    memory = _more_memory(problem, nearest, fits) if nearest else ""
    as_gguf = _as_gguf(problem)
    if not named:
        return f"No flag makes it fit here{f': it takes {memory}' if memory else ''}, or a smaller model.{as_gguf}"
    return f"It would fit {', or '.join([*named, *([f'with {memory}'] if memory else [])])}.{as_gguf}"


def _flag_in(text: str) -> str:
    """The flag that a change is about: the first word of `text` that is one."""
    return next(word for word in text.split() if word.startswith("--"))


def _as_gguf(problem: Problem) -> str:
    """` As a GGUF file in 4 bits it takes about 49 GiB.`, where so much is free; "" where it is not."""
    if problem.spec.source != "safetensors" or problem.options.loader == "transformers":
        return ""
    size = int(problem.spec.parameters * _GGUF_BITS / 8)
    if size > sum(device.free_bytes - margin(device.free_bytes) for device in (*problem.gpus, problem.cpu)):
        return ""
    return f" A GGUF file of it in 4 bits (Q4_K_M) would take about {format_size(size)}."


def _changes(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, Any]]]:
    """Changes of flags that can save memory, the cheapest first, each with how to say it."""
    options, spec = problem.options, problem.spec
    flagged = options.load_in_8bit or options.load_in_4bit
    free_to_quantize = spec.prequantized == "none" and spec.source == "safetensors" and not options.deepspeed
    if options.gpu_memory:
        yield from _roomier(problem, fits)
    if options.cpu_memory is not None:
        yield from _roomier_cpu(problem, fits)
    if options.gpu_layers is not None:
        yield from _other_layers(problem, fits)
    if options.draft_model:
        yield f"without --draft-model {options.draft_model}", {"draft_model": None}
    if options.kv_cache not in ("auto", "int4"):
        yield "--kv-cache auto", {"kv_cache": "auto"}
    if options.embeddings:
        yield "without --embeddings", {"embeddings": False}
    yield from _shorter(problem, fits)
    yield from _fewer_adapters(problem)
    if options.deepspeed and options.nvme_offload_dir is None:
        yield "--nvme-offload-dir FOLDER", {"nvme_offload_dir": problem.disk.name}
    if options.dtype == "fp32" and not flagged:
        yield "--dtype bf16", {"dtype": "bf16"}
    if free_to_quantize and not flagged:
        yield "--load-in-8bit", {"load_in_8bit": True}
    if free_to_quantize and not options.load_in_4bit:
        yield "--load-in-4bit", {"load_in_8bit": False, "load_in_4bit": True, "quant_type": None}
    if free_to_quantize and options.load_in_4bit and not options.use_double_quant:
        yield "--use-double-quant", {"use_double_quant": True}
    if not options.disk and not options.deepspeed and (not flagged or problem.gpus):
        yield "--disk (slow: the rest is read from disk for every token)", {"disk": True}
    if flagged and spec.prequantized == "none" and not problem.gpus:
        plain: dict[str, Any] = {"disk": True, "load_in_8bit": False, "load_in_4bit": False, "quant_type": None}
        yield "--disk instead of quantization", plain | {"use_double_quant": False, "compute_dtype": None}


def _least(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """The smallest number above `low`, up to `high`, that works; None if none does. What works must go on working."""
    if high <= low or not works(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    return high


def _roomier(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, Any]]]:
    """The smallest --gpu-memory that would do, the same for each GPU."""
    given = problem.options.gpu_memory or ()

    def limits(tenths: int) -> dict[str, Any]:
        return {"gpu_memory": (_size(tenths),) * len(given)}

    most = max(gpu.free_bytes for gpu in problem.gpus) * _TENTHS // GiB
    found = _least(
        max(given) * _TENTHS // GiB, most, lambda tenths: fits(problem.options.model_copy(update=limits(tenths)))
    )
    if found is not None:
        yield f"--gpu-memory {_spoken(found)}", limits(found)


def _roomier_cpu(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, Any]]]:
    """The smallest --cpu-memory that would do."""
    options = problem.options
    found = _least(
        (options.cpu_memory or 0) * _TENTHS // GiB,
        problem.cpu.free_bytes * _TENTHS // GiB,
        lambda tenths: fits(options.model_copy(update={"cpu_memory": _size(tenths)})),
    )
    if found is not None:
        yield f"--cpu-memory {_spoken(found)}", {"cpu_memory": _size(found)}


def _other_layers(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, Any]]]:
    """The most layers on the GPUs that would do, below what was asked; else as many as Snug finds."""
    options, whole = problem.options, problem.spec.layers + 1
    asked = whole if options.gpu_layers is None or not 0 <= options.gpu_layers <= whole else options.gpu_layers
    given_up = _least(0, asked, lambda fewer: fits(options.model_copy(update={"gpu_layers": asked - fewer})))
    if given_up is not None:
        yield f"--gpu-layers {asked - given_up}", {"gpu_layers": asked - given_up}
    else:
        yield "without --gpu-layers", {"gpu_layers": None}


def _fewer_adapters(problem: Problem) -> Iterator[tuple[str, dict[str, Any]]]:
    """Without one of the adapters, the smallest first; then without any."""
    given = problem.options.lora
    named = {name_of(text): text for text in given}
    for lora in sorted(problem.loras, key=lambda lora: lora.size_bytes):
        if lora.name in named:
            kept = tuple(text for text in given if text != named[lora.name])
            yield f"without --lora {lora.name}", {"lora": kept}
    if given:
        yield "without --lora", {"lora": ()}


def _shorter(problem: Problem, fits: Fits) -> Iterator[tuple[str, dict[str, Any]]]:
    """The longest context that would do, below what was asked or tried."""
    options = problem.options
    tried = min(options.ctx_size or LEAST_CONTEXT, problem.spec.max_context)
    steps = (tried - 1) // CONTEXT_STEP
    given_up = _least(
        0, steps, lambda up: fits(options.model_copy(update={"ctx_size": (steps + 1 - up) * CONTEXT_STEP}))
    )
    if given_up is not None:
        tokens = (steps + 1 - given_up) * CONTEXT_STEP
        yield f"--ctx-size {tokens}", {"ctx_size": tokens}


def _more_memory(problem: Problem, nearest: Solution, fits: Fits) -> str:
    """`410 MiB more in CPU memory (close other programs)`, or the --ram to imagine, where that is enough; "" if not."""
    if problem.options.gpu_memory or problem.options.cpu_memory is not None or set(nearest.short) == {"disk"}:
        return ""
    device = max(nearest.short, key=lambda name: nearest.short[name])
    name = "more_gpu" if device.startswith("cuda") else "more_cpu"
    more = parse_size(format_size(nearest.short[device], up=True))
    several = name == "more_gpu" and len(problem.gpus) > 1
    if several or not fits(problem.options, **{name: more}):
        # Where each of several GPUs gets it, what one lacks by itself is too much, or too little.
        least = _least(0, 2 * more * _TENTHS // GiB + 3, lambda tenths: fits(problem.options, **{name: _size(tenths)}))
        if least is None:
            return ""
        more = _size(least)
    if problem.imagined:
        return _machine_flags(problem, name, more)
    kind = problem.device(device)
    rest = kind.total_bytes - kind.free_bytes
    where = "on each GPU" if several else place_name(problem, device, preposition=True)
    return f"{format_size(more, up=True)} more {where}" + (" (close other programs)" if more <= rest else "")


def _machine_flags(problem: Problem, name: str, more: int) -> str:
    """`--ram 16.1GiB`, or a --gpu for each card: the machine to imagine instead."""
    if name == "more_cpu":
        return f"--ram {_spoken(_tenths_up(ram_with(problem.cpu.free_bytes + more)))}"
    sizes = (_tenths_up(card_with(gpu.free_bytes + more)) for gpu in problem.gpus)
    return " ".join(f"--gpu {_spoken(size)}" for size in sizes)


def _tenths_up(size: int) -> int:
    return -(-size * _TENTHS // GiB)


def _size(tenths: int) -> int:
    return parse_size(f"{tenths / _TENTHS:.1f}GiB")


def _spoken(tenths: int) -> str:
    """`8GiB`, or `8.3GiB`, as the flags take it."""
    return f"{tenths // _TENTHS}GiB" if tenths % _TENTHS == 0 else f"{tenths / _TENTHS:.1f}GiB"
