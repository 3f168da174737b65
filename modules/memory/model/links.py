"""The links in a model's folder: which are followed.

git makes those of a cloned repository as they stand there, so one may lead to any file of the user's, or to /.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modules.errors import BadConfig

_TEMPLATES = "additional_chat_templates"  # transformers reads all of it


def followed_files(folder: Path) -> Iterator[Path]:
    """The files that followed links in `folder`, and in its own folders, lead to. Never folders."""
    inner = (path for path in folder.glob("*") if path.is_dir() and not path.is_symlink())
    for place in (folder, *inner):
        yield from (target for link, target in _links(place) if _is_followed(link, target) and target.is_file())


def refuse_other_links(folder: Path) -> None:
    """Raise BadConfig for a link that is not followed: a chat template that leads to settings.yaml would write it into
    every prompt. Weights may be called otherwise where they lie: their headers tell whether they are some.
    """
    for place in (folder, folder / _TEMPLATES):
        for link, target in _links(place):
            if link.suffix != ".safetensors" and not _is_followed(link, target):
                raise BadConfig(
                    f"{link.name} of {folder.name} is a link to another file ({target.name}).",
                    remedy="If it is meant to be so, put a copy there.",
                )


def _is_followed(link: Path, target: Path) -> bool:
    """One to a file of the same name, or in a folder `blobs`, as the hub's cache keeps all files."""
    return target.name == link.name or target.parent.name == "blobs"


def _links(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each link directly in `folder`, and where it ends."""
    for link in folder.glob("*"):
        if link.is_symlink():
            try:
                yield link, link.resolve()
            except (OSError, RuntimeError):  # a link to itself, which nobody can read
                continue
