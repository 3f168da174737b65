"""The settings of a start: command line, environment (SNUG_…) and settings.yaml, in that order of strength."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modules.errors import BadFlag
from modules.settings import Settings, build_parser, check_together, flag_name, takes_several
from modules.units import format_size
from modules.yaml_files import parse_yaml

ENV_PREFIX = "SNUG_"
MAX_SETTINGS_BYTES = 256 * 1024


def read_settings(argv: Sequence[str], environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this start. Raises BadFlag, naming the flag, variable or file, the value and the remedy."""
    given, unknown = build_parser().parse_known_args(argv)
    if unknown:
        raise _unknown_flag(unknown[0])
    command_line = vars(given)
    variables = {
        name: environment[ENV_PREFIX + name.upper()]
        for name in Settings.model_fields
        if environment.get(ENV_PREFIX + name.upper(), "") != ""
    }
    early = {**variables, **command_line}
    explicit = early.get("settings")
    path = Path(explicit or Path(early.get("user_data_dir") or "user_data") / "settings.yaml").expanduser()
    from_file = _read_file(path, required=explicit is not None)
    settings = _validate([("--", command_line), (ENV_PREFIX, variables), (str(path), from_file)])
    check_together(settings)
    if settings.local_rank is not None and "LOCAL_RANK" not in environment:
        raise BadFlag(
            f"--local_rank {settings.local_rank} is for the deepspeed launcher to give.",
            remedy="Drop it, or start with: deepspeed --num_gpus=N server.py --deepspeed",
            param="local_rank",
        )
    if settings.model_dir != Settings.model_fields["model_dir"].default and not settings.model_dir.is_dir():
        raise BadFlag(
            f"--model-dir {settings.model_dir}: there is no such folder.", remedy="Check the path.", param="model_dir"
        )
    return settings


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    """settings.yaml as a dict; {} where the default file is absent. Dashes and underscores are the same in keys."""
    if not path.exists():
        if required:
            raise BadFlag(f"--settings {path}: there is no such file.", remedy="Check the path.", param="settings")
        return {}
    remedy = "Correct or remove it; docs/flags.md shows every setting."
    try:
        if path.stat().st_size > MAX_SETTINGS_BYTES:
            raise BadFlag(f"The settings file {path} is larger than {format_size(MAX_SETTINGS_BYTES)}.", remedy=remedy)
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())[:200]
        raise BadFlag(f"The settings file {path} cannot be read: {problem}.", remedy=remedy) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise BadFlag(f"The settings file {path} must hold lines of the form name: value.", remedy=remedy)
    named = {str(key).replace("-", "_").lstrip("_"): value for key, value in content.items()}
    for key in named:
        if key not in Settings.model_fields:
            near = difflib.get_close_matches(key, Settings.model_fields, n=1)
            hint = f"Did you mean {near[0]}?" if near else remedy
            raise BadFlag(f"The settings file {path} holds the unknown setting {key!r}.", remedy=hint, param=key)
    return named


def _validate(sources: list[tuple[str, dict[str, Any]]]) -> Settings:
    """Merge the sources, strongest first, and check every value; an error names the source it came from."""
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for label, values in sources:
        for name, value in values.items():
            if name not in merged:
                merged[name] = _split(name, value) if label == ENV_PREFIX else value
                origin[name] = _spelling(label, name)
    try:
        return Settings(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        shown = str(merged.get(name))[:80]
        raise BadFlag(
            f"{origin.get(name, flag_name(name))} {shown}: {_problem(first)}.",
            remedy=f"{Settings.model_fields[name].description}" if name in Settings.model_fields else "",
            param=name,
        ) from error


def _problem(error: Any) -> str:
    """One of pydantic's error records in words."""
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _split(name: str, value: str) -> object:
    return value.replace(",", " ").split() if takes_several(Settings.model_fields[name]) else value


def _spelling(label: str, name: str) -> str:
    if label == "--":
        return flag_name(name)
    return ENV_PREFIX + name.upper() if label == ENV_PREFIX else f"{label}: {name}"


def _unknown_flag(word: str) -> BadFlag:
    known = [flag_name(name) for name in Settings.model_fields]
    if not word.startswith("-"):
        return BadFlag(f"{word!r} belongs to no flag.", remedy="See python server.py --help.")
    near = difflib.get_close_matches(word.split("=")[0].replace("_", "-"), known, n=1)
    hint = f"Did you mean {near[0]}?" if near else "See python server.py --help."
    return BadFlag(f"{word[:80]} is not a flag of Snug.", remedy=hint)
