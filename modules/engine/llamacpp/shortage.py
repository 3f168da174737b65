"""Whether memory ran out, by what llama.cpp logged: while it loaded, or before it aborted in mid-reply.

Text only: the log of a load is load_log.py's, what an engine process prints engine/host/child.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from modules.units import MiB, format_size

# `0.00.004.236 E ggml_backend_…`: when, how bad, what. What prints past the log has neither of the first two.
_LEVEL = re.compile(r"^[\d.]+ (?P<level>[A-Z]) ")
_SHORT = re.compile(
    r"(?i)out of memory|(?:failed|unable) to allocate|insufficient memory|bad_alloc|ErrorOutOf(?:Device|Host)Memory"
    r"|memory allocation of size \d+ failed|ALLOC_FAILED"
)
# ggml-cuda.cu, and ggml-backend.cpp for what allocates as it does by default; then llama-model.cpp.
_ON_GPU = (
    re.compile(r"allocating (?P<mib>[\d.]+) MiB on device (?P<number>\d+)"),
    re.compile(r"failed to allocate (?:CUDA|ROCm|Vulkan)(?P<number>\d+) buffer of size (?P<bytes>\d+)"),
    re.compile(r"unable to allocate (?:CUDA|ROCm|Vulkan)(?P<number>\d+) buffer"),
    re.compile(r"current device: (?P<number>\d+)"),
)


def level_of(line: str) -> str:
    """`E` of an error, `I` of what is told; "" of a line that is not the log's."""
    found = _LEVEL.match(line)
    return found.group("level") if found else ""


def errors(lines: Iterable[str]) -> Iterator[str]:
    """Those of `lines` that tell of an error: no others may be taken for one, since they quote the file."""
    yield from (line for line in lines if level_of(line) in ("", "E"))


def find_shortage(lines: Iterable[str]) -> str:
    """Where memory ran out: `GPU 0 has no room for 16.1 MiB more`; "" where it did not."""
    told = list(errors(lines))
    if not any(map(_SHORT.search, told)):
        return ""
    for pattern in _ON_GPU:
        for line in told:
            if found := pattern.search(line):
                return _on_gpu(found.groupdict())
    return "llama.cpp could not allocate what it needs"


def _on_gpu(said: Mapping[str, str]) -> str:
    size = int(said["bytes"]) if "bytes" in said else round(float(said["mib"]) * MiB) if "mib" in said else 0
    return f"GPU {said['number']} has no room for {f'{format_size(size, up=True)} more' if size else 'what it needs'}"
