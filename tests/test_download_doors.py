"""Downloads by the API and from the terminal: server.py --download as a process of its own, Ctrl-C and all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.downloads.manager import Hub
from modules.downloads.record import FOLDER
from modules.settings import Settings
from tests.api_desk import Desk
from tests.fake_hub import FakeHub, repository, serve
from tests.fakes import make_model_folder
from tests.test_downloads import until

WAIT_S = 60.0
ROOT = Path(__file__).parent.parent
BASE = "/v1/internal/downloads"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a sound small model."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serve(FakeHub(repository(make_model_folder(tmp_path / "source", "name")))) as running:
        yield running
        running.release.set()


async def test_the_api_begins_pauses_resumes_and_forgets_downloads(hub: FakeHub, settings: Settings) -> None:
    desk = Desk(settings)
    desk.downloads.hub = Hub(hub.endpoint)
    hub.hold_at = 200_000
    async with desk.client() as client:
        bad = await client.post(BASE, json={"name": "../x"})
        assert (bad.status_code, bad.json()["error"]["code"]) == (400, "bad_name")
        assert (await client.post(BASE, json={"name": "org/name", "file": "Q9"})).status_code == 400
        assert (await client.post(BASE, json={"name": "org/name", "folder": "/etc"})).status_code == 400
        assert (await client.post(f"{BASE}/name/pause")).status_code == 404
        begun = (await client.post(BASE, json={"name": "org/name@main"})).json()
        assert (begun["id"], begun["name"], begun["title"]) == ("name", "org/name", "The whole model")
        assert hub.held.wait(WAIT_S)
        assert (await client.post(f"{BASE}/name/pause")).status_code == 200
        hub.hold_at = None
        hub.release.set()
        assert desk.downloads.wait("name", WAIT_S).state == "paused"
        [told] = (await client.get(BASE)).json()["data"]
        assert told["state"] == "paused" and 0 < told["done_bytes"] < told["total_bytes"] and told["error"] is None
        assert (await client.post(f"{BASE}/name/resume")).status_code == 200
        assert desk.downloads.wait("name", WAIT_S).state == "done"
        assert "name" in [entry["name"] for entry in (await client.get("/v1/internal/model/list")).json()["data"]]
        assert (await client.delete(f"{BASE}/name")).json()["data"] == []
        again = await client.post(BASE, json={"name": "org/name"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "busy")
    desk.close()


def download(hub: FakeHub, settings: Settings, *more: str) -> subprocess.Popen[str]:
    """server.py --download, begun."""
    command = [sys.executable, "server.py", "--download", *more, "--model-dir", str(settings.model_dir),
               "--user-data-dir", str(settings.user_data_dir)]  # fmt: skip
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_canary"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_terminal_tells_the_plan_first_pauses_at_ctrl_c_and_goes_on(hub: FakeHub, settings: Settings) -> None:
    hub.hold_at = 200_000
    first = download(hub, settings, "org/name")
    try:
        assert hub.held.wait(WAIT_S)
        part = settings.model_dir / FOLDER / "name" / "parts" / "model.safetensors.part"
        until(lambda: part.stat().st_size >= 100_000)
        first.send_signal(signal.SIGINT)
        hub.hold_at, hub.drip_s = None, 4.0  # not to be whole before a busy machine has told the process
        hub.release.set()
        told, _ = first.communicate(timeout=WAIT_S)
    finally:
        first.kill()
    hub.drip_s = 0.0
    assert first.returncode == 130
    assert "licence apache-2.0" in told and "On this machine: it fits." in told and "goes on" in told
    assert not (settings.model_dir / "name").exists()
    hub.starts.clear()
    second = download(hub, settings, f"{hub.endpoint}/org/name/tree/main", "--download-file", "safetensors")
    told, errors = second.communicate(timeout=WAIT_S)
    assert second.returncode == 0, errors
    assert "of which" in told and "python server.py --model name" in " ".join(told.split())
    assert (settings.model_dir / "name" / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert "hf_canary" not in told + errors
    assert hub.tokens_for("org/name") == {"Bearer hf_canary"}
    assert min(start for name, start in hub.starts if name == "model.safetensors" and start) >= 100_000


def test_the_terminal_says_what_is_wrong_with_a_name(hub: FakeHub, settings: Settings) -> None:
    hub.fail, hub.near = (404, "RepoNotFound"), ("org/Name",)
    process = download(hub, settings, "org/nam")
    _, errors = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2
    assert "There is no org/nam on the hub. Did you mean org/Name?" in errors
