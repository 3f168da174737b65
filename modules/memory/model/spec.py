"""The door to what a model is: `inspect` and, for models elsewhere, hub.py. Never reads weights.

ModelSpec itself is in model_spec.py; folders are read in folder.py, GGUF files in gguf_model.py.
"""

from __future__ import annotations

from pathlib import Path

from modules.errors import ModelNotFound, UnsupportedModel
from modules.memory.model.folder import inspect_config, inspect_folder
from modules.memory.model.formats import open_regular
from modules.memory.model.gguf_model import inspect_gguf
from modules.memory.model.model_spec import Describe, Description, ModelSpec, TensorInfo, block_of

__all__ = ["Describe", "Description", "ModelSpec", "TensorInfo", "block_of", "inspect"]


def inspect(path: Path, *, trust_remote_code: bool = False, describe: Describe | None = None) -> ModelSpec:
    """The ModelSpec of a model folder, a .gguf file, a config.json alone, or a folder with nothing else in it.

    From headers where there are weights. Without them the model of the config is built, without weights, by `describe`
    (a process of its own if None); with `describe` headers are held against that model too, and what disagrees becomes
    a warning. Raises ModelNotFound, BadConfig, BadSafetensors, BadGguf, PickleRefused, RemoteCodeDisabled,
    UnsupportedModel or TimedOut.
    """
    try:
        return _inspect(path, trust_remote_code=trust_remote_code, describe=describe)
    except OSError as error:  # it went, or its disk failed, after it was seen to be there
        reason = error.strerror or "it cannot be opened"
        raise ModelNotFound(f"{path.name} cannot be read: {reason}.", remedy="Check the file.") from error


def _inspect(path: Path, *, trust_remote_code: bool, describe: Describe | None) -> ModelSpec:
    if path.is_dir():
        return inspect_folder(path, trust_remote_code=trust_remote_code, describe=describe)
    if path.suffix.lower() == ".gguf":
        return inspect_gguf(path)
    if path.suffix.lower() == ".json":
        open_regular(path).close()
        return inspect_config(path, trust_remote_code=trust_remote_code, describe=describe)
    if not path.exists():
        raise ModelNotFound(f"There is no model {path.name!r}.", remedy="Choose one that is in the models folder.")
    raise UnsupportedModel(
        f"{path.name} is neither a model folder nor a .gguf file.",
        remedy="Put safetensors files into a folder together with their config.json and tokenizer.",
    )
