"""“For 16GB of GPU memory, you have several good options”: sizes, quantization, the 28 GB of Llama-2-7B."""

from __future__ import annotations

from docs.memory_page.asking import FP16, FP32, INT8, NF4, NF4_DOUBLE, fits, on_one_gpu
from docs.memory_page.models import Models
from docs.memory_page.text import gb, gb_number, gib, table
from modules.memory.forecasting.forecast import RunSpec, elements, kv_cache_bytes, prefill_peak_bytes, tied_copies
from modules.memory.known_gpus import find_gpu
from modules.memory.model.model_spec import ModelSpec

CARD = "RTX A4000"
CONTEXT = 4096
# The document's own numbers: model, “base”, “during inference”, in GB.
COMFORTABLE = (
    ("BART-large", 1.6, 4), ("T5-large", 2.7, 6), ("RoBERTa-large", 1.3, 4), ("GPT-2-large", 1.5, 5),
    ("DeBERTa-v3-large", 1.5, 5),
)  # fmt: skip
QUANTIZED_ONLY = ("T5-3B", "FLAN-T5-XL", "OPT-6.7B", "BLOOMZ-7B1", "Llama-2-7B")
# part, GB
BREAKDOWN = (("parameters", 13.5), ("attention mechanism overhead", 8.0), ("activations and intermediate", 4.0),
             ("KV cache", 2.0), ("CUDA kernels and runtime", 0.5))  # fmt: skip
# model, “model size” and “in memory” in MB
SMALL = (("BART-base", 140, 500), ("DistilBART-12-6", 280, 800), ("T5-small", 242, 800), ("GPT-2", 124, 500))


def render(models: Models) -> dict[str, str]:
    """The tables of this document, by the name of their place on the page."""
    return {
        "sixteen_comfortable": _comfortable(models), "sixteen_quantized": _quantized(models),
        "sixteen_breakdown": _breakdown(models["Llama-2-7B"]), "sixteen_shrinks": _shrinks(models["Llama-2-7B"]),
        "sixteen_small": _small(models), "sixteen_fit": str(_fitting(models)),
    }  # fmt: skip


def parameters(spec: ModelSpec) -> int:
    """How many numbers a model holds, shared tables once."""
    return sum(elements(tensor) for tensor in spec.tensors if tensor.name not in tied_copies(spec))


def _comfortable(models: Models) -> str:
    rows = []
    for name, base, inference in COMFORTABLE:
        theirs = (name, f"{base} GB", f"~{inference} GB")
        if name in models.encoders:
            count = models.encoders[name]
            rows.append((*theirs, gb(4 * count), gb(2 * count), "–", "writes no text: it has no KV cache and no reply"))
            continue
        spec = models[name]
        full = on_one_gpu(spec, FP32, spec.max_context)
        told = f"{inference * 1e9 / full.total:.1f} times what one text of {spec.max_context:,} tokens needs"
        rows.append((*theirs, gb(FP32.weights(spec)), gb(FP16.weights(spec)), gb(full.total), told))
    head = ("model", "“base”:", "“inference”:", "weights 32-bit:", "16-bit:", "Snug, 32-bit, full context:",
            "what theirs is")  # fmt: skip
    return table(head, rows)


def _fitting(models: Models) -> int:
    """How many of the models that “need” 8-bit fit the card in 16-bit, at full context."""
    gpu = find_gpu(CARD)
    return sum(fits(on_one_gpu(models[name], FP16, models[name].max_context), gpu) for name in QUANTIZED_ONLY)


def _quantized(models: Models) -> str:
    gpu = find_gpu(CARD)
    rows = []
    for name in QUANTIZED_ONLY:
        spec = models[name]
        half, eight = on_one_gpu(spec, FP16, spec.max_context), on_one_gpu(spec, INT8, spec.max_context)
        verdict = "**wrong**: 16-bit fits" if fits(half, gpu) else "right"
        rows.append((name, f"{spec.max_context:,}", gib(half.total), gib(eight.total), gib(gpu.free_bytes), verdict))
    head = ("model", "context:", "16-bit:", "8-bit:", "free on 16 GB:", "“with 8-bit quantization”")
    return table(head, rows)


def _breakdown(spec: ModelSpec) -> str:
    whole = RunSpec("float16", context_tokens=CONTEXT, prefill_chunk=CONTEXT)
    eager = RunSpec("float16", context_tokens=CONTEXT, prefill_chunk=CONTEXT, attention="eager")
    budget = on_one_gpu(spec, FP16, CONTEXT)
    sdpa, materialised = (prefill_peak_bytes(spec, run, with_head=True) for run in (whole, eager))
    scores = spec.attention_heads * CONTEXT * CONTEXT * 10
    rest = budget.total - budget.weights - budget.kv_cache - budget.context
    count = parameters(spec)
    ours = (
        (gb_number(budget.weights), f"{count:,} weights · 2 bytes: right (7 billion is rounded up)"),
        (f"0 to {gb_number(materialised)}",
         f"attention that keeps its scores, all {CONTEXT:,} tokens at once: {spec.attention_heads} heads · "
         f"{CONTEXT:,}² · 10 bytes = {gb(scores)}. With SDPA, the default since 2023, there are no scores to keep"),
        (gb_number(rest),
         f"Snug reads a prompt {RunSpec('float16').prefill_chunk} tokens at a time; at once it would be {gb(sdpa)}"),
        (gb_number(budget.kv_cache),
         f"{CONTEXT:,} tokens · {kv_cache_bytes(spec, RunSpec('float16'), 1):,} bytes: right, at the full context"),
        (gb_number(budget.context), "CUDA context and kernels: right"),
    )  # fmt: skip
    rows = [(part, gb(theirs * 1e9), value, why) for (part, theirs), (value, why) in zip(BREAKDOWN, ours, strict=True)]
    total = f"**{gb(budget.total)}** = {gib(budget.total)}"
    told = f"28 GB are the weights in 32-bit: {count:,} · 4 bytes = {gb(4 * count)}"
    return table(("part", "they say:", "Snug, GB:", "the sum"), [*rows, ("total", "~28 GB", total, told)])


def _shrinks(spec: ModelSpec) -> str:
    half = FP16.weights(spec)
    claims = (("8-bit", "~14 GB, “~50 %” less", INT8, "theirs is the 16-bit size"),
              ("4-bit", "~7 GB, “~75 %” less", NF4, "theirs is the 8-bit size"),
              ("4-bit with double quantization", "–", NF4_DOUBLE, "–"))  # fmt: skip
    rows = []
    for title, theirs, precision, told in claims:
        size = precision.weights(spec)
        total = on_one_gpu(spec, precision, CONTEXT).total
        rows.append((title, theirs, gb(size), f"{100 * (1 - size / half):.0f} %", gb(total), told))
    head = ("Llama-2-7B in", "they say", "weights:", "less than 16-bit:", f"all of it at {CONTEXT:,} tokens:", "so")
    return table(head, rows)


def _small(models: Models) -> str:
    rows = []
    for name, size, used in SMALL:
        spec = models[name]
        count = parameters(spec)
        full, half = 4 * count, 2 * count
        near = min((("its parameters, in millions", count), ("16-bit", half), ("32-bit", full)),
                   key=lambda kind: abs(kind[1] / 1e6 - size))  # fmt: skip
        told = f"theirs is {near[0]}" if abs(near[1] / 1e6 / size - 1) < 0.02 else "theirs is none of these"
        if name == "DistilBART-12-6":
            told += f"; even 16-bit is {half / 1e6:,.0f} MB"
        rows.append((name, f"{size} MB", f"{used} MB", f"{count / 1e6:,.0f}", f"{full / 1e6:,.0f} MB",
                     f"{half / 1e6:,.0f} MB", told))  # fmt: skip
    head = ("model", "“size”:", "“in memory”:", "million weights:", "32-bit:", "16-bit:", "so")
    return table(head, rows)
