"""A way of running in words: its title, and its reasons with their numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modules.memory.budget import Budget
from modules.memory.candidates import LABELS, asks_to_split
from modules.memory.choosing import Ranked, lacks
from modules.memory.fitting import CHUNKS, Problem, Solution
from modules.memory.forecast import quantized_share
from modules.memory.speed import Speeds
from modules.units import format_size

_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
# From so much on, one way is said to be faster than another.
_CLEARLY = 1.3


def title(problem: Problem, solution: Solution) -> str:
    """`16-bit on the GPU`, `4-bit (nf4), 22 of 32 layers on the GPU`."""
    way, layout = solution.way, solution.layout
    if layout is None:
        return f"{way.label} with ZeRO-3, {'on disk' if way.disk else 'in CPU memory'}"
    counts = {device: layout.count_blocks(device) for device in layout.weights}
    gpus = [device for device in counts if device.startswith("cuda")]
    whole = "the GPU" if len(problem.gpus) == 1 else gpus[0] if len(gpus) == 1 else f"{len(gpus)} GPUs"
    if len(gpus) == len(counts):
        return f"{way.label} on {whole}"
    total = sum(counts.values())
    away = {"cpu": "in memory", "disk": "on disk"}
    if gpus:
        on_gpu = sum(counts[device] for device in gpus)
        text = f"{way.label}, {on_gpu} of {total} layers on {whole}"
        return text + (f", {counts['disk']} on disk" if counts.get("disk") else "")
    if len(counts) == 1:
        return f"{way.label} on the CPU"
    return f"{way.label} on the CPU, {counts.get('disk', 0)} of {total} layers {away['disk']}"


def notes(problem: Problem, solution: Solution, wished_context: int) -> Iterator[str]:
    """What was settled for the user: precision, context, devices; then the bytes of each device."""
    spec, run, options = problem.spec, solution.run, problem.options
    if len(problem.gpus) < problem.gpus_there:
        yield f"--gpu-memory names {len(problem.gpus)} of {problem.gpus_there} GPUs; the others are left alone."
    if spec.prequantized != "none":
        yield f"The file is quantized already: {LABELS[spec.prequantized]}."
    elif run.quantization != "none":
        share = quantized_share(spec)
        little = " It hardly helps this model: its experts or layers are of a kind that bitsandbytes skips."
        yield f"{LABELS[run.quantization]} reaches {share:.1%} of the weights.{little if share < 0.3 else ''}"
    if spec.stored_dtype == "float16" and run.dtype == "bfloat16" and options.dtype == "auto" and not options.bf16:
        yield "The file is fp16; bf16 is used instead: CPUs are slow with fp16."
    if spec.stored_dtype == "float32" and run.dtype == "bfloat16" and options.dtype == "auto" and not options.bf16:
        yield "The file is fp32; bf16 is used instead: half the memory, hardly any loss."
    if run.context_tokens < wished_context:
        yield f"The context is {run.context_tokens} tokens: {wished_context} do not fit."
    elif options.ctx_size is None and run.context_tokens < spec.max_context:
        yield f"The context is {run.context_tokens} tokens; the model can take {spec.max_context}."
    if run.prefill_chunk < CHUNKS[0] and run.context_tokens > run.prefill_chunk:
        yield f"The prompt is read {run.prefill_chunk} tokens at a time: {CHUNKS[0]} would not fit."
    yield _explain_split(problem, solution)
    label = LABELS[run.quantization] or _SHORT[run.dtype]
    for device, budget in solution.budgets.items():
        yield _explain_budget(label, device, budget, problem.device(device).free_bytes)
    yield from _explain_disk(solution)


def _explain_split(problem: Problem, solution: Solution) -> str:
    layout = solution.layout
    if layout is None:
        return "DeepSpeed ZeRO-3 shares the weights among its processes."
    devices = list(layout.weights)
    if len(devices) == 1:
        nothing = " No GPU is used." if problem.options.cpu else " There is no GPU."
        why = "" if devices[0] != "cpu" or problem.gpus else nothing
        return f"The whole model {'fits' if solution.fits else 'would have to be'} on {devices[0]}.{why}"
    blocks = [f"{layout.count_blocks(device)} on {device}" for device in sorted(devices)]
    chosen = "" if asks_to_split(problem.options) else " No device holds all of it, so Snug splits it by itself."
    return f"Layers: {', '.join(blocks)}.{chosen}"


def _explain_budget(label: str, device: str, budget: Budget, free_bytes: int) -> str:
    """`8-bit: 6.5 GiB weights + 1.0 GiB KV cache + 0.6 GiB buffers = 8.1 of 9.6 GiB free on cuda:0`."""
    if device == "disk":
        return f"{label}: {format_size(budget.weights)} weights stay on disk."
    parts = [
        (budget.weights + budget.quant_meta, "weights"),
        (budget.kv_cache, "KV cache"),
        (budget.transient + budget.offload_buffer, "buffers"),
        (budget.context, "CUDA context" if device.startswith("cuda") else "engine process"),
    ]
    shown = " + ".join(f"{format_size(size)} {what}" for size, what in parts if size)
    return f"{label}: {shown} = {format_size(budget.total)} of {format_size(free_bytes)} free on {device}."


def _explain_disk(solution: Solution) -> Iterator[str]:
    layout = solution.layout
    if layout is not None and layout.weights.get("disk"):
        kept = layout.weights["disk"] - layout.rewritten
        written = (
            f"{format_size(layout.rewritten)} are written to the disk cache"
            if layout.rewritten
            else "nothing is written"
        )
        yield f"{format_size(kept)} are read from the model's own files at every use; {written}."


def speed_note(one: Ranked, speeds: Speeds) -> str:
    """`About 20 to 40 tokens a second (guessed: this machine's memory was not measured yet).`"""
    source = "from this machine's measured bandwidths" if speeds.measured else "guessed, nothing is measured yet"
    return f"About {format_range(one.estimate.tokens_per_s)} tokens a second ({source})."


def format_range(rates: tuple[float, float]) -> str:
    """`20 to 41`, `0.3 to 0.6`."""
    low, high = (_rate(rate) for rate in rates)
    return low if low == high else f"{low} to {high}"


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def why_chosen(chosen: Ranked, others: Sequence[Ranked], misses: Sequence[Ranked]) -> Iterator[str]:
    """What speaks for `chosen` against each other precision: bytes lacking, speed, quality."""
    told = {chosen.solution.way.label}
    for miss in misses:
        label = miss.solution.way.label
        if label not in told and miss.quality > chosen.quality:
            device = max(miss.solution.short, key=lambda name: miss.solution.short[name])
            yield f"{label} lacks {format_size(lacks(miss))} on {device}."
            told.add(label)
    for other in others:
        label = other.solution.way.label
        double = other.solution.run.double_quant and any(name.startswith("4-bit") for name in told)
        if label in told or double:
            continue
        told.add(label)
        yield from _compared(chosen, other)


def _compared(chosen: Ranked, other: Ranked) -> Iterator[str]:
    """One sentence on a way that fits too."""
    label, ratio = other.solution.way.label, other.estimate.turn_s / chosen.estimate.turn_s
    loss = f"loses about {(1 - other.quality):.1%} of quality"
    if other.quality > chosen.quality:
        gain = f"would keep more quality (about {(other.quality - chosen.quality):.1%})"
        if other.context * 2 < chosen.context:
            yield f"{label} {gain}, but only {other.context} tokens of context fit."
        elif ratio >= _CLEARLY:
            yield f"{label} {gain}, but is about {ratio:.2g} times slower."
        else:
            yield f"{label} {gain} and is about as fast."
    elif ratio <= 1 / _CLEARLY:
        yield f"{label} would be about {1 / ratio:.2g} times faster, but {loss}."
    else:
        yield f"{label} also fits, but {loss}."
