"""How each model was loaded last, and with which preset it was used: one small file a model in the user data folder.

Kept when a load that a person asked for has succeeded, offered when the model is chosen again. Flags that the server
was started with count for more. A file that cannot be read is set aside under another name, and said so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modules.errors import BadFlag, BadName, StoreFailed
from modules.files import atomic_write, safe_path
from modules.settings import LoadOptions, Settings, check_together, flag_of
from modules.units import KiB, exact_size

log = logging.getLogger(__name__)

FOLDER = "model-settings"
_SUFFIX = ".json"
_MAX_BYTES = 64 * KiB


class _Kept(BaseModel):
    """A file: the options that were not the usual ones, as a flag would take them, and the preset."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    options: dict[str, Any] = Field(default_factory=dict)
    preset: str = Field("", max_length=200)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known of a model: None for `options` where it was never loaded. `note` is what a person should know."""

    options: LoadOptions | None = None
    preset: str = ""
    note: str = ""


NOTHING = Remembered()


class ModelMemory:
    """The files of all models. Every method may be called from any thread: a file is replaced whole."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.user_data_dir / FOLDER
        self._defaults = settings.load_options
        self._given: Set[str] = settings.model_fields_set & LoadOptions.model_fields.keys() - {"model"}

    def of(self, name: str | None) -> Remembered:
        """How `name` was loaded last, with the start-up flags in their place; without what cannot go with them."""
        try:
            return self._read(name)
        except OSError as error:  # no descriptor is left, or the disk fails: the file itself may be sound
            return Remembered(note=f"What was kept of {name} cannot be read: {error.strerror or type(error).__name__}.")

    def _read(self, name: str | None) -> Remembered:
        """As `of`. Raises OSError."""
        if not name:
            return NOTHING
        try:
            path = self._path(name)
            if not path.exists():
                return NOTHING
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError("it is too large")
            kept = _Kept.model_validate(json.loads(path.read_bytes()))
            options = LoadOptions.model_validate({**kept.options, "model": name})
        except BadName:
            return NOTHING
        except (ValueError, RecursionError) as error:
            return Remembered(note=self._set_aside(name, error))
        if not kept.options and not kept.preset:
            return NOTHING
        flags = {field: getattr(self._defaults, field) for field in self._given}
        merged = options.model_copy(update=flags)
        try:
            check_together(merged)
        except BadFlag as error:
            usual = self._defaults.model_copy(update={"model": name})
            return Remembered(usual, kept.preset, f"How it was loaded last does not go with the flags: {error.message}")
        return Remembered(merged, kept.preset)

    def keep(self, options: LoadOptions) -> None:
        """Remember how a model was loaded; its preset stays. Raises BadName, StoreFailed."""
        name = options.model or ""
        self._write(name, _Kept(options=as_flags(options), preset=self._known(name).preset))

    def keep_preset(self, name: str, preset: str) -> None:
        """Remember the preset that a model is used with; how it was loaded stays. Raises BadName, StoreFailed."""
        known = self._known(name).options
        self._write(name, _Kept(options=as_flags(known) if known else {}, preset=preset))

    def forget(self, name: str) -> None:
        """Know nothing of a model any more. Raises BadName, StoreFailed."""
        try:
            self._path(name).unlink(missing_ok=True)
        except OSError as error:
            raise _not_kept(name, error) from error

    def _known(self, name: str) -> Remembered:
        """As `of`, for what is to be written anew. Raises StoreFailed where it cannot be read just now."""
        try:
            return self._read(name)
        except OSError as error:
            raise _not_kept(name, error) from error

    def _write(self, name: str, kept: _Kept) -> None:
        path = self._path(name)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write(path, kept.model_dump_json(indent=1))
        except OSError as error:
            raise _not_kept(name, error) from error

    def _set_aside(self, name: str, error: Exception) -> str:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        path = self._path(name)
        aside = path.with_name(f"{path.name}.unreadable")
        try:
            path.replace(aside)
        except OSError as problem:
            log.warning("%s cannot be set aside: %s", path.name, problem.strerror)
        told = f"What was kept of {name} cannot be read ({why[:120]}); it lies in {FOLDER}/{aside.name} now."
        log.warning("%s", told)
        return told

    def _path(self, name: str) -> Path:
        return safe_path(self._folder, name, _SUFFIX)


def as_flags(options: LoadOptions) -> dict[str, Any]:
    """The options that are not the usual ones, without the model, as a settings file would hold them."""
    usual = LoadOptions.model_validate({})
    names = [field for field in LoadOptions.model_fields if field != "model"]
    return {
        field: as_flag(field, getattr(options, field))
        for field in names
        if getattr(options, field) != getattr(usual, field)
    }


def as_flag(name: str, value: Any) -> Any:
    """A load option's value as its flag would take it: no byte of a size is lost."""
    if flag_of(name).metavar == "SIZE":
        return " ".join(exact_size(size) for size in (value if isinstance(value, tuple) else (value,)))
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _not_kept(name: str, error: OSError) -> StoreFailed:
    return StoreFailed(
        f"How {name} is loaded could not be kept: {error.strerror or type(error).__name__}.",
        remedy="Is the disk full?",
    )
