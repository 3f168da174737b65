"""LoRA adapters of tests: GGUF files with random matrices, and a model with such an adapter merged into its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy

from tests.tiny_models import tiny_gguf

Matrices = dict[str, tuple[Any, Any]]
RANK, ALPHA = 4, 8.0


def base_model(folder: Path) -> Path:
    """A tiny Llama in fp32."""
    return tiny_gguf(folder, kind="F32", readable=True)


def matrices_of(model: Path, *, strength: float = 0.2) -> Matrices:
    """A (rank, in) and B (out, rank) for every projection of `model`, and for its token table, which is looked up."""
    chance = numpy.random.default_rng(1)
    found: Matrices = {}
    for name, array in tensors_of(model).items():
        if array.ndim < 2 or name == "output.weight":
            continue
        rows, columns = array.shape
        shapes = ((rows, RANK), (columns, RANK)) if name == "token_embd.weight" else ((RANK, columns), (rows, RANK))
        a, b = (chance.normal(0, strength, shape).astype("float32") for shape in shapes)
        found[name] = (a, b)
    return found


def write_lora(path: Path, matrices: Matrices, *, alpha: float = ALPHA, **changes: Any) -> Path:
    """The adapter of `matrices`; `changes`: architecture, general, adapter, extra (further tensors by name)."""
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_type(changes.get("general", "adapter"))
    writer.add_string("adapter.type", changes.get("adapter", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (a, b) in matrices.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    for name, array in changes.get("extra", {}).items():
        writer.add_tensor(name, array)
    _finish(writer)
    return path


def merged(model: Path, matrices: Matrices, path: Path, *, scale: float = 1.0) -> Path:
    """`model` with W + scale·α/r·B·A in the place of each W."""

    def change(name: str) -> Any:
        a, b = matrices[name]
        return scale * ALPHA / RANK * (a @ b.T if name == "token_embd.weight" else b @ a)

    return _copy(model, path, {name: tensors_of(model)[name] + change(name) for name in matrices})


def tensors_of(model: Path) -> dict[str, Any]:
    """The tensors of an fp32 file by name, as matrices (out, in)."""
    reader: Any = gguf.GGUFReader(model)
    return {one.name: one.data.reshape([int(size) for size in reversed(one.shape)]).copy() for one in reader.tensors}


def _copy(model: Path, path: Path, instead: Mapping[str, Any]) -> Path:
    """`model` with other values in some tensors: every byte else stays."""
    reader: Any = gguf.GGUFReader(model)
    raw = bytearray(model.read_bytes())
    for one in reader.tensors:
        if one.name in instead:
            data = instead[one.name].astype("float32").tobytes()
            raw[one.data_offset : one.data_offset + len(data)] = data
    path.write_bytes(raw)
    return path


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
