"""One file from the hub to the disk: goes on where it was broken off, and counts as there once its hash is right.

What has arrived lies in a part file until then. A line that drops, a server that is busy: tried again after a pause,
as long as bytes keep coming. A full disk, a refusal, a hash that is wrong twice: an error that says so.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from modules.downloads.record import RemoteFile
from modules.errors import Damaged, DiskFull, DownloadFailed, SnugError, StoreFailed, TimedOut, TooManyAttempts
from modules.files import sync_folder
from modules.memory.model.hub_client import HubClient
from modules.units import MiB, format_size

RESERVE_BYTES = 256 * MiB  # left free on the disk: conversations are written to it too
_READ_BYTES = MiB
_LOOK_EVERY_BYTES = 16 * MiB
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FLEETING = (TimedOut, TooManyAttempts, DownloadFailed)


class Stopped(Exception):
    """The person paused the download, or the server ends."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Pauses before a file is tried again, in seconds, while no byte comes; each of them once."""

    pauses_s: tuple[float, ...] = (1.0, 2.0, 5.0, 15.0, 30.0)


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Watch:
    """Whom a transfer tells, and who may stop it.

    `on_bytes(count)`: the bytes of the file that are there now. `on_note(text)`: what is out of the ordinary, "" once
    it is over; `on_check(count)`: the bytes that were read again to be hashed.
    """

    stop: threading.Event
    on_bytes: Callable[[int], None]
    on_check: Callable[[int], None]
    on_note: Callable[[str], None]
    free_bytes: Callable[[], int]

    def go_on(self) -> None:
        """Raise Stopped if it is to end."""
        if self.stop.is_set():
            raise Stopped


class Transfer:
    """Fetches the files of one repository at one commit."""

    def __init__(self, client: HubClient, commit: str, watch: Watch, patience: Patience = PATIENCE) -> None:
        self._client = client
        self._commit = commit
        self._watch = watch
        self._patience = patience
        self._known: tuple[Path, int, hashlib._Hash] | None = None  # the hash of a part's first so many bytes

    def fetch(self, file: RemoteFile, part: Path, goal: Path) -> None:
        """Have the checked `file` at `goal`; until it is whole it lies at `part`.

        Raises Stopped, DiskFull, Damaged where its hash stays wrong, DownloadFailed and what else HubClient raises.
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        goal.parent.mkdir(parents=True, exist_ok=True)
        for last in (False, True):
            found = self._complete(file, part)
            if not file.digest or found == file.digest:
                break
            part.unlink()
            self._known = None
            self._watch.on_bytes(0)
            if last:
                raise Damaged(
                    f"{file.path} arrived damaged, twice: its hash is {found[:12]}… instead of {file.digest[:12]}….",
                    remedy="Resume fetches this file alone again; the others are kept.",
                )
            self._watch.on_note(f"{file.path} arrived damaged and is fetched again.")
        part.replace(goal)
        sync_folder(goal.parent)

    def _complete(self, file: RemoteFile, part: Path) -> str:
        """Bring the part file to its full size; returns its hash. Tries again while the trouble may pass."""
        pauses = iter(self._patience.pauses_s)
        reached = _size(part)
        while True:
            try:
                return self._go_on(file, part)
            except _FLEETING as error:
                if _size(part) > reached:
                    reached, pauses = _size(part), iter(self._patience.pauses_s)
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                self._watch.on_note(f"{error.message} Trying again.")
                if self._watch.stop.wait(pause_s):
                    raise Stopped from error

    def _go_on(self, file: RemoteFile, part: Path) -> str:
        """One request for what lacks; returns the hash of the whole."""
        with disk_errors(), part.open("r+b" if part.exists() else "w+b") as kept:
            there = kept.seek(0, os.SEEK_END)
            if there > file.size_bytes:
                there = kept.truncate(0)
            digest = self._hashed(file, kept, part, there)
            if there < file.size_bytes:
                digest = self._receive(file, kept, part, there, digest)
            self._watch.on_bytes(file.size_bytes)
            kept.flush()
            os.fsync(kept.fileno())
            return digest.hexdigest()

    def _receive(
        self, file: RemoteFile, kept: BinaryIO, part: Path, there: int, digest: hashlib._Hash
    ) -> hashlib._Hash:
        """Append the bytes that lack, as they come. A server that knows no ranges starts from the first byte again."""
        with self._client.stream(self._commit, file.path, there) as body:
            if body.size_bytes != file.size_bytes or body.start not in (0, there):
                raise Damaged(
                    f"The hub sends {file.path} with {format_size(body.size_bytes)} instead of "
                    f"{format_size(file.size_bytes)}.",
                    remedy="The repository may have changed: cancel, and begin anew.",
                )
            if body.start != there:
                there, digest = kept.truncate(0), _new_hash(file)
            kept.seek(there)
            looked = there
            self._watch.on_note("")
            for piece in body.pieces:
                self._watch.go_on()
                fitting = piece[: file.size_bytes - there]
                kept.write(fitting)
                digest.update(fitting)
                there += len(fitting)
                self._known = part, there, digest
                self._watch.on_bytes(there)
                if there - looked > _LOOK_EVERY_BYTES:
                    looked = there
                    check_room(self._watch.free_bytes(), 0)
                if there == file.size_bytes:
                    break
        if there < file.size_bytes:
            raise DownloadFailed(f"The line broke off during {file.path}.", remedy="Resume goes on from there.")
        return digest

    def _hashed(self, file: RemoteFile, kept: BinaryIO, part: Path, there: int) -> hashlib._Hash:
        """The hash of the first `there` bytes, which an earlier run or request left."""
        if self._known is not None and self._known[:2] == (part, there):
            return self._known[2]
        digest = _new_hash(file)
        kept.seek(0)
        done = 0
        while done < there:
            self._watch.go_on()
            piece = kept.read(min(_READ_BYTES, there - done))
            digest.update(piece)
            done += len(piece)
            self._watch.on_check(done)
        return digest


def check_room(free_bytes: int, needed_bytes: int) -> None:
    """Raise DiskFull unless `needed_bytes` fit and RESERVE_BYTES stay free."""
    if free_bytes >= needed_bytes + RESERVE_BYTES:
        return
    lacks = format_size(needed_bytes + RESERVE_BYTES - free_bytes, up=True)
    needed = f"{format_size(needed_bytes)} are to come and " if needed_bytes else ""
    raise DiskFull(
        f"The disk of the models folder is full: {needed}{format_size(RESERVE_BYTES)} stay free for conversations, "
        f"but only {format_size(max(0, free_bytes))} are free.",
        remedy=f"Free {lacks}, then resume: what was fetched is kept.",
    )


@contextmanager
def disk_errors() -> Iterator[None]:
    """What the disk refuses as SnugErrors; what the hub does passes."""
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def disk_error(error: OSError) -> SnugError:
    """What the disk said, in words."""
    if error.errno in _FULL:
        large = " for files of this size" if error.errno == errno.EFBIG else ""
        return DiskFull(
            f"The disk of the models folder is full{large}.",
            remedy="Free some space, then resume: what was fetched is kept.",
        )
    return StoreFailed(
        f"The models folder cannot be written to: {error.strerror or type(error).__name__}.",
        remedy="Check its rights, then resume.",
    )


def _new_hash(file: RemoteFile) -> hashlib._Hash:
    """The hash of a large file, or git's of a small one, which begins with its size."""
    if len(file.digest) == 40:
        return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
    return hashlib.sha256()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
