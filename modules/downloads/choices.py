"""What of a repository can be fetched: the whole model in safetensors, or one quantization in GGUF.

Never a pickle, never code. Names and sizes in, choices out; nothing is asked of the hub.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from modules.errors import BadName, BadValue, PickleRefused, UnsupportedModel
from modules.files import check_name
from modules.memory.model.formats import PICKLE_SUFFIXES
from modules.memory.model.hub_client import Listing
from modules.units import MiB

SAFETENSORS: Literal["safetensors"] = "safetensors"
MAX_COMPANION_BYTES = 200 * MiB  # tokenizers have up to 40
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.safetensors")
_GGUF = re.compile(r"(?P<stem>.+?)(-\d{5}-of-(?P<count>\d{5}))?\.gguf", re.IGNORECASE)
_QUANTIZATION = re.compile(r"(?i)(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|FP16|F16|FP32|F32))(?=$|[-.])")
_NOT_A_MODEL = re.compile(r"(?i)(^|[-._])(mmproj|imatrix)([-._]|$)")
_COMPANION = re.compile(
    r"(?i)[^/]+\.(json|jinja|tiktoken)|[^/]*(tokenizer|sentencepiece|spiece|spm)[^/]*\.model|(vocab|merges)\.txt"
    r"|[0-9]_[A-Za-z]+/config\.json"  # how sentence-transformers makes one vector of a text: 1_Pooling
    r"|(LICEN[CS]E|NOTICE|USE_POLICY|README)(\.(txt|md))?"
)
_PREFERRED = "Q4_K_M"


@dataclass(frozen=True, slots=True)
class Choice:
    """Files that are one model. `id` names it among a repository's choices, `goal` is its name in models/."""

    id: str
    title: str
    kind: Literal["safetensors", "gguf"]
    files: tuple[str, ...]
    size_bytes: int
    goal: str

    @property
    def weights(self) -> tuple[str, ...]:
        """The files that hold tensors."""
        return tuple(file for file in self.files if file.lower().endswith((".safetensors", ".gguf")))


def list_choices(listing: Listing) -> tuple[Choice, ...]:
    """What can be fetched, safetensors first, then GGUF from small to large.

    Raises PickleRefused or UnsupportedModel where there is nothing.
    """
    files = {name: size for name, size in listing.files.items() if _is_safe(name)}
    whole = _safetensors(files, listing.name.rpartition("/")[2])
    found = (*((whole,) if whole else ()), *_ggufs(files))
    if found:
        return found
    if any(is_pickle(name) for name in listing.files):
        raise PickleRefused(
            f"{listing.name} holds its weights as pickles alone.",
            remedy="A pickle can run any program when it is opened. Look for a copy in safetensors or GGUF format.",
        )
    raise UnsupportedModel(
        f"{listing.name} holds no model in safetensors or GGUF format.",
        remedy="It holds an adapter: choose the model that it belongs to." if "adapter_config.json" in listing.files
        else "Choose another model.",
    )  # fmt: skip


def is_pickle(name: str) -> bool:
    """Whether a file is a pickle by its name."""
    return PurePosixPath(name).suffix.lower() in PICKLE_SUFFIXES


def _is_safe(name: str) -> bool:
    """Whether each part of a file's name is one that models/ may hold."""
    try:
        return all(check_name(part) for part in name.split("/")) and "\\" not in name
    except BadName:
        return False


def _safetensors(files: Mapping[str, int], model: str) -> Choice | None:
    """The model in safetensors at the top of the repository: the weights that loading reads, and what they need."""
    weights = _weights(files)
    if not weights or "config.json" not in files:
        return None
    companions = [
        name for name, size in files.items()
        if _COMPANION.fullmatch(name) and size <= MAX_COMPANION_BYTES and not _is_index_of_others(name)
    ]  # fmt: skip
    chosen = (*sorted(companions), *weights)
    return Choice(SAFETENSORS, "The whole model", SAFETENSORS, chosen, sum(files[name] for name in chosen), model)


def _is_index_of_others(name: str) -> bool:
    """Whether it is a list of weights that are not fetched: pickles' index, or another library's."""
    return name.endswith(".index.json") and name != _INDEX


def _weights(files: Mapping[str, int]) -> list[str]:
    """The safetensors files that loading reads: the index's shards, model.safetensors, or all there are."""
    top = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
    top = [name for name in top if not name.startswith(("adapter_", "consolidated"))]
    if _INDEX in files:
        sets: dict[str, list[str]] = defaultdict(list)
        for name in top:
            if match := _SHARD.fullmatch(name):
                sets[match["stem"]].append(name)
        return sets.get("model") or max(sets.values(), key=len, default=top)
    return ["model.safetensors"] if "model.safetensors" in top else top


def _ggufs(files: Mapping[str, int]) -> list[Choice]:
    """One choice a GGUF file, the parts of a split one together; incomplete sets are left out."""
    sets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in sorted(files):
        if (match := _GGUF.fullmatch(name)) and not _NOT_A_MODEL.search(name.rpartition("/")[2]):
            sets[match["stem"], match["count"] or ""].append(name)
    whole = [(stem, names) for (stem, count), names in sets.items() if len(names) == int(count or 1)]
    titles = _titles([stem for stem, _ in whole])
    choices = [
        Choice(names[0], title, "gguf", tuple(names), sum(files[name] for name in names), names[0].rpartition("/")[2])
        for (_, names), title in zip(whole, titles, strict=True)
    ]
    return sorted(choices, key=lambda choice: choice.size_bytes)


def _titles(stems: Sequence[str]) -> list[str]:
    """The quantizations, where they tell the files apart, else the files' names."""
    matches = [_QUANTIZATION.findall(stem.rpartition("/")[2]) for stem in stems]
    names = [found[-1].upper() if found else "" for found in matches]
    if all(names) and len(set(names)) == len(names):
        return names
    return [stem.rpartition("/")[2] for stem in stems]


def find_choice(choices: Sequence[Choice], wanted: str) -> Choice:
    """The choice that `wanted` means: its id, its title, a file of it, or a pattern of such. Raises BadValue."""
    lowered = wanted.lower()
    for choice in choices:
        if lowered in (choice.id.lower(), choice.title.lower(), *(file.lower() for file in choice.files)):
            return choice
    for choice in choices:
        if any(fnmatch.fnmatch(f"/{file.lower()}", f"*/{lowered}") for file in choice.files):
            return choice
    near = [choice for choice in choices if lowered in choice.id.lower()]
    if len(near) == 1:
        return near[0]
    there = ", ".join(choice.title for choice in choices[:30])
    if is_pickle(wanted):
        raise PickleRefused(f"{wanted[:80]} is a pickle and is not fetched.", remedy=f"There is: {there}.")
    raise BadValue(f"There is no {wanted[:80]!r} to fetch.", remedy=f"There is: {there}.", param="file")


def best_choice(choices: Sequence[Choice], memory_bytes: int) -> Choice:
    """What to propose where nothing is wished, with `memory_bytes` free on the roomiest device.

    The whole model where there is one; of GGUF files the usual quantization, else the largest that leaves a quarter
    of that memory free, else the smallest.
    """
    first = choices[0]
    if first.kind == SAFETENSORS:
        return first
    fitting = [choice for choice in choices if choice.size_bytes <= memory_bytes * 3 // 4]
    usual = next((choice for choice in fitting if choice.title.endswith(_PREFERRED)), None)
    return usual or max(fitting, key=lambda choice: choice.size_bytes, default=first)
