"""LoRA adapters as PEFT writes them, folders, held against the model in safetensors that they are merged into.

Headers and JSON only; pickles are refused. What is checked is what merging needs: one product of two matrices for each
changed weight. How they are merged is engine/loading/merging.py's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, BadLora, BadName, BadSafetensors, ModelNotFound
from modules.files import safe_path
from modules.lora_names import split_lora
from modules.memory.model.config import read_json
from modules.memory.model.formats import StoredTensor, read_safetensors, refuse_pickle
from modules.memory.model.lora import Lora
from modules.memory.model.model_spec import ModelSpec

CONFIG, WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_ROOT, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
_TYPES = ("F32", "F16", "BF16")
_NOT_BUILT = {
    "use_dora": "it is a DoRA", "modules_to_save": "it replaces whole modules (modules_to_save)",
    "alpha_pattern": "its alpha differs by layer (alpha_pattern)", "lora_bias": "it changes biases",
    "layer_replication": "it repeats layers", "target_parameters": "it changes bare parameters (target_parameters)",
    "trainable_token_indices": "it changes single tokens", "alora_invocation_tokens": "it is an activated LoRA",
    "use_qalora": "it is a QALoRA", "use_bdlora": "its matrices are block-diagonal",
}  # fmt: skip
# These change the model's own weights before training, which the adapter alone does not hold.
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class Change:
    """`weight` += `factor` · B·A, of the tensors named `a` and `b`; of the transposed product where `transposed`."""

    weight: str
    a: str
    b: str
    factor: float
    transposed: bool


def find_peft_loras(folder: Path, wanted: Iterable[str], spec: ModelSpec) -> tuple[Lora, ...]:
    """The adapters that `wanted` name (see lora_names.py) in `folder`, each checked against the model.

    Raises BadName, ModelNotFound, BadLora, PickleRefused.
    """
    found = []
    for name, scale in map(split_lora, wanted):
        path = _find(folder, name)
        changes, stored = read_changes(path, spec)
        sizes = {tensor.name: math.prod(tensor.shape) for tensor in spec.tensors}
        largest = max(sizes[change.weight] for change in changes)
        found.append(Lora(name, path, scale, sum(one.size_bytes for one in stored), largest=largest))
    return tuple(found)


def read_changes(path: Path, spec: ModelSpec) -> tuple[tuple[Change, ...], tuple[StoredTensor, ...]]:
    """What the adapter in the folder `path` does to the weights of `spec`, and the tensors in its file.

    Raises BadLora, PickleRefused.
    """
    try:
        config = read_json(path / CONFIG)
        if not (path / WEIGHTS).exists() and (path / _PICKLE).exists():
            refuse_pickle(path / _PICKLE, b"")
        stored = read_safetensors(path / WEIGHTS)
    except (BadConfig, BadSafetensors, ModelNotFound) as error:
        raise _bad(path, error.message.rstrip(".")) from error
    alpha = _check_config(path, config)
    tensors = {tensor.name: tensor for tensor in stored}
    odd = next((name for name in tensors if not (name.startswith(_ROOT) and name.endswith((_A, _B)))), None)
    if odd or not tensors:
        raise _bad(path, f"it holds the tensor {odd[:80]!r}, no plain LoRA's" if odd else "it changes nothing")
    shapes = {tensor.name: tensor.shape for tensor in spec.tensors}
    changes = []
    for root in sorted({name.removesuffix(_A).removesuffix(_B) for name in tensors}):
        weight = f"{root.removeprefix(_ROOT)}.weight"
        a, b, target = tensors.get(root + _A), tensors.get(root + _B), shapes.get(weight)
        if target is None or (spec.fused_experts and ".experts." in weight):
            raise _bad(path, f"it changes {weight[:80]!r}, which {spec.name} does not have as one matrix")
        transposed = bool(config.get("fan_in_fan_out"))
        if a is None or b is None or (problem := _misfit(a, b, target, transposed=transposed)):
            why = f"lacks its {'A' if a is None else 'B'}" if a is None or b is None else problem
            raise _bad(path, f"its change of {weight[:80]!r} {why}")
        rank = a.shape[0]
        factor = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        changes.append(Change(weight, a.name, b.name, factor, transposed))
    return tuple(changes), stored


def _find(folder: Path, name: str) -> Path:
    try:
        path = safe_path(folder, name)
    except BadName as error:
        raise BadName(error.message, remedy=error.remedy, param="lora") from error
    if path.is_dir():
        return path
    if path.is_file() or safe_path(folder, name, ".gguf").is_file():
        raise BadLora(
            f"--lora {name}: it is a GGUF file, for models that are .gguf files too.",
            remedy=f"Put its folder, as PEFT writes it, into {folder.name}/, or use the model as a .gguf file.",
            param="lora",
        )
    raise ModelNotFound(
        f"There is no LoRA adapter {name!r} in {folder}.",
        remedy=f"Choose one that is there, or put its folder into {folder.name}/.",
        param="lora",
    )


def _check_config(path: Path, config: Mapping[str, Any]) -> float:
    """The alpha of a plain LoRA adapter; BadLora for any other."""
    kind = str(config.get("peft_type"))[:40]
    if kind.upper() != "LORA":
        raise _bad(path, f"its peft_type is {kind!r}, not 'LORA'")
    for key, why in _NOT_BUILT.items():
        if config.get(key):
            raise _bad(path, why)
    if config.get("bias", "none") != "none":
        raise _bad(path, "it changes biases")
    begun = str(config.get("init_lora_weights")).lower()
    if begun.startswith(_OTHER_BASE):
        raise _bad(path, f"it was begun as {begun[:20]!r}, which changes the model's own weights too")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise _bad(path, f"its lora_alpha is {str(alpha)[:40]}")
    return float(alpha)


def _misfit(a: StoredTensor, b: StoredTensor, target: tuple[int, ...], *, transposed: bool) -> str:
    """Why A (rank, in) and B (out, rank) cannot change a matrix of the shape `target`; "" where they can."""
    for one in (a, b):
        if one.dtype not in _TYPES:
            return f"is stored as {one.dtype}; {', '.join(_TYPES)} are known"
    if any(len(shape) != 2 for shape in (a.shape, b.shape, target)):
        return "is no matrix"
    rows, columns = target[::-1] if transposed else target
    if not a.shape[0] or (a.shape, b.shape) != ((a.shape[0], columns), (rows, a.shape[0])):
        return f"has the shapes {list(a.shape)} and {list(b.shape)}, which do not fit {list(target)}"
    return ""


def _bad(path: Path, problem: str) -> BadLora:
    return BadLora(
        f"The LoRA adapter cannot be applied: {path.name}: {problem}.",
        remedy="Use a plain LoRA adapter that was made of this model.",
        param="lora",
    )
