"""The folder of everything that belongs to the user: made, checked, and held by one server at a time."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import filelock

from modules.errors import StoreFailed, UserDataInUse


class UserDataLock:
    """A held folder. The system lets go of it when the process ends, however it ends, so no lock is ever stale."""

    def __init__(self, lock: filelock.FileLock, note: Path) -> None:
        self._lock = lock
        self._note = note

    def release(self) -> None:
        """Let another server use the folder. Releasing twice is fine."""
        if self._lock.is_locked:
            self._note.unlink(missing_ok=True)
            self._lock.release()

    def __enter__(self) -> UserDataLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def lock_user_data(folder: Path) -> UserDataLock:
    """Make `folder` if needed and hold it. Raises UserDataInUse, or StoreFailed if it cannot be written."""
    remedy = "Choose another folder with --user-data-dir."
    lock = filelock.FileLock(folder / ".lock", timeout=0, mode=0o600)  # who may read it may hold it
    note = folder / ".lock.pid"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
        note.write_text(str(os.getpid()), encoding="ascii")
    except filelock.Timeout:
        raise UserDataInUse(
            f"The user data folder {folder} is in use by pid {_holder(note)}.", remedy=f"Stop that server. {remedy}"
        ) from None
    except OSError as error:
        lock.release()
        raise StoreFailed(
            f"The user data folder {folder} cannot be written: {error.strerror or error}.",
            remedy="Choose another folder with --user-data-dir, or add --read-only: "
            "it shows what is there and keeps nothing.",
        ) from error
    return UserDataLock(lock, note)


def holder_of(folder: Path) -> str:
    """The pid of the server that holds `folder`, as it wrote it down; "unknown" where none did."""
    return _holder(folder / ".lock.pid")


def _holder(note: Path) -> str:
    """The pid that the holder wrote down; "unknown" in the moment before it did."""
    try:
        return note.read_text(encoding="ascii").strip() or "unknown"
    except OSError:
        return "unknown"
