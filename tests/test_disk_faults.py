"""Disks that fill up, rights that are taken away, no descriptor left: named, nothing half, and it comes back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_rig import free_port

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits and rights are Unix's")

# What writes below user_data/, each with new content for every `n`; a line tells what failed, by its code.
WRITERS = """
import json, os, resource, sys
from pathlib import Path
from modules.characters.character import Character
from modules.characters.library import Library
from modules.chat.presets import Presets
from modules.chat.store import Store
from modules.errors import SnugError
from modules.extensions.manager import Extensions
from modules.models.remembered import ModelMemory
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings

folder = Path(sys.argv[1])
store = Store(folder / "snug.db")
presets = Presets(Path("presets"), folder / "presets")
library = Library.of(Path("characters"), folder)
memory = ModelMemory(Settings.model_validate({"user_data_dir": folder, "model_dir": folder}))
extensions = Extensions(folder / "scripts", ["mood"], kept=folder / "kept")
extensions.start()
chat = store.create("", title="Chat")
sent = []

def send(n):
    path = store.path("", chat.id)
    store.append("", chat.id, path[-1].id if path else None, "user", f"{n} " * 2000, op_id=f"{n}")
    sent.append(n)

def keep(n):
    extensions._all["mood"].params.update(word=f"{n} " * 2000)
    extensions.keep("mood")

def writers(n):
    stop = tuple(f"{n}-{i}" * 20 for i in range(60))
    yield "message", lambda: send(n)
    yield "notebook", lambda: store.notebooks.save("", f"{n} " * 2000)
    yield "preset", lambda: presets.save("mine", GenerationParams(top_k=n, stop=stop))
    yield "character", lambda: library.characters.save("Mine", Character(name="Mine", description=f"{n} " * 2000), None)
    yield "model settings", lambda: memory.keep(LoadOptions(model="m", ctx_size=100 + n))
    yield "extension", lambda: keep(n)

def one(text):
    assert len(set(text.split())) == 1 and len(text.split()) == 2000, text[:50]

def whole():
    messages = store.path("", chat.id)
    assert [int(message.content.split()[0]) for message in messages] == sent
    for text in (*(message.content for message in messages), store.notebooks.text("")):
        one(text)
    mine = presets.get("mine")
    assert len(mine.stop) == 60 and {stop.split("-")[0] for stop in mine.stop} == {str(mine.top_k)}
    one(library.characters.get("Mine").description)
    assert memory.of("m").options.ctx_size > 100 and not memory.of("m").note
    one(json.loads((folder / "kept" / "mood.json").read_text())["word"])
    assert not [path for path in folder.rglob(".tmp-*")]

def attempt(n):
    failed = {}
    for name, act in writers(n):
        try:
            act()
        except SnugError as error:
            assert error.remedy
            failed[name] = error.code
    whole()
    print(json.dumps(failed), flush=True)

attempt(1)
exec(sys.stdin.read())
"""
TELL = {"message", "notebook", "preset", "character", "model settings"}  # an extension's params go to the log


def mood(folder: Path) -> Path:
    """The same folder with an extension in it that keeps params."""
    (folder / "scripts" / "mood").mkdir(parents=True)
    (folder / "scripts" / "mood" / "script.py").write_text("params = {'word': ''}\ndef input_modifier(s): return s")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return mood(tmp_path)


def run(folder: Path, then: str, *before: str) -> list[dict[str, str]]:
    """What failed at each attempt of a process that goes on with the program `then`, started by `before`."""
    done = subprocess.run(
        [*before, sys.executable, "-c", WRITERS, str(folder)], cwd=ROOT, input=then, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


LIMITS = "[0, 1, 40, 400, 1000, 3000, 4000, 7000, 9000, 20_000, least]"


def full(limits: str) -> str:
    """The program that lets every writer try at each of these sizes of a file, and twice without a limit."""
    return f"""
least = sum(os.stat(path).st_size for path in folder.glob("snug.db*"))
for n, limit in enumerate({limits}, start=2):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    attempt(n)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
attempt(1000)
attempt(1001)
assert "1001" in (folder / "kept" / "mood.json").read_text()
"""


def test_wherever_the_disk_is_full_files_stay_whole_it_is_told_and_goes_on_later(folder: Path) -> None:
    first, *limited, _, last = run(folder, full(LIMITS))
    assert first == last == {}
    assert set(limited[0]) == TELL
    assert {code for failed in limited for code in failed.values()} == {"not_saved"}
    assert len({tuple(failed) for failed in limited}) > 2  # the limits struck at different writers


RIGHTS = """
def allow(mode):
    for path in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        path.chmod(mode)
allow(0o500)
try:
    attempt(2)
finally:
    allow(0o700)
attempt(3)
"""


def test_rights_that_are_taken_away_are_named_and_given_back_all_goes_on(folder: Path) -> None:
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")  # root is stopped by rights only so
    if os.geteuid() == 0 and not shutil.which(without[0]):
        pytest.skip("root without setpriv: rights stop nobody")
    first, denied, last = run(folder, RIGHTS, *(without if os.geteuid() == 0 else ()))
    assert first == last == {}
    assert {"preset", "character", "model settings"} <= set(denied)
    assert set(denied.values()) == {"not_saved"}


DESCRIPTORS = """
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []
while True:
    try:
        held.append(os.open("/", os.O_RDONLY))
    except OSError:
        break
failed = {}
for name, act in writers(2):
    try:
        act()
    except SnugError as error:
        failed[name] = error.code
print(json.dumps(failed), flush=True)
for one_held in held:
    os.close(one_held)
whole()
attempt(3)
"""


def test_without_a_descriptor_left_it_is_told_and_later_all_goes_on(folder: Path) -> None:
    first, without, last = run(folder, DESCRIPTORS)
    assert first == last == {}
    assert {"preset", "character", "model settings"} <= set(without)
    assert set(without.values()) == {"not_saved"}


FAILING = """
flag = Path(os.environ["EIO_WHILE"])
for number, kind in enumerate(("", "-sync", ""), start=2):
    broken = Path(f"{flag}{kind}")
    broken.touch()
    attempt(number)
    broken.unlink()
attempt(5)
"""


def test_a_disk_that_fails_is_told_and_nothing_old_is_lost(folder: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("a failing disk needs Linux and a C compiler")
    disk = tmp_path.parent / f"{tmp_path.name}-disk.so"
    source = Path(__file__).with_name("failing_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(disk), str(source), "-ldl"], check=True, timeout=60)
    flag = tmp_path.parent / f"{tmp_path.name}-fails"
    preloaded = ("env", f"LD_PRELOAD={disk}", f"EIO_WHILE={flag}", f"EIO_UNDER={folder}/")
    first, unwritten, unsynced, again, last = run(folder, FAILING, *preloaded)
    assert first == last == {}
    assert set(unwritten) == set(again) == TELL
    assert "message" in unsynced
    assert {*unwritten.values(), *unsynced.values(), *again.values()} == {"not_saved"}


START = """
import os, resource, sys
from pathlib import Path
from modules import startup
from modules.errors import SnugError
from modules.settings import Settings
folder = Path(sys.argv[1])
settings = Settings.model_validate({"user_data_dir": folder / "data", "model_dir": folder})
for limit in (0, 3, 100, 4096, 30_000, 100_000, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with startup.user_data(settings) as data, startup.services(settings, data) as services:
            chats = len(services.store.list(""))
            services.store.create("", title="x")
            print("started", chats, flush=True)
    except SnugError as error:
        assert error.remedy
        print(error.code, flush=True)
"""


def test_a_start_on_a_full_disk_is_refused_by_name_and_the_next_one_works(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.splitlines()
    assert "not_saved" in before and last.startswith("started")
    assert {line for line in before if not line.startswith("started")} == {"not_saved"}


def test_a_start_in_a_folder_without_rights_names_the_folder_in_one_line(tmp_path: Path) -> None:
    without = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
    if os.geteuid() == 0 and not shutil.which(without[0]):
        pytest.skip("root without setpriv: rights stop nobody")
    tmp_path.chmod(0o500)
    try:
        done = subprocess.run(
            [*(without if os.geteuid() == 0 else ()), sys.executable, "server.py", "--listen-port", str(free_port()),
             "--user-data-dir", str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr and "--user-data-dir" in done.stderr
