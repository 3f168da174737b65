"""`--read-only`: a copy of the user data folder, which ends with the program. The folder itself is never written.

For a folder that can only be read, and for one whose conversations are damaged: then the copy has the last backup of
them that opens. Models are no part of it. A program that is killed outright leaves the copy behind, in a folder that
only this user can open.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from modules.chat.database import Database
from modules.errors import StoreFailed, UserDataInUse
from modules.settings import Settings
from modules.units import format_size
from modules.user_data import holder_of

log = logging.getLogger(__name__)

STORE = "snug.db"
_LEFT_OUT = shutil.ignore_patterns("cache", "backups", ".lock*", "*-shm", ".tmp-*")
_ROOM = 3  # times what is copied: a store that is brought to a newer version is kept twice meanwhile


@contextmanager
def copied(settings: Settings) -> Iterator[Settings]:
    """The same settings, with `--read-only` for a copy of the user data.

    Raises UserDataInUse where another server writes there, StoreFailed where it cannot be read.
    """
    if not settings.read_only:
        yield settings
        return
    folder = settings.user_data_dir
    holder = holder_of(folder)
    if holder.isdecimal() and psutil.pid_exists(int(holder)):
        raise UserDataInUse(f"The user data folder {folder} is in use by pid {holder}.", remedy="Stop it first.")
    with tempfile.TemporaryDirectory(prefix="snug-read-only-", ignore_cleanup_errors=True) as place:
        copy = Path(place) / "user_data"
        _copy(folder, copy)
        _make_sound(folder, copy / STORE)
        log.warning("Read-only: %s stays as it is, and nothing that is done here is kept.", folder)
        yield settings.model_copy(update={"user_data_dir": copy})


def _copy(folder: Path, copy: Path) -> None:
    """Raises StoreFailed."""
    if not folder.exists():
        copy.mkdir()
        return
    try:
        needed = sum(path.stat().st_size for path in _files(folder)) * _ROOM
        free = shutil.disk_usage(copy.parent).free
        if needed > free:
            raise StoreFailed(
                f"{format_size(needed)} are needed in {copy.parent.parent} for a copy of {folder}; "
                f"{format_size(free)} are free.",
                remedy="Free some space, or set TMPDIR to a folder with more.",
            )
        shutil.copytree(folder, copy, ignore=_LEFT_OUT)
        for path in (copy, *copy.rglob("*")):
            path.chmod(path.stat().st_mode | (0o700 if path.is_dir() else 0o600))
    except OSError as error:  # shutil.Error is one
        raise StoreFailed(
            f"The user data folder {folder} cannot be read whole: {_first(error)}.",
            remedy="Check the rights on it, or choose another with --user-data-dir.",
        ) from error


def _files(folder: Path) -> Iterator[Path]:
    """What is copied of it."""
    names = [path.name for path in folder.iterdir()]
    for name in set(names) - set(_LEFT_OUT(str(folder), names)):
        path = folder / name
        yield from _files(path) if path.is_dir() else [path]


def _first(error: OSError) -> str:
    """The first of several problems, or the one."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][-1])
    return str(error.strerror or error)


def _make_sound(folder: Path, store: Path) -> None:
    """Put the last backup that opens in the place of a store that does not. Raises its StoreFailed without one."""
    try:
        Database(store).close()
    except StoreFailed as error:
        for backup in sorted((folder / "backups").glob("snug-[0-9]*.db"), reverse=True):
            for path in store.parent.glob(f"{STORE}*"):
                path.unlink()
            shutil.copyfile(backup, store)
            try:
                Database(store).close()
            except StoreFailed:
                continue
            log.warning("%s Shown are the conversations of the backup %s.", error.message, backup.name)
            return
        raise
