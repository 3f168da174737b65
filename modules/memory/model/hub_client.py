"""Reads a repository on the Hugging Face hub: its list of files, ranges of bytes of them, a file from some byte on.

Addresses, headers, session and the meaning of a status are huggingface_hub's; its own readers are not used, since they
trust what a header says, download a file whole where a server ignores the range, and keep nothing of a download that
was broken off. Every failure is a SnugError.
"""

from __future__ import annotations

import difflib
import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
from huggingface_hub import ModelInfo, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import hf_raise_for_status

from modules.errors import BadName, DownloadFailed, Forbidden, ModelNotFound, SnugError, TimedOut, TooManyAttempts

REQUEST_TIMEOUT_S = 10.0
WHOLE_TIMEOUT_S = 60.0
MAX_FILES = 20_000
MAX_LIST_BYTES = 16 * 1024**2  # a list of so many files has some 6 MB
MAX_FILE_BYTES = 1024**5
MAX_REDIRECTS = 5
MAX_ERROR_BYTES = 64 * 1024
MAX_NEAR_BYTES = 1024**2
NEAR_NAMES = 3
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_UNPACKED = {"accept-encoding": "identity"}
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_ASK_ACCESS = "Ask for access on its page, then log in with `hf auth login`, set HF_TOKEN or use --hf-token-file FILE."


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: file name → bytes (0 where the hub does not say).

    `digests`: file name → sha256 (64 hexadecimal digits) of a large file, git's blob sha1 (40) of a small one, where
    the hub says it. `name` is the repository's name as the hub spells it.
    """

    commit: str
    files: dict[str, int]
    digests: dict[str, str] = field(default_factory=dict)
    name: str = ""
    license: str = ""
    gated: bool = False
    private: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """A file on its way: `pieces` are its bytes from `start` on, `size_bytes` what the whole file has."""

    start: int
    size_bytes: int
    pieces: Iterator[bytes]


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form of a repository's: organisation/model."""
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


def near_names(name: str, *, endpoint: str | None = None, token: str | None = None) -> tuple[str, ...]:
    """Repositories with a name like this one, nearest first, as the hub's search finds them; none if it finds none."""
    query = urlencode({"search": name.rpartition("/")[2], "limit": NEAR_NAMES * 5})
    url = f"{endpoint or constants.ENDPOINT}/api/models?{query}"
    headers = build_hf_headers(token=token) | _UNPACKED
    deadline = time.monotonic() + REQUEST_TIMEOUT_S
    try:
        with _opened(url, headers) as got:
            _raise_for_status(got)
            found = json.loads(_first_bytes(got, MAX_NEAR_BYTES, deadline))
        names = [model["id"] for model in found if isinstance(model["id"], str) and is_hub_name(model["id"])]
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.HTTPError, httpx2.InvalidURL, OSError):
        return ()
    except (ValueError, KeyError, TypeError, RecursionError):  # what answers is not the hub
        return ()

    def likeness(other: str) -> float:
        return difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio()

    return tuple(sorted(names, key=likeness, reverse=True)[:NEAR_NAMES])


class HubClient:
    """One repository at one revision. `endpoint` None is the hub itself; `token` None is the one that is logged in."""

    def __init__(self, name: str, revision: str, *, endpoint: str | None = None, token: str | None = None) -> None:
        if not is_hub_name(name):
            raise BadName(f"{name[:80]!r} is not the name of a model on the hub.", remedy="Write organisation/model.")
        if not _REVISION.fullmatch(revision) or ".." in revision:
            raise BadName(f"{revision[:80]!r} is not a revision.", remedy="Give a branch, a tag or a commit.")
        self.name = name
        self._revision = revision
        self._endpoint = endpoint
        self._token = token
        self._deadline = time.monotonic() + WHOLE_TIMEOUT_S

    def listing(self) -> Listing:
        """Which files there are. Raises ModelNotFound, Forbidden, TooManyAttempts, TimedOut or DownloadFailed."""
        try:
            made: Any = ModelInfo
            info = made(**json.loads(self._described()))
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise DownloadFailed(
                f"What answers about {self.name} is not the hub.", remedy="Check the network, and HF_ENDPOINT."
            ) from error
        found = [item for item in (info.siblings or [])[:MAX_FILES] if isinstance(item.rfilename, str)]
        files = {item.rfilename: item.size if _is_size(item.size) else 0 for item in found}
        if not info.sha or not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
            raise DownloadFailed(f"The hub does not name a commit of {self.name}.", remedy="Try again later.")
        return Listing(
            info.sha,
            files,
            digests={item.rfilename: digest for item in found if (digest := _digest(item))},
            name=info.id if isinstance(info.id, str) and is_hub_name(info.id) else self.name,
            license=_license(info),
            gated=bool(info.gated),
            private=bool(info.private),
        )

    def _described(self) -> bytes:
        """The hub's JSON about the repository. HfApi.model_info would unpack and read whatever comes, to its end."""
        endpoint = self._endpoint or constants.ENDPOINT
        url = f"{endpoint}/api/models/{self.name}/revision/{quote(self._revision, safe='')}?blobs=true"
        headers = self._headers | _UNPACKED
        with self._named_errors(), _opened(url, headers) as got:
            _raise_for_status(got)
            packed = got.headers.get("content-encoding", "identity")
            found = self._take(got, MAX_LIST_BYTES + 1)
            if packed != "identity" or len(found) > MAX_LIST_BYTES:
                raise DownloadFailed(
                    f"The hub's answer about {self.name} is packed or too long to be a list of files.",
                    remedy="Check the network, and HF_ENDPOINT.",
                )
            return found

    @contextmanager
    def stream(self, commit: str, file: str, start: int) -> Iterator[Body]:
        """`file` from byte `start` on, or from its first where the server sends all of it. Never packed.

        The failures of the server and the line are SnugErrors, here and while `pieces` are read.
        """
        headers = self._headers | _UNPACKED
        if start:
            headers["range"] = f"bytes={start}-"
        with self._named_errors():
            got = _open(hf_hub_url(self.name, file, revision=commit, endpoint=self._endpoint), headers)
        try:
            with self._named_errors():
                _raise_for_status(got)
            packed = got.headers.get("content-encoding", "identity")
            if packed != "identity":
                raise DownloadFailed(f"{file} comes packed ({packed[:20]}).", remedy="Try again later.")
            begins = _first_byte(got, file) if got.status_code == 206 else 0
            yield Body(begins, _whole_size(got, file), self._pieces(got))
        finally:
            got.close()

    def _pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        with self._named_errors():
            yield from response.iter_raw()

    @property
    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self._token)

    def read(self, commit: str, file: str, start: int, length: int) -> tuple[bytes, int]:
        """(at most `length` bytes of `file` from `start`, the size of the whole file); never reads more than that."""
        url = hf_hub_url(self.name, file, revision=commit, endpoint=self._endpoint)
        headers = self._headers | _UNPACKED | {"range": f"bytes={start}-{start + length - 1}"}
        with self._named_errors(), _opened(url, headers) as got:
            _raise_for_status(got)
            if got.status_code != 206 and start:
                raise DownloadFailed(f"{file} cannot be read in parts from there.", remedy="Fetch the model instead.")
            return self._take(got, length), _whole_size(got, file)

    def _take(self, response: httpx2.Response, length: int) -> bytes:
        try:
            return _first_bytes(response, length, self._deadline)
        except TimeoutError as error:
            raise self._late() from error

    def _late(self) -> TimedOut:
        return TimedOut(f"The hub answers too slowly about {self.name}.", remedy="Try again later.")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        """huggingface_hub's and httpx's failures as SnugErrors."""
        try:
            yield
        except OfflineModeIsEnabled as error:
            raise self._unreachable("HF_HUB_OFFLINE is set") from error
        except HfHubHTTPError as error:
            raise self._refused(error) from error
        except HFValidationError as error:
            raise BadName(f"{self.name!r} is not the name of a model on the hub.", remedy=str(error)[:120]) from error
        except httpx2.TimeoutException as error:
            raise self._late() from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise self._unreachable(type(error).__name__) from error

    def _refused(self, error: HfHubHTTPError) -> SnugError:
        status = error.response.status_code
        if isinstance(error, DisabledRepoError):
            return ModelNotFound(f"The hub has disabled {self.name}.", remedy="Choose another model.")
        if isinstance(error, GatedRepoError) or status == 403:
            return Forbidden(f"{self.name} is gated: its publisher grants access.", remedy=_ASK_ACCESS)
        if isinstance(error, RevisionNotFoundError):
            return ModelNotFound(f"{self.name} has no revision {self._revision!r}.", remedy="Try `main`.")
        if isinstance(error, EntryNotFoundError):
            return ModelNotFound(f"A file of {self.name} is gone from the hub.", remedy="Try again.")
        if status == 401 or (isinstance(error, RepositoryNotFoundError) and status != 404):
            return Forbidden(
                f"The hub does not show {self.name}: it is private, gated, or not there.",
                remedy=f"Check the name. {_ASK_ACCESS}",
            )
        if status == 404:
            return ModelNotFound(f"There is no {self.name} on the hub.", remedy="Check the name: organisation/model.")
        if status == 429:
            return TooManyAttempts("The hub asks to wait: too many requests.", remedy="Try again in a few minutes.")
        return DownloadFailed(f"The hub answers {status} for {self.name}.", remedy="Try again later.")

    def _unreachable(self, why: str) -> DownloadFailed:
        return DownloadFailed(
            f"The hub cannot be reached ({why}).",
            remedy="Check the network, or put the model's config.json into a folder and name that.",
        )


def _open(url: str, headers: dict[str, str]) -> httpx2.Response:
    """What answers a GET, its body not read yet. httpx reads the body of every redirect to its end, however long, and
    follows one from https to whatever this machine or its network offers without."""
    session = get_session()
    request = session.build_request("GET", url, headers=headers, timeout=REQUEST_TIMEOUT_S)
    for _ in range(MAX_REDIRECTS + 1):
        got = session.send(request, stream=True, follow_redirects=False)
        if got.next_request is None:
            return got
        got.close()
        if request.url.scheme == "https" != got.next_request.url.scheme:
            raise httpx2.UnsupportedProtocol("redirected out of https")
        request = got.next_request
    raise httpx2.TooManyRedirects("redirected on and on", request=request)


@contextmanager
def _opened(url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
    """Likewise, closed at the end."""
    got = _open(url, headers)
    try:
        yield got
    finally:
        got.close()


def _is_size(value: object) -> bool:
    return isinstance(value, int) and 0 < value < MAX_FILE_BYTES


def _first_bytes(response: httpx2.Response, length: int, deadline: float) -> bytes:
    """The first `length` bytes of a body that may be endless, or slow. Raises TimeoutError after `deadline`."""
    taken = bytearray()
    for piece in response.iter_raw():  # as it comes: pieces of a size would be waited for, byte by byte
        taken += piece
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(taken) >= length:
            break
    del taken[length:]
    return bytes(taken)


def _raise_for_status(response: httpx2.Response) -> None:
    """As hf_raise_for_status, of the first bytes of what the hub says to an error: that may be endless too."""
    if response.status_code >= 400:
        said, deadline = bytearray(), time.monotonic() + REQUEST_TIMEOUT_S
        for piece in response.iter_raw():
            said += piece
            if len(said) >= MAX_ERROR_BYTES or time.monotonic() > deadline:
                break
        about = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(name, value) for name, value in response.headers.items() if name.lower() not in about]
        response = httpx2.Response(
            response.status_code, headers=headers, content=bytes(said[:MAX_ERROR_BYTES]), request=response.request
        )
    hf_raise_for_status(response)


def _whole_size(response: httpx2.Response, file: str) -> int:
    """The size of the whole file, from Content-Range, or Content-Length where all of it was offered."""
    value = response.headers.get("content-range", "").rpartition("/")[2]
    if response.status_code != 206:
        value = response.headers.get("content-length", "")
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise DownloadFailed(f"The hub does not say how large {file} is.", remedy="Try again later.")
    return int(value)


def _first_byte(response: httpx2.Response, file: str) -> int:
    """Where a part begins, from Content-Range."""
    match = re.match(r"bytes (\d{1,15})-", response.headers.get("content-range", ""))
    if match is None:
        raise DownloadFailed(f"The hub does not say which part of {file} it sends.", remedy="Try again later.")
    return int(match.group(1))


def _digest(item: Any) -> str:
    """What a file's bytes must hash to, as Listing.digests; "" where the hub does not say."""
    lfs = item.lfs
    found = str(lfs.sha256 if lfs is not None else item.blob_id or "").lower()
    return found if re.fullmatch(r"[0-9a-f]{64}" if lfs is not None else r"[0-9a-f]{40}", found) else ""


def _license(info: Any) -> str:
    """The licence that the repository states, as its tag; "" for none."""
    tags = [tag for tag in info.tags or () if isinstance(tag, str)]
    return next((tag.removeprefix("license:")[:60] for tag in tags if tag.startswith("license:")), "")
