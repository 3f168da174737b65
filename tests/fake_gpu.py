"""Graphics cards for llama.cpp that are none (fake_gpu.c): what it places where, and what it allocates there, is real.

`code` that runs in a process of its own begins with `ADD`, which registers cards of so many GiB with the installed
llama.cpp: `python -c ADD+… 12,24`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from modules.memory.dryruns.llamacpp_fit import Buffers, read_fit, read_load
from modules.memory.forecasting.forecast import RunSpec

ROOT = Path(__file__).parent.parent
# sys.argv: the library, GiB of each card, the file, context, chunk, cache, layers a card, what else the code wants.
ADD = """
import ctypes, sys, xllamacpp
from pathlib import Path
from xllamacpp import xllamacpp as core
from modules.memory.dryruns.llamacpp_params import load_params, speculate
from modules.memory.forecasting.forecast import RunSpec
sizes = [int(float(size) * 2**30) for size in sys.argv[2].split(",")]
cards = ctypes.CDLL(sys.argv[1])
assert cards.add_cards(core.__file__.encode(), len(sizes), (ctypes.c_size_t * len(sizes))(*sizes)) == 0
run = RunSpec("float16", context_tokens=int(sys.argv[4]), prefill_chunk=int(sys.argv[5]), kv_cache=sys.argv[6])
layers = tuple(int(count) for count in sys.argv[7].split(",") if count)
params = load_params(Path(sys.argv[3]), run, layers)
params.verbosity, params.warmup = 5, False
"""
_DRY = """
params.load_mode, params.fit_params = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP, True
params.hostnames = [sys.argv[8]]
xllamacpp.Server(params)
"""
_LOAD = """
params.hostnames = [sys.argv[8]]
if sys.argv[9]:
    speculate(params, Path(sys.argv[9]))
server = xllamacpp.Server(params)
reply = server.handle_completions({"prompt": "The harbour wakes", "max_tokens": 24, "temperature": 0})
print(reply["choices"][0]["text"])
"""
_DONE = "fitting params to free memory took"


@cache
def library() -> Path:
    """fake_gpu.c, built; skips where there is no C compiler or no Linux."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the card that is none is built with a C compiler, on Linux")
    built = Path(tempfile.mkdtemp(prefix="snug-")) / f"fake_gpu{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    source = ROOT / "tests" / "fake_gpu.c"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(built),
        str(source),
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=120)
    return built


def _command(code: str, path: Path, run: RunSpec, cards: Sequence[float], layers: Sequence[int]) -> list[str]:
    return [
        sys.executable, "-c", ADD + code, str(library()), ",".join(map(str, cards)), str(path),
        str(run.context_tokens), str(run.prefill_chunk), run.kv_cache, ",".join(map(str, layers)),
    ]  # fmt: skip


def dry_log(path: Path, run: RunSpec, cards: Sequence[float], layers: Sequence[int]) -> list[str]:
    """What llama.cpp says that it would allocate, of a file whose weights may be missing."""
    with tempfile.TemporaryDirectory(prefix="snug-") as folder, subprocess.Popen(
        [*_command(_DRY, path, run, cards, layers), f"{folder}/dry.sock"], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace", cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if _DONE in line:
                break
        process.kill()
    return lines


def dry_buffers(lines: list[str]) -> dict[str, Buffers]:
    """By device: weights and caches to a MiB as its table has them, computing exactly."""
    found = dict(read_fit(lines, 0))
    for line in lines:
        if match := re.search(r"sched_reserve:\s+(\w+) compute buffer size =\s*([\d.]+) MiB", line):
            device = "cpu" if match.group(1) == "CUDA_Host" else f"cuda:{match.group(1).removeprefix('CUDA')}"
            had = found[device]
            found[device] = Buffers(had.model, had.context, round(float(match.group(2)) * 2**20))
    return found


def loaded(
    path: Path, run: RunSpec, cards: Sequence[float], layers: Sequence[int], *, draft: Path | None = None
) -> tuple[dict[str, Buffers], str, str]:
    """Load `path` for real and write a reply: the buffers by device, the reply, the whole log."""
    with tempfile.TemporaryDirectory(prefix="snug-") as folder:
        command = [*_command(_LOAD, path, run, cards, layers), f"{folder}/load.sock", str(draft or "")]
        done = subprocess.run(command, capture_output=True, timeout=300, check=True, cwd=ROOT)
    log = done.stderr.decode("utf-8", "replace")
    return read_load(log.splitlines()), done.stdout.decode("utf-8", "replace"), log
