"""What people type or paste to name a model on the hub, read as repository, revision and the file that they mean."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from modules.errors import BadName
from modules.memory.model.hub_client import is_hub_name

MAX_CHARS = 500
_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com"})
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_QUANTIZATION = re.compile(r"(?i)(UD-)?(I?Q\d\w*|TQ\d\w*|MXFP4\w*|BF16|F16|F32|FP16)")
_REMEDY = "Write organisation/model, or paste its address: https://huggingface.co/organisation/model."


@dataclass(frozen=True, slots=True)
class HubAddress:
    """A repository at a revision; `wanted` is a file's name, a pattern of such or a quantization, "" for no wish."""

    name: str
    revision: str = "main"
    wanted: str = ""


def read_address(text: str) -> HubAddress:
    """`org/name`, `org/name@branch`, `org/name:branch`, `org/name:Q4_K_M`, or an address of the hub's pages.

    Raises BadName, also for what is no model: a data set, a space, a page elsewhere.
    """
    given = text.strip().strip("\"'")
    if not given or len(given) > MAX_CHARS:
        raise _bad(given, "is no name of a model on the hub")
    path, is_page = _path_of(given)
    name, _, rest = path.partition("@") if "@" in path and not is_page else (path, "", "")
    wanted = ""
    if not rest and not is_page and ":" in path:
        name, _, rest = path.partition(":")
        if _QUANTIZATION.fullmatch(rest):
            rest, wanted = "", rest
    parts = [unquote(part) for part in name.split("/") if part]
    address = _with_page("/".join(parts[:2]), parts[2:])
    revision = unquote(rest) or address.revision
    if not is_hub_name(address.name):
        raise _bad(given, "is no name of a model on the hub")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise _bad(revision, "is no branch, tag or commit")
    return HubAddress(address.name, revision, wanted or address.wanted)


def _path_of(text: str) -> tuple[str, bool]:
    """What follows the host, and whether there was one. Raises BadName for another site and for what is no model."""
    host, slash, path = text.removeprefix("https://").removeprefix("http://").partition("/")
    own = urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc
    if "://" not in text and host.lower() not in _HOSTS:
        return _two_parts(text), False
    if not slash or host.lower() not in _HOSTS | {own.lower()}:
        raise _bad(host, "is not the hub")
    path = path.partition("?")[0].partition("#")[0].strip("/")
    if path.startswith(("datasets/", "spaces/")):
        raise _bad(text, f"is one of the hub's {path.partition('/')[0]}, not a model")
    path = _two_parts(path.removeprefix("api/models/").removeprefix("models/"))
    return path, "/" in path.partition("/")[2]


def _two_parts(path: str) -> str:
    """`path`, if it names an organisation and a model at least."""
    if not all(path.partition("/")[::2]) or path.startswith((".", "/")):
        raise _bad(path, "is no name of a model on the hub")
    return path


def _with_page(name: str, page: list[str]) -> HubAddress:
    """What an address says behind the model: tree/REVISION, blob/REVISION/FILE and their kin."""
    if len(page) < 2 or page[0] not in ("tree", "blob", "resolve", "raw", "commit", "commits"):
        return HubAddress(name)
    kind, revision, *file = page
    if revision == "refs" and len(file) >= 2:
        revision, file = "/".join([revision, *file[:2]]), file[2:]
    is_file = kind in ("blob", "resolve", "raw") and file
    return HubAddress(name, revision, "/".join(file) if is_file else "")


def _bad(what: str, problem: str) -> BadName:
    return BadName(f"{what[:80]!r} {problem}.", remedy=_REMEDY)
