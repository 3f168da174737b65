"""Where torch keeps programs that it compiled, to run them again: in no folder of /tmp that anybody can name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

COMPILED = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def compiling_apart() -> Iterator[None]:
    """For programs that hold no user data folder (a server's is there: startup.py): a folder for this process and those
    that it starts, which no other user can open, gone afterwards. None where the variable names one.
    """
    if os.environ.get(COMPILED):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="snug-compiled-", ignore_cleanup_errors=True) as folder:
        os.environ[COMPILED] = folder
        try:
            yield
        finally:
            os.environ.pop(COMPILED, None)
