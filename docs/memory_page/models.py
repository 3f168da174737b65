"""The models that the seeds name, as Snug sees a config without weights: models.json holds their published configs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from modules.memory.model.meta import describe
from modules.memory.model.model_spec import ModelSpec
from modules.memory.model.spec import inspect

_FILE = Path(__file__).with_name("models.json")


@dataclass(frozen=True, slots=True)
class Models:
    """`specs` of models that write text, and the parameter counts of `encoders`, which do not."""

    specs: Mapping[str, ModelSpec]
    encoders: Mapping[str, int]

    def __getitem__(self, name: str) -> ModelSpec:
        return self.specs[name]


def read_models() -> Models:
    """Every model of models.json, built on torch's meta device: shapes, no bytes, no network."""
    configs = json.loads(_FILE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        specs = {name: _spec(Path(folder) / name, config) for name, config in configs["generating"].items()}
    return Models(specs, {name: _count(config) for name, config in configs["encoders"].items()})


def _spec(folder: Path, config: Mapping[str, Any]) -> ModelSpec:
    folder.mkdir()
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    return inspect(file, describe=describe)


def _count(config: Mapping[str, Any]) -> int:
    made: Any = transformers.CONFIG_MAPPING[config["model_type"]]
    with torch.device("meta"):
        model: Any = transformers.AutoModel.from_config(made.from_dict(dict(config)))
    return sum(parameter.numel() for parameter in model.parameters())
