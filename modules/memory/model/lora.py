"""LoRA adapters in GGUF files, held against the model that they are to change before llama.cpp reads either.

Refuses what llama.cpp refuses (llama-adapter.cpp), and shapes and types that it would only notice by aborting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from modules.errors import BadGguf, BadLora, BadName, ModelNotFound
from modules.files import safe_path
from modules.lora_names import split_lora
from modules.memory.model.formats import StoredTensor
from modules.memory.model.gguf import FLOAT32, GgufHeader, read_gguf
from modules.memory.model.gguf_parts import read_whole_gguf

_A, _B = ".lora_a", ".lora_b"
_TABLE = "token_embd.weight"
_ALPHA = "adapter.lora.alpha"
_ACTIVATED = "adapter.alora.invocation_tokens"
# What convert_lora_to_gguf.py writes.
_TYPES = ("F32", "F16", "BF16", "Q8_0")
_ALIGNMENT = 32
_PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter that fits its model, to be applied `scale` times. `size_bytes` is what its tensors take when loaded.

    `ignored` are its tensors that llama.cpp steps over: changed norms. `largest` is how many numbers the largest matrix
    has that it is merged into; 0 where it is computed beside the weights.
    """

    name: str
    path: Path
    scale: float
    size_bytes: int
    ignored: int = 0
    largest: int = 0

    @property
    def title(self) -> str:
        """`name`, with the scale where that is not 1."""
        return self.name if self.scale == 1 else f"{self.name} × {self.scale:g}"


def list_loras(folder: Path) -> list[str]:
    """The names of what may be adapters in `folder`, which need not exist."""
    if not folder.is_dir():
        return []
    names = {path.stem for path in folder.glob("*.gguf")} | {
        path.parent.name for path in folder.glob(f"*/{_PEFT_CONFIG}")
    }
    return sorted(name for name in names if name[0] != "." and not {"=", ","} & {*name})


def find_loras(folder: Path, wanted: Iterable[str], model: Path) -> tuple[Lora, ...]:
    """The adapters that `wanted` name (see lora_names.py) in `folder`, each checked against the GGUF file `model`.

    Raises BadName, ModelNotFound, BadGguf, PickleRefused, BadLora.
    """
    pairs = [split_lora(text) for text in wanted]
    base = read_whole_gguf(model) if pairs else None
    return tuple(_read(_find(folder, name, model), scale, model, base) for name, scale in pairs if base is not None)


def _find(folder: Path, name: str, model: Path) -> Path:
    """Where the adapter `name` lies, its ending written or not."""
    for ending in ("", ".gguf"):
        try:
            path = safe_path(folder, name, ending)
        except BadName as error:
            raise BadName(error.message, remedy=error.remedy, param="lora") from error
        if path.is_dir() and not safe_path(folder, name, ".gguf").is_file():
            raise BadLora(
                f"--lora {name}: it is a folder, as PEFT writes them for safetensors; {model.name} is a GGUF file.",
                remedy=f"Make a file of it with llama.cpp's convert_lora_to_gguf.py, and put that into {folder.name}/.",
                param="lora",
            )
        if path.is_file():
            return path
    raise ModelNotFound(
        f"There is no LoRA adapter {name!r} in {folder}.",
        remedy=f"Choose one that is there, or put its .gguf file into {folder.name}/.",
        param="lora",
    )


def _read(path: Path, scale: float, model: Path, base: GgufHeader) -> Lora:
    try:
        header = read_gguf(path)
    except BadGguf as error:
        raise BadGguf(error.message, remedy=error.remedy, param="lora") from error
    _check_kind(path, header)
    ours, its = (str(one.metadata.get("general.architecture", ""))[:60] for one in (base, header))
    if ours != its:
        raise _bad(path, f"it was made for the architecture {its!r}, and {model.name} is {ours!r}")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    pairs = sorted({name.removesuffix(_A).removesuffix(_B) for name in tensors if name.endswith((_A, _B))})
    ignored = [name for name in tensors if name.endswith("_norm.weight")]
    odd = [name for name in tensors if not name.endswith((_A, _B)) and name not in ignored]
    if odd or not pairs:
        raise _bad(path, f"it holds the tensor {odd[0][:80]!r}" if odd else "it changes nothing")
    targets = {tensor.name: tensor for tensor in base.tensors}
    for name in pairs:
        if name not in targets:
            raise _bad(path, f"it changes {name[:80]!r}, which {model.name} does not have")
        if problem := _misfit(tensors.get(name + _A), tensors.get(name + _B), targets[name]):
            raise _bad(path, f"its change of {name[:80]!r} {problem}")
    loaded = sum(_loaded(tensors[name + half]) for name in pairs for half in (_A, _B))
    return Lora(path.stem, path, scale, loaded, len(ignored))


def _check_kind(path: Path, header: GgufHeader) -> None:
    """Refuse what is no LoRA adapter, or one of a kind that acts in the middle of a prompt only."""
    kind, adapter = (header.metadata.get(key, "") for key in ("general.type", "adapter.type"))
    if kind != "adapter":
        raise _bad(
            path, f"its general.type is {str(kind)[:40]!r} instead of 'adapter': it is a model, or something else"
        )
    if adapter != "lora":
        raise _bad(path, f"its adapter.type is {str(adapter)[:40]!r} instead of 'lora'")
    if _ACTIVATED in header.metadata:
        raise _bad(path, "it is an activated LoRA, which acts after certain words only; Snug applies plain ones")
    alpha = header.metadata.get(_ALPHA, 0.0)
    if _ALPHA in header.metadata and header.kinds.get(_ALPHA) != FLOAT32:
        raise _bad(path, f"its {_ALPHA} is no 32-bit float")
    if not isinstance(alpha, float) or not math.isfinite(alpha):
        raise _bad(path, f"its {_ALPHA} is {str(alpha)[:40]}")


def _misfit(a: StoredTensor | None, b: StoredTensor | None, target: StoredTensor) -> str:
    """Why A (rank, in) and B (out, rank) cannot change `target` (out, in); "" where they can.

    Of the token table (tokens, width) llama.cpp looks rows up: A (tokens, rank), B (width, rank).
    """
    if a is None or b is None:
        return f"lacks its {'A' if a is None else 'B'}"
    for one in (a, b):
        if one.dtype not in _TYPES:
            return f"is stored as {one.dtype}; {', '.join(_TYPES)} are known"
    if min(len(a.shape), len(b.shape), len(target.shape)) < 2:
        return "is no matrix"
    outer, (rows, columns) = target.shape[:-2], target.shape[-2:]
    if target.name == _TABLE:
        rank = a.shape[-1]
        wanted = (*outer, rows, rank), (*outer, columns, rank)
    else:
        rank = a.shape[-2]
        wanted = (*outer, rank, columns), (*outer, rows, rank)
    if (a.shape, b.shape) != wanted:
        return f"has the shapes {list(a.shape)} and {list(b.shape)}, which do not fit {list(target.shape)}"
    return ""


def _loaded(tensor: StoredTensor) -> int:
    """Bytes of a tensor in ggml's buffer on a CPU."""
    return (tensor.size_bytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT


def _bad(path: Path, problem: str) -> BadLora:
    return BadLora(
        f"The LoRA adapter cannot be applied: {path.name}: {problem}.",
        remedy="Use an adapter that was made of this model, as a GGUF file.",
        param="lora",
    )
