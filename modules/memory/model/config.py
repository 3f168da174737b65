"""A config file that may say anything, read within limits, and its numbers checked one by one.

Raises BadConfig naming the field. Executes nothing that the file names. What the numbers mean is in shape.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, ModelNotFound, RemoteCodeDisabled, UnsupportedModel
from modules.forms.json_schemas import deeper_than
from modules.memory.model.formats import open_regular
from modules.units import MiB, format_size

MAX_CONFIG_BYTES = 10 * MiB
_MAX_CONTAINERS = 50_000
_MAX_DEPTH = 32
_USUAL_WEIGHTS = (None, "", "model.safetensors", "model.safetensors.index.json")
_PROCESSOR_KEYS = ("image_processor_type", "feature_extractor_type")
_PROCESSOR = re.compile(r"(?!Auto)\w+(ImageProcessor|FeatureExtractor)(Fast|Pil)?")
_COUNT = re.compile(r"(?:^|_)(?:layers?|blocks?|depth|labels)$")
_MOST_COUNTED = 100_000  # labels of the largest classifiers; no model has as many layers
_CHUNKS = ("chunk_size", "mamba_chunk_size", "ssm_chunk_size")
_LONGEST_CHUNK = 1024  # 256 as a rule: a state space model pads each prompt to it, and makes its square for each head
_CODE_KEYS = ("auto_map", "_attn_implementation_internal", "_experts_implementation_internal", "custom_pipelines")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, within limits of size, nesting and number. Raises BadConfig naming the file."""
    content = _read(path)
    if not isinstance(content, dict):
        raise _bad(path.name, "does not hold an object")
    return content


def read_json_list(path: Path) -> list[Any]:
    """The same of a file that holds a list."""
    content = _read(path)
    if not isinstance(content, list):
        raise _bad(path.name, "does not hold a list")
    return content


def _read(path: Path) -> object:
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except ModelNotFound as error:
        raise BadConfig(error.message, remedy="Every model folder needs its config.json.") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise _bad(path.name, f"is larger than {format_size(MAX_CONFIG_BYTES)}")
    if raw.count(b"{") + raw.count(b"[") > _MAX_CONTAINERS:
        raise _bad(path.name, "has too many lists and objects")
    try:
        content = json.loads(raw, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise _bad(path.name, f"is not valid JSON ({str(error)[:80]})") from error
    _check_depth(path.name, content)
    return content


def refuse_remote_code(config: Mapping[str, Any], name: str) -> None:
    """Raise RemoteCodeDisabled if `config` names Python code, at any depth, in a key or as a kernel to fetch."""
    for key, value in _walk(config):
        asks = key in _CODE_KEYS and bool(value)
        # transformers fetches and runs a kernel for "org/repo" here; its own names hold no slash.
        asks = asks or (key.lstrip("_").startswith("attn_implementation") and "/" in str(value))
        if asks:
            raise RemoteCodeDisabled(
                f"{name} wants to run code of its own ({key} in config.json), which is off.",
                remedy="If you trust its publisher, start Snug with --trust-remote-code.",
            )


def refuse_other_files(config: Mapping[str, Any], name: str) -> None:
    """Raise UnsupportedModel if transformers would take another config, or other weights, than those checked here.

    "configuration_files" names a config for each version of transformers. "transformers_weights" names the weights, or
    an index of them, whose entries may be pickles anywhere on the machine.
    """
    for key, value in _walk(config):
        if (key == "configuration_files" and value) or (key == "transformers_weights" and value not in _USUAL_WEIGHTS):
            raise UnsupportedModel(
                f"{name} names other files in place of its usual ones ({key} in config.json); Snug reads none such.",
                remedy="Choose another copy of the model, or take that entry out of config.json.",
            )


def refuse_endless_counts(config: Mapping[str, Any]) -> None:
    """Raise BadConfig for a count of layers or labels, at any depth, that transformers would fill the memory with: it
    makes an object of each, in the parts too that Snug does not look at. So for chunks, by which it reads prompts."""
    for key, value in _walk(config):
        most = _MOST_COUNTED if _COUNT.search(key) else _LONGEST_CHUNK if key in _CHUNKS else math.inf
        if isinstance(value, (int, float)) and value > most:
            raise BadConfig(
                f"config.json: {key[:60]} is {_shown(value)}; no model has more than {most:,}.",
                remedy="Fetch the model again.",
                param=key[:60],
            )


def refuse_other_processors(config: Mapping[str, Any], name: str) -> None:
    """Raise UnsupportedModel where what reads pictures is named like no class that does: transformers would load
    whatever of its own has that name, a model too."""
    for key, value in _walk(config):
        if key in _PROCESSOR_KEYS and value and not _PROCESSOR.fullmatch(str(value)):
            raise UnsupportedModel(
                f"{name} would have pictures read by {str(value)[:80]!r} ({key}), which reads none.",
                remedy="Fetch the model again, or another copy of it.",
            )


def _walk(value: object) -> Sequence[tuple[str, object]]:
    """Every (key, value) of every object inside `value`, at any depth."""
    found: list[tuple[str, object]] = []
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            found += [(str(key), inner) for key, inner in item.items()]
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
    return found


def _check_depth(name: str, content: object) -> None:
    if deeper_than(_MAX_DEPTH - 1, content):
        raise _bad(name, f"is nested deeper than {_MAX_DEPTH} levels")


def number(config: Mapping[str, Any], names: Sequence[str], low: int, high: int, default: int | None = None) -> int:
    """The first of the fields `names` that is there and not null, a whole number from `low` to `high`."""
    for name in names:
        value = config.get(name)
        if value is None:
            continue
        whole = type(value) is int or (type(value) is float and math.isfinite(value) and value == int(value))
        if not whole or not low <= value <= high:
            raise BadConfig(
                f"config.json: {name} is {_shown(value)}; it must be a whole number from {low} to {high}.",
                remedy="Fetch the model again.",
                param=name,
            )
        return int(value)
    if default is None:
        raise BadConfig(f"config.json lacks {names[0]}.", remedy="Fetch the model again.", param=names[0])
    return default


def _shown(value: object) -> str:
    """`-1`, `the text "4096"`."""
    return f'the text "{value[:40]}"' if isinstance(value, str) else str(value)[:40]


def _constant(name: str) -> float:
    """Infinity, which published configs of Mamba 2 hold; never NaN."""
    if name == "NaN":
        raise ValueError("NaN is not a number")
    return math.inf if name == "Infinity" else -math.inf


def _bad(name: str, problem: str) -> BadConfig:
    return BadConfig(f"{name} {problem}.", remedy="Fetch the model again.", param=name)
