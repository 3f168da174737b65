"""(llama.cpp) The parameters with which a GGUF file is loaded: the same for the dry fit and for the engine.

Not here: reading the fit (llamacpp_fit.py), running the model (engine/llamacpp/engine.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import xllamacpp

from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.kv_cache import KVCache
from modules.memory.forecasting.llamacpp_sizes import SLOTS
from modules.memory.model.lora import Lora

# Tokens that are looked up, and most that are guessed at once. llama.cpp's own 12 and 48 hardly ever find anything.
_LOOKED_UP, _GUESSED = 4, 8
_DRAFTED = 8
# Below this chance of its own a draft model stops guessing.
_LEAST_CHANCE = 0.5
_CACHE_TYPES: dict[KVCache, Any] = {
    "plain": xllamacpp.ggml_type.GGML_TYPE_F16,
    "int8": xllamacpp.ggml_type.GGML_TYPE_Q8_0,
    "int4": xllamacpp.ggml_type.GGML_TYPE_Q4_0,
}


def load_params(path: Path, run: RunSpec) -> Any:
    """xllamacpp's CommonParams for `run` of a file whose header is checked, on the CPU.

    One KV cache of the run's whole context is shared by all slots and never shifted. llama.cpp's own stores beside
    it are off: saved prompts take up to 8 GiB by its defaults, which no plan would know of. The file is read, not
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
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    params.n_ctx_checkpoints = 0
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _threads()
    params.n_threads_http = SLOTS + 2
    params.warmup = True
    params.offline = True
    params.ui = False
    params.endpoint_slots = False
    return params


def apply(params: Any, loras: Iterable[Lora]) -> None:
    """Let the model of `params` be changed by adapters that were checked against it."""
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora.path), lora.scale) for lora in loras]


def embed(params: Any, *, by_mean: bool) -> None:
    """Let the server of `params` answer /v1/embeddings beside its replies, as the file says, or by the mean."""
    params.embedding = True
    if by_mean:
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN


def speculate(params: Any, draft: Path | None) -> None:
    """Let the server of `params` guess ahead with the model `draft`, or with what followed the same words before.

    The draft model runs as the model does, in the same chunks, with a cache of its own of the same length.
    """
    kinds, ahead = xllamacpp.common_speculative_type, params.speculative
    if draft is None:
        ahead.types = [kinds.COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE]
        ahead.ngram_simple.size_n, ahead.ngram_simple.size_m = _LOOKED_UP, _GUESSED
        return
    ahead.types = [kinds.COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE]
    ahead.draft.mparams.path = str(draft)
    ahead.draft.n_max, ahead.draft.p_min = _DRAFTED, _LEAST_CHANCE
    ahead.draft.n_gpu_layers = 0
    ahead.draft.cpuparams.n_threads = ahead.draft.cpuparams_batch.n_threads = _threads()


def _threads() -> int:
    """One a physical core, or what OMP_NUM_THREADS says: the engine's process has it set so."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else psutil.cpu_count(logical=False) or 1
