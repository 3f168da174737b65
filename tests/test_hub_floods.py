"""A hub, or what stands in its place, that sends too much: packed bombs, lists without end, errors without end."""

from __future__ import annotations

import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from modules.errors import DownloadFailed, SnugError, TimedOut
from modules.memory.model.hub_client import MAX_FILES, HubClient
from modules.units import MiB
from tests.fake_hub import COMMIT

MOST = 60 * MiB
PACKED = gzip.compress(b" " * 300 * MiB, 1)
LIST = b'{"id": "org/name", "sha": "%s", "siblings": [' % COMMIT.encode()


class Flood(BaseHTTPRequestHandler):
    """Answers every request as `kind` says, as long as somebody takes it."""

    kind = ""

    def do_GET(self) -> None:
        status = {"error": 500, "redirect": 302, "around": 302}.get(self.kind, 200)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/" if self.kind == "around" else "file:///etc/passwd")
        if self.kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        try:
            for piece in self._pieces():
                self.wfile.write(piece)
        except OSError:  # the client has enough
            pass
        self.close_connection = True

    def _pieces(self) -> Iterator[bytes]:
        if self.kind == "packed":
            yield PACKED
        elif self.kind == "million":
            yield LIST
            for number in range(400_000):
                yield b'{"rfilename": "file-%d.json", "size": 1},' % number
            yield b'{"rfilename": "last", "size": 1}]}'
        elif self.kind == "deep":
            yield b"[" * 1_000_000
        elif self.kind == "vast":
            yield LIST + b'{"rfilename": "model.safetensors", "size": 1%s}]}' % (b"0" * 4000)
        elif self.kind == "dripping":
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                yield b" "
                time.sleep(0.01)
        elif self.kind == "many":
            files = [{"rfilename": f"file-{n}.json", "size": 1} for n in range(MAX_FILES + 5000)]
            yield json.dumps({"id": "org/name", "sha": COMMIT, "siblings": files}).encode()
        else:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                yield b" " * MiB

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def flooding(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubClient]:
    """A client of a hub that floods it as the test's parameter says."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    handler = type("Handler", (Flood,), {"kind": request.param})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield HubClient("org/name", "main", endpoint=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join(5)


def refusal(client: HubClient) -> tuple[SnugError, int]:
    """How it is refused, and the most memory that took."""
    tracemalloc.start()
    try:
        with pytest.raises(SnugError) as caught:
            client.listing()
        return caught.value, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "flooding", ["packed", "million", "deep", "endless", "error", "redirect", "around"], indirect=True
)
def test_a_flood_in_place_of_the_list_of_files_is_refused_in_little_memory(flooding: HubClient) -> None:
    started = time.thread_time()
    error, most = refusal(flooding)
    assert isinstance(error, DownloadFailed) and error.remedy
    assert most < MOST
    assert time.thread_time() - started < 10


@pytest.mark.parametrize("flooding", ["endless", "error", "packed", "redirect", "around"], indirect=True)
def test_a_flood_in_place_of_a_file_is_refused_too(flooding: HubClient) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SnugError), flooding.stream(COMMIT, "config.json", 0):
            raise AssertionError("no size was told, so nothing may begin")
        with pytest.raises(SnugError):
            flooding.read(COMMIT, "config.json", 5, 100)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("flooding", ["dripping"], indirect=True)
def test_a_byte_now_and_then_is_not_waited_for_without_end(
    flooding: HubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flooding, "_deadline", time.monotonic() + 0.3)
    started = time.monotonic()
    with pytest.raises(TimedOut):
        flooding.listing()
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("flooding", ["vast"], indirect=True)
def test_a_size_that_no_file_has_counts_as_none_told(flooding: HubClient) -> None:
    assert flooding.listing().files == {"model.safetensors": 0}


@pytest.mark.parametrize("flooding", ["many"], indirect=True)
def test_of_more_files_than_anyone_has_the_first_are_taken(flooding: HubClient) -> None:
    assert len(flooding.listing().files) == MAX_FILES
