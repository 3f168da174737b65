"""A hub of one repository on loopback, as the real one answers, and a count of the bytes that it served."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

LARGE_BYTES = 1024
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server does. `sizes` are files whose size is a claim: only the bytes in `files` exist, zeros follow.

    `digests` are what the hub says that files hash to, where that is not the truth. `damaged`: how many times more a
    file comes with a wrong byte. `cuts`: after how many bytes each next answer breaks off, `statuses`: what each next
    request for a file is refused with. At byte `hold_at` of a body the server waits for `release`, and sets `held`.
    `elsewhere`: where files lie instead. `tokens` are the Authorization headers that came.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    fail: tuple[int, str] | None = None
    fail_files: tuple[int, str] | None = None
    ranges: bool = True
    drip_s: float = 0.0
    repo: str = "org/name"
    license: str = "apache-2.0"
    gated: str = ""
    near: tuple[str, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, int] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold_at: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    elsewhere: str = ""
    tokens: list[str] = field(default_factory=list)
    starts: list[tuple[str, int]] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def tokens_for(self, name: str) -> set[str]:
        """The Authorization headers of all requests about a repository; the library asks of other things too."""
        return {token for path, token in zip(self.requests, self.tokens, strict=True) if f"/{name}/" in f"{path}/"}

    @property
    def served_bytes(self) -> int:
        """Bytes of bodies sent, all files together."""
        return sum(self.served.values())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_GET(self) -> None:
        """The repository's description, or a file or a range of it."""
        path = unquote(self.path.partition("?")[0])
        self.hub.requests.append(path)
        self.hub.tokens.append(self.headers.get("Authorization", ""))
        if path == "/api/models":
            self._send_json([{"id": name} for name in self.hub.near])
            return
        if re.match(r"/api/models/[^/]+/[^/]+", path):
            self._answer(self.hub.fail, self._describe)
            return
        file = re.sub(rf"^/[^/]+/[^/]+/resolve/{COMMIT}/", "", path)
        known = file in self.hub.files
        if known and self.hub.elsewhere:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.elsewhere}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if known and self.hub.statuses:
            self._answer((self.hub.statuses.pop(0), ""), None)
            return
        self._answer(self.hub.fail_files if known else (404, "EntryNotFound"), lambda: self._send_file(file))

    def _answer(self, fail: tuple[int, str] | None, otherwise: object) -> None:
        if fail is None:
            assert callable(otherwise)
            otherwise()
            return
        status, code = fail
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _describe(self) -> None:
        siblings = [
            {"rfilename": name, "size": self.hub.sizes.get(name, len(content)), **self._hashes(name, content)}
            for name, content in self.hub.files.items()
        ]
        tags = [f"license:{self.hub.license}"]
        described = {"id": self.hub.repo, "sha": COMMIT, "siblings": siblings, "tags": tags}
        self._send_json(described | {"gated": self.hub.gated or False, "private": False})

    def _hashes(self, name: str, content: bytes) -> dict[str, object]:
        """As the hub tells them: sha256 of large files, git's blob sha1 of small ones."""
        if name in self.hub.sizes:
            return {}
        if len(content) < LARGE_BYTES:
            found = hashlib.sha1(b"blob %d\0%s" % (len(content), content), usedforsecurity=False).hexdigest()
            return {"blobId": self.hub.digests.get(name, found)}
        found = self.hub.digests.get(name, hashlib.sha256(content).hexdigest())
        return {"blobId": "0" * 40, "lfs": {"sha256": found, "size": len(content), "pointerSize": 134}}

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _send_file(self, file: str) -> None:
        content = self.hub.files[file]
        size = self.hub.sizes.get(file, len(content))
        first, last = 0, size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        self.hub.starts.append((file, int(asked[1]) if asked else 0))
        if self.hub.damaged.get(file, 0) > 0:
            self.hub.damaged[file] -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        if asked and self.hub.ranges:
            first, last = int(asked[1]), min(int(asked[2] or size), size - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        try:
            self._send_bytes(file, content, first, last)
        except OSError:  # the client has enough
            self.close_connection = True

    def _send_bytes(self, file: str, content: bytes, first: int, last: int) -> None:
        position = first
        cut = self.hub.cuts.pop(0) if self.hub.cuts else None
        while position <= last:
            end = min(position + 64 * 1024, last + 1)
            if cut is not None:
                end = min(end, first + cut)
            if end == position:
                self.close_connection = True
                return
            if self.hub.hold_at is not None and position >= self.hub.hold_at:
                self.wfile.flush()
                self.hub.held.set()
                self.hub.release.wait(30)
            piece = content[position:end].ljust(end - position, b"\0")
            self.wfile.write(piece)
            self.hub.served[file] = self.hub.served.get(file, 0) + len(piece)
            position = end
            if self.hub.drip_s:
                time.sleep(self.hub.drip_s)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """`hub` on a free port of loopback, its address in `endpoint`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def repository(folder: Path) -> dict[str, bytes]:
    """The files of a model folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
