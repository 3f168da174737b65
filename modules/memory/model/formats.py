"""Safetensors headers, checked before anything else reads the file; pickles, refused before anything opens them.

Nothing here reads weights. A hostile file costs less than a second and 50 MB, whatever its size. GGUF: gguf.py.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard

from modules.errors import BadSafetensors, ModelNotFound, PickleRefused, SnugError, UnsupportedModel
from modules.files import check_name
from modules.units import MiB, format_size

MAX_HEADER_BYTES = 8 * MiB
MAX_TENSORS = 65_536  # of one file
MAX_MODEL_TENSORS = 1_000_000  # of all files of a model
MAX_INDEX_BYTES = 32 * MiB
_MAX_ENTRY_CHARS = 1024
_MAX_METADATA_CHARS = 256 * 1024
_MAX_DIMENSIONS = 8
_INDEX = "model.safetensors.index.json"
_SHARE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_SPACE = re.compile(r"[ \n\r\t]*")

# Bits per element, as in safetensors 0.8 (src/tensor.rs, Dtype::bitsize).
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
# Pickles that lie beside weights and are none: training settings, optimizer states.
_SIDE_FILES = frozenset({"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.bin"})
_PICKLE_REMEDY = (
    "A pickle can run any program when it is opened. Get the model in safetensors or GGUF format; "
    "most publishers offer both."
)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file's header lists it; `dtype` is the format's own name for it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int


def open_regular(path: Path) -> BinaryIO:
    """`path` opened for reading, if it is a regular, readable file, else ModelNotFound. Never waits on a fifo."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
        raise ModelNotFound(f"{path.name} cannot be read: {reason}.", remedy="Check the file.") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ModelNotFound(f"{path.name} is not a regular file.", remedy="Put the model's own file there.")
    return os.fdopen(descriptor, "rb")


def refuse_pickle(path: Path, start: bytes) -> None:
    """Raise PickleRefused if `path` is a pickle by name or its first bytes are a pickle's or a zip archive's."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise PickleRefused(f"{path.name} is a pickle and is not opened.", remedy=_PICKLE_REMEDY)
    zipped = start.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    pickled = start[:1] == b"\x80" and any(start[3:8])  # no sane safetensors header is 16 MiB long
    if zipped or pickled:
        kind = "a zip archive, as PyTorch pickles are," if zipped else "a pickle"
        raise PickleRefused(f"{path.name} is {kind} under another name and is not opened.", remedy=_PICKLE_REMEDY)


def read_safetensors(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of one safetensors file in the order of its header. Raises BadSafetensors naming the file and why.

    Accepts what safetensors itself accepts: entries that cover the data exactly, without gap or overlap.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        refuse_pickle(path, start)
        if len(start) < 8:
            raise _bad(path, f"it has {size} bytes, too few for a header")
        length = int(struct.unpack("<Q", start)[0])
        if length > size - 8:
            raise _bad(path, f"its header claims {length} bytes, but the file has {format_size(size)}")
        if length > MAX_HEADER_BYTES:
            raise _bad(path, f"its header of {format_size(length)} is larger than {format_size(MAX_HEADER_BYTES)}")
        raw = file.read(length)
    return parse_header(path, raw, size - 8 - length)


def parse_header(path: Path, raw: bytes, data_bytes: int) -> tuple[StoredTensor, ...]:
    """The tensors that the header `raw` of a file with `data_bytes` of data lists. Raises BadSafetensors."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(path, "its header is not UTF-8") from error
    return _read_entries(path, text, data_bytes)


def _read_entries(path: Path, text: str, data_bytes: int) -> tuple[StoredTensor, ...]:
    """Walk the header's top-level object entry by entry, so that no entry can cost more than a few kilobytes."""
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    tensors: list[StoredTensor] = []
    spans: list[tuple[int, int, str]] = []
    names: set[str] = set()
    position = _expect(path, text, 0, "{")
    while text[position : position + 1] != "}":
        if names:
            position = _expect(path, text, position, ",")
        name, position = _decode(path, decoder, text, position, _MAX_ENTRY_CHARS)
        if not isinstance(name, str):
            raise _bad(path, "a tensor name is not text")
        if name in names:
            raise _bad(path, f"it lists {name[:80]!r} twice")
        names.add(name)
        position = _expect(path, text, position, ":")
        limit = _MAX_METADATA_CHARS if name == "__metadata__" else _MAX_ENTRY_CHARS
        value, position = _decode(path, decoder, text, position, limit)
        position = _skip_space(text, position)
        if name == "__metadata__":
            continue
        if len(tensors) >= MAX_TENSORS:
            raise _bad(path, f"it lists more than {MAX_TENSORS} tensors")
        tensor, span = _read_entry(path, name, value, data_bytes)
        tensors.append(tensor)
        spans.append((*span, name))
    if text[position + 1 :].strip(" \n\r\t\0"):
        raise _bad(path, "something follows its header")
    _check_cover(path, spans, data_bytes)
    return tuple(tensors)


def _read_entry(path: Path, name: str, value: object, data_bytes: int) -> tuple[StoredTensor, tuple[int, int]]:
    """One header entry, checked on its own: dtype, shape, offsets inside the data, size as dtype and shape demand."""
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    label = f"tensor {name[:80]!r}"
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _bad(path, f"{label} has the unknown dtype {str(dtype)[:20]!r}")
    if not _whole_numbers(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _bad(path, f"{label} has the shape {str(shape)[:60]}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise _bad(path, f"{label} has the offsets {str(offsets)[:60]}")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        raise _bad(path, f"{label} lies at {begin}…{end}, outside the {data_bytes} bytes of data")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != (end - begin) * 8:
        raise _bad(path, f"{label} of shape {shape} and dtype {dtype} cannot have {end - begin} bytes")
    return StoredTensor(name, tuple(shape), dtype, end - begin), (begin, end)


def _check_cover(path: Path, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """The tensors must lie end to end over all of the data: a gap can hide a payload, an overlap a trick."""
    reached = 0
    for begin, end, name in sorted(spans):
        if begin != reached:
            how = "overlaps the one before it" if begin < reached else f"leaves a gap of {begin - reached} bytes"
            raise _bad(path, f"tensor {name[:80]!r} {how}")
        reached = end
    if reached != data_bytes:
        raise _bad(path, f"its tensors end at {reached}, its data at {data_bytes}; it may be cut short or padded")


def _whole_numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _decode(path: Path, decoder: json.JSONDecoder, text: str, position: int, limit: int) -> tuple[object, int]:
    """One JSON value at `position` of at most `limit` characters, and where it ends."""
    position = _skip_space(text, position)
    try:
        value, used = decoder.raw_decode(text[position : position + limit])
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its header is not valid JSON at character {position}") from error
    return value, position + used


def _expect(path: Path, text: str, position: int, mark: str) -> int:
    position = _skip_space(text, position)
    if text[position : position + 1] != mark:
        raise _bad(path, f"its header is not valid JSON at character {position}")
    return _skip_space(text, position + 1)


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _bad(path: Path, problem: str) -> BadSafetensors:
    return BadSafetensors(f"{path.name} is not a sound safetensors file: {problem}.", remedy="Fetch the file again.")


def model_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model folder, as transformers chooses them: model.safetensors, else those of its
    index, else all that are there.

    Raises BadSafetensors for a bad index or a missing shard, PickleRefused where only pickles are, UnsupportedModel for
    shares of a training on several machines, which transformers would read in place of all others, else ModelNotFound.
    """
    names = sorted(entry.name for entry in os.scandir(folder))
    for name in names:
        if _SHARE.match(name):
            raise UnsupportedModel(
                f"{folder.name} holds shares of a training ({name}), which Snug does not read.",
                remedy="Save the model whole with save_pretrained, or take them out of its folder.",
            )
    if "model.safetensors" in names:
        return (folder / "model.safetensors",)
    if _INDEX in names:
        return tuple(folder / name for name in sorted(set(read_index(folder / _INDEX).values())))
    found = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    if found:
        return tuple(folder / name for name in found)
    for name in names:
        refuse_pickle(folder / name, b"")
    raise ModelNotFound(
        f"{folder.name} holds no model.safetensors.",
        remedy="Put the model's safetensors files there, or choose a .gguf file.",
    )


def has_weights(folder: Path) -> bool:
    """Whether a model folder holds weight files of any kind, pickles included, or an index of them."""
    return any(
        name.endswith((".safetensors", ".safetensors.index.json", ".bin.index.json"))
        or Path(name).suffix.lower() in PICKLE_SUFFIXES
        for name in (entry.name for entry in os.scandir(folder))
        if not name.startswith("adapter_") and name not in _SIDE_FILES
    )


def read_index(index: Path, exists: Callable[[str], bool] | None = None) -> dict[str, str]:
    """Tensor name → file name, from model.safetensors.index.json; every file is beside it, as `exists` says.

    Raises BadSafetensors, or PickleRefused for a file that is one.
    """
    exists = exists or (lambda name: (index.parent / name).exists())
    with open_regular(index) as file:
        raw = file.read(MAX_INDEX_BYTES + 1)
    if len(raw) > MAX_INDEX_BYTES:
        raise _bad(index, f"it is larger than {format_size(MAX_INDEX_BYTES)}")
    _refuse_nesting(index, raw)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _bad(index, "it is not valid JSON") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise _bad(index, "it has no weight_map")
    for name in set(map(str, weight_map.values())):
        _check_shard(index, name, exists)
    return {str(tensor): str(name) for tensor, name in weight_map.items()}


def _refuse_nesting(index: Path, raw: bytes) -> None:
    """An index has two objects and no list; thousands of them would only cost memory."""
    if raw.count(b"{") + raw.count(b"[") > 1000:
        raise _bad(index, "it is nested where it should be flat")


def _check_shard(index: Path, name: str, exists: Callable[[str], bool]) -> None:
    try:
        check_name(name)
    except SnugError as error:
        raise _bad(index, f"it names the file {name[:80]!r}, which could lie elsewhere") from error
    refuse_pickle(index.parent / name, b"")
    if not name.endswith(".safetensors"):
        raise _bad(index, f"it names {name[:80]!r}, which is not a safetensors file")
    if not exists(name):
        raise _bad(index, f"it names {name[:80]!r}, which is missing")


def read_model_tensors(folder: Path) -> tuple[StoredTensor, ...]:
    """All tensors of a model folder. Raises BadSafetensors where two files list one tensor or the index disagrees."""
    files: dict[Path, tuple[StoredTensor, ...]] = {}
    for path in model_files(folder):
        files[path] = read_safetensors(path)
        if sum(map(len, files.values())) > MAX_MODEL_TENSORS:
            raise _bad(path, f"it and the files before it list more than {MAX_MODEL_TENSORS:,} tensors")
    tensors = merge_tensors(files)
    if folder / "model.safetensors" not in files and (folder / _INDEX).exists():
        names = {tensor.name for tensor in tensors}
        for name, file_name in read_index(folder / _INDEX).items():
            if name not in names:
                raise _bad(folder / file_name, f"it lacks {name[:80]!r}, which the index says it holds")
    return tensors


def merge_tensors(files: Mapping[Path, Sequence[StoredTensor]]) -> tuple[StoredTensor, ...]:
    """The tensors of several files together. Raises BadSafetensors where two of them list one tensor."""
    tensors: dict[str, StoredTensor] = {}
    for path, found in files.items():
        for tensor in found:
            if tensor.name in tensors:
                raise _bad(path, f"tensor {tensor.name[:80]!r} is in another file too")
            tensors[tensor.name] = tensor
    return tuple(tensors.values())
