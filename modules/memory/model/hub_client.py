"""Reads the least of a repository on the Hugging Face hub: its list of files, and ranges of bytes of them.

Addresses, headers, session and the meaning of a status are huggingface_hub's; its own readers are not used, since they
trust what a header says and download a file whole where a server ignores the range. Every failure is a SnugError.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url
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
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}", re.ASCII)
_ASK_ACCESS = "Ask for access on its page, then log in with `hf auth login` or set HF_TOKEN."


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit: file name → bytes (0 where the hub does not say)."""

    commit: str
    files: dict[str, int]


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form of a repository's: organisation/model."""
    return _NAME.fullmatch(name) is not None and ".." not in name and "--" not in name


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
        with self._named_errors():
            api = HfApi(endpoint=self._endpoint, token=self._token)
            info = api.model_info(
                self.name, revision=self._revision, files_metadata=True, timeout=REQUEST_TIMEOUT_S
            )  # fmt: skip
        files = {item.rfilename: item.size or 0 for item in (info.siblings or [])[:MAX_FILES]}
        if not info.sha or not re.fullmatch(r"[0-9a-f]{7,64}", info.sha):
            raise DownloadFailed(f"The hub does not name a commit of {self.name}.", remedy="Try again later.")
        return Listing(info.sha, files)

    def read(self, commit: str, file: str, start: int, length: int) -> tuple[bytes, int]:
        """(at most `length` bytes of `file` from `start`, the size of the whole file); never reads more than that."""
        url = hf_hub_url(self.name, file, revision=commit, endpoint=self._endpoint)
        headers = {
            **build_hf_headers(token=self._token),
            "range": f"bytes={start}-{start + length - 1}",
            "accept-encoding": "identity",
        }
        with self._named_errors(), get_session().stream("GET", url, headers=headers, timeout=REQUEST_TIMEOUT_S) as got:
            if got.status_code >= 400:
                got.read()
            hf_raise_for_status(got)
            if got.status_code != 206 and start:
                raise DownloadFailed(f"{file} cannot be read in parts from there.", remedy="Fetch the model instead.")
            return self._take(got, length), _whole_size(got, file)

    def _take(self, response: httpx2.Response, length: int) -> bytes:
        """The first `length` bytes of a body that may be endless, or slow."""
        taken = bytearray()
        for piece in response.iter_raw(64 * 1024):
            taken += piece
            if time.monotonic() > self._deadline:
                raise self._late()
            if len(taken) >= length:
                break
        return bytes(taken[:length])

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


def _whole_size(response: httpx2.Response, file: str) -> int:
    """The size of the whole file, from Content-Range, or Content-Length where all of it was offered."""
    value = response.headers.get("content-range", "").rpartition("/")[2]
    if response.status_code != 206:
        value = response.headers.get("content-length", "")
    if not value.isdecimal():
        raise DownloadFailed(f"The hub does not say how large {file} is.", remedy="Try again later.")
    return int(value)
