"""Pages that are counted as memory and used by nobody: of weight files that were converted, of buffers full of zeros.

safetensors maps a file and makes tensors of its pages. What keeps its dtype is used where it lies; what is converted,
quantized or sent to a GPU is read once, and its pages stay with the process as long as one tensor uses the file.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SMAPS = Path("/proc/self/smaps")
_MADV_DONTNEED = 4  # linux/mman-common.h
_STEPS = 32
_EVERY_S = 0.02


class MappedFiles:
    """The mapped pages of files named `…suffix` in this process. Linux only: elsewhere nothing happens.

    While it works no such file may be unmapped by another thread: its addresses may belong to other memory by then,
    which would be emptied.
    """

    def __init__(self, suffix: str = ".safetensors") -> None:
        self._suffix = suffix
        self._next = 0.0

    def let_go_at(self, fraction: float) -> None:
        """`let_go`, at most once every 32nd of a load of which `fraction` is done."""
        if fraction >= self._next:
            self._next = fraction + 1 / _STEPS
            self.let_go()

    @contextmanager
    def letting_go(self, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
        """`let_go` of the files that `tensors` lie in, fifty times a second and at the end: for loads that tell nothing
        of their progress. It holds the tensors, so that none of these files is unmapped meanwhile.
        """
        done = threading.Event()
        held = [tensor for tensor in tensors if tensor.device.type == "cpu"]
        places = {tensor.data_ptr() for tensor in held}

        def repeat() -> None:
            while not done.wait(_EVERY_S):
                self.let_go(places)

        thread = threading.Thread(target=repeat, name="mapped files", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.let_go(places)
            held.clear()

    def let_go(self, places: Collection[int] | None = None) -> int:
        """Unmap the pages, and say how many bytes that was; what is used again comes back from the page cache.

        Files of which a page was written to (a private copy that no file holds) are left alone, and with `places`
        (addresses) those in which none of them lies.
        """
        if sys.platform != "linux":
            return 0
        let_go = 0
        for start, end, resident, written in _mappings(_SMAPS.read_text(errors="replace"), self._suffix):
            meant = places is None or any(start <= place < end for place in places)
            if meant and resident and not written and _drop(start, end):
                let_go += resident
        return let_go


def let_go_of_zeros(tensor: torch.Tensor) -> None:
    """Give back the pages of a CPU `tensor` that holds zeros and nothing else: they come back, as zeros, when used."""
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end:
        _drop(start, end)


def _drop(start: int, end: int) -> bool:
    """Whether the system took these pages: private pages of a file, or without one, then read as before, or as 0."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return bool(madvise(start, end - start, _MADV_DONTNEED) == 0)


def _mappings(smaps: str, suffix: str) -> list[tuple[int, int, int, int]]:
    """(start, end, bytes resident, bytes written to) of each mapping of such a file (man proc_pid_smaps)."""
    found: list[tuple[int, int, int, int]] = []
    place: tuple[int, int] | None = None
    resident = 0
    for line in smaps.splitlines():
        word, _, rest = line.partition(" ")
        if not word.endswith(":"):
            start, _, end = word.partition("-")
            place = (int(start, 16), int(end, 16)) if rest.endswith(suffix) else None
        elif place is None:
            continue
        elif word == "Rss:":
            resident = int(rest.split()[0]) * 1024
        elif word == "Anonymous:":
            found.append((*place, resident, int(rest.split()[0]) * 1024))
    return found
