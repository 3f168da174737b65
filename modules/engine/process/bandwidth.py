"""How fast this machine moves bytes: RAM, GPU memory, and the link between them.

Runs as a program of its own, since it needs torch: `python -m modules.engine.process.bandwidth` prints one JSON object
{"cpu": {"read_Bps": …, "flops": …}, "cuda:0": {"read_Bps": …, "from_cpu_Bps": …, "to_cpu_Bps": …, "flops": …}}. Each
figure is the best of several passes over a buffer far larger than any cache; a reduction reads it once, a copy moves it
once. `flops` are operations a second of a bf16 matrix product.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import psutil
import torch

_BUFFER_BYTES = 512 * 2**20
_PASSES = 5
_CPU_MATRIX, _GPU_MATRIX = 1024, 8192


def _best_rate(run: Callable[[], object], amount: int, synchronize: Callable[[], object]) -> float:
    """`amount` a second in the fastest of several passes, after one to warm up."""
    seconds = []
    for _ in range(_PASSES + 1):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return amount / min(seconds[1:])


def measure() -> dict[str, dict[str, float]]:
    """Bytes a second per device and direction, and operations a second."""
    torch.set_num_threads(psutil.cpu_count(logical=False) or 1)
    host = torch.ones(_BUFFER_BYTES // 4, dtype=torch.float32)
    matrix = torch.ones(_CPU_MATRIX, _CPU_MATRIX, dtype=torch.bfloat16)
    result = {
        "cpu": {
            "read_Bps": _best_rate(host.sum, _BUFFER_BYTES, lambda: None),
            "flops": _best_rate(lambda: matrix @ matrix, 2 * _CPU_MATRIX**3, lambda: None),
        }
    }
    if not torch.cuda.is_available():
        return result
    pinned = host.pin_memory()
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        buffer = torch.empty_like(host, device=device)
        square = torch.ones(_GPU_MATRIX, _GPU_MATRIX, dtype=torch.bfloat16, device=device)

        def synchronize(device: torch.device = device) -> None:
            torch.cuda.synchronize(device)

        result[f"cuda:{index}"] = {
            "read_Bps": _best_rate(buffer.sum, _BUFFER_BYTES, synchronize),
            "from_cpu_Bps": _best_rate(lambda buffer=buffer: buffer.copy_(pinned), _BUFFER_BYTES, synchronize),  # type: ignore[misc]
            "to_cpu_Bps": _best_rate(lambda buffer=buffer: pinned.copy_(buffer), _BUFFER_BYTES, synchronize),  # type: ignore[misc]
            "flops": _best_rate(lambda square=square: square @ square, 2 * _GPU_MATRIX**3, synchronize),  # type: ignore[misc]
        }
    return result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure()) + "\n")
