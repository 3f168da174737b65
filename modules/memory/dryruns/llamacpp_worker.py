"""The process that asks llama.cpp for its dry fit of a GGUF file. asking.py starts it and may kill it at any moment.

Each question starts a process of its own (llamacpp_dry.py): native code may crash on a file, and then only that ends.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from modules.answering import no_core_dumps, serve, told
from modules.errors import SnugError
from modules.memory.dryruns.llamacpp_fit import dry_fit


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes as {"cpu.model": …, "cpu.context": …, "cpu.compute": …}, or the error in words under "error"."""
    try:
        fit = dry_fit(request["file"], request["run"], request["config"]["stored_bytes"])
    except SnugError as error:
        return told(error)
    return {
        f"{device}.{purpose}": size
        for device, buffers in fit.items()
        for purpose, size in dataclasses.asdict(buffers).items()
    }


if __name__ == "__main__":
    no_core_dumps()
    serve(sys.stdin.buffer, sys.stdout.buffer, answer)
