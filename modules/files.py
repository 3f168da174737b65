"""The only doors to the disk for names that came from outside, and for files that must never be half written."""

from __future__ import annotations

import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from modules.errors import BadName

ASIDE_S = 24 * 3600.0  # as deleted conversations are kept
_MAX_NAME_BYTES = 200
_WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?")
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|%~]')
_ABSOLUTE_PATH = re.compile(r"""(?<![\w:/.])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'",;]+[/\\])+([^\s/\\'",;]*)""")


def without_folders(text: str) -> str:
    """`text` with the folders of absolute paths left out: nobody else need know how this machine is laid out."""
    return _ABSOLUTE_PATH.sub(lambda match: match[0] if match[0].startswith("/v1/") else "…/" + match[1], text)


def check_name(name: str) -> str:
    """`name`, if it can be one file name on every system; raises BadName if not. Never touches the disk."""
    reason = ""
    if not name or not name.strip():
        reason = "is empty"
    elif len(name.encode("utf-8", "replace")) > _MAX_NAME_BYTES:
        reason = f"is longer than {_MAX_NAME_BYTES} bytes"
    elif not name.isprintable() or _FORBIDDEN.search(name) or not can_be_written(name):
        reason = "holds a character that file names may not hold"
    elif name[0] in ".- " or name[-1] in ". ":
        reason = "begins with a dot, dash or space, or ends with a dot or space"
    elif _WINDOWS_DEVICES.fullmatch(name):
        reason = "is reserved by Windows"
    if reason:
        raise BadName(f"The name {name[:60]!r} {reason}.", remedy="Use letters, digits, spaces, dots and dashes.")
    return name


def can_be_written(name: str) -> bool:
    """Whether this system's file names can hold it: in an old locale they are ASCII, or Latin alone."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def safe_path(root: Path, name: str, suffix: str = "") -> Path:
    """The path of `name` + `suffix` directly inside `root`. Raises BadName for any name that could lead elsewhere.

    A symbolic link that leaves `root` is refused too. The file need not exist.
    """
    path = root / (check_name(name) + suffix)
    if path.is_symlink() and root.resolve() not in path.resolve().parents:
        raise BadName(f"{name!r} is a link that leads out of {root.name}/.", remedy="Move the file itself there.")
    return path


def home_of(user_data: Path, owner: str) -> Path:
    """Where the files of one owner lie; "" has those of the user data folder itself. Raises BadName."""
    return safe_path(user_data / "people", owner) if owner else user_data


def atomic_write(path: Path, data: bytes | str) -> None:
    """Put `data` at `path`: afterwards either the old or the whole new content stands there, even after a crash."""
    payload = data.encode("utf-8") if isinstance(data, str) else data
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def put_aside(path: Path, folder: Path) -> None:
    """Move a deleted file to `folder`, in place of one of its name, from where it can be had back for ASIDE_S."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path.replace(folder / path.name)
    with suppress(OSError):  # another user's: then the system's own note of the move counts, where it keeps one
        os.utime(path)


def forget_aside(folder: Path) -> None:
    """Delete for good what was put aside more than ASIDE_S ago; what cannot be deleted stays."""
    with suppress(OSError):
        for path in folder.iterdir():
            seen = path.stat()
            if max(seen.st_mtime, seen.st_ctime) < time.time() - ASIDE_S:
                path.unlink()


def only_for_owner(path: Path) -> None:
    """Make `path`, if it is not there, and let nobody but its owner open it, where the system knows such rights."""
    with suppress(OSError):  # never opened if it is there: a close would let go of SQLite's locks on it
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with suppress(OSError):  # another user's, or a disk without such rights
        path.chmod(0o600)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, where the system can (Windows cannot)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
