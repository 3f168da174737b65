"""modules/downloads/: what is fetched from a hub on loopback, checked, paused, resumed, refused; never half there."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modules.downloads.job import DownloadView, Job
from modules.downloads.manager import Downloads, Hub
from modules.downloads.offers import Offer, Offers
from modules.downloads.record import FOLDER, Record, RemoteFile, list_folders
from modules.downloads.transfer import RESERVE_BYTES, Patience, disk_error
from modules.errors import (
    BadName,
    BadValue,
    Busy,
    Damaged,
    DiskFull,
    Forbidden,
    ModelNotFound,
    NotFound,
    PickleRefused,
    SnugError,
    TooManyAttempts,
    UnsupportedModel,
)
from modules.memory.model.listing import list_models
from modules.models.manager import ModelManager
from modules.settings import Settings
from modules.units import GiB, MiB
from tests.big_gguf import big_gguf
from tests.fake_hub import FakeHub, repository, serve
from tests.fakes import fake_inventory, make_model_folder

WAIT_S = 20.0
TOKEN = "hf_canary"


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with HF_HUB_OFFLINE=1; here the hub is on loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with a sound small model, a pickle and some code beside it; weights of about 400 KB."""
    files = repository(make_model_folder(tmp_path / "source", "name"))
    files |= {"pytorch_model.bin": b"pickle", "train.py": b"code", "README.md": b"words", "optimizer.pt": b"pickle"}
    hub = FakeHub(files)
    with serve(hub) as running:
        yield running
        hub.release.set()


def until(holds: Callable[[], bool]) -> None:
    """Return once it does."""
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


class Rig:
    """Downloads from a fake hub into models/ of this test, and what finds them."""

    def __init__(self, hub: FakeHub, settings: Settings, *, free_bytes: int = 100 * GiB) -> None:
        self.hub, self.settings, self.free_bytes = hub, settings, free_bytes
        self.models = ModelManager(settings, loaders={}, read_inventory=lambda _: fake_inventory(ram_gib=16))
        self.begin_again()

    def begin_again(self) -> None:
        """As after a start of the server."""
        self.downloads = Downloads(
            self.settings.model_dir,
            Hub(self.hub.endpoint, lambda: TOKEN),
            free_bytes=lambda _: self.free_bytes,
            patience=Patience((0.0, 0.0)),
        )
        self.offers = Offers(self.downloads, self.models, self.settings.user_data_dir / "cache" / "hub")

    def look(self, text: str = "org/name", wanted: str = "") -> Offer:
        return self.offers.look(text, wanted)

    def fetch(self, text: str = "org/name", wanted: str = "") -> DownloadView:
        """Begin and wait for the end."""
        return self.downloads.wait(self.offers.begin(text, wanted).id, WAIT_S)

    def go_on(self, ident: str = "name") -> DownloadView:
        """Resume and wait for the end."""
        self.downloads.resume(ident)
        return self.downloads.wait(ident, WAIT_S)

    def fetch_until_held(self, byte: int) -> str:
        """Begin; returns once the hub waits at that byte of a file."""
        self.hub.hold_at = byte
        ident = self.offers.begin("org/name").id
        assert self.hub.held.wait(WAIT_S)
        until(lambda: self.downloads.view(ident).done_bytes >= byte)
        return ident

    def let_go(self) -> None:
        self.hub.hold_at = None
        self.hub.release.set()

    @property
    def listed(self) -> list[str]:
        return [entry.name for entry in list_models(self.settings.model_dir)]

    def is_whole(self, name: str = "name") -> bool:
        """Whether models/NAME is, byte for byte, what the hub has, and nothing of the download is left."""
        folder = self.settings.model_dir / name
        wanted = {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
        there = {path.name: path.read_bytes() for path in folder.iterdir()}
        left = list((self.settings.model_dir / FOLDER).iterdir())
        return there == {name: self.hub.files[name] for name in wanted} and not left


@pytest.fixture
def rig(hub: FakeHub, settings: Settings) -> Iterator[Rig]:
    """The parts, closed at the end."""
    made = Rig(hub, settings)
    yield made
    made.let_go()
    made.downloads.close()
    made.models.close()


def error_of(view: DownloadView) -> SnugError:
    assert view.state == "failed", view
    assert view.error is not None
    return view.error


def test_a_model_comes_whole_and_checked_without_pickles_or_code_and_can_be_listed(rig: Rig) -> None:
    offer = rig.look()
    assert (offer.goal, offer.is_here, offer.listing.license) == ("name", False, "apache-2.0")
    assert offer.table is not None and offer.table.chosen is not None  # how it would run, before a byte of it is here
    assert offer.needed_bytes == sum(len(rig.hub.files[name]) for name in offer.choice.files)
    assert "model.safetensors" not in rig.hub.served or rig.hub.served["model.safetensors"] < 70_000
    done = rig.fetch()
    assert (done.state, done.done_bytes) == ("done", offer.needed_bytes)
    assert rig.is_whole()
    assert [(entry.name, entry.problem) for entry in list_models(rig.settings.model_dir)] == [("name", "")]
    assert {name for name, _ in rig.hub.starts} == {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
    again = rig.look()
    assert (again.is_here, again.needed_bytes) == (True, 0)
    with pytest.raises(Busy, match="already"):
        rig.offers.begin("org/name")


def test_a_pause_keeps_what_came_and_resume_asks_for_the_rest_alone(rig: Rig) -> None:
    ident = rig.fetch_until_held(200_000)
    seen = rig.downloads.view(ident)
    assert seen.state == "running" and seen.file == "model.safetensors" and seen.total_bytes > 200_000
    assert rig.downloads.pause(ident).pausing
    with pytest.raises(Busy, match="being paused"):
        rig.downloads.resume(ident)
    rig.let_go()
    paused = rig.downloads.wait(ident, WAIT_S)
    assert (paused.state, paused.error) == ("paused", None)
    assert rig.listed == []  # nothing half there
    assert 100_000 < paused.done_bytes < paused.total_bytes
    rig.hub.starts.clear()
    assert rig.go_on(ident).state == "done"
    assert rig.is_whole()
    [(file, start)] = rig.hub.starts
    assert file == "model.safetensors" and start >= 100_000


def test_a_line_that_drops_and_a_hub_that_is_busy_are_tried_again_by_themselves(rig: Rig) -> None:
    rig.hub.cuts[:] = [3, 10_000, 100_000, 50_000]
    rig.hub.statuses[:] = [503, 429]
    assert rig.fetch().state == "done"
    assert rig.is_whole()


def test_a_hub_that_stays_busy_fails_the_download_which_can_go_on_later(rig: Rig) -> None:
    rig.hub.statuses[:] = [429] * 20
    assert isinstance(error_of(rig.fetch()), TooManyAttempts)
    rig.hub.statuses.clear()
    assert rig.go_on().state == "done"
    assert rig.is_whole()


def test_a_server_without_ranges_sends_it_from_the_start_and_it_is_right_all_the_same(rig: Rig) -> None:
    rig.hub.cuts[:] = [10_000_000, 10_000_000, 10_000_000, 150_000]  # breaks off in the weights
    rig.look()
    rig.hub.ranges = False
    assert rig.fetch().state == "done"
    assert rig.is_whole()


def test_a_damaged_file_is_fetched_once_more_by_itself_and_only_that_file(rig: Rig) -> None:
    rig.hub.damaged["model.safetensors"] = 1
    assert rig.fetch().state == "done"
    assert rig.is_whole()
    assert [start for file, start in rig.hub.starts].count(0) == 4 + 1


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])  # sha256 of large files, git's sha1 of small
def test_a_file_that_stays_damaged_is_named_and_resume_fetches_it_alone_again(rig: Rig, file: str) -> None:
    rig.hub.damaged[file] = 2
    error = error_of(rig.fetch())
    assert (
        isinstance(error, Damaged) and error.message.startswith(f"{file} arrived damaged") and "alone" in error.remedy
    )
    assert rig.listed == []
    before = [name for name, _ in rig.hub.starts]
    assert rig.go_on().state == "done"
    assert rig.is_whole()
    after = [name for name, _ in rig.hub.starts][len(before) :]
    assert file in after and not (set(after) & {name for name in before if name != file})


def test_a_part_that_was_spoilt_on_the_disk_is_noticed_and_fetched_again(rig: Rig) -> None:
    ident = rig.fetch_until_held(200_000)
    rig.downloads.pause(ident)
    rig.let_go()
    rig.downloads.wait(ident, WAIT_S)
    part = rig.settings.model_dir / FOLDER / "name" / "parts" / "model.safetensors.part"
    part.write_bytes(b"\0" * part.stat().st_size)
    assert rig.go_on(ident).state == "done"
    assert rig.is_whole()


def test_a_size_that_is_not_the_announced_one_is_refused(rig: Rig) -> None:
    offer = rig.look()
    rig.hub.files["model.safetensors"] += b"more"
    rig.downloads.start(offer.listing, "main", offer.choice)
    assert "instead of" in error_of(rig.downloads.wait("name", WAIT_S)).message
    assert rig.listed == []


@pytest.mark.parametrize(("status", "kind"), [(401, Forbidden), (403, Forbidden), (404, ModelNotFound)])
def test_a_refusal_ends_the_download_at_once_with_its_reason(rig: Rig, status: int, kind: type[SnugError]) -> None:
    offer = rig.look()
    rig.hub.fail_files = (status, "")
    rig.downloads.start(offer.listing, "main", offer.choice)
    assert isinstance(error_of(rig.downloads.wait("name", WAIT_S)), kind)
    rig.hub.fail_files = None
    assert rig.go_on().state == "done"


def test_a_disk_without_room_is_told_before_a_byte_and_what_is_there_is_kept(rig: Rig) -> None:
    rig.free_bytes = RESERVE_BYTES + 100_000
    offer = rig.look()
    assert offer.lacks_bytes == offer.needed_bytes - 100_000
    rig.hub.starts.clear()
    error = error_of(rig.fetch())
    assert isinstance(error, DiskFull) and "256 MiB" in error.message and "then resume" in error.remedy
    assert rig.hub.starts == []
    rig.free_bytes = RESERVE_BYTES + offer.needed_bytes
    assert rig.go_on().state == "done"
    assert rig.is_whole()


def test_a_disk_that_fills_up_midway_stops_the_download_and_it_goes_on_where_it_was(
    hub: FakeHub, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modules.downloads.transfer._LOOK_EVERY_BYTES", 0)
    rig = Rig(hub, settings)
    ident = rig.fetch_until_held(200_000)
    rig.free_bytes = 1000
    rig.let_go()
    failed = rig.downloads.wait(ident, WAIT_S)
    assert isinstance(error_of(failed), DiskFull)
    assert failed.done_bytes >= 200_000
    rig.free_bytes = 100 * GiB
    hub.starts.clear()
    assert rig.go_on(ident).state == "done"
    assert rig.is_whole() and hub.starts[0][1] >= 100_000
    rig.downloads.close()


@pytest.mark.skipif(os.name == "nt", reason="limits of files are Unix's")
def test_a_write_that_the_disk_refuses_leaves_a_download_that_goes_on(rig: Rig) -> None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limit[1]))  # as FAT does with 4 GiB
        view = rig.fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert isinstance(error_of(view), DiskFull)
    assert rig.listed == []
    assert rig.go_on().state == "done"
    assert rig.is_whole()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_what_the_disk_says_has_words_and_a_remedy(number: int) -> None:
    told = disk_error(OSError(number, os.strerror(number)))
    assert isinstance(told, DiskFull) == (number != errno.EACCES) and "resume" in told.remedy


RUN = """
import sys, pathlib
sys.path.insert(0, {root!r})
from modules.downloads.manager import Downloads, Hub
from modules.downloads.choices import list_choices
hub = Hub({endpoint!r}, lambda: None)
downloads = Downloads(pathlib.Path({models!r}), hub)
listing = hub.client("org/name", "main").listing()
downloads.start(listing, "main", list_choices(listing)[0])
print(downloads.wait("name", 60).state)
"""


@pytest.mark.parametrize(
    "hold_at", [200_000, *(pytest.param(at, marks=pytest.mark.slow) for at in range(140_000, 322_000, 13_000))]
)
def test_a_server_that_is_killed_midway_leaves_a_download_that_the_next_one_shows_and_resumes(
    rig: Rig, hold_at: int
) -> None:
    rig.hub.hold_at = hold_at
    root = str(Path(__file__).parent.parent)
    code = RUN.format(root=root, endpoint=rig.hub.endpoint, models=str(rig.settings.model_dir))
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        assert rig.hub.held.wait(60)
        part = rig.settings.model_dir / FOLDER / "name" / "parts" / "model.safetensors.part"
        until(lambda: part.stat().st_size >= 100_000)
    finally:
        process.kill()
        process.wait(20)
    rig.let_go()
    rig.begin_again()
    [left] = rig.downloads.views()
    assert (left.state, left.name, left.title) == ("interrupted", "org/name", "The whole model")
    assert 100_000 <= left.done_bytes < left.total_bytes
    assert rig.listed == []
    assert 0 < rig.look().needed_bytes < left.total_bytes
    rig.hub.starts.clear()
    assert rig.go_on().state == "done"
    assert rig.is_whole()
    assert [start for _, start in rig.hub.starts] == [left.done_bytes - sum(
        len(rig.hub.files[name]) for name in ("config.json", "tokenizer.json", "README.md")
    )]  # fmt: skip


def test_what_is_known_of_a_download_may_be_spoilt_and_is_then_named_and_removable(rig: Rig) -> None:
    folder = rig.settings.model_dir / FOLDER / "name"
    sound = {"name": "org/name", "revision": "main", "commit": "a" * 40, "title": "t", "goal": "name",
             "is_folder": True, "files": [{"path": "a.json", "size_bytes": 1, "digest": ""}]}  # fmt: skip
    hostile: list[dict[str, Any]] = [
        {},
        {"files": [{"path": "../../../etc/x", "size_bytes": 1, "digest": ""}]},
        {"goal": "../other"},
        {"goal": "elsewhere"},
        {"name": "../org"},
        {"commit": "main"},
        {"files": []},
    ]
    for change in hostile:
        folder.mkdir(parents=True, exist_ok=True)
        text = "[" * 5000 if change == {} else json.dumps(sound | change)
        (folder / "download.json").write_text(text, encoding="utf-8")
        rig.begin_again()
        [view] = rig.downloads.views()
        assert isinstance(error_of(view), BadValue) and "name" in error_of(view).message
        with pytest.raises(NotFound):
            rig.downloads.resume("name")
        rig.downloads.cancel("name")
        assert rig.downloads.views() == () and not folder.exists()


def test_cancel_throws_away_what_was_fetched_also_in_the_midst(rig: Rig) -> None:
    ident = rig.fetch_until_held(200_000)
    rig.downloads.cancel(ident)
    assert rig.downloads.views() == ()
    rig.let_go()
    assert rig.fetch().state == "done"  # its turn comes after the cancelled one has gone
    assert rig.is_whole()
    rig.downloads.cancel("name")  # of one that is done this clears the list alone
    assert rig.listed == ["name"] and rig.downloads.views() == ()


def test_what_a_killed_server_was_deleting_is_deleted_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / FOLDER / ".gone-1"
    left.mkdir(parents=True)
    (left / "part").write_bytes(b"x")
    assert list_folders(tmp_path) == []
    assert not left.exists()


def test_two_clicks_begin_one_download_and_another_waits_its_turn(rig: Rig, tmp_path: Path) -> None:
    ident = rig.fetch_until_held(200_000)
    assert rig.offers.begin("org/name").id == ident
    assert rig.offers.begin("https://huggingface.co/org/name/tree/main").id == ident
    rig.hub.files["other.gguf"] = b"x" * 2000
    waiting = rig.offers.begin("org/name", "other.gguf")
    assert waiting.state == "waiting"
    assert rig.downloads.pause(waiting.id).state == "paused"
    rig.downloads.resume(waiting.id)
    rig.let_go()
    assert rig.downloads.wait(ident, WAIT_S).state == "done"
    assert rig.downloads.wait(waiting.id, WAIT_S).state == "done"
    assert (rig.settings.model_dir / "other.gguf").read_bytes() == b"x" * 2000


def test_a_model_of_the_same_name_stays_and_the_new_one_is_named_after_its_organisation(rig: Rig) -> None:
    mine = make_model_folder(rig.settings.model_dir, "name")
    (mine / "config.json").write_text("{}", encoding="utf-8")
    assert rig.look().goal == "org_name"
    assert rig.fetch().id == "org_name"
    assert (mine / "config.json").read_text(encoding="utf-8") == "{}"
    assert rig.is_whole("org_name")
    (rig.settings.model_dir / "org_name" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Busy, match="another"):
        rig.look()


def test_a_name_that_is_taken_while_it_is_fetched_keeps_both(rig: Rig) -> None:
    ident = rig.fetch_until_held(200_000)
    mine = rig.settings.model_dir / "name"
    mine.mkdir()
    (mine / "notes").write_text("mine", encoding="utf-8")
    rig.let_go()
    assert isinstance(error_of(rig.downloads.wait(ident, WAIT_S)), Busy)
    assert (mine / "notes").read_text(encoding="utf-8") == "mine"
    mine.rename(rig.settings.model_dir / "moved")
    rig.hub.starts.clear()
    assert rig.go_on(ident).state == "done"
    assert rig.hub.starts == [] and rig.is_whole()


def test_names_of_files_that_lead_elsewhere_are_never_fetched(rig: Rig) -> None:
    for name in (
        "../evil.json",
        "/etc/evil.json",
        "a\\b.json",
        "..",
        "sub/../../evil.json",
        ".hidden.json",
        "CON.json",
    ):
        rig.hub.files[name] = b"evil"
    assert not [name for name in rig.look().choice.files if "evil" in name or "b.json" in name or "hidden" in name]
    assert rig.fetch().state == "done"
    assert rig.is_whole()


def test_the_token_reaches_the_hub_and_nobody_else(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with serve(FakeHub(dict(rig.hub.files))) as storage:
        rig.hub.elsewhere = storage.endpoint.replace("127.0.0.1", "localhost")
        assert rig.fetch().state == "done"
        assert rig.is_whole()
        assert storage.requests and set(storage.tokens) == {""}
    assert rig.hub.tokens_for("org/name") == {f"Bearer {TOKEN}"}
    rig.hub.elsewhere = ""
    rig.hub.fail_files = (401, "GatedRepo")
    rig.hub.files["model.safetensors"] += b"x"
    rig.downloads.cancel("name")
    (rig.settings.model_dir / "name").rename(rig.settings.model_dir / "old")
    view = rig.fetch()
    assert TOKEN not in f"{view} {caplog.text}" and "HF_TOKEN" in error_of(view).remedy
    stored = [path.read_bytes() for path in rig.settings.model_dir.rglob("*") if path.is_file()]
    assert not [content for content in stored if TOKEN.encode() in content]


def test_a_name_that_is_not_there_is_answered_with_names_that_are_near(rig: Rig) -> None:
    rig.hub.fail = (404, "RepoNotFound")
    rig.hub.near = ("Org/Name", "else/thing", "org/nama")
    with pytest.raises(ModelNotFound, match="Did you mean Org/Name or") as caught:
        rig.look()
    assert caught.value.remedy.index("Org/Name") < caught.value.remedy.index("else/thing")
    rig.hub.fail = (401, "")
    with pytest.raises(Forbidden, match="Did you mean Org/Name"):
        rig.look()
    with pytest.raises(BadName, match="Did you mean"):
        rig.look("name")
    with pytest.raises(BadName) as plain:
        rig.look("../x")
    assert "Did you mean" not in str(plain.value)
    rig.hub.near = ("Org/Name", *[f"org/{'n' * 80}"] * 12_000)  # more than a megabyte: no answer to fifteen names
    with pytest.raises(ModelNotFound) as cut:
        rig.hub.fail = (404, "RepoNotFound")
        rig.look()
    assert "Did you mean" not in cut.value.remedy


def test_a_repository_without_anything_to_fetch_says_what_it_holds(rig: Rig) -> None:
    rig.hub.files = {"pytorch_model.bin": b"x", "config.json": b"{}"}
    with pytest.raises(PickleRefused, match="pickles alone"):
        rig.look()
    rig.hub.files = {"adapter_model.safetensors": b"x", "adapter_config.json": b"{}", "config.json": b"{}"}
    with pytest.raises(UnsupportedModel, match="adapter"):
        rig.look()


def test_without_a_network_the_error_says_so(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.downloads.hub = Hub("http://127.0.0.1:9")
    with pytest.raises(SnugError, match="cannot be reached"):
        rig.look()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SnugError, match="HF_HUB_OFFLINE"):
        rig.look()


@pytest.fixture
def ggufs(hub: FakeHub, tmp_path: Path) -> FakeHub:
    """The same with a model of 8 billion weights in GGUF, in one size, in parts, and what belongs to others."""
    header = big_gguf(tmp_path, "8B")
    with header.open("rb") as file:
        start = file.read(8 * MiB)
    for name in ("Llama-8B-Q4_K_M.gguf", "Q8_0/Llama-8B-Q8_0-00001-of-00002.gguf"):
        hub.files[name] = start
        hub.sizes[name] = header.stat().st_size
    hub.files["Q8_0/Llama-8B-Q8_0-00002-of-00002.gguf"] = b"x" * 100
    hub.files |= {"Llama-8B-Q2_K.gguf": b"x" * 5000, "Llama-8B-F16-00001-of-00003.gguf": b"x"}
    hub.files |= {"mmproj-Llama-8B-f16.gguf": b"x"}
    del hub.files["model.safetensors"]
    return hub


def test_of_gguf_files_one_is_chosen_and_its_plan_is_made_from_its_header_alone(
    ggufs: FakeHub, settings: Settings
) -> None:
    rig = Rig(ggufs, settings)
    offer = rig.look()
    assert [choice.title for choice in offer.choices] == ["Q2_K", "Q4_K_M", "Q8_0"]
    assert offer.choice.title == "Q4_K_M" and offer.choice.size_bytes > 4 * GiB
    assert offer.table is not None and offer.table.chosen is not None
    assert offer.table.chosen.budgets["cpu"].total > 4 * GiB
    assert ggufs.served_bytes < 16 * MiB
    [kept] = (settings.user_data_dir / "cache" / "hub").rglob("*.gguf")
    assert kept.stat().st_size > 4 * GiB and kept.stat().st_blocks * 512 < 16 * MiB
    assert rig.look("org/name:q2_k").choice.title == "Q2_K"
    assert isinstance(rig.look("org/name", "Llama-8B-Q2_K.gguf").problem, SnugError)
    assert rig.look("org/name", "*Q8_0*").choice.files == (
        "Q8_0/Llama-8B-Q8_0-00001-of-00002.gguf", "Q8_0/Llama-8B-Q8_0-00002-of-00002.gguf",
    )  # fmt: skip
    with pytest.raises(BadValue, match="Q2_K, Q4_K_M, Q8_0"):
        rig.look("org/name", "Q5_K_M")
    with pytest.raises(PickleRefused):
        rig.look("org/name", "pytorch_model.bin")


def test_the_parts_of_a_split_file_come_together_under_one_name(rig: Rig) -> None:
    parts = {f"UD/big-0000{n}-of-00002.gguf": bytes([n]) * 3000 for n in (1, 2)}
    rig.hub.files |= parts
    assert rig.fetch("org/name", "big").state == "done"
    for path, content in parts.items():
        assert (rig.settings.model_dir / Path(path).name).read_bytes() == content


def test_an_end_of_the_server_between_the_last_two_moves_is_made_good_at_the_next_start(rig: Rig) -> None:
    rig.hub.files |= {f"big-0000{n}-of-00002.gguf": bytes([n]) * 3000 for n in (1, 2)}
    taken = rig.settings.model_dir / "big-00001-of-00002.gguf"
    offer = rig.look("org/name", "big")
    taken.write_bytes(b"in the way")
    rig.downloads.start(offer.listing, "main", offer.choice)
    view = rig.downloads.wait("org_big-00001-of-00002.gguf", WAIT_S)
    assert view.state == "done"
    rig.downloads.cancel(view.id)
    taken.unlink()
    folder = rig.settings.model_dir / FOLDER / "name"
    ident = rig.fetch_until_held(200_000)
    rig.downloads.pause(ident)
    rig.let_go()
    rig.downloads.wait(ident, WAIT_S)
    (folder / "files").rename(rig.settings.model_dir / "name")  # all had come, and the folder was moved
    rig.begin_again()
    assert rig.downloads.views() == () and not folder.exists()


def test_speed_and_time_left_are_those_of_the_last_seconds(tmp_path: Path) -> None:
    now = [0.0]
    file = RemoteFile(path="model.safetensors", size_bytes=100_000, digest="")
    record = Record(
        name="org/name", revision="main", commit="a" * 40, title="", goal="name", is_folder=True, files=(file,)
    )
    job = Job(tmp_path, record, "running", clock=lambda: now[0])
    watch = job.watch(lambda: GiB)
    for second in range(30):
        now[0] = float(second)
        watch.on_bytes(1000 * second if second < 20 else 20_000 + 2000 * (second - 20))
    assert job.view.speed_Bps == pytest.approx(2000, rel=0.05)
    assert job.view.left_s == pytest.approx((100_000 - 38_000) / 2000, rel=0.05)
