"""Asks a process of its own what a config's model consists of: meta.py needs torch, which the web process never loads.

Here one process a question, killed after `timeout_s`; DryRuns.describe asks one that stays. `described` keeps the
answers of both on disk.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from modules.errors import BadConfig, SnugError, TimedOut, UnsupportedModel
from modules.files import atomic_write
from modules.killable import bare_environment
from modules.memory.model.config import read_json
from modules.memory.model.embedder import MODULES
from modules.memory.model.formats import has_weights
from modules.memory.model.model_spec import Describe, Description, TensorInfo, block_of

TIMEOUT_S = 180.0  # five seconds of a core; 60 where ten programs share two
ELEMENT_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FORMAT = 2
_ERRORS = {kind.code: kind for kind in (BadConfig, UnsupportedModel, TimedOut)}


def describe_in_process(config: Path, *, timeout_s: float = TIMEOUT_S, cache_folder: Path | None = None) -> Description:
    """The Description of a config file (or of a folder's), from a fresh process or an earlier answer.

    Raises BadConfig or UnsupportedModel where no model can be built of it, TimedOut where that takes too long.
    """
    return described(config, lambda file: _ask(file, timeout_s), cache_folder)


def described(config: Path, ask: Callable[[Path], Mapping[str, Any]], cache_folder: Path | None = None) -> Description:
    """The Description of a config file (or of a folder's): an earlier answer, else what `ask` says, which is kept."""
    known = known_description(config, cache_folder) if cache_folder else None
    if known is not None:
        return known
    file = config_file(config)
    answer = ask(file)
    description = decode(answer)
    if cache_folder is not None:
        cache_folder.mkdir(parents=True, exist_ok=True)
        atomic_write(_kept(file, cache_folder), json.dumps(answer))
    return description


def known_description(config: Path, cache_folder: Path) -> Description | None:
    """The answer that an earlier question left in `cache_folder`; None if there is none, or a damaged one."""
    try:
        return decode(read_answer(_kept(config_file(config), cache_folder).read_bytes()))
    except (SnugError, OSError, KeyError, TypeError, ValueError):
        return None


def describer_for(model: Path, cache_folder: Path, ask: Callable[..., Description] | None = None) -> Describe | None:
    """Who describes `model` without a wait: an earlier answer. Where there are no weights, a process, if need be.

    `ask(config, cache_folder=…)` asks that process: describe_in_process, if None, or DryRuns.describe.
    """
    if not model.is_dir() or (has_weights(model) and known_description(model, cache_folder) is None):
        return None
    return partial(ask or describe_in_process, cache_folder=cache_folder)


def config_file(config: Path) -> Path:
    """The config file that is meant: itself, or a folder's."""
    return config / "config.json" if config.is_dir() else config


def _kept(file: Path, cache_folder: Path) -> Path:
    return cache_folder / f"{cache_key(file)}.json"


def cache_key(file: Path) -> str:
    """What an answer depends on: the config's content and the versions that build the model."""
    content = json.dumps(read_json(file), sort_keys=True)
    if file.name == "config.json" and (file.parent / MODULES).exists():  # the base model is built, without a head
        content += MODULES
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    return hashlib.sha256("\0".join([str(_FORMAT), *versions, content]).encode()).hexdigest()[:32]


def _ask(file: Path, timeout_s: float) -> Mapping[str, Any]:
    environment = {**bare_environment(), "TRANSFORMERS_VERBOSITY": "error"}
    command = [sys.executable, "-P", "-m", "modules.memory.model.meta", str(file.resolve())]
    root = Path(__file__).parent.parent.parent.parent
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, timeout=timeout_s, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise TimedOut(
            f"Building the model of {file.name} took longer than {timeout_s:.0f} s.",
            remedy="Its config may be wrong: no known model takes that long.",
        ) from error
    if done.returncode or not done.stdout:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise BadConfig(f"No model could be built of {file.name}: {last[:200]}.", remedy="Fetch the model again.")
    return read_answer(done.stdout)


def read_answer(raw: bytes) -> Mapping[str, Any]:
    """The JSON object in an answer; raises the SnugError that it tells."""
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise BadConfig("The description of the model was cut short.", remedy="Try again.") from error
    if "error" in answer:
        told = answer["error"]
        raise _ERRORS.get(told["code"], BadConfig)(told["message"], remedy=told["remedy"])
    return dict(answer)


def decode(answer: Mapping[str, Any]) -> Description:
    """The Description in an answer of meta.py."""
    return Description(
        architecture=str(answer["architecture"]),
        tensors=tuple(_tensor(*item) for item in answer["tensors"]),
        buffers=tuple(_tensor(*item) for item in answer["buffers"]),
        bare_modules=tuple(map(str, answer["bare_modules"])),
        replaceable=frozenset(map(str, answer["replaceable"])),
        kept_fp32=frozenset(map(str, answer["kept_fp32"])),
        kept_fp32_in_fp16=frozenset(map(str, answer["kept_fp32_in_fp16"])),
    )


def _tensor(name: str, shape: list[int], dtype: str) -> TensorInfo:
    count = ELEMENT_BYTES[dtype]
    for size in shape:
        count *= size
    return TensorInfo(name, tuple(shape), dtype, count, block_of(name))
