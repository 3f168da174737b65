"""The one gate for what Snug's extensions ask of other machines: one named host, bounded in size and time.

The caller names the host that a person has configured; a redirect to any other is refused, and so is everything but
HTTP. Proxies of the environment count, cookies and passwords are never sent. Downloads of models go other ways.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import httpx2

from modules.errors import BadValue, DownloadFailed, TimedOut
from modules.units import MiB, format_size

MAX_BYTES = 1 * MiB
TIMEOUT_S = 8.0
MAX_REDIRECTS = 3
_AGENT = "Mozilla/5.0 (compatible; Snug)"


def fetch(
    address: str,
    *,
    host: str,
    query: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    max_bytes: int = MAX_BYTES,
    timeout_s: float = TIMEOUT_S,
) -> str:
    """The text at an address of `host` ("name" or "name:port"); with `form` it is posted.

    Raises BadValue for another host or kind of address, TimedOut, DownloadFailed for all else that goes wrong.
    """
    deadline = time.monotonic() + timeout_s
    with httpx2.Client(timeout=timeout_s, headers={"User-Agent": _AGENT}, follow_redirects=False) as client:
        for _ in range(MAX_REDIRECTS + 1):
            _check(address, host)
            text, moved = _ask(client, address, query, form, max_bytes, deadline)
            if not moved:
                return text
            address, query, form = moved, None, None
    raise DownloadFailed(f"{host} sends from one address to the next.", remedy="Try again later.")


def host_of(address: str) -> str:
    """The host of an address, as `fetch` wants it. Raises BadValue for what is no address of HTTP."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise BadValue(f"{address[:80]!r} is no address.", remedy="Write it like https://example.org.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise BadValue(f"{address[:80]!r} is no plain HTTP address.", remedy="Write it like https://example.org.")
    usual = {"http": 80, "https": 443}[parts.scheme]
    return parts.hostname if port in (None, usual) else f"{parts.hostname}:{port}"


def _check(address: str, host: str) -> None:
    if host_of(address) != host.lower():
        raise BadValue(
            f"{host_of(address)} is not {host}, the only host that may be asked.", remedy="Nothing was sent."
        )


def _ask(
    client: httpx2.Client,
    address: str,
    query: Mapping[str, str] | None,
    form: Mapping[str, str] | None,
    max_bytes: int,
    deadline: float,
) -> tuple[str, str]:
    """(the text, where it has moved to or "")."""
    name = host_of(address)
    try:
        with client.stream("POST" if form else "GET", address, params=query, data=form) as answer:
            if answer.is_redirect and answer.next_request is not None:
                return "", str(answer.next_request.url)
            if answer.status_code >= 400:
                raise DownloadFailed(f"{name} answered with {answer.status_code}.", remedy="Try again later.")
            read = bytearray()
            for chunk in answer.iter_bytes():
                read += chunk
                if len(read) > max_bytes:
                    raise DownloadFailed(
                        f"{name} sent more than {format_size(max_bytes)}.", remedy="Nothing of it was read."
                    )
                if time.monotonic() > deadline:
                    raise TimedOut(f"{name} takes too long.", remedy="Try again later.")
            return read.decode(answer.encoding or "utf-8", "replace"), ""
    except httpx2.TimeoutException as error:
        raise TimedOut(f"{name} does not answer in time.", remedy="Try again later.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, LookupError) as error:
        raise DownloadFailed(f"{name} cannot be reached: {error}.", remedy="Is this machine online?") from error
