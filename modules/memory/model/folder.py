"""A model folder, or a config.json alone, as a ModelSpec: from headers where weights are, else from the config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, TimedOut, UnsupportedModel
from modules.memory.model.assembly import assemble, context_warning
from modules.memory.model.config import read_json
from modules.memory.model.crosscheck import with_description
from modules.memory.model.describing import ELEMENT_BYTES, describe_in_process
from modules.memory.model.embedder import MODULES, Embedder, prompt_warning
from modules.memory.model.formats import StoredTensor, has_weights, read_model_tensors
from modules.memory.model.links import refuse_other_links
from modules.memory.model.model_config import CheckedConfig, check_config, refuse_code_files, stated_dtype
from modules.memory.model.model_spec import Describe, ModelSpec, TensorInfo
from modules.memory.model.naming import check_blocks, is_tied, name_base_tensors, name_tensors
from modules.memory.model.tokenizers import TOKENIZER_REMEDY, lacks_tokenizer, refuse_other_vocabularies
from modules.memory.model.vision import with_processor


def inspect_folder(folder: Path, *, trust_remote_code: bool, describe: Describe | None) -> ModelSpec:
    """The spec of a folder from its headers; of one with config.json alone, from the model that the config builds.

    With `describe` the headers too are held against that model.
    """
    if not (folder / "config.json").exists():
        read_model_tensors(folder)  # names the nearer problem where only pickles are
        raise BadConfig(f"{folder.name} has no config.json.", remedy="Fetch the model again, with all its files.")
    if not trust_remote_code:
        refuse_code_files(folder)
    refuse_other_links(folder)
    refuse_other_vocabularies(folder)
    if not has_weights(folder):
        return inspect_config(folder / "config.json", trust_remote_code=trust_remote_code, describe=describe)
    checked = check_config(folder / "config.json", folder.name, trust_remote_code=trust_remote_code)
    if checked.vision is not None:
        checked = replace(checked, vision=with_processor(checked.vision, _picture_settings(folder)))
    tensors = named_tensors(read_model_tensors(folder), checked)
    if not checked.custom:
        check_blocks(tensors, checked.shape.layers, folder.name)
    warnings = [f"{folder.name} has no tokenizer. {TOKENIZER_REMEDY}"] if lacks_tokenizer(folder) else []
    spec = spec_from_headers(folder.name, folder, checked, tensors, warnings)
    return checked_against_config(spec, describe, folder / "config.json") if describe and not checked.custom else spec


def _picture_settings(folder: Path) -> dict[str, Any]:
    """How the folder says that pictures are read: inside processor_config.json if it is said there, as transformers
    writes and prefers it, else in preprocessor_config.json."""
    files = (folder / "processor_config.json", folder / "preprocessor_config.json")
    whole, alone = (read_json(file) if file.exists() else {} for file in files)
    inside = whole.get("image_processor")
    return inside if isinstance(inside, dict) else alone


def named_tensors(stored: tuple[StoredTensor, ...], checked: CheckedConfig) -> tuple[TensorInfo, ...]:
    """The stored tensors of the model that will be loaded, under their names in it."""
    name = name_tensors if checked.embedder is None else name_base_tensors
    return name(stored, checked.model_type)


def checked_against_config(spec: ModelSpec, describe: Describe, file: Path) -> ModelSpec:
    """`spec` held against the model of its config; a config that builds none is told, for the headers serve alone."""
    try:
        return with_description(spec, describe(file))
    except (BadConfig, UnsupportedModel, TimedOut) as error:
        told = f"The files could not be held against their config: {error.message}"
        return replace(spec, warnings=(*spec.warnings, told))


def spec_from_headers(
    name: str, path: Path, checked: CheckedConfig, tensors: tuple[TensorInfo, ...], warnings: list[str]
) -> ModelSpec:
    """The spec of a checked config and its files' tensors."""
    embedder = checked.embedder
    tied = embedder is None and is_tied(checked.whole, checked.text, tensors)
    spec = assemble(
        name, path, "safetensors", checked.family.architecture, checked.model_type, checked.shape, tensors,
        tied, (*warnings, *context_warning(checked.shape)),
        is_encoder_decoder=checked.family.is_encoder_decoder, prequantized=checked.prequantized, rotary=checked.rotary,
    )  # fmt: skip
    told = [] if embedder is None else _embedding_warnings(name, embedder)
    return replace(spec, vision=checked.vision, embedder=embedder, warnings=(*spec.warnings, *told))


def _embedding_warnings(name: str, embedder: Embedder) -> list[str]:
    """What to know before vectors of this model are kept."""
    if not embedder.stated:
        return [f"{name} does not say how it embeds (no {MODULES}): the mean of a text's tokens is taken."]
    return prompt_warning(name, embedder)


def inspect_config(file: Path, *, trust_remote_code: bool, describe: Describe | None) -> ModelSpec:
    """The spec of a config file without weights: the tensors that a model built of it has, in the config's precision.

    Raises UnsupportedModel where the config does not say enough: code of its own, files that are quantized.
    """
    name = file.parent.name if file.name == "config.json" else file.stem
    checked = check_config(file, name, trust_remote_code=trust_remote_code)
    if checked.custom:
        raise UnsupportedModel(
            f"{name} brings code of its own; its size cannot be told without its weights.",
            remedy="Fetch the whole model.",
        )
    if checked.prequantized != "none":
        raise UnsupportedModel(
            f"{name} is stored as {checked.prequantized}; its size cannot be told without its files.",
            remedy="Fetch the whole model, or take the config of the model before it was quantized.",
        )
    found = (describe or describe_in_process)(file)
    dtype = stated_dtype(checked)
    warnings = [] if dtype else ["The config does not state a precision; 32 bits are assumed."]
    tensors = tuple(_stored(tensor, dtype or "F32") for tensor in found.tensors)
    spec = spec_from_headers(name, file.parent, checked, tensors, warnings)
    return replace(with_description(spec, found), weights_here=False)


def _stored(tensor: TensorInfo, dtype: str) -> TensorInfo:
    """A described tensor in the precision that the config says its file has."""
    if tensor.dtype not in ("BF16", "F16", "F32"):
        return tensor
    elements = tensor.size_bytes // ELEMENT_BYTES[tensor.dtype]
    return replace(tensor, dtype=dtype, size_bytes=elements * ELEMENT_BYTES[dtype])
