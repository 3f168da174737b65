"""A way of running in words: its title, what was settled for the user, and the bytes of each device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.forecast import DTYPE_FLAGS, RunSpec, kv_cache_bytes
from modules.memory.forecasting.kinds import quantizable
from modules.memory.forecasting.kv_cache import LABELS as CACHE_LABELS
from modules.memory.forecasting.kv_cache import LAYERS_ON_GPU
from modules.memory.forecasting.kv_cache import QUALITY as CACHE_QUALITY
from modules.memory.llamacpp_build import GPU_BUILD, OTHER_BUILDS
from modules.memory.planning.candidates import LABELS, asks_to_split
from modules.memory.planning.choosing import Ranked
from modules.memory.planning.drafts import how_to_speculate
from modules.memory.planning.embedders import embedder_notes
from modules.memory.planning.native import ignored_note
from modules.memory.planning.placement import Layout
from modules.memory.planning.problem import CHUNKS, Problem, Solution, is_close
from modules.memory.planning.quality import loss_text
from modules.memory.planning.speed import Speeds
from modules.units import format_rate, format_size

# Below this many tokens a second one waits for each.
_SLOW = 1.0


def title(problem: Problem, solution: Solution) -> str:
    """`16-bit on the GPU`, `4-bit (nf4), 22 of 32 layers on the GPU`."""
    where, cache = _where(problem, solution), CACHE_LABELS[solution.run.kv_cache]
    return f"{solution.way.label}{', ' if where[0].isdigit() else ' '}{where}{', ' if cache else ''}{cache}"


def whereabouts(problem: Problem, solution: Solution) -> str:
    """`On the CPU alone`, `With 47 of 80 layers on the GPU`: to begin a sentence with."""
    where = _where(problem, solution)
    if where == "on the CPU" and problem.gpus:
        return "On the CPU alone"
    return f"With {where}" if where[0].isdigit() else where[0].upper() + where[1:]


def _where(problem: Problem, solution: Solution) -> str:
    """`on the GPU`, `22 of 32 layers on the GPU, 3 on disk`."""
    way, layout = solution.way, solution.layout
    if layout is None:
        return f"with ZeRO-3, {'on disk' if way.disk else 'in CPU memory'}"
    counts = {device: layout.count_blocks(device) for device in layout.weights}
    gpus = [device for device in counts if device.startswith("cuda")]
    total, on_disk = sum(counts.values()), counts.get("disk", 0)
    if not gpus:
        which = "all" if on_disk == total else f"{on_disk} of"
        return f"on the CPU, {which} {total} layers on disk" if on_disk else "on the CPU"
    whole = f"{len(gpus)} GPUs" if len(gpus) > 1 else place_name(problem, gpus[0])
    if len(gpus) == len(counts) or not sum(counts[device] for device in counts if device not in gpus):
        return f"on {whole}"
    there = f"{sum(counts[device] for device in gpus)} of {total} layers on {whole}"
    return there + (f", {on_disk} on disk" if on_disk else "")


def place_name(problem: Problem, device: str = "cuda", *, preposition: bool = False) -> str:
    """`the GPU` where there is one, else `GPU 1`, or `the GPUs` for "cuda"; `CPU memory`; `disk`; with `in` or `on`."""
    if device.startswith("cuda"):
        number = device.partition(":")[2]
        name = "the GPU" if problem.gpus_there == 1 else f"GPU {number}" if number else "the GPUs"
        return f"on {name}" if preposition else name
    name = "CPU memory" if device == "cpu" else "disk"
    return f"{'in' if device == 'cpu' else 'on'} {name}" if preposition else name


def notes(problem: Problem, solution: Solution, wished_context: int) -> Iterator[str]:
    """What was settled for the user: precision, context, devices; then the bytes of each device."""
    spec, run, options, way = problem.spec, solution.run, problem.options, solution.way
    if len(problem.gpus) < problem.gpus_there:
        yield f"--gpu-memory names {len(problem.gpus)} of {problem.gpus_there} GPUs; the others are left alone."
    if spec.source == "gguf" and run.runtime == "torch":
        yield "The GGUF file is unpacked to 16 bits when it is loaded."
    elif options.loader == "vllm":
        yield "vLLM runs it in processes of its own, which take about 2 GiB of memory beside what is counted here."
    elif run.runtime == "llamacpp":
        where = "on the CPU" if way.place == "cpu" else "where each layer lies"
        kept = {"int8": "8 bits", "int4": "4 bits"}.get(run.kv_cache, "16 bits")
        yield f"llama.cpp computes with the file's own formats, {where}; its KV cache has {kept}."
        if way.place != "cpu" and problem.imagined:
            yield f"It needs a build of xllamacpp for GPUs there: {GPU_BUILD} ({OTHER_BUILDS})."
        guesses = how_to_speculate(spec, problem.draft, options, run) != "off"
        if options.speculate == "ngram" and not guesses:
            yield "--speculate ngram is left out: this model keeps windows or states, which cannot forget a guess."
        if guesses:
            yield "Guessed tokens are checked several at once, which llama.cpp rounds otherwise: near-ties may part."
            yield "While it guesses, llama.cpp writes one reply at a time."
    if spec.vision is not None and run.runtime == "torch":
        tokens = spec.vision.tokens(run.picture_side)
        yield (
            f"It sees: a picture takes up to about {tokens:,} tokens, one no side longer than {run.picture_side:,} "
            "pixels; requests run one at a time."
        )
        if options.speculate == "ngram":
            yield "--speculate ngram is left out: it guesses from text alone, and this model sees."
    if spec.embedder is not None:
        yield from embedder_notes(spec, spec.embedder, run, wished_context, asked=options.ctx_size is not None)
    if options.embeddings:
        most = min(run.prefill_chunk, run.context_tokens - 1)
        yield (
            f"It answers /v1/embeddings too, a text of {most:,} tokens at once; each waits for the replies that are "
            "being written."
        )
    if problem.loras:
        merged = "" if run.runtime == "llamacpp" else ", merged into the weights while they are loaded"
        yield f"Changed by LoRA adapters: {', '.join(lora.title for lora in problem.loras)}{merged}."
        yield from map(ignored_note, filter(lambda lora: lora.ignored, problem.loras))
    if spec.prequantized != "none":
        yield f"The file is quantized already: {LABELS[spec.prequantized]}."
    elif run.quantization != "none":
        share = quantizable(spec).share
        little = " It hardly helps this model: its experts or layers are of a kind that bitsandbytes skips."
        told = f"{LABELS[run.quantization]} reaches {share:.1%} of the weights".replace("%", " %")
        yield f"{told}; the rest stays in {32 if run.dtype == 'float32' else 16} bits.{little if share < 0.3 else ''}"
    if spec.stored_dtype == "float16" and run.dtype == "bfloat16" and options.dtype == "auto" and not options.bf16:
        yield "The file is fp16; bf16 is used instead: CPUs are slow with fp16."
    if spec.stored_dtype == "float32" and run.dtype == "bfloat16" and options.dtype == "auto" and not options.bf16:
        yield "The file is fp32; bf16 is used instead: half the memory, hardly any loss."
    if spec.embedder is None:
        yield from _explain_context(problem, run, wished_context)
    yield from _explain_cache(problem, solution)
    yield from _explain_split(problem, solution)
    for device, budget in solution.budgets.items():
        yield _explain_budget(problem, solution, device, budget)
    yield from _explain_disk(solution)
    if solution.fits:
        yield from _close_fits(problem, solution)


def _explain_context(problem: Problem, run: RunSpec, wished_context: int) -> Iterator[str]:
    """How long a conversation may be, and in what pieces it is read where that is not as usual."""
    spec = problem.spec
    if run.context_tokens < wished_context:
        yield f"The context is {run.context_tokens:,} tokens: {wished_context:,} do not fit."
    elif problem.options.ctx_size is None and run.context_tokens < spec.max_context:
        yield f"The context is {run.context_tokens:,} tokens; the model can take {spec.max_context:,} (--ctx-size)."
    if run.prefill_chunk < CHUNKS[0] and run.context_tokens > run.prefill_chunk:
        yield f"The prompt is read {run.prefill_chunk} tokens at a time: {CHUNKS[0]} take memory that the weights need."


def _explain_cache(problem: Problem, solution: Solution) -> Iterator[str]:
    """A KV cache that is not kept as computed: what that saves, and what it costs."""
    run = solution.run
    if run.kv_cache == "plain":
        return
    tokens = run.context_tokens
    sizes = [kv_cache_bytes(problem.spec, kept, tokens) for kept in (replace(run, kv_cache="plain"), run)]
    if run.kv_cache == "offloaded":
        saved = f"Of {format_size(sizes[0])} of KV cache a GPU holds {LAYERS_ON_GPU} layers at a time; all of it passes"
        yield f"{saved} into the GPU for each token. Requests run one at a time."
        return
    if run.kv_cache == "static":
        yield (
            f"KV cache of fixed size: {format_size(sizes[1])} for {tokens:,} tokens are taken during the load, which "
            "compiles the step for one token (a minute or two). Requests run one at a time, and only the last "
            "conversation's cache is kept. Its speed on a GPU has not been measured."
        )
        return
    loss = loss_text(CACHE_QUALITY[run.kv_cache]) or "no quality that could be measured"
    yield (
        f"{CACHE_LABELS[run.kv_cache]}: {format_size(sizes[1])} instead of {format_size(sizes[0])} for {tokens:,} "
        f"tokens. It costs {loss}, each token takes longer the more came before it"
        f"{'' if run.runtime == 'llamacpp' else ', and requests run one at a time'}."
    )


def _explain_split(problem: Problem, solution: Solution) -> Iterator[str]:
    layout = solution.layout
    if layout is None:
        yield "DeepSpeed ZeRO-3 shares the weights among its processes."
        return
    if problem.options.cpu:
        yield "No GPU is used: --cpu."
    elif not problem.gpus_there:
        yield "There is no GPU."
    devices = list(layout.weights)
    if len(devices) < 2:
        return
    if solution.way.loader == "llamacpp":
        yield from _explain_layers(problem, solution, layout)
        return
    blocks = [
        f"{layout.count_blocks(device)} {place_name(problem, device, preposition=True)}" for device in sorted(devices)
    ]
    chosen = "" if asks_to_split(problem.options) else "; no device holds all of it"
    yield f"Layers: {', '.join(blocks)}{chosen}."
    if solution.run.quantization != "none" and layout.offload_buffer:
        yield "What is not on the GPU stays in 16 bits: bitsandbytes quantizes only what is on one."
    if layout.streamed:
        yield f"{format_size(layout.streamed)} pass into the GPU for each token: this is what takes the time."


def _explain_layers(problem: Problem, solution: Solution, layout: Layout) -> Iterator[str]:
    """What llama.cpp computes where: the token table is always in CPU memory."""
    gpus, left = [device for device in sorted(layout.weights) if device != "cpu"], layout.count_blocks("cpu")
    dealt = [f"the first {left} in CPU memory"] if left else []
    dealt += [f"{layout.count_blocks(device)} {place_name(problem, device, preposition=True)}" for device in gpus]
    unasked = problem.options.gpu_layers is None and not asks_to_split(problem.options)
    no_room = f"; {place_name(problem)} {'has' if problem.gpus_there == 1 else 'have'} no room for more"
    table = "" if left else " Only the token table stays in CPU memory."
    yield f"Layers: {', '.join(dealt)} with the output{no_room if left and unasked else ''}.{table}"
    if left:
        lent = sum(group.loaded for group, device in layout.places if device == "cpu" and group.kind == "block")
        chunk = solution.run.prefill_chunk
        yield f"While a prompt is read, {format_size(lent)} pass into the GPU for each {chunk} tokens of it."


def _explain_budget(problem: Problem, solution: Solution, device: str, budget: Budget) -> str:
    """`8-bit: 6.5 GiB weights + 1.0 GiB KV cache + 0.6 GiB buffers = 8.1 of 9.6 GiB free on the GPU`."""
    if device == "disk":
        return f"On disk: {format_size(budget.weights)} of weights."
    shown = sum_words(device, budget)
    run, free = solution.run, format_size(problem.device(device).free_bytes)
    quantized = run.quantization != "none" and (not device.startswith("cpu") or len(solution.budgets) == 1)
    label = LABELS[run.quantization] if quantized else DTYPE_FLAGS[run.dtype]
    if run.runtime == "llamacpp":
        label = "As stored"  # the dtype is that of the cache
    where = place_name(problem, device, preposition=True)
    return f"{label}: {shown} = {format_size(budget.total)} of {free} free {where}."


def sum_words(device: str, budget: Budget) -> str:
    """`6.5 GiB weights + 1.0 GiB KV cache + 0.6 GiB buffers`: all that its total holds."""
    parts = [
        (budget.weights + budget.quant_meta, "weights"),
        (budget.adapters, "LoRA adapters"),
        (budget.kv_cache, "KV cache"),
        (budget.idle_cache, "for idle conversations"),
        (budget.draft, "draft model"),
        (budget.embeddings, "for embeddings"),
        (budget.transient + budget.offload_buffer, "buffers"),
        (budget.context, "CUDA context" if device.startswith("cuda") else "engine process"),
        (budget.loading, "more while loading"),
    ]
    return " + ".join(f"{format_size(size)} {what}" for size, what in parts if size)


def _close_fits(problem: Problem, solution: Solution) -> Iterator[str]:
    """Where next to nothing stays free."""
    tight = []
    for name, budget in solution.budgets.items():
        free = problem.device(name).free_bytes
        if name != "disk" and is_close(free, budget.total):
            tight.append(f"{format_size(free - budget.total)} {place_name(problem, name, preposition=True)}")
    if tight:
        yield f"A close fit: {' and '.join(tight)} stay free. A program that starts there can make it fail."


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


def speed_note(one: Ranked, speeds: Speeds, *, embeds: bool = False) -> str:
    """`About 20 to 40 tokens a second, a prompt at 300 to 900 (from published bandwidths, not measured here).`"""
    source = (
        "by this machine's measured bandwidths" if speeds.measured else "by published bandwidths, not measured here"
    )
    rates, reading = one.estimate.tokens_per_s, one.estimate.prefill_tokens_per_s
    written = f"{format_range(rates)} tokens a second"
    if rates[1] < _SLOW:
        written += f" (a token in {format_rate(1 / rates[1])} to {format_rate(1 / rates[0])} s)"
    told = f"Writes about {written} and reads a prompt at {format_range(reading)}, {source}."
    if embeds:
        told = f"Reads about {format_range(reading)} tokens a second, {source}."
    disk = one.solution.budgets.get("disk")
    read = f" The disk is taken to read {speeds.disk_read_Bps / 1e9:.1f} GB a second." if disk and disk.weights else ""
    return f"{told}{read}{_unpacked_note(one, speeds)}"


def _unpacked_note(one: Ranked, speeds: Speeds) -> str:
    """What makes quantized weights slow on a CPU that lacks the kernels for them; "" where it does not."""
    quantization = one.solution.run.quantization
    computing = max(one.solution.budgets, key=lambda name: one.solution.budgets[name].transient)
    if computing != "cpu" or quantization == "none" or quantization in speeds.fused:
        return ""
    lacking = "AVX-512" if quantization == "int8" else "AVX-512 BF16"
    return f" This CPU has no {lacking}: bitsandbytes unpacks each matrix for every token, which is slow."


def format_range(rates: tuple[float, float]) -> str:
    """`20 to 41`, `0.3 to 0.6`, `1,100 to 3,200`."""
    low, high = (format_rate(rate) for rate in rates)
    return low if low == high else f"{low} to {high}"
