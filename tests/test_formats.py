"""Safetensors headers: what is sound is read, what is not is refused by name, quickly and in little memory."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.errors import BadSafetensors, ModelNotFound, PickleRefused, SnugError, UnsupportedModel
from modules.memory.model.formats import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    model_files,
    read_model_tensors,
    read_safetensors,
)
from modules.units import MiB

ONE = {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}


def safetensors(header: object, data: bytes = bytes(16), *, length: int | None = None) -> bytes:
    """A safetensors file; `header` is JSON, or the raw text of it."""
    raw = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def two(first: tuple[int, int], second: tuple[int, int]) -> dict[str, object]:
    """Two tensors of uint8 at the given offsets."""
    return {
        name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for name, (begin, end) in {"a": first, "b": second}.items()
    }


def one(**changes: object) -> dict[str, object]:
    """The sound header with fields of its entry changed."""
    return {"w": {**ONE["w"], **changes}}


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "seven_bytes": (bytes(7), "7 bytes"),
    "header_beyond_the_file": (safetensors(ONE, length=10**6), "claims 1000000 bytes"),
    "header_of_2_to_63": (safetensors(ONE, length=2**63), "claims"),
    "header_too_large": (safetensors("x" * (MAX_HEADER_BYTES + 1)), "larger than"),
    "not_utf8": (struct.pack("<Q", 4) + b"{\xff\xfe}", "UTF-8"),
    "not_json": (safetensors("{nonsense"), "JSON"),
    "a_list": (safetensors("[1, 2]"), "JSON"),
    "cut_json": (safetensors('{"w":{"dtype":"F32"'), "JSON"),
    "nan": (safetensors('{"w": NaN}'), "JSON"),
    "deep": (safetensors('{"w":' + "[" * 5000), "JSON"),
    "text_after": (safetensors(json.dumps(ONE) + "x"), "follows"),
    "name_is_a_number": (safetensors("{1: {}}"), "JSON|not text"),
    "name_twice": (safetensors('{"a": 1, "a": 2}'.replace("1", json.dumps(ONE["w"]), 1)), "twice"),
    "entry_not_an_object": (safetensors({"w": 5}), "dtype"),
    "unknown_dtype": (safetensors(one(dtype="F33")), "dtype"),
    "no_shape": (safetensors({"w": {"dtype": "F32", "data_offsets": [0, 16]}}), "shape"),
    "negative_shape": (safetensors(one(shape=[-2, -2])), "shape"),
    "shape_of_truth_values": (safetensors(one(shape=[True, 4])), "shape"),
    "shape_of_floats": (safetensors(one(shape=[2.0, 2.0])), "shape"),
    "overflowing_shape": (safetensors(one(shape=[2**62, 2**62])), "cannot have"),
    "too_many_dimensions": (safetensors(one(shape=[1] * 9)), "shape"),
    "three_offsets": (safetensors(one(data_offsets=[0, 8, 16])), "offsets"),
    "offsets_swapped": (safetensors(one(data_offsets=[16, 0])), "outside"),
    "offsets_beyond": (safetensors(one(data_offsets=[16, 32])), "outside"),
    "wrong_size": (safetensors(one(dtype="F64")), "cannot have"),
    "overlap": (safetensors(two((0, 10), (6, 16))), "overlaps"),
    "gap": (safetensors(two((0, 6), (10, 16))), "gap"),
    "cut_data": (safetensors(ONE, bytes(15)), "outside"),
    "padded_data": (safetensors(ONE, bytes(17)), "padded"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name_within_a_second_and_50_mb(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content, why = BROKEN[case]
    path.write_bytes(content)
    tracemalloc.start()
    started = time.thread_time()
    try:
        with pytest.raises(BadSafetensors, match=why) as caught:
            read_safetensors(path)
        assert time.thread_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 50 * MiB
    finally:
        tracemalloc.stop()
    assert "model.safetensors" in caught.value.message
    assert caught.value.remedy


def test_a_header_full_of_small_objects_costs_no_time(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entries = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(130_000))
    path.write_bytes(safetensors("{" + entries + "}", b""))
    assert path.stat().st_size < MAX_HEADER_BYTES
    started = time.thread_time()
    with pytest.raises(BadSafetensors, match="more than 65536"):
        read_safetensors(path)
    assert time.thread_time() - started < 3  # 0.5 s when quiet


def test_the_tensors_of_the_largest_header_that_is_read_take_less_than_50_mb(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entries = ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(20_000))
    path.write_bytes(safetensors("{" + entries + "}", b""))
    tracemalloc.start()
    try:
        read_safetensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak * MAX_TENSORS / 20_000 < 50 * MiB


def test_a_sound_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        safetensors(
            {
                "__metadata__": {"format": "pt"},
                **ONE,
                "empty": {"dtype": "BF16", "shape": [0], "data_offsets": [16, 16]},
            }
        )
    )
    first, second = read_safetensors(path)
    assert (first.name, first.shape, first.dtype, first.size_bytes) == ("w", (2, 2), "F32", 16)
    assert second.size_bytes == 0


def test_a_header_of_66_kb_is_not_taken_for_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    raw = json.dumps(ONE).ljust(0x010280)
    path.write_bytes(safetensors(raw))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert len(read_safetensors(path)) == 1


@settings(max_examples=400, deadline=1000)
@given(data=st.data())
def test_any_mutation_of_a_small_file_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(safetensors(two((0, 6), (6, 16))))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
        if not content:
            break
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(content)
    try:
        tensors = read_safetensors(path)
    except SnugError:
        return
    assert sum(tensor.size_bytes for tensor in tensors) < len(content)


class Canary:
    """A pickle that would create a file if it were opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_a_folder_of_pickles_is_refused_and_nothing_runs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(PickleRefused, match=name):
        model_files(tmp_path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_renamed_to_safetensors_is_refused(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "canary"), protocol=protocol))
    with pytest.raises(PickleRefused, match="under another name"):
        read_safetensors(path)
    assert not (tmp_path / "canary").exists()


def test_a_zip_renamed_to_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(PickleRefused, match="zip"):
        read_safetensors(path)


def write_index(folder: Path, weight_map: object) -> None:
    """A model.safetensors.index.json."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_read_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors({name: ONE["w"]}))
    write_index(tmp_path, {"a": "a.safetensors", "b": "b.safetensors"})
    assert sorted(tensor.name for tensor in read_model_tensors(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("weight_map", "error", "why"),
    [
        ({"w": "../w.safetensors"}, BadSafetensors, "elsewhere"),
        ({"w": "/etc/passwd"}, BadSafetensors, "elsewhere"),
        ({"w": "gone.safetensors"}, BadSafetensors, "missing"),
        ({"w": "w.bin"}, PickleRefused, "pickle"),
        ({"w": "w.txt"}, BadSafetensors, "not a safetensors"),
        ({"w": 5}, BadSafetensors, "not a safetensors"),
        ({}, BadSafetensors, "weight_map"),
        (["w"], BadSafetensors, "weight_map"),
        ({"other": "w.safetensors"}, BadSafetensors, "lacks 'other'"),
        ({"w": "w.safetensors", "v": "v.safetensors"}, BadSafetensors, "in another file too"),
        ({str(i): [[]] for i in range(600)}, BadSafetensors, "nested"),
    ],
)
def test_a_bad_index_is_refused(weight_map: object, error: type[SnugError], why: str, tmp_path: Path) -> None:
    for name in ("w", "v"):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors(ONE))
    write_index(tmp_path, weight_map)
    with pytest.raises(error, match=why):
        read_model_tensors(tmp_path)


def test_of_a_whole_file_and_an_index_the_file_is_read_as_transformers_does(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(safetensors(ONE))
    write_index(tmp_path, {"x": "other.safetensors"})
    assert model_files(tmp_path) == (tmp_path / "model.safetensors",)
    assert read_model_tensors(tmp_path) == read_safetensors(tmp_path / "model.safetensors")


def test_shares_of_a_training_are_refused_for_they_would_be_read_unchecked(tmp_path: Path) -> None:
    for name in ("model.safetensors", "shard-00000-model-00001-of-00001.safetensors"):
        (tmp_path / name).write_bytes(safetensors(ONE))
    with pytest.raises(UnsupportedModel, match="shares of a training"):
        read_model_tensors(tmp_path)


def test_an_index_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(BadSafetensors, match="not valid JSON"):
        read_model_tensors(tmp_path)


def test_an_empty_folder_holds_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        model_files(tmp_path)


def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelNotFound, match="regular file"):
        read_safetensors(tmp_path / "model.safetensors")


def test_a_folder_with_the_name_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ModelNotFound):
        read_safetensors(tmp_path / "model.safetensors")


def test_shards_of_too_many_tensors_are_refused_as_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.memory.model.formats.MAX_MODEL_TENSORS", 1)
    for name in ("a", "b"):
        (tmp_path / f"{name}.safetensors").write_bytes(safetensors({name: ONE["w"]}))
    with pytest.raises(BadSafetensors, match="list more than 1 tensors"):
        read_model_tensors(tmp_path)
