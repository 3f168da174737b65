"""A process that answers one question at a time: started when asked, killed when late, replaced afterwards."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from modules.killable import KillableWorker, WorkerDoesNotStart, WorkerEnded, WorkerLate, bare_environment

PROGRAM = """
import sys, time
def send(text):
    sys.stdout.buffer.write(len(text).to_bytes(4, "big") + text); sys.stdout.buffer.flush()
send(b"{}")
while header := sys.stdin.buffer.read(4):
    word = sys.stdin.buffer.read(int.from_bytes(header, "big"))
    if word == b"die": sys.exit(1)
    if word == b"sleep": time.sleep(60)
    send(b'{"word": "' + word + b'"}')
"""


@pytest.fixture
def worker() -> Iterator[KillableWorker]:
    """A process that repeats a word, sleeps or dies."""
    made = KillableWorker([sys.executable, "-c", PROGRAM], {}, start_s=30)
    yield made
    made.close()


def test_helpers_get_none_of_the_users_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    environment = bare_environment()
    assert "HF_TOKEN" not in environment and "PATH" in environment
    done = subprocess.run(
        [sys.executable, "-c", "import modules.killable"], env=environment, cwd="/", capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_it_answers_one_question_after_the_other(worker: KillableWorker) -> None:
    assert [worker.ask(word, timeout_s=30)["word"] for word in (b"one", b"two")] == ["one", "two"]


@pytest.mark.parametrize(("word", "timeout_s", "error"), [(b"sleep", 0.1, WorkerLate), (b"die", 30, WorkerEnded)])
def test_one_that_is_late_or_dead_is_replaced(
    word: bytes, timeout_s: float, error: type[WorkerEnded], worker: KillableWorker
) -> None:
    with pytest.raises(error):
        worker.ask(word, timeout_s=timeout_s)
    assert worker.ask(b"again", timeout_s=30) == {"word": "again"}


def test_a_program_that_says_nothing_does_not_start() -> None:
    silent = KillableWorker([sys.executable, "-c", "import time; time.sleep(60)"], {}, start_s=0.2)
    with pytest.raises(WorkerDoesNotStart):
        silent.ask(b"hello", timeout_s=30)


def test_a_program_that_cannot_be_run_does_not_start() -> None:
    with pytest.raises(WorkerDoesNotStart):
        KillableWorker(["/nonexistent/python"], {}, start_s=30).ask(b"hello", timeout_s=30)


def test_a_process_that_is_starting_can_be_killed() -> None:
    silent = KillableWorker([sys.executable, "-c", "import time; time.sleep(60)"], {}, start_s=60)
    ended: list[type[Exception]] = []

    def ask() -> None:
        try:
            silent.ask(b"{}", timeout_s=60)
        except WorkerEnded as error:
            ended.append(type(error))

    asking = threading.Thread(target=ask)
    asking.start()
    while asking.is_alive():
        silent.kill()
        asking.join(0.05)
    silent.close()
    assert ended == [WorkerDoesNotStart]
