"""Drafted tokens in a plan: whether the engine guesses ahead, and what a draft model takes where the model computes.

Pure. How tokens are drafted and checked is engine/loops/speculation.py's, and llama.cpp's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from modules.errors import BadValue, NotAvailableHere
from modules.memory.forecasting.budget import Figure
from modules.memory.forecasting.forecast import (
    RunSpec,
    is_token_table,
    kv_cache_bytes,
    prefill_peak_bytes,
    weight_bytes,
)
from modules.memory.forecasting.llamacpp_sizes import Beside, gpu_compute_bytes, gpu_pool_bytes, host_compute_bytes
from modules.memory.model.spec import ModelSpec
from modules.settings import LoadOptions

Speculate = Literal["off", "ngram", "draft"]


def draft_run(draft: ModelSpec, run: RunSpec) -> RunSpec:
    """How `draft` runs beside a model that runs as `run`: unquantized, its cache as computed, as far as it goes.

    llama.cpp gives it a cache of the model's own length.
    """
    if run.runtime == "llamacpp":
        return replace(run, kv_cache="plain")
    context = min(run.context_tokens, draft.max_context)
    return RunSpec(run.dtype, compute_dtype=run.dtype, context_tokens=context, prefill_chunk=run.prefill_chunk)


def draft_figure(draft: ModelSpec, spec: ModelSpec, run: RunSpec) -> Figure:
    """Bytes of `draft` beside `spec`: weights, the cache of one conversation, and what reading takes beyond what it
    takes in `spec`: they take turns, but for llama.cpp's, each of which keeps its buffers."""
    own = draft_run(draft, run)
    weights, cache = weight_bytes(draft, own), kv_cache_bytes(draft, own, own.context_tokens)
    shared = 0 if run.runtime == "llamacpp" else prefill_peak_bytes(spec, run, with_head=True)
    peak = max(0, prefill_peak_bytes(draft, own, with_head=True) - shared)
    text = f"{draft.name}: weights {weights:,} B + KV cache {cache:,} B + buffers {peak:,} B"
    return Figure(weights + cache + peak, "formula", text)


def draft_figures_beside_gpus(draft: ModelSpec, run: RunSpec, gpus: Sequence[str]) -> dict[str, Figure]:
    """Bytes of `draft` by device where llama.cpp runs the model with layers on `gpus`: all on the GPU if there is one;
    beside several in CPU memory, since it would be dealt out as the model is.
    """
    own = draft_run(draft, run)
    context, chunk = own.context_tokens, own.prefill_chunk
    weights, cache = weight_bytes(draft, own), kv_cache_bytes(draft, own, context)
    alone = len(gpus) == 1
    largest = 0 if alone else max(tensor.size_bytes for tensor in draft.tensors)
    beside = Beside(fetched_weight=largest, fetched_cache=0 if alone else cache // max(1, draft.layers))
    compute = gpu_compute_bytes(draft, context, chunk, beside) + gpu_pool_bytes(draft, context, chunk, own.kv_cache)
    table = sum(tensor.size_bytes for tensor in draft.tensors if is_token_table(tensor.name))
    passing, kept = host_compute_bytes(draft, context, chunk), f"weights {weights:,} B + KV cache {cache:,} B"
    if alone:
        on_gpu, in_memory, told = weights + cache + compute, table + passing, f"token table {table:,} B"
        what = f"{draft.name}: {kept} + buffers {compute:,} B"
    else:
        on_gpu, in_memory, told = compute, weights + cache + passing, kept
        what = f"{draft.name}: buffers {compute:,} B"
    return {
        gpus[0]: Figure(on_gpu, "formula", what),
        "cpu": Figure(in_memory, "formula", f"{draft.name}: {told} + buffers {passing:,} B"),
    }


def check_draft(spec: ModelSpec, draft: ModelSpec | None, options: LoadOptions) -> None:
    """Refuse what cannot draft, or cannot be drafted for. Raises NotAvailableHere naming flag and remedy."""
    if draft is None:
        return
    native = spec.source == "gguf" and options.loader in ("auto", "llamacpp")
    for model, of in ((draft, "the draft model"), (spec, "the model")):
        reason = ""
        if model.is_encoder_decoder:
            reason = f"{of} {model.name} is an encoder-decoder model"
        elif model.embedder is not None:
            reason = f"{of} {model.name} embeds texts and writes none"
        elif model.vision is not None:
            reason = f"{of} {model.name} sees, and guesses are made of text alone"
        elif native and model.source != "gguf":
            reason = f"{of} {model.name} is no GGUF file, and llama.cpp reads no others"
        elif model.source == "gguf" and not native and model is draft:
            reason = f"{of} {model.name} is a GGUF file, which only llama.cpp drafts with"
        elif native and not _forgets(model):
            reason = f"{of} {model.name} keeps windows or states, which cannot forget a wrong guess in llama.cpp"
        elif model is draft and any(kind not in ("full", "sliding") for kind in model.layer_kinds):
            reason = f"{of} {model.name} keeps states, which cannot forget a wrong guess"
        if reason:
            form = "a GGUF file" if native else "safetensors"
            raise NotAvailableHere(
                f"--draft-model {draft.name}: {reason}.",
                remedy=f"Use a smaller model of the same family as {form}, or --speculate ngram.",
                param="draft_model",
            )


def other_vocabulary(spec: ModelSpec, draft: ModelSpec, different: int) -> BadValue:
    """The error for a `draft` with so many tokens that do not mean the same to `spec`."""
    return BadValue(
        f"--draft-model {draft.name}: its vocabulary is not that of {spec.name} ({different:,} entries differ).",
        remedy="Use a smaller model of the same family, or --speculate ngram, which needs none.",
        param="draft_model",
    )


def _forgets(spec: ModelSpec) -> bool:
    """Whether llama.cpp can cut any tokens off the end of its cache."""
    return all(kind == "full" for kind in spec.layer_kinds)


def how_to_speculate(spec: ModelSpec, draft: ModelSpec | None, options: LoadOptions, run: RunSpec) -> Speculate:
    """What the engine is to guess with. Unasked only look-up, where checking several tokens at once is cheap:
    bitsandbytes' layers have fast paths for one token alone, and llama.cpp rounds otherwise over several tokens.
    """
    if run.runtime == "llamacpp":
        if draft is not None:
            return "draft"
        return "ngram" if options.speculate == "ngram" and run.kv_cache == "plain" and _forgets(spec) else "off"
    if run.runtime != "torch" or run.kv_cache != "plain" or options.deepspeed or spec.is_encoder_decoder:
        return "off"
    if spec.vision is not None or spec.embedder is not None:
        return "off"
    if draft is not None:
        return "draft"
    if options.speculate != "auto":
        return options.speculate
    return "ngram" if run.quantization == "none" else "off"
