"""How much memory something takes at its peak, held against a bound."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from modules.engine.process.resident import peak_resident, reset_peak_resident
from modules.units import format_size


@contextmanager
def memory_within(most_bytes: int) -> Iterator[None]:
    """Fails where this process holds more than so much at any time meanwhile, beside what it held before.

    Where the system lets nobody begin a new peak, what stays below an older one is not seen.
    """
    gc.collect()
    reset_peak_resident()
    before = peak_resident()
    yield
    taken = peak_resident() - before
    assert taken <= most_bytes, f"{format_size(taken)} more, of {format_size(most_bytes)}"
