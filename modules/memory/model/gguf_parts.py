"""GGUF files in parts, NAME-00001-of-00003.gguf: the first holds what the model is, all of them its tensors.

llama.cpp finds the others beside the first (gguf-split); transformers reads files in one piece only.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from modules.errors import BadGguf
from modules.memory.model.gguf import GgufHeader, read_gguf

_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
MAX_PARTS = 1000


def part_number(name: str) -> int:
    """Which part of a split file this is by its name, from 1 on; 0 for a file in one piece."""
    match = _PART.fullmatch(name)
    return int(match["part"]) if match else 0


def parts_of(path: Path) -> tuple[Path, ...]:
    """All parts of the model whose first one is `path`, there or not; of a file in one piece that alone.

    Raises BadGguf for a later part, and for a count that cannot be.
    """
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match["count"])
    if int(match["part"]) != 1 or not 1 <= count <= MAX_PARTS:
        raise BadGguf(
            f"{path.name} is not the first part of its model.", remedy="Choose the file that ends in -00001-of-….gguf."
        )
    names = (f"{match['stem']}-{part:05}-of-{match['count']}{match['suffix']}" for part in range(1, count + 1))
    return tuple(path.with_name(name) for name in names)


def read_whole_gguf(path: Path) -> GgufHeader:
    """The checked header of a GGUF file, with the tensors of all its parts. Raises BadGguf naming the part at fault."""
    first, *others = parts_of(path)
    header = read_gguf(first)
    missing = [part.name for part in others if not part.exists()]
    if missing:
        raise BadGguf(f"{missing[0]} is missing, a part of {path.name}.", remedy="Put it beside the first part.")
    tensors = list(header.tensors)
    names = {tensor.name for tensor in tensors}
    for part in others:
        for tensor in read_gguf(part).tensors:
            if tensor.name in names:
                raise BadGguf(f"{part.name} holds {tensor.name[:80]!r} again.", remedy="Fetch the files again.")
            names.add(tensor.name)
            tensors.append(tensor)
    return replace(header, tensors=tuple(tensors))
