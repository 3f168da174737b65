"""GGUF headers: what is sound is read, what is not is refused by name, quickly and in little memory."""

from __future__ import annotations

import os
import pickle
import struct
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.errors import BadGguf, ModelNotFound, PickleRefused, SnugError
from modules.memory.model.gguf import ArrayValue, read_gguf
from modules.units import MiB

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    """A GGUF string."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A key and its value."""
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, items: bytes = b"") -> bytes:
    """The value of an array."""
    return struct.pack("<IQ", kind, length) + items


def tensor(
    name: str = "w", sizes: tuple[int, ...] = (32, 2), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    """A tensor's entry; kind 0 is F32, 2 is Q4_0."""
    raw = text(name) + struct.pack("<I", len(sizes) if dims is None else dims)
    return raw + b"".join(struct.pack("<Q", size) for size in sizes) + struct.pack("<IQ", kind, offset)


ARCH = pair("general.architecture", STRING, text("llama"))


def gguf(
    pairs: tuple[bytes, ...] = (ARCH,), tensors: tuple[bytes, ...] = (tensor(),), *, data: int = 256,
    magic: bytes = b"GGUF", version: int = 3, tensor_count: int | None = None, pair_count: int | None = None,
    alignment: int = 32,
) -> bytes:  # fmt: skip
    """A GGUF file of parts."""
    tensor_count = len(tensors) if tensor_count is None else tensor_count
    pair_count = len(pairs) if pair_count is None else pair_count
    counts = struct.pack("<IQQ", version, tensor_count, pair_count)
    raw = magic + counts + b"".join(pairs) + b"".join(tensors)
    return raw + bytes(-len(raw) % alignment) + bytes(data)


def align(value: int, kind: int = U32) -> bytes:
    """general.alignment."""
    return pair("general.alignment", kind, struct.pack("<I", value) if kind == U32 else text(str(value)))


ALL = 2**64 - 1
CUT_TEXT = text("a") + struct.pack("<Q", 9999)
HUGE_TEXT = struct.pack("<Q", 2**60)
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "ends within"),
    "magic_only": (b"GGUF", "ends within"),
    "wrong_magic": (gguf(magic=b"GGML"), "begins with"),
    "version_0": (gguf(version=0), "version"),
    "version_1": (gguf(version=1), "version"),
    "version_4": (gguf(version=4), "version"),
    "big_endian": (gguf(version=3 << 24), "big-endian"),
    "cut_in_counts": (gguf()[:14], "ends within"),
    "tensor_count_minus_1": (gguf(tensor_count=ALL), "claims"),
    "pair_count_minus_1": (gguf(pair_count=ALL), "claims"),
    "more_pairs_than_there": (gguf(pair_count=5), "GGUF file"),
    "more_tensors_than_there": (gguf(tensor_count=9), "GGUF file"),
    "key_of_2_to_63": (gguf((struct.pack("<Q", 2**63) + b"x",)), "bytes long"),
    "key_of_5000": (gguf((pair("k" * 5000, U8, b"1"),)), "bytes long"),
    "empty_key": (gguf((pair("", U8, b"1"),)), "empty"),
    "key_not_utf8": (gguf((pair(b"\xff\xfe", U8, b"1"),)), "UTF-8"),
    "key_twice": (gguf((ARCH, ARCH)), "twice"),
    "unknown_value_type": (gguf((pair("k", 13, b"1234"),)), "unknown type"),
    "truth_of_7": (gguf((pair("k", BOOL, b"\x07"),)), "truth"),
    "text_of_2_to_60": (gguf((pair("k", STRING, struct.pack("<Q", 2**60)),)), "bytes long"),
    "texts_too_large": (gguf(tuple(pair(f"k{i}", STRING, text("x" * 3 * MiB)) for i in range(4))), "too large"),
    "array_of_2_to_61": (gguf((pair("k", ARRAY, array(U64, 2**61)),)), "more than the file"),
    "array_of_2_to_63_texts": (gguf((pair("k", ARRAY, array(STRING, 2**63)),)), "more than the file"),
    "array_of_texts_cut": (gguf((pair("k", ARRAY, array(STRING, 3, CUT_TEXT)),)), "ends within"),
    "text_in_an_array_of_2_to_60": (gguf((pair("k", ARRAY, array(STRING, 1, HUGE_TEXT)),)), "holds a text"),
    "millions_of_numbers": (
        gguf(tuple(pair(f"k{i}", ARRAY, array(U8, 1024, bytes(1024))) for i in range(4000))), "numbers"
    ),
    "array_in_array": (gguf((pair("k", ARRAY, array(ARRAY, 1, array(U8, 1, b"1"))),)), "array of the type 9"),
    "array_of_unknown": (gguf((pair("k", ARRAY, array(99, 1, b"1")),)), "array of the type 99"),
    "alignment_13": (gguf((ARCH, align(13))), "alignment"),
    "alignment_0": (gguf((ARCH, align(0))), "alignment"),
    "alignment_2_to_31": (gguf((ARCH, align(2**31))), "alignment"),
    "alignment_text": (gguf((ARCH, align(32, STRING))), "alignment"),
    "tensor_twice": (gguf(tensors=(tensor(), tensor(offset=256)), data=512), "twice"),
    "tensor_without_name": (gguf(tensors=(tensor(""),)), "empty"),
    "tensor_name_of_200": (gguf(tensors=(tensor("n" * 200),)), "bytes long"),
    "no_dimensions": (gguf(tensors=(tensor(sizes=()),)), "dimensions"),
    "five_dimensions": (gguf(tensors=(tensor(sizes=(1, 1, 1, 1, 1)),)), "dimensions"),
    "dimensions_minus_1": (gguf(tensors=(tensor(dims=2**32 - 1),)), "dimensions"),
    "size_0": (gguf(tensors=(tensor(sizes=(32, 0)),)), "impossible"),
    "size_minus_1": (gguf(tensors=(tensor(sizes=(32, ALL)),)), "impossible"),
    "sizes_overflow": (gguf(tensors=(tensor(sizes=(2**32, 2**32)),)), "impossible"),
    "unknown_tensor_type": (gguf(tensors=(tensor(kind=200),)), "unknown type"),
    "removed_tensor_type": (gguf(tensors=(tensor(kind=4),)), "unknown type"),
    "rows_not_whole_blocks": (gguf(tensors=(tensor(sizes=(33, 2), kind=2),)), "multiple"),
    "offset_not_aligned": (gguf(tensors=(tensor(offset=7),)), "lies at"),
    "offset_beyond": (gguf(tensors=(tensor(offset=2**62),)), "lies at"),
    "overlapping": (gguf(tensors=(tensor("a"), tensor("b")), data=512), "lies at"),
    "cut_data": (gguf(data=200), "cut short"),
    "no_data": (gguf(data=0), "cut short"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name_within_a_second_and_50_mb(case: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    content, why = BROKEN[case]
    path.write_bytes(content)
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises(BadGguf, match=why) as caught:
            read_gguf(path)
        assert time.thread_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 50 * MiB
    finally:
        tracemalloc.stop()
    assert "m.gguf" in caught.value.message


def test_a_huge_sparse_file_of_empty_texts_is_refused_in_a_second(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf((pair("k", ARRAY, array(STRING, 2**32)),)))
    os.truncate(path, 2**40)
    started = time.thread_time()
    with pytest.raises(BadGguf):
        read_gguf(path)
    assert time.thread_time() - started < 1


def test_a_sound_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    pairs = (
        ARCH,
        pair("f", F32, struct.pack("<f", 0.5)),
        pair("b", BOOL, b"\x01"),
        pair("tokens", ARRAY, array(STRING, 2, text("a") + text("bc"))),
        pair("few", ARRAY, array(U32, 2, struct.pack("<II", 7, 8))),
        pair("many", ARRAY, array(U8, 5000, bytes(5000))),
    )
    path.write_bytes(gguf(pairs, (tensor("a", (64, 3), 2), tensor("b", (5,), 0, 128)), data=128 + 20))
    header = read_gguf(path)
    assert header.metadata == {
        "general.architecture": "llama", "f": 0.5, "b": True, "tokens": ArrayValue(2),
        "few": ArrayValue(2, (7, 8)), "many": ArrayValue(5000),
    }  # fmt: skip
    first, second = header.tensors
    assert (first.name, first.shape, first.dtype, first.size_bytes) == ("a", (3, 64), "Q4_0", 3 * 2 * 18)
    assert (second.shape, second.dtype, second.size_bytes) == ((5,), "F32", 20)


def test_a_tokenizer_of_half_a_million_texts_is_stepped_over_in_a_second(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    texts = b"".join(text(str(i)) for i in range(500_000))
    path.write_bytes(gguf((ARCH, pair("tokens", ARRAY, array(STRING, 500_000, texts)))))
    started = time.thread_time()
    assert read_gguf(path).metadata["tokens"] == ArrayValue(500_000)
    assert time.thread_time() - started < 1


@settings(max_examples=400, deadline=1000)
@given(data=st.data())
def test_any_mutation_of_a_small_file_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    few = pair("few", ARRAY, array(U32, 2, bytes(8)))
    content = bytearray(gguf((ARCH, few, pair("s", ARRAY, array(STRING, 2, text("a") + text("b"))))))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    path.write_bytes(content)
    try:
        header = read_gguf(path)
    except SnugError:
        return
    assert sum(entry.size_bytes for entry in header.tensors) <= len(content)


def test_a_pickle_renamed_to_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(pickle.dumps(["x" * 100]))
    with pytest.raises(PickleRefused):
        read_gguf(path)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ModelNotFound, match="regular file"):
        read_gguf(tmp_path / "m.gguf")


def test_a_vocabulary_of_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.memory.model.gguf.MAX_WHOLE_BYTES", 100)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf((pair("k", ARRAY, array(STRING, 11, text("x" * 10) * 11)),)))
    with pytest.raises(BadGguf, match="more text than any vocabulary"):
        read_gguf(path, whole=frozenset({"k"}))
    assert read_gguf(path).metadata["k"] == ArrayValue(11)
