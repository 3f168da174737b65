"""What is known of a download, kept beside its files so that it can go on after the server has ended.

A download lies in models/.downloads/GOAL/: download.json, files/ with what has arrived whole and was checked, parts/
with what is on its way. The list of models sees none of it until the last file is there.
"""

from __future__ import annotations

import json
import re
import shutil
import threading
from pathlib import Path
from typing import Annotated
from uuid import uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from modules.downloads.choices import Choice
from modules.errors import BadName, BadValue, Busy
from modules.files import atomic_write, check_name, sync_folder
from modules.memory.model.hub_client import Listing, is_hub_name
from modules.units import MiB

FOLDER = ".downloads"
SOON_S = 0.3  # small downloads are deleted when it is said
_GONE = ".gone-"
RECORD = "download.json"
_MAX_RECORD_BYTES = 4 * MiB
_PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)
_DIGEST = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64})?")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def _file_name(name: str) -> str:
    """A path inside the repository of which every part can be a file's name."""
    try:
        return "/".join(check_name(part) for part in name.split("/"))
    except BadName as error:
        raise ValueError(error.message) from error


def _goal_name(name: str) -> str:
    if "/" in name:
        raise ValueError("it is no name in models/")
    return _file_name(name)


def _repository(name: str) -> str:
    if not is_hub_name(name):
        raise ValueError("it is no repository")
    return name


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class RemoteFile(_Value):
    """A file of the repository. `digest`: sha256 or git's blob sha1 in hexadecimal, "" where the hub says none."""

    path: Annotated[str, AfterValidator(_file_name)]
    size_bytes: int = Field(ge=0)
    digest: str = Field(pattern=_DIGEST)


class Record(_Value):
    """One download: these files of a repository at a commit become `goal` in models/."""

    name: Annotated[str, AfterValidator(_repository)]
    revision: str = Field(max_length=200)
    commit: str = Field(pattern=_COMMIT)
    title: str = Field(max_length=300)
    goal: Annotated[str, AfterValidator(_goal_name)]
    is_folder: bool
    files: Annotated[tuple[RemoteFile, ...], Field(strict=False, min_length=1, max_length=20_000)]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)


def record_of(listing: Listing, revision: str, choice: Choice, goal: str) -> Record:
    """The download of a choice; small files first, so that what is wrong with them is known soon."""
    files = [
        RemoteFile(path=name, size_bytes=listing.files[name], digest=listing.digests.get(name, ""))
        for name in choice.files
    ]
    return Record(
        name=listing.name, revision=revision, commit=listing.commit, title=choice.title, goal=goal,
        is_folder=choice.kind == "safetensors", files=tuple(sorted(files, key=lambda file: file.size_bytes)),
    )  # fmt: skip


def write_record(folder: Path, record: Record) -> None:
    """Keep it; an earlier one is replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / RECORD, record.model_dump_json(indent=1))


def read_record(folder: Path) -> Record:
    """What an earlier run left in `folder`. Raises BadValue naming the file and what is wrong with it."""
    path = folder / RECORD
    try:
        if path.stat().st_size > _MAX_RECORD_BYTES:
            raise ValueError("it is too large")
        record = Record.model_validate(json.loads(path.read_bytes()))
        if record.goal != folder.name:
            raise ValueError("it belongs elsewhere")
    except (OSError, ValueError, RecursionError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BadValue(
            f"What is known of the download of {folder.name} cannot be read: {why[:160]}.",
            remedy="Remove it, and begin it anew.",
        ) from error
    return record


def list_folders(model_dir: Path) -> list[Path]:
    """The folders of all downloads that have not ended, whole or not."""
    root = model_dir / FOLDER
    if not root.is_dir() or root.is_symlink():
        return []
    found = [path for path in root.iterdir() if path.is_dir() and not path.is_symlink()]
    for path in found:
        if path.name.startswith(_GONE):
            _delete(path)
    return sorted(path for path in found if not path.name.startswith(_GONE))


def throw_away(folder: Path) -> None:
    """Take a download's folder out of sight at once; what is in it, which may take minutes, is deleted beside."""
    aside = folder.with_name(f"{_GONE}{uuid4().hex}")
    try:
        folder.rename(aside)
    except FileNotFoundError:
        return
    except OSError:
        aside = folder
    _delete(aside)


def _delete(folder: Path) -> None:
    deleting = threading.Thread(target=shutil.rmtree, args=(folder, True), name="deleting a download", daemon=True)
    deleting.start()
    deleting.join(SOON_S)


def final_names(record: Record) -> dict[str, str]:
    """File of the repository → its name in models/, for GGUF files: the parts of a split one are named alike."""
    if len(record.files) == 1:
        return {record.files[0].path: record.goal}
    parts = {file.path: _PART.search(file.path) for file in record.files}
    return {path: _PART.sub(match[0], record.goal) for path, match in parts.items() if match}


def _moves(folder: Path, record: Record, model_dir: Path) -> dict[Path, Path]:
    """What is moved where at the end; the first part of a split file last: without it nothing shows the others."""
    if record.is_folder:
        return {folder / "files": model_dir / record.goal}
    names = final_names(record)
    return {folder / "files" / path: model_dir / names[path] for path in sorted(names, reverse=True)}


def install(folder: Path, record: Record, model_dir: Path) -> None:
    """Move the files of a whole download to where models lie, and forget the download. Raises Busy for a taken name."""
    for source, target in _moves(folder, record, model_dir).items():
        if not source.exists() and target.exists():
            continue  # an earlier run came this far
        if target.exists():
            raise Busy(
                f"There is another {target.name} in {model_dir.name}/ by now.",
                remedy="Move it away, then resume: what was fetched is kept.",
            )
        source.rename(target)
    sync_folder(model_dir)
    shutil.rmtree(folder, ignore_errors=True)


def end_install(folder: Path, record: Record, model_dir: Path) -> bool:
    """Whether an earlier run ended while it moved the files of a whole download; then the rest is moved."""
    moves = _moves(folder, record, model_dir)
    moved = [target.exists() and not source.exists() for source, target in moves.items()]
    if not any(moved) or not all(there or source.exists() for there, source in zip(moved, moves, strict=True)):
        return False
    install(folder, record, model_dir)
    return True
