"""Drafted tokens in a plan: whether the engine guesses ahead, and what a draft model takes where the model computes.

Pure. How tokens are drafted and checked is engine/loops/speculation.py's.
"""

from __future__ import annotations

from typing import Literal

from modules.errors import NotAvailableHere
from modules.memory.forecasting.budget import Figure
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, prefill_peak_bytes, weight_bytes
from modules.memory.model.spec import ModelSpec
from modules.settings import LoadOptions

Speculate = Literal["off", "ngram", "draft"]


def draft_run(draft: ModelSpec, run: RunSpec) -> RunSpec:
    """How `draft` runs beside a model that runs as `run`: unquantized, its cache as computed, as far as it goes."""
    context = min(run.context_tokens, draft.max_context)
    return RunSpec(run.dtype, compute_dtype=run.dtype, context_tokens=context, prefill_chunk=run.prefill_chunk)


def draft_figure(draft: ModelSpec, spec: ModelSpec, run: RunSpec) -> Figure:
    """Bytes of `draft` beside `spec`: weights, the cache of one conversation, and what reading takes beyond what it
    takes in `spec`: they take turns."""
    own = draft_run(draft, run)
    weights, cache = weight_bytes(draft, own), kv_cache_bytes(draft, own, own.context_tokens)
    peak = max(
        0, prefill_peak_bytes(draft, own, with_head=True) - prefill_peak_bytes(spec, run, with_head=True)
    )  # fmt: skip
    text = f"{draft.name}: weights {weights:,} B + KV cache {cache:,} B + buffers {peak:,} B"
    return Figure(weights + cache + peak, "formula", text)


def check_draft(spec: ModelSpec, draft: ModelSpec | None, options: LoadOptions) -> None:
    """Refuse what cannot draft, or cannot be drafted for. Raises NotAvailableHere naming flag and remedy."""
    if draft is None:
        return
    for model, of in ((draft, "the draft model"), (spec, "the model")):
        reason = ""
        if model.is_encoder_decoder:
            reason = f"{of} {model.name} is an encoder-decoder model"
        elif model.source == "gguf" and (model is draft or options.loader != "transformers"):
            reason = f"{of} {model.name} is a GGUF file"
        elif model is draft and any(kind not in ("full", "sliding") for kind in model.layer_kinds):
            reason = f"{of} {model.name} keeps states, which cannot forget a wrong guess"
        if reason:
            raise NotAvailableHere(
                f"--draft-model {draft.name}: {reason}.",
                remedy="Use a smaller model of the same family as safetensors, or --speculate ngram.",
                param="draft_model",
            )


def how_to_speculate(spec: ModelSpec, draft: ModelSpec | None, options: LoadOptions, run: RunSpec) -> Speculate:
    """What the engine is to guess with. Unasked only look-up, where checking several tokens at once is cheap:
    bitsandbytes' layers have fast paths for one token alone.
    """
    if run.runtime != "torch" or run.kv_cache != "plain" or options.deepspeed or spec.is_encoder_decoder:
        return "off"
    if draft is not None:
        return "draft"
    if options.speculate != "auto":
        return options.speculate
    return "ngram" if run.quantization == "none" else "off"
