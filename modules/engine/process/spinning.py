"""How long threads of OpenMP wait for their next work before they sleep, in turns of libgomp's loop (GOMP_SPINCOUNT).

They meet after every operation and wait there by spinning, by default for so long that a thread whose core another
program has makes the others wait for whole time slices: with one busy program beside it a reply was 20 times slower
(docs/log.md). Few turns cost the time of waking up instead. Set before the library that spins is loaded.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

NAME = "GOMP_SPINCOUNT"
FOR_TORCH = "10000"
FOR_LLAMACPP = "30000"


def spin_as_llamacpp_should(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set it for llama.cpp in this process, unless the user has set it."""
    if environment.get(NAME, FOR_TORCH) == FOR_TORCH:
        environment[NAME] = FOR_LLAMACPP
