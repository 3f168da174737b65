"""What llama.cpp logs while it loads: the buffers that it really allocated, or why it did not.

Its log goes to stderr, as always, and for the time of a load to a file too. The functions for that are C++, found in
the library by their names as Linux and macOS spell them; elsewhere nothing is heard of a load.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modules.engine.llamacpp.shortage import errors, level_of
from modules.memory.dryruns.llamacpp_fit import Buffers, read_load

# common/log.h: errors alone, and all that a load says of its buffers.
_QUIET, _LOAD_LINES = 1, 4
_CAUSE = re.compile(r"error loading model: (.{1,200})")
_COMPUTING = re.compile(r"(\w+)\s+compute buffer size =")
_DRAFT = "loading draft model"


@dataclass(slots=True)
class LoadLog:
    """The lines of one load, once it is over; none where they cannot be heard. `verbosity` is what to load with."""

    verbosity: int = _QUIET
    lines: list[str] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, int]:
        """Bytes of tensors by device, a draft model's left out."""
        return {device: one.model for device, one in read_load(self._parts()[0]).items() if one.model}

    @property
    def buffers(self) -> Mapping[str, Buffers]:
        """All that was allocated and stayed, by device."""
        return read_load(line for part in self._parts() for line in _that_stay(part))

    @property
    def cause(self) -> str:
        """Why it says that the file could not be loaded; "" where it does not."""
        return next((found.group(1).strip() for line in errors(self.lines) if (found := _CAUSE.search(line))), "")

    def _parts(self) -> tuple[list[str], list[str]]:
        """The lines of the model's load, and those of a draft model's."""
        end = next((index for index, line in enumerate(self.lines) if _DRAFT in line), len(self.lines))
        return self.lines[:end], self.lines[end:]


def _that_stay(lines: Sequence[str]) -> Iterator[str]:
    """`lines` but those of computing buffers that were replaced: llama.cpp plans them anew once adapters are there."""
    names = [found.group(1) if (found := _COMPUTING.search(line)) else "" for line in lines]
    last = {name: index for index, name in enumerate(names)}
    yield from (line for index, line in enumerate(lines) if not names[index] or last[names[index]] == index)


@contextmanager
def hear_load(folder: Path) -> Iterator[LoadLog]:
    """The log of the load that is done meanwhile, kept in `folder` until then. For the whole process."""
    heard, library = LoadLog(), _library()
    if library is None:
        yield heard
        return
    file, log = folder / "load.log", library.common_log_main()
    library.set_file(log, str(file).encode())
    heard.verbosity = _LOAD_LINES
    try:
        yield heard
    finally:
        library.set_file(log, None)  # waits for lines that its thread has not written yet
        library.set_verbosity(_QUIET)
        if file.exists():
            text = file.read_text(encoding="utf-8", errors="replace")
            heard.lines = [line for line in text.split("\n") if level_of(line)]  # not what a file's own text may add
            file.unlink()


@dataclass(frozen=True, slots=True)
class _Library:
    common_log_main: Any
    set_file: Any
    set_verbosity: Any


def _library() -> _Library | None:
    """llama.cpp's functions for its log; None where they are not found."""
    from xllamacpp import xllamacpp

    native = ctypes.CDLL(xllamacpp.__file__)
    try:
        main = native._Z15common_log_mainv
        set_file = native._Z19common_log_set_fileP10common_logPKc
        set_verbosity = native._Z30common_log_set_verbosity_tholdi
    except AttributeError:
        return None
    main.restype, main.argtypes = ctypes.c_void_p, []
    set_file.restype, set_file.argtypes = None, [ctypes.c_void_p, ctypes.c_char_p]
    set_verbosity.restype, set_verbosity.argtypes = None, [ctypes.c_int]
    return _Library(main, set_file, set_verbosity)
