"""(llama.cpp) The process of one dry fit: it logs what a GGUF file would take, and then begins to load it.

`python -m modules.memory.dryruns.llamacpp_dry FILE CONTEXT CHUNK KV_CACHE FOLDER`, started and read by
llamacpp_fit.py, which kills it as soon as the figures are there.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

import xllamacpp

from modules.memory.dryruns.llamacpp_params import load_params
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.kv_cache import KVCache

_ALL_LINES = 5


def main(argv: list[str]) -> None:
    """Log the dry fit. The file is mapped, so that what follows it takes no memory.

    `no_alloc` would forbid the load altogether, but llama.cpp then aborts before its last lines are written.
    """
    file, context, chunk, cache, folder = argv
    kind = next(kind for kind in get_args(KVCache) if kind == cache)
    run = RunSpec("float16", context_tokens=int(context), prefill_chunk=int(chunk), kv_cache=kind)
    params = load_params(Path(file), run)
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    params.fit_params, params.warmup = True, False
    params.verbosity = _ALL_LINES
    params.hostnames = [f"{folder}/dry.sock"]  # no network port
    xllamacpp.Server(params)


if __name__ == "__main__":
    main(sys.argv[1:])
