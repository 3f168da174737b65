"""Named sampling parameters: presets/*.yaml, shipped and read-only, and the user's own in the user data folder.

A file holds the parameters that differ from the defaults, one a line. Ranges are those of sampling.py.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from modules.errors import BadPreset, NotFound, StoreFailed
from modules.files import atomic_write, check_name, safe_path
from modules.sampling import UNSAVED, GenerationParams
from modules.units import KiB, format_size
from modules.yaml_files import parse_yaml

SUFFIX = ".yaml"
MAX_PRESET_BYTES = 64 * KiB


class Presets:
    """The presets in two folders; names are unique over both, whatever their case."""

    def __init__(self, shipped: Path, own: Path) -> None:
        """`own` need not exist; the first save makes it."""
        self._shipped = shipped
        self._own = own

    def names(self) -> list[str]:
        """The shipped presets, then the user's own, each by name."""
        shipped = _names(self._shipped)
        taken = {name.casefold() for name in shipped}
        return shipped + [name for name in _names(self._own) if name.casefold() not in taken]

    def built_in(self, name: str) -> bool:
        """Whether a preset is one of those shipped, which cannot be changed."""
        return check_name(name).casefold() in {shipped.casefold() for shipped in _names(self._shipped)}

    def get(self, name: str) -> GenerationParams:
        """One preset. Raises BadName, NotFound, or BadPreset naming the file's line or field."""
        path = self._path(name)
        try:
            if path.stat().st_size > MAX_PRESET_BYTES:
                raise _bad(name, f"is larger than {format_size(MAX_PRESET_BYTES)}")
            values = parse_yaml(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise _missing(name) from error
        except (OSError, ValueError) as error:
            raise _bad(name, f"cannot be read: {error}") from error
        return _params(name, {} if values is None else values)

    def save(self, name: str, params: GenerationParams) -> None:
        """Keep a preset of the user's own, in place of one of that name.

        Raises BadName, BadPreset if the name is a shipped preset's or differs from another only in case, StoreFailed.
        """
        if self.built_in(name):
            raise _bad(name, "comes with Snug and cannot be changed", remedy="Save it under another name.")
        for other in _names(self._own):
            if other != name and other.casefold() == name.casefold():
                raise _bad(name, f"differs from the preset {other!r} only in case", remedy="Choose another name.")
        content = params.model_dump(mode="json", exclude_defaults=True, exclude=set(UNSAVED))
        try:
            self._own.mkdir(parents=True, exist_ok=True)
            atomic_write(safe_path(self._own, name, SUFFIX), _as_yaml(content))
        except OSError as error:
            raise StoreFailed(
                f"The preset {name!r} was not saved: {error.strerror or error}.", remedy=f"Check {self._own}."
            ) from error

    def delete(self, name: str) -> None:
        """Delete a preset of the user's own. Raises BadName, NotFound, BadPreset if it is a shipped one."""
        if self.built_in(name):
            raise _bad(name, "comes with Snug and cannot be deleted", remedy="")
        try:
            safe_path(self._own, name, SUFFIX).unlink()
        except FileNotFoundError as error:
            raise _missing(name) from error

    def _path(self, name: str) -> Path:
        if name in _names(self._shipped):
            return safe_path(self._shipped, name, SUFFIX)
        return safe_path(self._own, name, SUFFIX)


def _names(folder: Path) -> list[str]:
    return sorted((path.stem for path in folder.glob(f"[!.]*{SUFFIX}") if path.is_file()), key=str.casefold)


def _params(name: str, values: object) -> GenerationParams:
    """The parameters that a file's content stands for. Raises BadPreset naming the field."""
    if not isinstance(values, dict):
        raise _bad(name, "must hold lines of the form name: value")
    for key in values:
        if key not in GenerationParams.model_fields or key in UNSAVED:
            near = difflib.get_close_matches(str(key), GenerationParams.model_fields, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Remove that line."
            raise BadPreset(
                f"The preset {name!r} holds the unknown parameter {str(key)[:60]!r}.", remedy=hint, param=str(key)[:60]
            )
    if isinstance(values.get("stop"), list):
        values = values | {"stop": tuple(values["stop"])}
    try:
        return GenerationParams.model_validate(values, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        raise BadPreset(
            f"The preset {name!r} cannot be used: {field} is {str(first['input'])[:60]!r}; {problem}.",
            remedy="Correct the file.",
            param=field,
        ) from error


def _as_yaml(content: dict[str, Any]) -> str:
    """`content` as YAML that people can read, or in escapes where that would come back changed (U+0085)."""
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text if yaml.safe_load(text) == content else yaml.safe_dump(content, sort_keys=False)


def _bad(name: str, what: str, *, remedy: str = "Correct or remove the file.") -> BadPreset:
    return BadPreset(f"The preset {name!r} {what}.", remedy=remedy)


def _missing(name: str) -> NotFound:
    return NotFound(f"There is no preset {name!r}.", remedy="Choose one from the list.")
