"""A folder of people: NAME.yaml (or .yml, .json, .png alone) and beside it NAME.png, .jpg, .jpeg or .webp.

Files are read when first asked for, and again when they change. What cannot be read is told, not hidden.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, overload

from modules.characters.pictures import MAX_PICTURE_BYTES, shown_picture
from modules.errors import BadCharacter, NotFound, SnugError, StoreFailed
from modules.files import atomic_write, forget_aside, put_aside, safe_path
from modules.units import MiB, format_size

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
TEXTS = (".yaml", ".yml", ".json")
DELETED = ".deleted"
MOST_TEXT_BYTES = 128 * MiB  # of one folder: what was read of it stays in memory
_PICTURES_KEPT = 500

Value = TypeVar("Value")
Index = dict[str, dict[str, Path]]
Read = Callable[[bytes, str, str], Value]  # data, suffix, what to call the file in errors


@dataclass(frozen=True, slots=True)
class Found(Generic[Value]):
    """One entry of a folder; `problem` says why it has no `value`. `stamp` changes with its files."""

    id: str
    value: Value | None
    problem: SnugError | None
    picture: bool
    stamp: str


class Folder(Generic[Value]):
    """The people in one folder, which need not exist. Safe to use from any thread."""

    def __init__(self, path: Path, read: Read[Value], *, cards: bool, most_bytes: int = MOST_TEXT_BYTES) -> None:
        """With `cards` a picture that has no text file beside it is read as well. `most_bytes`: of texts, together."""
        self.path = path
        self._most_bytes = most_bytes
        self._read = read
        self._suffixes = (*TEXTS, ".png") if cards else TEXTS
        self._known: dict[Path, tuple[str, Value | SnugError]] = {}
        self._pictures: dict[Path, tuple[str, bytes]] = {}
        self._lock = threading.Lock()

    def ids(self) -> list[str]:
        """The names of all entries, by name."""
        return self._ids(self._index())

    def entries(self) -> list[Found[Value]]:
        """Every entry, also those that cannot be read. What was deleted a day ago is gone then."""
        forget_aside(self.path / DELETED)
        index = self._index()
        return [self._found(name, index[name]) for name in self._ids(index)]

    def get(self, name: str) -> Value | None:
        """One entry, None if there is none. Raises BadName, BadCharacter."""
        path = self._text(name)
        return None if path is None else self._value(path)

    def picture(self, name: str) -> bytes | None:
        """An entry's picture, small, as WebP; None if it has none. Raises BadName, BadCharacter."""
        path = self._picture(name)
        if path is None:
            return None
        stamp = _stamp(path)
        with self._lock:
            known = self._pictures.get(path)
        if known is None or known[0] != stamp:
            known = stamp, shown_picture(_bytes(path, MAX_PICTURE_BYTES), path.name)
            with self._lock:
                if len(self._pictures) >= _PICTURES_KEPT:
                    self._pictures.clear()
                self._pictures[path] = known
        return known[1]

    def whole_picture(self, name: str) -> bytes | None:
        """The picture's file as it is, for export."""
        path = self._picture(name)
        return None if path is None else _bytes(path, MAX_PICTURE_BYTES)

    def write(self, name: str, suffix: str, text: str, picture: bytes | None) -> None:
        """Keep an entry in place of one of that name; its picture stays where `picture` is None.

        Raises BadName, StoreFailed, BadCharacter where there would be too much of them all.
        """
        path = safe_path(self.path, name, suffix)
        data = text.encode("utf-8", "replace")
        self._check_room(name, len(data))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write(path, data)  # before the picture, which may be the card itself
            self._remove(name, TEXTS, keep=path)
            if picture is not None:
                target = safe_path(self.path, name, ".png")
                atomic_write(target, picture)
                self._remove(name, PICTURES, keep=target)
        except OSError as error:
            raise self._failed(name, "was not saved", error) from error

    def delete(self, name: str) -> None:
        """Put an entry's files aside, for `restore`, for a day. Raises BadName, NotFound, StoreFailed."""
        files = self._of(name).values()
        if not files:
            raise NotFound(f"There is no {name!r}.", remedy="It may have been deleted in another tab; reload.")
        try:
            aside = self.path / DELETED
            for old in aside.glob("*"):
                if old.stem == name:
                    old.unlink()
            for path in files:
                put_aside(path, aside)
        except OSError as error:
            raise self._failed(name, "was not deleted", error) from error

    def restore(self, name: str) -> None:
        """Take the last `delete` of that name back. Raises BadName, NotFound, BadCharacter, StoreFailed."""
        safe_path(self.path, name)
        files = [path for path in (self.path / DELETED).glob("*") if path.stem == name]
        if not files:
            raise NotFound(f"{name!r} cannot be brought back.", remedy="It was not deleted here.")
        if self._of(name):
            raise BadCharacter(f"There is a new {name!r} by now.", remedy="Rename or delete that one first.")
        self._check_room(name, sum(_size(path) for path in files if path.suffix.lower() in TEXTS))
        try:
            for path in files:
                path.rename(self.path / path.name)
        except OSError as error:
            raise self._failed(name, "was not brought back", error) from error

    def _check_room(self, name: str, size_bytes: int) -> None:
        """Raise BadCharacter where the texts of all others leave no room for one of that size."""
        others = (files for other, files in self._index().items() if other != name)
        held = sum(_size(path) for files in others for suffix, path in files.items() if suffix in TEXTS)
        if held + size_bytes > self._most_bytes:
            raise BadCharacter(
                f"All of them together would hold more than {format_size(self._most_bytes)} of text.",
                remedy="Delete some first.",
            )

    def _ids(self, index: Index) -> list[str]:
        return sorted((name for name, files in index.items() if set(files) & set(self._suffixes)), key=str.casefold)

    def _found(self, name: str, files: Mapping[str, Path]) -> Found[Value]:
        text, picture = self._first(files, self._suffixes), self._first(files, PICTURES)
        stamp = "-".join(_stamp(path) for path in (text, picture) if path)
        value: Value | None = None
        problem: SnugError | None = None
        try:
            value = self._value(self._safe(text)) if text else None
        except SnugError as error:
            problem = error
        return Found(name, value, problem, picture is not None, stamp)

    def _value(self, path: Path) -> Value:
        stamp = _stamp(path)
        with self._lock:
            known = self._known.get(path)
        if known is None or known[0] != stamp:
            try:
                known = stamp, self._read(_bytes(path, MAX_PICTURE_BYTES), path.suffix.lower(), path.name)
            except SnugError as error:
                known = stamp, error
            with self._lock:
                self._known[path] = known
        if isinstance(known[1], SnugError):
            raise known[1]
        return known[1]

    def _index(self) -> Index:
        """The files by name and ending. Raises StoreFailed where a folder that is there cannot be read just now."""
        index: Index = {}
        try:
            for path in sorted(self.path.iterdir()):
                if not path.name.startswith(".") and path.suffix.lower() in (*TEXTS, *PICTURES) and path.is_file():
                    index.setdefault(path.stem, {})[path.suffix.lower()] = path
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return {}
        except OSError as error:  # no descriptor is left, or the disk fails: nobody's name is free for that
            raise StoreFailed(
                f"The folder {self.path.name}/ cannot be read: {error.strerror or type(error).__name__}.",
                remedy="Try again in a moment.",
            ) from error
        self._forget_all_but({path for files in index.values() for path in files.values()})
        return index

    def _forget_all_but(self, there: set[Path]) -> None:
        """Let go of what was read of files that are gone: each may have been many megabytes."""
        with self._lock:
            for known in (self._known, self._pictures):
                for path in known.keys() - there:
                    del known[path]

    def _of(self, name: str) -> dict[str, Path]:
        safe_path(self.path, name)
        return self._index().get(name, {})

    def _text(self, name: str) -> Path | None:
        return self._safe(self._first(self._of(name), self._suffixes))

    def _picture(self, name: str) -> Path | None:
        return self._safe(self._first(self._of(name), PICTURES))

    def _first(self, files: Mapping[str, Path], suffixes: tuple[str, ...]) -> Path | None:
        return next((files[suffix] for suffix in suffixes if suffix in files), None)

    @overload
    def _safe(self, path: Path) -> Path: ...
    @overload
    def _safe(self, path: None) -> None: ...
    @overload
    def _safe(self, path: Path | None) -> Path | None: ...
    def _safe(self, path: Path | None) -> Path | None:
        """`path`, unless it is a link that leads out of the folder."""
        return None if path is None else safe_path(self.path, path.stem, path.suffix)

    def _remove(self, name: str, suffixes: tuple[str, ...], *, keep: Path) -> None:
        for suffix, path in self._of(name).items():
            if suffix in suffixes and path != keep:
                path.unlink()

    def _failed(self, name: str, what: str, error: OSError) -> StoreFailed:
        return StoreFailed(f"{name!r} {what}: {error.strerror or error}.", remedy=f"Check {self.path}.")


def _stamp(path: Path) -> str:
    try:
        seen = path.stat()
    except OSError:
        return ""
    return f"{seen.st_mtime_ns:x}{seen.st_size:x}"


def _size(path: Path) -> int:
    """In bytes; 0 for what was deleted just now."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise BadCharacter(f"{path.name} is larger than {format_size(limit)}.", remedy="Make it smaller.")
        return path.read_bytes()
    except OSError as error:
        raise BadCharacter(f"{path.name} cannot be read: {error.strerror}.", remedy="Check the file.") from error
