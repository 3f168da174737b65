"""One device's Budget: forecast.py's formulas, or a dry run's peaks, each with its numbers put in.

Pure arithmetic. Which layers lie on the device is the caller's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.encoding import encoder_budget
from modules.memory.forecasting.forecast import (
    CUDA_CONTEXT_BYTES,
    RunSpec,
    dequantize_bytes,
    kv_work_bytes,
    prefill_peak_bytes,
)
from modules.memory.forecasting.llamacpp_sizes import (
    GPU_PROCESS_BYTES,
    SLOTS,
    Beside,
    gpu_compute_bytes,
    gpu_pool_bytes,
    host_compute_bytes,
    pool_width,
)
from modules.memory.forecasting.llamacpp_sizes import PROCESS_BYTES as LLAMACPP_BYTES
from modules.memory.forecasting.pictures import picture_figure
from modules.memory.forecasting.process import decode_figure, load_peak_bytes, process_figures
from modules.memory.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of a model that lie on one device.

    `weights` is without `quant_meta`, the scales and code books of quantized weights; `offload_buffer` is for weights
    that pass through the device.
    """

    weights: int = 0
    quant_meta: int = 0
    kv_cache: int = 0
    offload_buffer: int = 0


def device_budget(
    spec: ModelSpec, run: RunSpec, device: str, held: Held | None = None, *, computes: bool = True,
    deepspeed: bool = False,
) -> Budget:  # fmt: skip
    """The Budget of `device` ("cuda:0", "cpu", "disk"), given what lies on it: nothing if None.

    `computes` False means that it only stores. A device that computes with a cache that is not plain needs room beside
    `held.kv_cache`, which is added here.
    """
    held = held or Held()
    if spec.embedder is not None:
        return encoder_budget(spec, run, device, held.weights, held.quant_meta)
    work = kv_work_bytes(spec, run) if computes else 0
    figures: dict[Purpose, Figure] = {
        "weights": Figure(held.weights, "exact"),
        "quant_meta": Figure(held.quant_meta, "exact"),
        "kv_cache": Figure(held.kv_cache + work, "exact" if run.kv_cache != "offloaded" else "formula"),
        "offload_buffer": Figure(held.offload_buffer, "formula"),
    }
    if computes:
        figures["prefill_peak"] = Figure(prefill_peak_bytes(spec, run, with_head=True), "formula")
        if run.runtime == "torch":  # llama.cpp reads and writes in one buffer
            figures["decode_peak"] = decode_figure(spec, run)
        if spec.vision is not None and run.runtime == "torch":
            figures["picture_peak"] = picture_figure(spec.vision, run)
        figures["dequant_buffer"] = Figure(dequantize_bytes(spec, run), "formula")
    if device.startswith("cuda"):
        figures["context"] = Figure(CUDA_CONTEXT_BYTES, "formula")
    elif device == "cpu":
        if run.runtime == "llamacpp":
            figures["context"] = Figure(LLAMACPP_BYTES, "formula", "an engine process with llama.cpp, before any model")
        else:
            figures |= process_figures(spec, run, computes=computes, deepspeed=deepspeed)
    budget = Budget.of(figures)
    if device == "disk" or run.runtime == "llamacpp":
        return budget
    peak = load_peak_bytes(spec, run, budget.resident, device=device, computes=computes)
    return replace(budget, load_peak=peak)


def beside_gpus_budget(spec: ModelSpec, run: RunSpec, device: str, held: Held | None, beside: Beside) -> Budget:
    """The Budget of `device` ("cuda:0", "cpu") where llama.cpp runs as `run` with layers on GPUs."""
    held = held or Held()
    figures: dict[Purpose, Figure] = {
        "weights": Figure(held.weights, "exact"),
        "kv_cache": Figure(held.kv_cache, "exact"),
    }
    chunk, tokens = min(run.prefill_chunk, run.context_tokens), run.context_tokens
    size = (spec, tokens, run.prefill_chunk)
    if device == "cpu":
        rows = f"{SLOTS} rows of logits · {spec.vocab_size:,} · 4 B"
        text = f"{chunk:,} tokens · (16 B · {spec.hidden_size:,} + 2 B · {tokens:,} tokens) + {rows}"
        figures["prefill_peak"] = Figure(host_compute_bytes(*size), "formula", text)
        told = f"an engine process with llama.cpp {LLAMACPP_BYTES:,} B + its GPU libraries {GPU_PROCESS_BYTES:,} B"
        figures["context"] = Figure(LLAMACPP_BYTES + GPU_PROCESS_BYTES, "formula", told)
        return Budget.of(figures)
    figures["prefill_peak"] = Figure(gpu_compute_bytes(*size, beside), "formula", _gpu_compute_text(spec, run, beside))
    pool = gpu_pool_bytes(*size, run.kv_cache)
    inner = pool_width(spec)
    unpacked = pool - chunk * 4 * inner
    told = f"llama.cpp's pool: {chunk:,} tokens · 4 B · {inner:,}"
    told += f" + a layer of the cache in 16 bits {unpacked:,} B" if unpacked else ""
    figures["allocator"] = Figure(pool, "formula", told)
    figures["context"] = Figure(CUDA_CONTEXT_BYTES, "formula")
    return Budget.of(figures)


def _gpu_compute_text(spec: ModelSpec, run: RunSpec, beside: Beside) -> str:
    """The formula of gpu_compute_bytes with its numbers."""
    tokens, context = min(run.prefill_chunk, run.context_tokens), run.context_tokens
    inner = f"{spec.intermediate_size:,}" + (
        f" · {spec.experts_per_token} experts" if spec.experts_per_token > 1 else ""
    )
    hidden, mask = f"{spec.hidden_size:,}", f"2 B · {context:,} tokens"
    if not beside.fetched_weight or not beside.first:
        return f"{tokens:,} tokens · (4 B · (3 · {inner} + {4 if beside.first else 2} · {hidden}) + {mask})"
    feeding = f"{tokens:,} tokens · (4 B · (3 · {inner} + 6 · {hidden}) + 3 B · {context:,} tokens)"
    attending = f"{tokens:,} tokens · (4 B · 6 · {hidden} + {mask})"
    return (
        f"the larger of {feeding} + a matrix of CPU memory {beside.fetched_weight:,} B, and {attending}"
        f" + a layer's cache {beside.fetched_cache:,} B"
    )
