"""The buffers that llama.cpp allocates when it really loads a file, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from modules.memory.dryruns.llamacpp_fit import Buffers, read_load
from modules.memory.forecasting.forecast import RunSpec

ROOT = Path(__file__).parent.parent
_LOAD = """
import sys, xllamacpp
from pathlib import Path
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.dryruns.llamacpp_params import apply, load_params, speculate
from modules.memory.model.lora import Lora
run = RunSpec("float16", context_tokens=int(sys.argv[2]), prefill_chunk=int(sys.argv[3]), kv_cache=sys.argv[5])
params = load_params(Path(sys.argv[1]), run)
if sys.argv[6]:
    speculate(params, Path(sys.argv[6]))
apply(params, [Lora(Path(one).stem, Path(one), 1.0, 0) for one in sys.argv[7:]])
params.verbosity, params.warmup, params.hostnames = 5, False, [sys.argv[4]]
server = xllamacpp.Server(params)
server.handle_completions({"prompt": [1], "max_tokens": 1})  # ending it before its loop runs would wait for ever
"""


def allocated(path: Path, run: RunSpec) -> dict[str, Buffers]:
    """By device, as llama.cpp logs them while it loads `path`."""
    return read_load(load_log(path, run).splitlines())


def load_log(path: Path, run: RunSpec, *, draft: Path | None = None, loras: Sequence[Path] = ()) -> str:
    """What llama.cpp logs while it loads `path`, with `draft` beside it and `loras` applied."""
    with tempfile.TemporaryDirectory(prefix="snug-") as folder:
        command = [sys.executable, "-c", _LOAD, str(path), str(run.context_tokens), str(run.prefill_chunk)]
        command += [f"{folder}/load.sock", run.kv_cache, str(draft or ""), *map(str, loras)]
        done = subprocess.run(command, capture_output=True, timeout=300, check=True, cwd=ROOT)
    return done.stderr.decode("utf-8", "replace")
