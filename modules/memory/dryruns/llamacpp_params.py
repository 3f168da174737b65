"""(llama.cpp) The parameters with which a GGUF file is loaded: the same for the dry fit and for the engine.

Not here: reading the fit (llamacpp_fit.py), running the model (engine/llamacpp/engine.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import xllamacpp

from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.model.lora import Lora
from modules.units import MiB

# Tokens that are looked up, and most that are guessed at once. llama.cpp's own 12 and 48 hardly ever find anything.
_LOOKED_UP, _GUESSED = 4, 8
_DRAFTED = 8
# Below this chance of its own a draft model stops guessing.
_LEAST_CHANCE = 0.5
# In place of the file's own, which llama.cpp would run while it loads, with no limit of time or memory. Prompts come
# rendered (chat/templates.py).
_TEMPLATE = "chatml"
_CACHE_TYPES: dict[KVCache, Any] = {
    "plain": xllamacpp.ggml_type.GGML_TYPE_F16,
    "int8": xllamacpp.ggml_type.GGML_TYPE_Q8_0,
    "int4": xllamacpp.ggml_type.GGML_TYPE_Q4_0,
}


def load_params(path: Path, run: RunSpec, gpu_layers: Sequence[int] = (), *, idle_bytes: int = 0) -> Any:
    """xllamacpp's CommonParams for `run` of a file whose header is checked; `gpu_layers` as in Plan.

    One KV cache of the run's whole context is shared by all slots and never shifted. Conversations that wait are moved
    out of it, into at most `idle_bytes` beside it (8 GiB by llama.cpp's defaults, which no plan would know of); with 0
    they stay, and slow down those that run. The file is read, not
    mapped: of tensors that are repacked for the CPU a map would hold the pages a second time.
    """
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    params.n_ctx = run.context_tokens
    params.cache_type_k = params.cache_type_v = _CACHE_TYPES[run.kv_cache]
    if run.kv_cache != "plain":
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED  # packed values need it
    params.n_batch = params.n_ubatch = run.prefill_chunk
    params.n_parallel = SLOTS
    params.kv_unified = True
    params.ctx_shift = False
    params.cache_ram_mib = idle_bytes // MiB
    params.cache_idle_slots = idle_bytes >= MiB
    params.n_ctx_checkpoints = 0
    _place(params, gpu_layers)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.n_threads_http = SLOTS + 2
    params.warmup = True
    params.offline = True
    params.ui = False
    params.endpoint_slots = False
    params.chat_template = _TEMPLATE
    return params


def apply(params: Any, loras: Iterable[Lora]) -> None:
    """Let the model of `params` be changed by adapters that were checked against it."""
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora.path), lora.scale) for lora in loras]


def embed(params: Any, *, by_mean: bool) -> None:
    """Let the server of `params` answer /v1/embeddings beside its replies, as the file says, or by the mean."""
    params.embedding = True
    if by_mean:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN


def _place(params: Any, gpu_layers: Sequence[int]) -> None:
    """Say which GPU computes how many layers; nothing is left to llama.cpp's own fit.

    What computes on the CPU alone gets no GPU at all: a build for GPUs would pass prompts through one. Several GPUs
    get no pipeline, which only chunks longer than ours fill: it would take up to 200 MiB more on each. llama.cpp builds
    none where the place of any tensor is named.
    """
    used = [number for number, count in enumerate(gpu_layers) if count]
    params.fit_params = False
    params.n_gpu_layers = sum(gpu_layers)
    params.no_kv_offload = False
    if len(used) > 1:
        params.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_LAYER
        params.tensor_split = [*map(float, gpu_layers), *[0.0] * (len(params.tensor_split) - len(gpu_layers))]
        params.tensor_buft_overrides = "no-such-tensor=CPU"
        return
    params.split_mode = xllamacpp.llama_split_mode.LLAMA_SPLIT_MODE_NONE
    params.main_gpu = used[0] if used else -1


def speculate(params: Any, draft: Path | None) -> None:
    """Let the server of `params` guess ahead with the model `draft`, or with what followed the same words before.

    The draft model runs as the model does, in the same chunks, with a cache of its own of the same length: on the GPU
    if there is one, beside several in CPU memory.
    """
    kinds, ahead = xllamacpp.common_speculative_type, params.speculative
    if draft is None:
        ahead.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        ahead.ngram_simple.size_n, ahead.ngram_simple.size_m = _LOOKED_UP, _GUESSED
        return
    ahead.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    ahead.draft.mparams.path = str(draft)
    ahead.draft.n_max, ahead.draft.p_min = _DRAFTED, _LEAST_CHANCE
    ahead.draft.n_gpu_layers = (
        -1 if params.main_gpu >= 0 and params.n_gpu_layers and not any(params.tensor_split) else 0
    )
    ahead.draft.cpuparams.n_threads = ahead.draft.cpuparams_batch.n_threads = _threads()


def _threads() -> int:
    """One a physical core, or what OMP_NUM_THREADS says: the engine's process has it set so."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else psutil.cpu_count(logical=False) or 1
