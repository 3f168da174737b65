"""What llama.cpp says of the buffers that a GGUF file will need, read from the log of its own dry fit.

llama.cpp builds the model and its graphs without allocating, and logs per device what each buffer would take. This file
starts that in a process of its own (llamacpp_dry.py), reads its log, and ends it; it imports no native code.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modules.errors import BadGguf, UnsupportedModel
from modules.units import MiB

_ROW = re.compile(r"memory_breakdown_print: \|\s+- (\w+).*?(\d+) =\s*(\d+) \+\s*(\d+) \+\s*(\d+)\b")
_CACHE = re.compile(r"(?:llama_kv_cache|llama_memory_recurrent)\w*: size =\s*([\d.]+) MiB")
_OUTPUT = re.compile(r"output buffer size =\s*([\d.]+) MiB")
_COMPUTE = re.compile(r"(\w+)\s+compute buffer size =\s*([\d.]+) MiB")
_MODEL = re.compile(r"load_tensors:\s+(\w+) model buffer size =\s*([\d.]+) MiB")
_CACHE_BUFFER = re.compile(r"(\w+) (?:KV|RS) buffer size =\s*([\d.]+) MiB")
_DONE = "fitting params to free memory took"
_FAILED = re.compile(r"(?i)error loading model|failed to (?:load|fit)|unknown model architecture|unsupported model")
_UNKNOWN = re.compile(r"unknown model architecture: '([^']{0,60})'")


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes of one device: tensors; the context's caches and outputs; what computing takes."""

    model: int = 0
    context: int = 0
    compute: int = 0

    @property
    def total(self) -> int:
        """All three."""
        return self.model + self.context + self.compute


def dry_fit(file: str, run: Mapping[str, Any], stored_bytes: int) -> dict[str, Buffers]:
    """Buffers by device ("cpu", "cuda:0") of a checked GGUF file of `stored_bytes` of tensors.

    `run` gives context_tokens, prefill_chunk, kv_cache. Raises UnsupportedModel or BadGguf where llama.cpp cannot load
    it. The process ends as soon as the figures are there: after them it would go on to load.
    """
    command = [sys.executable, "-P", "-X", "utf8", "-m", "modules.memory.dryruns.llamacpp_dry", file,
               str(run["context_tokens"]), str(run["prefill_chunk"]), run["kv_cache"]]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="snug-") as folder, subprocess.Popen(
        [*command, folder], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, encoding="utf-8", errors="replace",
    ) as process:  # fmt: skip
        assert process.stderr is not None
        try:
            lines = list(_until_done(process.stderr))
        finally:
            process.kill()
    return read_fit(lines, stored_bytes)


def _until_done(log: Iterable[str]) -> Iterator[str]:
    for line in log:
        yield line
        if _DONE in line:
            return


def read_fit(lines: Iterable[str], stored_bytes: int) -> dict[str, Buffers]:
    """Buffers by device, from the log of a dry fit.

    Its table counts in whole MiB; where all is on one device the finer lines before it say the same more exactly.
    """
    kept = list(lines)
    table: dict[str, Buffers] = {}
    for line in kept:
        if found := _ROW.search(line):
            model, context, compute = (int(size) * MiB for size in found.groups()[2:])
            _add(table, found.group(1), Buffers(model, context, compute))
    if not table:
        raise _refusal(kept)
    if len(table) > 1:
        return table
    cache, outputs = _sum(_CACHE, kept), _sum(_OUTPUT, kept)  # the table has no outputs
    compute = sum(_mib(size) for _, size in _all(_COMPUTE, kept))
    ((device, coarse),) = table.items()
    return {device: Buffers(_finer(coarse.model, stored_bytes), _finer(coarse.context, cache) + outputs,
                            _finer(coarse.compute, compute))}  # fmt: skip


def read_load(lines: Iterable[str]) -> dict[str, Buffers]:
    """Buffers by device that a real load logged as allocated; its dry fit, if it made one, left out."""
    kept = list(lines)
    start = max((index for index, line in enumerate(kept) if _DONE in line), default=-1) + 1
    loaded: dict[str, Buffers] = {}
    for line in kept[start:]:
        if found := _MODEL.search(line):
            _add(loaded, found.group(1), Buffers(model=_mib(found.group(2))))
        elif found := (_CACHE_BUFFER.search(line) or re.search(r"(\w+)\s+output buffer size =\s*([\d.]+) MiB", line)):
            _add(loaded, found.group(1), Buffers(context=_mib(found.group(2))))
        elif found := _COMPUTE.search(line):
            _add(loaded, found.group(1), Buffers(compute=_mib(found.group(2))))
    return loaded


def _add(table: dict[str, Buffers], name: str, more: Buffers) -> None:
    device = _device(name)
    had = table.get(device, Buffers())
    table[device] = Buffers(had.model + more.model, had.context + more.context, had.compute + more.compute)


def _device(name: str) -> str:
    """`CUDA0` → `cuda:0`; whatever lies in RAM (`Host`, `CPU_Mapped`, `CPU_REPACK`, `CUDA_Host`) → `cpu`."""
    found = re.fullmatch(r"(?:CUDA|ROCm|Vulkan)(\d+)", name)
    return f"cuda:{found.group(1)}" if found else "cpu"


def _finer(coarse: int, fine: int) -> int:
    """`fine`, if it is what was rounded down to whole MiB; else the middle of what that may have been."""
    return fine if coarse <= fine < coarse + 1.5 * MiB else coarse + MiB // 2


def _all(pattern: re.Pattern[str], lines: Iterable[str]) -> list[tuple[str, ...]]:
    return [found.groups() for line in lines if (found := pattern.search(line))]


def _sum(pattern: re.Pattern[str], lines: Iterable[str]) -> int:
    return sum(_mib(size) for (size,) in _all(pattern, lines))


def _mib(text: str) -> int:
    return round(float(text) * MiB)


def _refusal(lines: Iterable[str]) -> UnsupportedModel | BadGguf:
    """Why there are no figures."""
    for line in lines:
        if found := _UNKNOWN.search(line):
            return UnsupportedModel(
                f"llama.cpp does not know the architecture {found.group(1)!r}.", remedy="Use --loader transformers."
            )
        if _FAILED.search(line):
            return BadGguf(
                f"llama.cpp cannot load the file: {line.split(': ', 1)[-1].strip()[:200]}.",
                remedy="Fetch the file again, or use --loader transformers.",
            )
    return BadGguf("llama.cpp ended before it had read the file.", remedy="Use --loader transformers.")
