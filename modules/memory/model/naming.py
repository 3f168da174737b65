"""Stored tensors under the names that they have in the loaded model, and what follows from the names alone.

Knows nothing of files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from modules.errors import BadConfig
from modules.memory.model.families import base_prefix
from modules.memory.model.formats import StoredTensor
from modules.memory.model.model_spec import Source, TensorInfo, block_of

_OUTPUT_HEADS = ("lm_head", "embed_out", "output")
# What a file may hold beside a base model that is stored without a prefix.
_BESIDE_BASE = ("pooler.", "lm_head.", "cls.")
_STORED_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float32"}
# safetensors checkpoints of these families name their modules otherwise than the loaded model (conversion_mapping.py).
_RENAMED = (
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"^embed_out\."), "lm_head."),
)
# Qwen2-VL and Qwen2.5-VL as published: the language model's names are those of a model without eyes.
_RENAMED_QWEN = (
    (re.compile(r"^visual\."), "model.visual."),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"model.language_model.\1."),
)
# LLaVA's towers were published with one level more than CLIP's has now.
_RENAMED_LLAVA = ((re.compile(r"^(?:model\.)?vision_tower\.vision_model\."), "model.vision_tower."), *_RENAMED)
_OWN = {"qwen2_vl": _RENAMED_QWEN, "qwen2_5_vl": _RENAMED_QWEN, "llava": _RENAMED_LLAVA}


def name_tensors(stored: tuple[StoredTensor, ...], model_type: str) -> tuple[TensorInfo, ...]:
    """The stored tensors under their names in the loaded model, each with its repeated block."""
    prefix = base_prefix(model_type)
    names = [_renamed(tensor.name, _OWN.get(model_type, _RENAMED)) for tensor in stored]
    bare = bool(prefix) and not any(name.startswith(prefix + ".") for name in names)
    result = []
    for tensor, name in zip(stored, names, strict=True):
        if bare and not name.startswith(tuple(head + "." for head in _OUTPUT_HEADS)):
            name = f"{prefix}.{name}"
        result.append(TensorInfo(name, tensor.shape, tensor.dtype, tensor.size_bytes, block_of(name)))
    return tuple(result)


def name_base_tensors(stored: tuple[StoredTensor, ...], model_type: str) -> tuple[TensorInfo, ...]:
    """The stored tensors of the base model alone, under their names in it: heads, poolers and tables of positions that
    are only counted up are left where they lie.
    """
    prefix = base_prefix(model_type) + "."
    names = [tensor.name for tensor in stored]
    within = prefix != "." and any(name.startswith(prefix) for name in names)
    result = []
    for tensor in stored:
        name = tensor.name.removeprefix(prefix) if within else tensor.name
        outside = (within and name == tensor.name) or name.startswith(_BESIDE_BASE) or name.endswith(".position_ids")
        if not outside:
            result.append(TensorInfo(name, tensor.shape, tensor.dtype, tensor.size_bytes, block_of(name)))
    return tuple(result)


def _renamed(name: str, patterns: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in patterns:
        name = pattern.sub(replacement, name)
    return name


def is_tied(config: Mapping[str, Any], text_config: Mapping[str, Any], tensors: tuple[TensorInfo, ...]) -> bool:
    """Whether input and output share one table: as the config says; where it is silent, if no head is stored."""
    for source in (config, text_config):
        value = source.get("tie_word_embeddings")
        if isinstance(value, bool):
            return value
    return not any(tensor.name.startswith(tuple(head + "." for head in _OUTPUT_HEADS)) for tensor in tensors)


def stored_dtype(tensors: tuple[TensorInfo, ...], source: Source) -> str:
    """The PyTorch name of the dtype that holds most bytes; a GGUF file becomes 16-bit when it is loaded."""
    if source == "gguf":
        return "bfloat16"
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.size_bytes
    known = [name for name, _ in sizes.most_common() if name in _STORED_NAMES]
    return _STORED_NAMES[known[0]] if known else "bfloat16"


def bare_modules(
    tensors: tuple[TensorInfo, ...], *, tied: bool, is_encoder_decoder: bool, rotary: bool
) -> tuple[str, ...]:
    """Modules of the loaded model without stored tensors of their own that a placement must name nevertheless."""
    modules = {tensor.name.rpartition(".")[0] for tensor in tensors}
    block = next((tensor.block for tensor in tensors if tensor.block), "")
    base = block.rpartition(".")[0].rpartition(".")[0]
    wanted = ["lm_head"] if tied else []
    if rotary and not is_encoder_decoder and base:
        wanted.append(f"{base}.rotary_emb")
    if is_encoder_decoder:
        top = "model." if any(name.startswith("model.") for name in modules) else ""
        wanted += [f"{top}{part}" for part in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")]
    return tuple(name for name in wanted if name not in modules)


def check_blocks(tensors: tuple[TensorInfo, ...], layers: int, name: str) -> None:
    """Raise BadConfig if blocks are missing: transformers would fill them with random numbers and only warn."""
    stems = Counter(block.rpartition(".")[0] for block in {tensor.block for tensor in tensors if tensor.block})
    blocks = max(stems.values(), default=0)
    if blocks < layers:
        raise BadConfig(
            f"{name} should have {layers} layers, but its files hold {blocks}.",
            remedy="Fetch the model again, with all its files.",
            param="num_hidden_layers",
        )
