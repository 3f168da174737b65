"""Where a model runs that is not on this machine, as the flags say it: a value, nothing is asked here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from modules.key_file import read_key_file

_EXAMPLE = "Give it like http://host:8000/v1."


@dataclass(frozen=True, slots=True)
class RemoteServer:
    """An OpenAI-compatible server: `url` up to and with its /v1.

    `key_file` holds the key, which is read where it is used and kept nowhere else. `model` is the server's name for the
    model, "" for the only one it has; `context_tokens` counts where the server does not say, 0 if nobody knows.
    """

    url: str
    key_file: Path | None = None
    model: str = ""
    context_tokens: int = 0

    @property
    def host(self) -> str:
        """`host:8000`."""
        return urlsplit(self.url).netloc

    @property
    def name(self) -> str:
        """What it is called in the list of models, before anybody has asked it."""
        return f"{self.model} at {self.host}" if self.model else self.host

    @property
    def is_here(self) -> bool:
        """Whether nothing that is sent to it leaves this machine."""
        host = urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    def read_key(self) -> str:
        """The key, "" without a file. Raises BadFlag, which never shows it."""
        return "" if self.key_file is None else read_key_file(self.key_file, "--engine-key-file")


def check_url(url: str) -> str:
    """`url` with its /v1 and without a slash behind. Raises ValueError saying what is wrong, never showing a secret."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError as error:
        raise ValueError(f"this is no address ({error}). {_EXAMPLE}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError(f"it must begin with http:// or https:// and name a host. {_EXAMPLE}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a key does not belong into an address: put it into a file, --engine-key-file FILE")
    if parts.query or parts.fragment:
        raise ValueError(f"it must end before ? and #. {_EXAMPLE}")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
