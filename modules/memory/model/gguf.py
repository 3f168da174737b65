"""GGUF headers, checked value by value before llama.cpp or transformers reads the file.

Follows the GGUF specification, versions 2 and 3 (ggml, docs/gguf.md) and refuses what ggml's own reader refuses. Reads
no weights. A hostile file costs less than a second and 50 MB: every count is held against the bytes that are left.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from modules.errors import BadGguf
from modules.memory.model.formats import StoredTensor, open_regular, refuse_pickle
from modules.units import KiB, MiB

MAX_PAIRS = 65_536
MAX_TENSORS = 65_536
MAX_KEY_BYTES = 1024
MAX_NAME_BYTES = 127
MAX_STRING_BYTES = 4 * MiB
MAX_TEXT_BYTES = 8 * MiB
MAX_ARRAY_STRINGS = 2_000_000
MAX_NUMBERS = 4_000_000  # of arrays whose items are kept
MAX_WHOLE_BYTES = 256 * MiB  # of texts that are
_KEPT_ITEMS = 1024
_WINDOW = 256 * KiB
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
FLOAT32, _STRING, _ARRAY = 6, 8, 9

# Value type → struct format: uint8, int8, uint16, int16, uint32, int32, float32, bool, uint64, int64, float64.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q", 12: "<d"}
_BLOCKS = {int(kind): (kind.name, *GGML_QUANT_SIZES[kind]) for kind in GGMLQuantizationType if kind in GGML_QUANT_SIZES}


@dataclass(frozen=True, slots=True)
class ArrayValue:
    """An array of a GGUF header: its length, and its items where they are numbers and few, or were asked for."""

    length: int
    items: tuple[float, ...] = ()
    texts: tuple[str, ...] = ()


Value = int | float | bool | str | ArrayValue


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says of itself. Tensor shapes are in PyTorch's order: the contiguous dimension last.

    `kinds` are the type numbers of the values, FLOAT32 and its kin: llama.cpp aborts where it finds another one.
    """

    version: int
    metadata: dict[str, Value]
    tensors: tuple[StoredTensor, ...]
    kinds: dict[str, int] = field(default_factory=dict)


def read_gguf(path: Path, *, whole: frozenset[str] = frozenset()) -> GgufHeader:
    """The checked header of `path`; of the arrays named in `whole` every item.

    Raises BadGguf naming the file and why, PickleRefused for a disguised pickle.
    """
    with open_regular(path) as file:
        return _Reader(path, file, os.fstat(file.fileno()).st_size, whole).header()


class SeekableBytes(Protocol):
    """What is used of a file."""

    def seek(self, offset: int, /) -> int:
        """Go to a byte."""

    def read(self, length: int, /) -> bytes:
        """At most `length` bytes from there."""


def header_length(path: Path, file: SeekableBytes, size: int) -> int:
    """How many bytes of `file`, which has `size` of them, are header. Raises BadGguf naming `path`, PickleRefused."""
    reader = _Reader(path, file, size)
    reader.header()
    return reader.position


class _Reader:
    """A cursor over the file through a small window; every step forward is checked against the file's size."""

    def __init__(self, path: Path, file: SeekableBytes, size: int, whole: frozenset[str] = frozenset()) -> None:
        self._path = path
        self._whole = whole
        self._file = file
        self._size = size
        self._window = b""
        self._window_start = 0
        self._position = 0
        self._text_bytes = 0
        self._strings = 0
        self._numbers = 0
        self._whole_bytes = 0
        self._kinds: dict[str, int] = {}

    @property
    def position(self) -> int:
        """How far it has read."""
        return self._position

    def header(self) -> GgufHeader:
        """Everything up to the tensor data, and whether the data is all there."""
        start = self._peek(8)
        refuse_pickle(self._path, start)
        if start[:4] != b"GGUF":
            raise self._bad(f"it begins with {start[:4]!r} instead of b'GGUF'")
        self._position = 4
        version = self._unsigned("<I")
        if version not in (2, 3):
            swapped = " (written for a big-endian machine)" if version in (2 << 24, 3 << 24) else ""
            raise self._bad(f"its version is {version}{swapped}; 2 and 3 are known")
        tensor_count, pair_count = self._unsigned("<Q"), self._unsigned("<Q")
        if tensor_count > MAX_TENSORS or pair_count > MAX_PAIRS:
            raise self._bad(f"it claims {tensor_count} tensors and {pair_count} values")
        metadata = self._metadata(pair_count)
        alignment = self._alignment(metadata)
        tensors = self._tensors(tensor_count, alignment)
        return GgufHeader(version, metadata, tensors, self._kinds)

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self._string(MAX_KEY_BYTES, "a key")
            if not key or key in metadata:
                raise self._bad(f"the key {key[:80]!r} is empty or there twice")
            self._kinds[key] = self._unsigned("<I")
            metadata[key] = self._value(key, self._kinds[key])
        return metadata

    def _value(self, key: str, kind: int) -> Value:
        if kind == _STRING:
            text = self._string(MAX_STRING_BYTES, key)
            self._text_bytes += len(text)
            if self._text_bytes > MAX_TEXT_BYTES:
                raise self._bad("its texts are too large")
            return text
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._bad(f"{key[:80]!r} has the unknown type {kind}")
        value = self._scalar(_SCALARS[kind])
        if kind != 7:
            return value
        if value not in (0, 1):
            raise self._bad(f"{key[:80]!r} is a truth value of {value}")
        return bool(value)

    def _array(self, key: str) -> ArrayValue:
        kind, length = self._unsigned("<I"), self._unsigned("<Q")
        if kind == _STRING:
            return ArrayValue(length, texts=self._strings_of(key, length))
        if kind not in _SCALARS:
            raise self._bad(f"{key[:80]!r} is an array of the type {kind}")
        width = struct.calcsize(_SCALARS[kind])
        if length > (self._size - self._position) // width:
            raise self._bad(f"{key[:80]!r} claims {length} items, more than the file holds")
        if length > _KEPT_ITEMS and key not in self._whole:
            self._position += length * width
            return ArrayValue(length)
        if length > MAX_ARRAY_STRINGS:
            raise self._bad(f"{key[:80]!r} claims {length} items, more than any vocabulary has")
        self._numbers += length
        if self._numbers > MAX_NUMBERS:
            raise self._bad(f"its arrays hold more than {MAX_NUMBERS:,} numbers")
        layout = struct.Struct(f"<{length}{_SCALARS[kind][1]}")
        return ArrayValue(length, layout.unpack(self._take(layout.size)))

    def _strings_of(self, key: str, length: int) -> tuple[str, ...]:
        """Step over `length` strings; tokenizers have up to half a million of them. Kept only where asked for."""
        self._strings += length
        if self._strings > MAX_ARRAY_STRINGS or length > (self._size - self._position) // 8:
            raise self._bad(f"{key[:80]!r} claims {length} texts, more than the file can hold")
        unpack = struct.Struct("<Q").unpack_from
        texts: list[str] = []
        for _ in range(length):
            offset = self._position - self._window_start
            if not 0 <= offset <= len(self._window) - 8:
                self._peek(8)
                offset = 0
            item_bytes = unpack(self._window, offset)[0]
            if item_bytes > MAX_STRING_BYTES:
                raise self._bad(f"{key[:80]!r} holds a text of {item_bytes} bytes")
            if key in self._whole:
                self._position += 8
                self._whole_bytes += item_bytes
                if self._whole_bytes > MAX_WHOLE_BYTES:
                    raise self._bad(f"{key[:80]!r} holds more text than any vocabulary has")
                texts.append(self._take(item_bytes).decode("utf-8", "replace"))
            else:
                self._position += 8 + item_bytes
            if self._position > self._size:
                raise self._cut()
        return tuple(texts)

    def _alignment(self, metadata: dict[str, Value]) -> int:
        value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(value) is not int or value < 8 or value > MiB or value & (value - 1):
            raise self._bad(f"its general.alignment is {str(value)[:40]}, not a power of two")
        return value

    def _tensors(self, count: int, alignment: int) -> tuple[StoredTensor, ...]:
        tensors: list[StoredTensor] = []
        names: set[str] = set()
        expected = end = 0
        for _ in range(count):
            name = self._string(MAX_NAME_BYTES, "a tensor name")
            if not name or name in names:
                raise self._bad(f"the tensor name {name[:80]!r} is empty or there twice")
            names.add(name)
            shape = self._shape(name)
            tensor = self._sized(name, shape, self._unsigned("<I"))
            offset = self._unsigned("<Q")
            if offset != expected:
                raise self._bad(f"tensor {name!r} lies at {offset} instead of {expected}")
            end = offset + tensor.size_bytes  # writers differ in padding the last tensor
            expected = _padded(end, alignment)
            tensors.append(tensor)
        end += _padded(self._position, alignment)
        if tensors and end > self._size:
            raise self._bad(f"its tensors end at byte {end}, but it has {self._size}; it may be cut short")
        return tuple(tensors)

    def _shape(self, name: str) -> tuple[int, ...]:
        dimensions = self._unsigned("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._bad(f"tensor {name!r} has {dimensions} dimensions")
        sizes = [self._unsigned("<Q") for _ in range(dimensions)]
        if any(not 1 <= size < 2**63 for size in sizes) or math.prod(sizes) >= 2**62:
            raise self._bad(f"tensor {name!r} has the impossible shape {sizes}")
        return tuple(reversed(sizes))

    def _sized(self, name: str, shape: tuple[int, ...], kind: int) -> StoredTensor:
        if kind not in _BLOCKS:
            raise self._bad(f"tensor {name!r} has the unknown type {kind}")
        type_name, block_items, block_bytes = _BLOCKS[kind]
        if shape[-1] % block_items:
            raise self._bad(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of {block_items}")
        return StoredTensor(name, shape, type_name, math.prod(shape) // block_items * block_bytes)

    def _string(self, limit: int, what: str) -> str:
        length = self._unsigned("<Q")
        if length > limit:
            raise self._bad(f"{what[:80]!r} is {length} bytes long")
        raw = self._take(length)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad(f"{what[:80]!r} is not UTF-8") from error

    def _unsigned(self, layout: str) -> int:
        return int(self._scalar(layout))

    def _scalar(self, layout: str) -> int | float:
        value: int | float = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        return value

    def _take(self, length: int) -> bytes:
        raw = self._peek(length)
        self._position += length
        return raw

    def _peek(self, length: int) -> bytes:
        """The next `length` bytes without moving. Reading beyond the end raises BadGguf."""
        if self._position + length > self._size:
            raise self._cut()
        offset = self._position - self._window_start
        if offset < 0 or offset + length > len(self._window):
            self._file.seek(self._position)
            self._window = self._file.read(max(length, _WINDOW))
            self._window_start, offset = self._position, 0
        raw = self._window[offset : offset + length]
        if len(raw) < length:
            raise self._cut()
        return raw

    def _cut(self) -> BadGguf:
        return self._bad(f"it ends within its header, at byte {self._size}")

    def _bad(self, problem: str) -> BadGguf:
        return BadGguf(f"{self._path.name} is not a sound GGUF file: {problem}.", remedy="Fetch the file again.")


def _padded(size: int, alignment: int) -> int:
    return (size + alignment - 1) // alignment * alignment
