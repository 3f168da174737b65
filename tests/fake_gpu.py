"""Graphics cards for llama.cpp that are none (fake_gpu.c): what it places where, and what it allocates there, is real.

`code` that runs in a process of its own begins with `ADD`, which registers cards of so many GiB with the installed
llama.cpp. The processes are forks of one that has llama.cpp's libraries already (`Forks`): to start Python anew would
cost more than most dry fits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import IO

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


# Reads jobs, a line of JSON each, and forks for each of them; answers with the fork's id, then with its exit code.
_FORKS = """
import json, os, sys, traceback, xllamacpp
from modules.memory.dryruns import llamacpp_params
for line in sys.stdin:
    code, sys.argv, *paths = json.loads(line)
    files = [os.open(path, os.O_RDWR) for path in (os.devnull, *paths)]
    if (fork := os.fork()) == 0:
        status = 1
        try:
            for number, file in enumerate(files):
                os.dup2(file, number)
            exec(compile(code, "job", "exec"), {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    for file in files:
        os.close(file)
    print(fork, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
"""


class Forks:
    """The process that forks, and its jobs, one at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def start(self, code: str, arguments: Sequence[object], out: Path, log: Path) -> int:
        """Run `code` with `ADD` before it, output and log to these files; the id of its process."""
        words = ["-c", str(library()), *map(str, arguments)]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([ADD + code, words, str(out), str(log)]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """The exit code of the job that was started."""
        return self._answer()

    def run(self, code: str, arguments: Sequence[object]) -> tuple[str, str]:
        """What `code` prints, and its log; it must end well."""
        with tempfile.TemporaryDirectory(prefix="snug-") as folder:
            out, log = Path(folder, "out"), Path(folder, "log")
            out.touch()
            log.touch()
            self.start(code, arguments, out, log)
            status, told = self.wait(), log.read_text(encoding="utf-8", errors="replace")
            assert status == 0, told[-2000:]
            return out.read_text(encoding="utf-8", errors="replace"), told

    def close(self) -> None:
        """End it."""
        self._process.communicate(timeout=60)

    def _answer(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _about(path: Path, run: RunSpec, cards: Sequence[float], layers: Sequence[int]) -> list[object]:
    sizes, counts = ",".join(map(str, cards)), ",".join(map(str, layers))
    return [sizes, path, run.context_tokens, run.prefill_chunk, run.kv_cache, counts]


def dry_log(forks: Forks, path: Path, run: RunSpec, cards: Sequence[float], layers: Sequence[int]) -> list[str]:
    """What llama.cpp says that it would allocate, of a file whose weights may be missing."""
    with tempfile.TemporaryDirectory(prefix="snug-") as folder:
        log = Path(folder, "log")
        os.mkfifo(log)
        reading = os.open(log, os.O_RDONLY | os.O_NONBLOCK)  # before there is a writer, whom this would wait for
        with os.fdopen(reading, encoding="utf-8", errors="replace") as lines:
            job = forks.start(_DRY, [*_about(path, run, cards, layers), f"{folder}/dry.sock"], Path(os.devnull), log)
            os.set_blocking(reading, True)
            told = list(up_to(_DONE, lines))
            os.kill(job, signal.SIGKILL)
        forks.wait()
    return told


def up_to(end: str, lines: IO[str]) -> Iterator[str]:
    """The lines up to the one that holds `end`."""
    for line in lines:
        yield line
        if end in line:
            return


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
    forks: Forks, path: Path, run: RunSpec, cards: Sequence[float], layers: Sequence[int], *, draft: Path | None = None
) -> tuple[dict[str, Buffers], str, str]:
    """Load `path` for real and write a reply: the buffers by device, the reply, the whole log."""
    with tempfile.TemporaryDirectory(prefix="snug-") as folder:
        reply, log = forks.run(_LOAD, [*_about(path, run, cards, layers), f"{folder}/load.sock", draft or ""])
    return read_load(log.splitlines()), reply, log
