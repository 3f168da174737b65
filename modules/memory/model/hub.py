"""A model on the Hugging Face hub as a ModelSpec: its config and the headers of its files, nothing more.

`inspect_hub` fetches a few hundred kilobytes of a repository of any size and keeps them in the user's cache, by commit;
of a GGUF file `inspect_hub_gguf` fetches the header, some megabytes with its vocabulary. Where the hub cannot be
reached, what was fetched before serves, with a warning.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from modules.errors import (
    BadConfig,
    BadGguf,
    BadSafetensors,
    DiskFull,
    DownloadFailed,
    PickleRefused,
    RemoteCodeDisabled,
    UnsupportedModel,
)
from modules.files import atomic_write
from modules.memory.model.config import MAX_CONFIG_BYTES
from modules.memory.model.embedder import MODULES, PROMPTS, SETTINGS
from modules.memory.model.folder import checked_against_config, named_tensors, spec_from_headers
from modules.memory.model.formats import (
    MAX_HEADER_BYTES,
    MAX_INDEX_BYTES,
    MAX_MODEL_TENSORS,
    PICKLE_SUFFIXES,
    StoredTensor,
    merge_tensors,
    parse_header,
    read_index,
)
from modules.memory.model.gguf import header_length
from modules.memory.model.gguf_model import inspect_gguf
from modules.memory.model.hub_client import HubClient, Listing
from modules.memory.model.model_config import check_config, is_code_file
from modules.memory.model.model_spec import Describe, ModelSpec
from modules.memory.model.naming import check_blocks
from modules.memory.model.tokenizers import has_tokenizer_file
from modules.units import KiB, MiB

FIRST_READ_BYTES = 64 * KiB
MAX_GGUF_HEADER_BYTES = 64 * MiB
_INDEX = "model.safetensors.index.json"
_READERS = 8
# Of a model that embeds texts: what says how.
_EMBEDDING_FILES = re.compile(rf"{MODULES}|{SETTINGS}|{PROMPTS}|tokenizer_config\.json|[0-9]_[A-Za-z]+/config\.json")
_MOST_EMBEDDING_FILES = 12


def inspect_hub(
    name: str,
    *,
    cache_folder: Path,
    revision: str = "main",
    describe: Describe | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> ModelSpec:
    """The spec of `organisation/model` on the hub at `revision`, from its config and headers.

    Its path is a folder below `cache_folder` with the config alone. Raises BadName, ModelNotFound, Forbidden (gated or
    private), TooManyAttempts, TimedOut, DownloadFailed (offline), PickleRefused, and what inspect raises.
    """
    client = HubClient(name, revision, endpoint=endpoint, token=token)
    pointer = cache_folder / f"{name.replace('/', '--')}@{re.sub(r'[^A-Za-z0-9._-]', '_', revision)}.json"
    warnings: list[str] = []
    try:
        folder = _fetch(client, client.listing(), cache_folder)
        atomic_write(pointer, json.dumps({"folder": folder.name}))
    except DownloadFailed as error:
        folder = _kept(pointer, cache_folder)
        if not _is_whole(folder):
            raise
        warnings.append(f"{error.message} This is {name} as it was when it was last looked at.")
    spec = _spec(name, folder, warnings)
    return checked_against_config(spec, describe, folder / "config.json") if describe else spec


def inspect_hub_gguf(client: HubClient, listing: Listing, files: Sequence[str], *, cache_folder: Path) -> ModelSpec:
    """The spec of a GGUF file of a repository, or of a split one's parts, first part first.

    Its path is a file below `cache_folder` with the header alone, as long as the whole: the rest takes no space there.
    Raises what HubClient and inspect raise, DiskFull where the cache cannot hold that.
    """
    folder = cache_folder / f"{client.name.replace('/', '--')}--{listing.commit[:40]}"
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        _fetch_gguf_header(client, listing, file, folder / file.rpartition("/")[2])
    return replace(inspect_gguf(folder / files[0].rpartition("/")[2]), weights_here=False)


def _fetch_gguf_header(client: HubClient, listing: Listing, file: str, target: Path) -> None:
    size = listing.files[file]
    if target.exists() and target.stat().st_size == size:
        return
    start = _Start(client, listing.commit, file, size)
    length = header_length(target, start, size)
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as made:
            made.write(start.taken(length))
            made.truncate(size)
        part.replace(target)
    except OSError as error:
        told = f"The cache cannot hold the header of {file}: {error.strerror}."
        raise DiskFull(told, remedy="Free some space.") from error


class _Start:
    """The first bytes of a file on the hub, fetched as they are read, in growing steps."""

    def __init__(self, client: HubClient, commit: str, file: str, size: int) -> None:
        self._client, self._commit, self._file, self._size = client, commit, file, size
        self._bytes = bytearray()
        self._position = 0

    def seek(self, offset: int, /) -> int:
        """Go to a byte."""
        self._position = offset
        return offset

    def read(self, length: int, /) -> bytes:
        """At most `length` bytes from there. Raises BadGguf for a header without end, and what HubClient raises."""
        return bytes(memoryview(self.taken(self._position + length))[self._position :])

    def taken(self, length: int) -> bytes:
        """The first `length` bytes."""
        while len(self._bytes) < min(length, self._size):
            if len(self._bytes) > MAX_GGUF_HEADER_BYTES:
                raise BadGguf(f"{self._file} has a header without end.", remedy="Choose another file.")
            there = len(self._bytes)
            step = min(max(FIRST_READ_BYTES * 8, there), self._size - there)
            piece, _ = self._client.read(self._commit, self._file, there, step)
            if not piece:
                raise DownloadFailed(f"{self._file} came incomplete.", remedy="Try again.")
            self._bytes += piece
        return bytes(self._bytes[:length])


def _kept(pointer: Path, cache_folder: Path) -> Path:
    """The folder that an earlier look left; a name that does not exist if there is none."""
    try:
        content = json.loads(pointer.read_bytes())
        return cache_folder / Path(str(content["folder"])).name
    except (OSError, ValueError, KeyError, TypeError):
        return cache_folder / "none"


def _is_whole(folder: Path) -> bool:
    """Whether `folder` holds all that an earlier look put there."""
    try:
        content = json.loads((folder / "files.json").read_bytes())
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict) or content.keys() != {"files", "headers"}:
        return False
    return MODULES not in content["files"] or (folder / MODULES).exists()  # not so in a cache of an older version


def _fetch(client: HubClient, listing: Listing, cache_folder: Path) -> Path:
    """Config, index and headers of a commit into a folder of its own; at once where they are there already."""
    folder = cache_folder / f"{client.name.replace('/', '--')}--{listing.commit[:40]}"
    if _is_whole(folder):
        return folder
    code = next((file for file in listing.files if is_code_file(file)), "")
    if code:
        raise RemoteCodeDisabled(
            f"{client.name} brings code of its own ({code}), which Snug does not fetch.",
            remedy="If you trust its publisher, fetch the model and start Snug with --trust-remote-code.",
        )
    if "config.json" not in listing.files:
        _refuse_formats(client.name, listing)
        raise BadConfig(f"{client.name} has no config.json on the hub.", remedy="Choose another model.")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "config.json", _whole(client, listing, "config.json", MAX_CONFIG_BYTES))
    if MODULES in listing.files:
        _fetch_embedding_files(client, listing, folder)
    check_config(folder / "config.json", client.name, trust_remote_code=False)
    names = _weight_files(client, listing, folder)
    with ThreadPoolExecutor(_READERS) as readers:
        headers: list[list[list[Any]]] = []
        for header in readers.map(lambda file: _header(client, listing.commit, file), names):
            headers.append(header)
            if sum(map(len, headers)) > MAX_MODEL_TENSORS:
                readers.shutdown(wait=False, cancel_futures=True)
                raise BadSafetensors(
                    f"The files of {client.name} list more than {MAX_MODEL_TENSORS:,} tensors.",
                    remedy="Choose another model.",
                )
    content = {"files": sorted(listing.files), "headers": dict(zip(names, headers, strict=True))}
    atomic_write(folder / "files.json", json.dumps(content))
    return folder


def _fetch_embedding_files(client: HubClient, listing: Listing, folder: Path) -> None:
    """What says how the model embeds, modules.json last: where that is, all of it is."""
    found = sorted(file for file in listing.files if _EMBEDDING_FILES.fullmatch(file) and file != MODULES)
    for file in (*found[:_MOST_EMBEDDING_FILES], MODULES):
        (folder / file).parent.mkdir(exist_ok=True)
        atomic_write(folder / file, _whole(client, listing, file, MAX_CONFIG_BYTES))


def _refuse_formats(name: str, listing: Listing) -> None:
    """Name the format of a repository without safetensors."""
    if any(Path(file).suffix.lower() in PICKLE_SUFFIXES for file in listing.files):
        raise PickleRefused(
            f"{name} holds its weights as pickles alone.",
            remedy="A pickle can run any program when it is opened. Look for a copy in safetensors or GGUF format.",
        )
    if any(file.lower().endswith(".gguf") for file in listing.files):
        raise UnsupportedModel(
            f"{name} holds GGUF files.", remedy="Choose one with --download, which shows its plan too."
        )


def _weight_files(client: HubClient, listing: Listing, folder: Path) -> list[str]:
    """The safetensors files that make up the model: of its index, or the one there is."""
    if _INDEX in listing.files:
        atomic_write(folder / _INDEX, _whole(client, listing, _INDEX, MAX_INDEX_BYTES))
        index = read_index(folder / _INDEX, exists=listing.files.__contains__)
        return sorted(set(index.values()))
    found = sorted(file for file in listing.files if file.endswith(".safetensors") and "/" not in file)
    if "model.safetensors" in found:
        return ["model.safetensors"]
    found = [file for file in found if not file.startswith("adapter_")]
    if not found:
        _refuse_formats(client.name, listing)
        raise UnsupportedModel(f"{client.name} holds no weights.", remedy="Choose another model.")
    return found


def _whole(client: HubClient, listing: Listing, file: str, limit: int) -> bytes:
    """A small file whole. Raises BadConfig where it is larger than such a file ever is."""
    raw, size = client.read(listing.commit, file, 0, limit + 1)
    if max(size, len(raw)) > limit:
        raise BadConfig(f"{file} of {client.name} is larger than {limit} bytes.", remedy="Choose another model.")
    if len(raw) < size:
        raise DownloadFailed(f"{file} of {client.name} came incomplete.", remedy="Try again.")
    return raw


def _header(client: HubClient, commit: str, file: str) -> list[list[Any]]:
    """The tensors of one safetensors file, checked as a local file's are: [name, shape, dtype, bytes] each."""
    raw, size = client.read(commit, file, 0, FIRST_READ_BYTES)
    length = struct.unpack("<Q", raw[:8])[0] if len(raw) >= 8 else MAX_HEADER_BYTES + 1
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise BadSafetensors(
            f"{file} of {client.name} is not a sound safetensors file: its header claims {length} bytes.",
            remedy="Choose another model.",
        )
    if len(raw) < 8 + length:
        raw += client.read(commit, file, len(raw), 8 + length - len(raw))[0]
    tensors = parse_header(Path(file), raw[8 : 8 + length], size - 8 - length)
    return [[tensor.name, list(tensor.shape), tensor.dtype, tensor.size_bytes] for tensor in tensors]


def _spec(name: str, folder: Path, warnings: list[str]) -> ModelSpec:
    """The spec of what `_fetch` left in `folder`."""
    content = json.loads((folder / "files.json").read_bytes())
    checked = check_config(folder / "config.json", name, trust_remote_code=False)
    stored = _stored(content["headers"])
    tensors = named_tensors(stored, checked)
    check_blocks(tensors, checked.shape.layers, name)
    if not has_tokenizer_file(content["files"]):
        warnings = [*warnings, f"{name} has no tokenizer of its own on the hub."]
    return replace(spec_from_headers(name, folder, checked, tensors, warnings), weights_here=False)


def _stored(headers: dict[str, Sequence[Sequence[Any]]]) -> tuple[StoredTensor, ...]:
    files = {
        Path(file): tuple(StoredTensor(name, tuple(shape), dtype, size) for name, shape, dtype, size in entries)
        for file, entries in headers.items()
    }
    return merge_tensors(files)
