"""Which graphics cards the installed llama.cpp was built for, and how to get another build.

It looks into the library's file for the names of ggml's backends; nothing native is loaded. What a driver then really
shows is known when a model is loaded (engine/llamacpp/server.py).
"""

from __future__ import annotations

import mmap
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

# As xllamacpp's README gives them.
_INDEX = "https://xorbitsai.github.io/xllamacpp/whl"
GPU_BUILD = f"pip install xllamacpp --force-reinstall --index-url {_INDEX}/cu128"
OTHER_BUILDS = "…/cu132 for CUDA 13, …/rocm-7.2.4 for AMD's cards, …/vulkan for any"

# What ggml-backend-reg.cpp calls in each build; AMD's is CUDA's too.
_BACKENDS = (b"ggml_backend_cuda_reg", b"ggml_backend_vk_reg", b"ggml_backend_metal_reg", b"ggml_backend_sycl_reg")


def can_use_gpus() -> bool:
    """Whether the installed xllamacpp was built for any GPUs; False where it is not installed."""
    found = find_spec("xllamacpp")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    return any(_names_backend(path) for folder in folders for path in _libraries(Path(folder)))


def _libraries(package: Path) -> list[Path]:
    """The package's own shared libraries, and those that its wheel brings along."""
    folders = (package, package.with_name(f"{package.name}.libs"))
    return [path for folder in folders for kind in ("*.so*", "*.pyd", "*.dll", "*.dylib") for path in folder.glob(kind)]


@lru_cache(maxsize=16)
def _names_backend(library: Path) -> bool:
    if not library.stat().st_size:
        return False
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in _BACKENDS)
