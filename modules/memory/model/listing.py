"""What lies in the models folder: every model, and why one cannot be loaded. Reads headers only, waits on nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modules.errors import BadGguf, BadName, BadTokenizer, ModelNotFound, SnugError
from modules.files import safe_path
from modules.memory.model.formats import PICKLE_SUFFIXES, has_weights
from modules.memory.model.gguf_parts import part_number, parts_of
from modules.memory.model.model_config import check_config, refuse_code_files
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.model.tokenizers import TOKENIZER_REMEDY, lacks_tokenizer


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model under the models folder, or on another server. `problem` says why it cannot be loaded, else ""."""

    name: str
    kind: Literal["folder", "gguf", "remote"]
    size_bytes: int
    problem: str = ""


def list_models(model_dir: Path, *, trust_remote_code: bool = False) -> list[ModelEntry]:
    """Every model folder and .gguf file in `model_dir`, by name. Reads headers only and waits on nothing.

    Names that check_name refuses, links that lead out of `model_dir` and later parts of split files are left out.
    """
    entries = []
    for found in sorted(model_dir.iterdir(), key=lambda path: path.name.lower()) if model_dir.is_dir() else ():
        try:
            path = safe_path(model_dir, found.name)
            is_folder = path.is_dir()
        except (BadName, OSError, RuntimeError):  # RuntimeError: a loop of links, on Python 3.11
            continue
        if is_folder and _looks_like_model(path):
            entries.append(_entry(path, "folder", trust_remote_code=trust_remote_code))
        elif not is_folder and path.suffix.lower() == ".gguf" and part_number(path.name) <= 1:
            entries.append(_entry(path, "gguf", trust_remote_code=trust_remote_code))
    return entries


def check_loadable(spec: ModelSpec) -> None:
    """Raise ModelNotFound for a model without weights here, BadTokenizer for one without a tokenizer."""
    if spec.source == "remote":
        return
    if not spec.weights_here:
        raise ModelNotFound(
            f"{spec.name} has no weights here: it can be planned and not loaded.",
            remedy="Put its safetensors files beside config.json.",
        )
    if spec.source == "safetensors" and spec.path.is_dir() and lacks_tokenizer(spec.path):
        raise BadTokenizer(f"{spec.name} has no tokenizer.", remedy=TOKENIZER_REMEDY)


def _looks_like_model(folder: Path) -> bool:
    """Whether a folder holds anything of a model; an unreadable one is listed, with its problem."""
    suffixes = {".safetensors", ".gguf", *PICKLE_SUFFIXES}
    try:
        return any(entry.name == "config.json" or Path(entry.name).suffix in suffixes for entry in os.scandir(folder))
    except OSError:
        return True


def _entry(path: Path, kind: Literal["folder", "gguf"], *, trust_remote_code: bool) -> ModelEntry:
    problem = ""
    try:
        problem = _inspect(path, trust_remote_code=trust_remote_code)
    except SnugError as error:
        problem = str(error)
    except OSError as error:
        problem = f"It cannot be read: {error.strerror}."
    return ModelEntry(path.name, kind, _size(path), problem)


def _inspect(path: Path, *, trust_remote_code: bool) -> str:
    """What keeps a model that can be read from being loaded; "" if nothing does. Raises what inspect raises."""
    if path.is_dir() and (path / "config.json").exists() and not has_weights(path):
        if not trust_remote_code:
            refuse_code_files(path)
        check_config(path / "config.json", path.name, trust_remote_code=trust_remote_code)
        return "It has no weights: it can be planned and not loaded. Put its safetensors files beside config.json."
    inspect(path, trust_remote_code=trust_remote_code)
    if path.is_dir() and lacks_tokenizer(path):
        return f"It has no tokenizer. {TOKENIZER_REMEDY}"
    return ""


def _size(path: Path) -> int:
    """Bytes of the weight files: of a folder its safetensors, of a file itself with its parts. 0 if unreadable."""
    try:
        files = (
            parts_of(path)
            if path.is_file()
            else [Path(e.path) for e in os.scandir(path) if e.name.endswith(".safetensors")]
        )
        return sum(file.stat().st_size for file in files)
    except (OSError, BadGguf):
        return 0
