"""Which loop runs a model: the batched one wherever a probe at load shows that it computes what the model computes.

Families that continuous batching gets wrong do not say so: GPT-J and BLOOM run in it and write something else. So it
reads a few tokens in stretches, goes on token by token, and its logits are held against those of one plain forward.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch

from modules.engine.base import Engine
from modules.engine.loops.attention import prefer_cpu_attention
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.fixed_row import FixedRow
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.paged import PagedModel
from modules.engine.loops.serial import SerialEngine, release_memory
from modules.engine.speedups.fused import fuse_linears
from modules.engine.speedups.linears import speed_up_linears
from modules.engine.speedups.norms import speed_up_norms
from modules.engine.speedups.packed import pack_linears

log = logging.getLogger(__name__)

PROBE_TOKENS = 24
PROBE_PROMPT_TOKENS = 20
PROBE_CHUNK_TOKENS = 8
# Measured: rounding moves the logits by 1e-6 (fp32) to 4e-2 (bf16) of their spread, GPT-J's and BLOOM's are off by 0.77
# and 1.3. Quantized activations round more coarsely, hence not nearer to the lower end.
LARGEST_DEVIATION = 0.25


def choose_loop(
    loaded: LoadedModel, tell: Callable[[float], None] = lambda _: None, compiling: Callable[[], None] = lambda: None
) -> Engine:
    """The engine for `loaded`, running; its info says which loop it is and why.

    `tell` hears how far the weights are arranged, which takes seconds for large ones; `compiling` is called before the
    step is compiled, which takes a minute.
    """
    if loaded.plan.run.kv_cache == "static":
        compiling()
        return _compiled_engine(loaded)
    reason = why_not_batched(loaded)
    for model in filter(None, (loaded, loaded.draft)):
        speed_up_norms(model)
        pack_linears(model, tell)
        fuse_linears(model)
        speed_up_linears(model)
    if loaded.draft is not None:
        prefer_cpu_attention(loaded.draft, many_rows=False)
    loop = "serial" if reason else "batched"
    log.info("loop: %s %s", loop, reason)
    if reason:
        return SerialEngine(replace(loaded, info=replace(loaded.info, loop="serial", loop_reason=reason)))
    info = replace(loaded.info, loop="batched", loop_reason="many requests share each step")
    return BatchedEngine(replace(loaded, info=info))


def _compiled_engine(loaded: LoadedModel) -> SerialEngine:
    """The serial loop on one row of fixed size, compiled where it can be."""
    row = FixedRow(loaded.model, loaded.device, loaded.info.context_tokens)
    warnings = loaded.info.warnings
    if why := row.compile():
        instead = "recorded as it is" if row.has_step else "not compiled: --kv-cache plain is as fast"
        warnings = (*warnings, f"--kv-cache static: {why}, so the step for one token is {instead}.")
    reason = "with --kv-cache static requests run one at a time"
    log.info("loop: serial, %s", reason)
    info = replace(loaded.info, loop="serial", loop_reason=reason, warnings=warnings)
    return SerialEngine(replace(loaded, info=info), fixed=row)


def why_not_batched(loaded: LoadedModel) -> str:
    """Why this model has to run one request at a time; "" where it can run batched."""
    if loaded.is_encoder_decoder:
        return "encoder-decoder models run one request at a time"
    if loaded.eyes is not None:
        return "models that see run one request at a time"
    if loaded.plan.run.kv_cache != "plain":
        return f"with --kv-cache {loaded.plan.run.kv_cache} requests run one at a time"
    try:
        deviation = paged_deviation(loaded)
    except Exception as error:
        log.info("continuous batching refused the model", exc_info=error)
        return f"continuous batching does not carry this model ({type(error).__name__})"
    finally:
        release_memory()
    if not deviation <= LARGEST_DEVIATION:
        return f"continuous batching computes something else for this model (logits off by {deviation:.2f})"
    return ""


@torch.no_grad()
def paged_deviation(loaded: LoadedModel) -> float:
    """How far the paged model's logits are from a plain forward's, in units of the latter's standard deviation."""
    step = max(1, loaded.info.vocab_size // (PROBE_TOKENS + 1))
    ids = [step * (1 + 7 * index % PROBE_TOKENS) for index in range(PROBE_TOKENS)]
    plain = loaded.model(input_ids=torch.tensor([ids], device=loaded.device)).logits[0].float()
    seen: list[torch.Tensor] = []

    def follow(_: list[str], logits: torch.Tensor) -> list[int]:
        seen.append(logits[0].clone())
        return [ids[PROBE_PROMPT_TOKENS + len(seen) - 1]]

    paged = PagedModel(loaded, follow, pool_tokens=4 * PROBE_TOKENS)
    try:
        paged.limit_batch(PROBE_CHUNK_TOKENS)
        paged.add("probe", ids[:PROBE_PROMPT_TOKENS], reserved_units=paged.units(PROBE_TOKENS))
        while len(seen) < PROBE_TOKENS - PROBE_PROMPT_TOKENS and paged.step():
            pass
    finally:
        paged.close()
    wanted = plain[PROBE_PROMPT_TOKENS - 1 : -1]
    found = torch.stack(seen).to(wanted.device)
    return float((found - wanted).pow(2).mean().sqrt() / wanted.std())
