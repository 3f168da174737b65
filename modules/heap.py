"""How this process gets its memory from glibc.

The web process: all threads from one heap. Each would get one of its own, up to eight a core, and what a request frees
in one is of no use to the next in another: the process grows for hours.

An engine process: a model's tensors each by itself, a step's buffers from a heap. Loading frees as much as it keeps:
old weights, halves of a conversion. On a heap the holes stay (nf4 of the starter model: 225 MiB of them); mapped one by
one they go back at once. Steps want the opposite: mapping and clearing their buffers anew takes 1.8 times as long for a
prompt of 2,000 tokens (docs/log.md).

Other C libraries are left as they are.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from modules.units import KiB, MiB

# Parameters of mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_LOAD_MAPS_FROM = 256 * KiB
# The most that glibc takes (half a heap of an arena), and what it comes to by itself as large blocks are freed.
_RUN_MAPS_FROM = 32 * MiB
# After steps of so many tokens the heap's free pages are given back: what such a step frees, it leaves in pieces.
LARGE_STEP_TOKENS = 128
# A process may have 65,530 mappings (vm.max_map_count); the heap takes what comes after these.
_MOST_MAPPINGS = 40_000


def prepare_server() -> None:
    """From now on all threads share one heap: to be called before there are others."""
    _set(_ARENA_MAX, 1)


def prepare_load() -> None:
    """From now on blocks of a tensor's size are mapped by themselves and return to the system once freed."""
    _set(_ARENA_MAX, 1)
    _set(_MMAP_MAX, _MOST_MAPPINGS)
    _set(_MMAP_THRESHOLD, _LOAD_MAPS_FROM)


def prepare_run() -> None:
    """Give back what the load freed; from now on buffers stay in the heap for the next step."""
    _set(_MMAP_THRESHOLD, _RUN_MAPS_FROM)
    _set(_TRIM_THRESHOLD, 2 * _RUN_MAPS_FROM)
    give_back()


def give_back() -> None:
    """Return the free pages of the heap to the system, those between blocks in use too."""
    if trim := _function("malloc_trim"):
        trim(ctypes.c_size_t(0))


def _set(parameter: int, value: int) -> None:
    if mallopt := _function("mallopt"):
        mallopt(parameter, value)


@cache
def _function(name: str) -> Callable[..., Any] | None:
    """A function of glibc; None with any other C library."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return getattr(libc, name, None) if hasattr(libc, "gnu_get_libc_version") else None
