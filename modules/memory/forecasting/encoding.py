"""What embedding texts takes beside a model's weights: a batch of them read at once, nothing kept. Formulas.

Pure arithmetic. Which texts make a batch is engine/loops/encoder.py's, within `batch_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.forecast import (
    CUDA_CONTEXT_BYTES,
    RunSpec,
    dequantize_bytes,
    element_bytes,
    is_eager,
)
from modules.memory.forecasting.process import int8_block_bytes, load_peak_bytes, runtime_figure
from modules.memory.model.families import ENCODING
from modules.memory.model.model_spec import ModelSpec

# A batch holds as many tokens as this many chunks of a prompt would, or one text of the longest.
_CHUNKS = 4
# Bytes a pair of tokens while transformers 5.23 works out which are near enough (int64), and while MPNet looks up what
# it adds to scores.
_WINDOWS, _BIAS = 16, 48


@dataclass(frozen=True, slots=True)
class _Step:
    """What lives in one layer for each token: in its feed-forward part so many states and inner vectors, in attention
    so many states, queries and keys.
    """

    hidden: int
    inner: int
    rows: int
    queries: int
    keys: int = 0


_PLAIN, _DECODER = _Step(3, 2, 2, 4), _Step(5, 3, 3, 4, 2)
_STEPS = {"modernbert": _Step(2, 4, 3, 8), "mpnet": _Step(3, 2, 4, 4)}


def batch_tokens(run: RunSpec) -> int:
    """Most tokens that are read at once, padding included: a text of the longest, or several shorter ones."""
    return max(run.context_tokens, _CHUNKS * run.prefill_chunk)


def batch_bytes(spec: ModelSpec, run: RunSpec) -> int:
    """Most bytes alive beyond the weights while a batch of T tokens is read, texts of S tokens each.

    The largest of: the feed-forward part, T·e·(3h + 2I) and a mask T·S; attention, T·e·(2h + 4ad) and masks in numbers
    T·S·(1 + e), or the scores 3·a·T·S·e where SDPA is not built; what works out windows. Where texts are filled up, S
    is at most half of T. Counted on the CPU byte by byte in tests/test_embedder.py: the forecast is 1.00 to 1.06 of it.
    """
    return max(_parts(spec, run))[0]


def encoder_budget(spec: ModelSpec, run: RunSpec, device: str, weights: int, quant_meta: int) -> Budget:
    """The Budget of `device` for a model that embeds, with so much of its weights there."""
    batch = replace(run, prefill_chunk=batch_tokens(run), context_tokens=batch_tokens(run))
    activations, text = max(_parts(spec, run))
    dequantized = dequantize_bytes(spec, batch)
    figures: dict[Purpose, Figure] = {
        "weights": Figure(weights, "exact"),
        "quant_meta": Figure(quant_meta, "exact"),
        "activations": Figure(activations, "formula", text),
        "dequant_buffer": Figure(dequantized, "formula", f"{batch_tokens(run):,} tokens through the largest matrix"),
    }
    if device.startswith("cuda"):
        figures["context"] = Figure(CUDA_CONTEXT_BYTES, "formula")
    else:
        figures["context"] = runtime_figure(spec, run)
        products = int8_block_bytes(spec, batch)
        told = f"the heap's holes, a batch's activations again: {activations:,} B"
        told += f" + what a block's quantized products allocate {products:,} B" if products else ""
        figures["allocator"] = Figure(activations + products, "formula", told)
    budget = Budget.of(figures)
    return replace(budget, load_peak=load_peak_bytes(spec, run, budget.resident, device=device))


def _parts(spec: ModelSpec, run: RunSpec) -> list[tuple[int, str]]:
    """The moments of which the largest counts, each with its formula."""
    tokens, width, hidden = batch_tokens(run), element_bytes(run.dtype), spec.hidden_size
    kind = _step_of(spec)
    inner = spec.intermediate_size * max(1, spec.experts_per_token)
    longest = run.context_tokens if spec.sliding_window else min(run.context_tokens, tokens // 2)
    masks = 2 if spec.sliding_window else 1
    read, square = f"{tokens:,} tokens · {width} B", f"{tokens:,} · {longest:,} tokens"
    forward = tokens * width * (kind.hidden * hidden + kind.inner * inner) + masks * tokens * longest
    parts = [(forward, f"{read} · ({kind.hidden} · {hidden:,} + {kind.inner} · {inner:,}) + {square} · {masks} B")]
    wide = kind.rows * hidden + kind.queries * spec.attention_heads * spec.head_dim
    wide += kind.keys * spec.kv_heads * spec.head_dim
    if is_eager(spec, run):
        each = spec.attention_heads * run.context_tokens * width
        scores, bias = 3 * tokens * each, run.context_tokens * each
        text = f"{read} · {wide:,} + scores and bias {spec.attention_heads} heads · {run.context_tokens:,} tokens · "
        parts.append((tokens * width * wide + scores + bias, f"{text}{3 * tokens + run.context_tokens:,} · {width} B"))
        if spec.model_type == "mpnet":
            text = f"places in the bias {run.context_tokens:,}² tokens · {_BIAS} B + {read} · 3 · {hidden:,}"
            parts.append((_BIAS * run.context_tokens**2 + 3 * tokens * width * hidden, text))
    else:
        attention = tokens * width * wide + tokens * longest * (masks + width)
        parts.append((attention, f"{read} · {wide:,} + masks {square} · {masks + width} B"))
    if spec.sliding_window:
        text = f"the mask of windows {longest:,}² tokens · {_WINDOWS} B + {read} · {hidden:,}"
        parts.append((_WINDOWS * longest**2 + tokens * width * hidden, text))
    return parts


def _step_of(spec: ModelSpec) -> _Step:
    return _STEPS.get(spec.model_type, _PLAIN if spec.model_type in ENCODING else _DECODER)
