"""Processes that read what strangers wrote open no files but Python's, and connect to nothing."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from modules.attachments.extracting import Extractor
from modules.chat.templates import TemplateWorker
from modules.confined import confined_to
from modules.engine.form_reading import Form, FormReader
from modules.memory.model.links import followed_files
from modules.ui.highlighting import Highlighter

ROOT = Path(__file__).parent.parent
TRIES = """
import json, os, socket, sys
from modules.confined import confine

def tried(deed):
    try:
        deed()
    except OSError as error:
        return type(error).__name__
    return "done"

secret, fresh, port, parent = sys.argv[1:]
confined = confine()
told = {
    "secret": tried(lambda: open(secret)), "folder": tried(lambda: os.listdir(os.path.dirname(secret))),
    "fresh": tried(lambda: open(fresh, "w")), "parent": tried(lambda: open(f"/proc/{parent}/environ")),
    "connect": tried(lambda: socket.create_connection(("127.0.0.1", int(port)), 5)),
    "signal": tried(lambda: os.kill(int(parent), 0)),
    "own": tried(lambda: open("/proc/self/statm")), "null": tried(lambda: open("/dev/null")),
}
assert len(open("/proc/self/statm").read()) > 9
import email.mime.text, PIL.WebPImagePlugin, pypdf  # what libraries import when they first need it
print(json.dumps([confined, told]))
"""


@pytest.fixture(scope="module")
def tries(tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, dict[str, str]]:
    """Whether this kernel can confine, and what came of each try."""
    folder = tmp_path_factory.mktemp("of the user")
    secret = folder / "users.db"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(secret), str(folder / "fresh"), str(server.getsockname()[1]), str(psutil.Process().pid)]
        command = [sys.executable, "-P", "-c", TRIES, *arguments]
        ran = subprocess.run(
            command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True
        )
    confined, told = json.loads(ran.stdout)
    return bool(confined), told


def test_a_confined_process_reaches_nothing_of_the_user_and_still_imports(tries: tuple[bool, dict[str, str]]) -> None:
    confined, told = tries
    if not confined:
        pytest.skip("this kernel has no Landlock")
    assert (told.pop("own"), told.pop("null")) == ("done", "done")
    told.pop("connect"), told.pop("signal")  # which the kernel confines since 6.7 and 6.12
    assert told == dict.fromkeys(("secret", "folder", "fresh", "parent"), "PermissionError")


def test_a_thread_confined_to_a_folder_reads_that_alone_and_others_go_on(
    tries: tuple[bool, dict[str, str]], tmp_path: Path
) -> None:
    if not tries[0]:
        pytest.skip("this kernel has no Landlock")
    secret, blob, model = tmp_path / "secret", tmp_path / "blobs" / "blob", tmp_path / "model"
    model.mkdir()
    blob.parent.mkdir()
    for path in (secret, blob, model / "tokenizer.json"):
        path.write_text(path.name)
    (model / "linked.json").symlink_to(blob)
    assert confined_to((model, *followed_files(model)), (model / "tokenizer.json").read_text) == "tokenizer.json"
    assert confined_to((model, *followed_files(model)), (model / "linked.json").read_text) == "blob"
    files = psutil.Process().num_fds()
    with pytest.raises(PermissionError):
        confined_to((model, *followed_files(model)), secret.read_text)
    assert psutil.Process().num_fds() == files, "nothing stays open of each"
    assert secret.read_text() == "secret"


def test_a_models_links_open_single_files_to_it_and_no_folders(
    tries: tuple[bool, dict[str, str]], tmp_path: Path
) -> None:
    if not tries[0]:
        pytest.skip("this kernel has no Landlock")
    home, model = tmp_path / "home", tmp_path / "model"
    (home / "blobs").mkdir(parents=True)
    (model / "inner").mkdir(parents=True)
    for path in (home / "secret", home / "config.json", home / "blobs" / "1a2b"):
        path.write_text(path.name)
    (model / "home").symlink_to(home)
    (model / "inner" / "all").symlink_to("/")
    (model / "inner" / "other.json").symlink_to(home / "secret")
    (model / "inner" / "config.json").symlink_to(home / "config.json")
    (model / "tokenizer.json").symlink_to(home / "blobs" / "1a2b")
    (model / "loop").symlink_to(model / "loop")
    for path in (home / "secret", model / "home" / "secret", model / "inner" / "other.json"):
        with pytest.raises(PermissionError):
            confined_to((model, *followed_files(model)), path.read_text)
    for path in (model / "inner" / "config.json", model / "tokenizer.json"):
        assert confined_to((model, *followed_files(model)), path.read_text) == path.resolve().name
    assert confined_to((model, home / "secret"), (home / "secret").read_text) == "secret"


def ask_for_a_text() -> None:
    with Extractor().several() as read:
        read("notes.txt", b"a word")
        assert_confined("modules.attachments.worker")


def ask_for_a_form() -> None:
    with closing(FormReader()) as reader:
        reader.read(Form(engine="llamacpp", grammar='root ::= "a"'))
        assert_confined("modules.engine.form_worker")


def ask_for_a_prompt() -> None:
    with closing(TemplateWorker()) as worker:
        assert worker.render("{{ a }}", {"a": "b"}) == "b"
        assert_confined("modules.chat.template_worker")


def ask_for_colours() -> None:
    with closing(Highlighter()) as highlighter:
        assert "<span" in str(highlighter.html("def f(): pass", "python"))
        assert_confined("modules.ui.highlight_worker")


def assert_confined(module: str) -> None:
    """Children of this process that run `module` are there, and may gain no privileges, which confining asks for."""
    found = [child for child in psutil.Process().children() if module in child.cmdline()]
    assert found
    for child in found:
        assert "NoNewPrivs:\t1" in Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")


@pytest.mark.parametrize("ask", [ask_for_a_text, ask_for_a_form, ask_for_a_prompt, ask_for_colours])
def test_who_reads_what_strangers_wrote_is_confined(
    ask: Callable[[], None], tries: tuple[bool, dict[str, str]]
) -> None:
    if not tries[0]:
        pytest.skip("this kernel has no Landlock")
    ask()
