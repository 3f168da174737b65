"""Named sampling parameters: presets/*.yaml, shipped and read-only, and the user's own in the user data folder.

What a file's text means is preset_files.py's. A deleted preset lies in a folder beside the others for a day, or until
another of its name is deleted.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

from modules.chat.preset_files import Preset, read_preset, write_preset
from modules.errors import BadName, BadPreset, NotFound, StoreFailed
from modules.files import atomic_write, check_name, forget_aside, home_of, put_aside, safe_path
from modules.sampling import GenerationParams
from modules.units import KiB, format_size

SUFFIX = ".yaml"
MAX_PRESET_BYTES = 64 * KiB
DELETED = ".deleted"


class Presets:
    """The presets in two folders; names are unique over both, whatever their case. Safe to use from any thread."""

    def __init__(self, shipped: Path, own: Path) -> None:
        """`own` need not exist; the first save makes it."""
        self._shipped = shipped
        self._own = own
        self._lock = threading.Lock()  # between looking for a free name and taking it
        self._others: dict[str, Presets] = {}

    def whose(self, owner: str) -> Presets:
        """Those of one owner; "" is who has what lies in the user data folder itself."""
        if not owner:
            return self
        made = Presets(self._shipped, home_of(self._own.parent, owner) / self._own.name)
        return self._others.setdefault(owner, made)  # one for each, or its lock would lock nobody out

    def names(self) -> list[str]:
        """The shipped presets, then the user's own, each by name. What was deleted a day ago is gone then."""
        forget_aside(self._own / DELETED)
        shipped = _names(self._shipped)
        taken = {name.casefold() for name in shipped}
        return shipped + [name for name in _names(self._own) if name.casefold() not in taken]

    def built_in(self, name: str) -> bool:
        """Whether a preset is one of those shipped, which cannot be changed."""
        return check_name(name).casefold() in {shipped.casefold() for shipped in _names(self._shipped)}

    def get(self, name: str) -> GenerationParams:
        """The parameters of one preset. Raises as `read` does."""
        return self.read(name).params

    def read(self, name: str) -> Preset:
        """One preset. Raises BadName, NotFound, or BadPreset naming the file's line or field."""
        return read_preset(name, self.text(name))

    def text(self, name: str) -> str:
        """A preset's file as it is. Raises BadName, NotFound, BadPreset where it is too large or no text."""
        path = self._path(name)
        try:
            if path.stat().st_size > MAX_PRESET_BYTES:
                raise _bad(name, f"is larger than {format_size(MAX_PRESET_BYTES)}")
            return path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise _missing(name) from error
        except (OSError, ValueError) as error:
            raise _bad(name, f"cannot be read: {error}") from error

    def save(self, name: str, params: GenerationParams) -> None:
        """Keep a preset of the user's own, in place of one of that name.

        Raises BadName, BadPreset if the name is a shipped preset's or differs from another only in case, StoreFailed.
        """
        with self._lock:
            self._check_free(name, but=name)
            self._write(name, write_preset(params))

    def rename(self, name: str, new: str) -> None:
        """Give a preset of the user's own another name.

        Raises BadName, NotFound, StoreFailed, BadPreset if it is a shipped one or the name is taken.
        """
        with self._lock:
            self._check_own(name)
            self._check_free(new, but=name)
            self._move(name, safe_path(self._own, name, SUFFIX), safe_path(self._own, new, SUFFIX), "renamed")

    def take_in(self, file_name: str, text: str) -> str:
        """Keep a preset file of elsewhere, its text as it is; the name it got, which is one that no other has.

        Raises BadPreset where it cannot be used, StoreFailed.
        """
        with self._lock:
            name = self._free_name(file_name)
            if len(text.encode("utf-8", "replace")) > MAX_PRESET_BYTES:
                raise _bad(name, f"is larger than {format_size(MAX_PRESET_BYTES)}", remedy="Is it a preset?")
            read_preset(name, text)
            self._write(name, text)
            return name

    def delete(self, name: str) -> None:
        """Put a preset of the user's own away; `restore` brings it back for a day.

        Raises BadName, NotFound, StoreFailed, BadPreset if it is a shipped one.
        """
        self._check_own(name)
        path = safe_path(self._own, name, SUFFIX)
        if not path.is_file():
            raise _missing(name)
        self._try(lambda: put_aside(path, self._own / DELETED), f"The preset {name!r} was not deleted")

    def restore(self, name: str) -> None:
        """Bring a deleted preset back. Raises BadName, NotFound, StoreFailed, BadPreset if its name is taken now."""
        with self._lock:
            self._check_free(name, but=None)
            self._move(name, self._own / DELETED / (name + SUFFIX), safe_path(self._own, name, SUFFIX), "brought back")

    def _path(self, name: str) -> Path:
        if name in _names(self._shipped):
            return safe_path(self._shipped, name, SUFFIX)
        return safe_path(self._own, name, SUFFIX)

    def _check_own(self, name: str) -> None:
        if self.built_in(name):
            raise _bad(name, "comes with Snug and cannot be changed", remedy="Save it under another name.")

    def _check_free(self, name: str, *, but: str | None) -> None:
        """Raise BadName, or BadPreset where `name` is a shipped preset's or, in any case, another one's than `but`."""
        self._check_own(name)
        for other in _names(self._own):
            if other != but and other.casefold() == name.casefold():
                how = "exists already" if other == name else f"differs from the preset {other!r} only in case"
                raise _bad(name, how, remedy="Choose another name.")

    def _free_name(self, file_name: str) -> str:
        """A name made of a file's that no other preset has."""
        stem = re.sub(r"(?i)(\.(ya?ml|json|txt))+$", "", file_name)
        stem = " ".join(re.sub(r"[^\w .()+-]", " ", stem).split()).strip(" .-")[:60].rstrip(" .")
        wanted = free = next(name for name in (stem, f"{stem} preset", "Imported preset") if _is_name(name))
        taken, number = {name.casefold() for name in self.names()}, 1
        while free.casefold() in taken:
            number += 1
            free = f"{wanted} {number}"
        return free

    def _write(self, name: str, text: str) -> None:
        def write() -> None:
            self._own.mkdir(parents=True, exist_ok=True)
            atomic_write(safe_path(self._own, name, SUFFIX), text)

        self._try(write, f"The preset {name!r} was not saved")

    def _move(self, name: str, source: Path, target: Path, what: str) -> None:
        def move() -> None:
            if not source.is_file():
                raise _missing(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)

        self._try(move, f"The preset {name!r} was not {what}")

    def _try(self, change: Callable[[], None], failed: str) -> None:
        try:
            change()
        except OSError as error:
            raise StoreFailed(f"{failed}: {error.strerror or error}.", remedy=f"Check {self._own}.") from error


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except BadName:
        return False
    return True


def _names(folder: Path) -> list[str]:
    """Raises StoreFailed."""
    try:
        return sorted((path.stem for path in folder.glob(f"[!.]*{SUFFIX}") if path.is_file()), key=str.casefold)
    except OSError as error:  # no descriptor is left, or the disk fails
        raise StoreFailed(
            f"The presets cannot be read: {error.strerror or type(error).__name__}.", remedy="Try again in a moment."
        ) from error


def _bad(name: str, what: str, *, remedy: str = "Correct or remove the file.") -> BadPreset:
    return BadPreset(f"The preset {name!r} {what}.", remedy=remedy)


def _missing(name: str) -> NotFound:
    return NotFound(f"There is no preset {name!r}.", remedy="Choose one from the list.")
