"""The chat store: what was returned is kept, owners see their own, and damage is never written over."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from modules.chat import database, trees
from modules.chat.schema import MIGRATIONS
from modules.chat.store import Store
from modules.errors import BadValue, NotFound, SnugError, StaleView, StoreFailed
from modules.messages import Message, ReplyStats

STATS = ReplyStats(12, 4, 30, 0.1, 0.2, 0.3, 41.5, "stop", "tiny", 2)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "snug.db")
    yield opened
    opened.close()


def texts(messages: list[Message]) -> list[str]:
    return [message.content for message in messages]


def test_a_conversation_is_a_tree_and_the_head_names_the_branch_on_show(store: Store) -> None:
    chat = store.create("", system_prompt="Be kind.")
    question = store.append("", chat.id, None, "user", "Why?", op_id="1")
    first = store.append("", chat.id, question.id, "assistant", "Because.", op_id="2")
    thanks = store.append("", chat.id, first.id, "user", "Thanks", op_id="3")
    second = store.append("", chat.id, question.id, "assistant", "Who knows?", op_id="4")

    assert texts(store.path("", chat.id)) == ["Why?", "Who knows?"]
    assert store.path("", chat.id)[-1].siblings == (first.id, second.id)
    assert store.set_head("", chat.id, first.id).head_id == thanks.id
    assert texts(store.path("", chat.id)) == ["Why?", "Because.", "Thanks"]
    assert texts(store.path_to("", second.id)) == ["Why?", "Who knows?"]
    assert store.message("", first.id).siblings == (first.id, second.id)


def test_deleting_a_message_takes_what_follows_and_shows_another_version_or_the_parent(store: Store) -> None:
    chat = store.create("")
    question = store.append("", chat.id, None, "user", "Why?", op_id="1")
    first = store.append("", chat.id, question.id, "assistant", "Because.", op_id="2")
    second = store.append("", chat.id, question.id, "assistant", "Who knows?", op_id="3")
    store.append("", chat.id, second.id, "user", "Hm", op_id="4")

    assert store.delete_message("", second.id).head_id == first.id
    assert store.delete_message("", first.id).head_id == question.id
    assert store.delete_message("", question.id).head_id is None
    assert store.path("", chat.id) == []


def test_a_chain_of_ten_thousand_messages_can_be_shown_and_deleted(store: Store) -> None:
    chat = store.create("")
    with store._database.write() as connection:
        connection.executemany(
            "INSERT INTO messages (id, conversation_id, owner, parent_id, role, content, created_at, status)"
            " VALUES (?, ?, '', ?, 'user', 'x', 0, 'complete')",
            [(f"m{n}", chat.id, f"m{n - 1}" if n else None) for n in range(10_000)],
        )
    started = time.perf_counter()
    assert store.set_head("", chat.id, "m0").head_id == "m9999"
    assert len(store.path("", chat.id)) == 10_000
    assert store.delete_message("", "m1").head_id == "m0"
    assert time.perf_counter() - started < 5


def test_the_first_user_message_gives_the_title_until_a_person_does(store: Store) -> None:
    chat = store.create("")
    text = "\n  What   is a very " + "long " * 40 + "title\nsecond"
    question = store.append("", chat.id, None, "user", text, op_id="1")
    store.append("", chat.id, question.id, "user", "Other", op_id="2")
    title = store.get("", chat.id).title
    assert title.startswith("What is a very long")
    assert len(title) <= 60
    assert store.rename("", chat.id, "Mine").title == "Mine"
    store.append("", chat.id, question.id, "user", "Third", op_id="3")
    assert store.get("", chat.id).title == "Mine"
    assert store.rename("", chat.id, " ").title == title
    assert store.append("", store.create("", title="Given").id, None, "user", "x", op_id="1")
    assert [c.title for c in store.list("")] == ["Given", title]


def test_the_same_operation_again_returns_the_same_message(store: Store) -> None:
    chat = store.create("")
    first = store.append("", chat.id, None, "user", "Hello", op_id="once")
    assert store.append("", chat.id, None, "user", "Hello", op_id="once") == first
    assert store.find_op("", chat.id, "once") == first
    assert store.find_op("", chat.id, "never") is None
    assert len(store.path("", chat.id)) == 1
    other = store.create("")
    assert store.append("", other.id, None, "user", "Hello", op_id="once").id != first.id


def test_a_vanished_parent_or_conversation_is_a_stale_view(store: Store) -> None:
    chat, other = store.create(""), store.create("")
    question = store.append("", chat.id, None, "user", "Why?", op_id="1")
    with pytest.raises(StaleView):
        store.append("", other.id, question.id, "user", "x", op_id="2")
    store.delete_message("", question.id)
    with pytest.raises(StaleView):
        store.append("", chat.id, question.id, "assistant", "x", op_id="3")
    store.delete("", chat.id)
    with pytest.raises(StaleView):
        store.append("", chat.id, None, "user", "x", op_id="4")
    with pytest.raises(NotFound):
        store.delete("", chat.id)


def test_owners_see_and_change_only_their_own(store: Store) -> None:
    mine = store.create("ann")
    message = store.append("ann", mine.id, None, "user", "my secret", op_id="1")
    store.notebooks.save("ann", "my notes")

    assert store.list("bob") == []
    assert store.list("bob", "secret") == []
    assert store.notebooks.text("bob") == ""
    attempts: list[Callable[[], object]] = [
        lambda: store.get("bob", mine.id),
        lambda: store.path("bob", mine.id),
        lambda: store.path_to("bob", message.id),
        lambda: store.message("bob", message.id),
        lambda: store.rename("bob", mine.id, "x"),
        lambda: store.set_system_prompt("bob", mine.id, "x"),
        lambda: store.set_head("bob", mine.id, message.id),
        lambda: store.delete("bob", mine.id),
        lambda: store.edit("bob", message.id, "x"),
        lambda: store.reopen("bob", message.id),
        lambda: store.delete_message("bob", message.id),
        lambda: store.append("bob", mine.id, None, "user", "x", op_id="2"),
        lambda: store.append("bob", store.create("bob").id, message.id, "user", "x", op_id="3"),
    ]
    for attempt in attempts:
        with pytest.raises((NotFound, StaleView)):
            attempt()
    assert store.find_op("bob", mine.id, "1") is None
    assert store.path("ann", mine.id)[0].content == "my secret"


def test_search_finds_text_and_titles_in_any_case_and_alphabet(store: Store) -> None:
    chats = {}
    for word in ("Straße", "ЖУРНАЛ", "百年", "100%_sure", "\ud83dhalf"):
        chats[word] = store.create("", title="chat")
        store.append("", chats[word].id, None, "user", f"about {word} today", op_id="1")
    titled = store.create("", title="Ünder the sea")
    for query, found in [
        ("strasse", chats["Straße"]), ("журнал", chats["ЖУРНАЛ"]), ("百", chats["百年"]), ("0%_s", chats["100%_sure"]),
        ("\ud83dHALF", chats["\ud83dhalf"]), ("üNDER", titled),
    ]:  # fmt: skip
        assert [c.id for c in store.list("", query)] == [found.id], query
    assert store.list("", "_%") == []
    assert len(store.list("", "about", limit=2)) == 2


def test_ten_thousand_conversations_stay_fast(store: Store) -> None:
    with store._database.write() as connection:
        connection.executemany(
            "INSERT INTO conversations"
            " (id, owner, title, renamed, mode, system_prompt, created_at, updated_at, touched)"
            " VALUES (?, '', ?, 1, 'chat', '', 0, 0, ?)",
            [(f"c{n}", f"Title {n}", n) for n in range(10_000)],
        )
        words = "lorem ipsum dolor sit amet " * 10
        connection.executemany(
            "INSERT INTO messages (id, conversation_id, owner, parent_id, role, content, created_at, status)"
            " VALUES (?, ?, '', NULL, 'user', ?, 0, 'complete')",
            [(f"m{n}", f"c{n % 10_000}", f"{words} {n}") for n in range(40_000)],
        )
    started = time.perf_counter()
    assert len(store.list("")) == 200
    listed_s = time.perf_counter() - started
    assert [c.id for c in store.list("", "amet  7777")] == ["c7777"]
    assert store.list("", "nowhere at all") == []
    searched_s = time.perf_counter() - started - listed_s
    assert listed_s < 0.5
    assert searched_s < 5


def test_a_streaming_reply_is_journalled_finished_and_continued(store: Store) -> None:
    chat = store.create("")
    reply = store.append("", chat.id, None, "assistant", "", op_id="1", status="streaming")
    store.journal(reply.id, "Once")
    assert store.path("", chat.id)[0].content == "Once"
    left = store.finish(reply.id, "Once upon", "stopped", STATS)
    assert left == store.get("", chat.id)
    assert left.updated_at > chat.updated_at
    done = store.path("", chat.id)[0]
    assert (done.status, done.stats, done.content) == ("stopped", STATS, "Once upon")
    with pytest.raises(StaleView):
        store.journal(reply.id, "late")
    assert store.reopen("", reply.id).status == "streaming"
    store.journal(reply.id, "Once upon a time")
    store.finish(reply.id, "Once upon a time", "error", None, "It broke.")
    failed = store.path("", chat.id)[0]
    assert (failed.status, failed.error) == ("error", "It broke.")
    assert store.edit("", reply.id, "Twice").error == ""
    store.delete("", chat.id)
    with pytest.raises(StaleView):
        store.finish(reply.id, "x", "complete", None)


def test_replies_that_a_crash_cut_off_are_marked_and_keep_their_text(tmp_path: Path) -> None:
    store = Store(tmp_path / "snug.db")
    chat = store.create("")
    reply = store.append("", chat.id, None, "assistant", "", op_id="1", status="streaming")
    store.journal(reply.id, "half a sen")
    store.close()
    with closing(Store(tmp_path / "snug.db")) as again:
        (found,) = again.path("", chat.id)
        assert (found.status, found.content) == ("interrupted", "half a sen")


any_text = st.text(st.characters(exclude_categories=()) | st.sampled_from("\ud83d\udc00\x00 "), max_size=100)


@given(any_text, any_text, any_text)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_comes_back_identical(store: Store, first: str, second: str, third: str) -> None:
    chat = store.create(first, system_prompt=second)
    message = store.append(first, chat.id, None, "user", third, op_id=second)
    assert store.append(first, chat.id, None, "user", third, op_id=second) == message
    assert store.get(first, chat.id).system_prompt == second
    assert store.path(first, chat.id)[0].content == third
    assert store.edit(first, message.id, second).content == second
    assert store.rename(first, chat.id, third + "x").title == third + "x"
    store.notebooks.save(first, third)
    assert store.notebooks.text(first) == third
    assert any(c.id == chat.id for c in store.list(first, second, limit=10_000))


ODD_TEXTS = {
    "nul": "\x00\x00",
    "surrogate": "\ud83d",
    "byte order mark": "\ufeffx",
    "right to left": "\u202eabc",
    "joined emoji": "\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "many accents": "e" + "\u0301" * 10_000,
    "ten megabytes": "x" * 10_000_000,
}


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS)
def test_odd_and_huge_texts_come_back_identical(store: Store, text: str) -> None:
    chat = store.create("")
    message = store.append("", chat.id, None, "assistant", text, op_id="1", status="streaming")
    store.journal(message.id, text + "!")
    store.finish(message.id, text, "complete", None)
    assert store.path("", chat.id)[0].content == text


# For each line that it reads it forks a writer, and says when that one is gone: to start Python anew 200 times would
# take longer than all that is written.
WRITERS = """
import os, sys
from pathlib import Path
from modules.chat.store import Store

def say(*words):
    # In one piece, whatever PYTHONUNBUFFERED says: half a line would swallow the next one.
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def write():
    say("writer", os.getpid())
    store = Store(Path(sys.argv[1]))
    chat = store.create("")
    say("chat", chat.id)
    parent = None
    for n in range(1_000_000):
        user = store.append("", chat.id, parent, "user", f"question {n}", op_id=f"u{n}")
        say("saved", user.id)
        reply = store.append("", chat.id, user.id, "assistant", "", op_id=f"a{n}", status="streaming")
        for part in range(3):
            store.journal(reply.id, "word " * part)
            say("journal", reply.id, len("word " * part))
        store.finish(reply.id, "the whole reply", "complete", None)
        say("saved", reply.id)
        parent = reply.id

for _ in sys.stdin:
    writer = os.fork()
    if writer == 0:
        try:
            write()
        finally:
            os._exit(1)
    say("gone", os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]))
"""


@contextmanager
def writers_of(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that forks writers to the store at `path`."""
    command = [sys.executable, "-c", WRITERS, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        process.communicate(timeout=60)


def kill_a_writer(writers: subprocess.Popen[bytes], randomness: random.Random) -> tuple[set[str], dict[str, int]]:
    """Let a process write, kill it at a random moment; the ids it was told are saved, and journalled lengths."""
    assert writers.stdin is not None and writers.stdout is not None
    writers.stdin.write(b"\n")
    kind, number = writers.stdout.readline().split()
    assert kind == b"writer"
    acknowledged = writers.stdout.readline()
    lines_until_kill = randomness.randrange(0, 60)
    for _ in range(lines_until_kill):
        acknowledged += writers.stdout.readline()
    if randomness.random() < 0.5:
        time.sleep(randomness.random() * 0.01)  # not a wait for anything: it moves the kill between two writes
    os.kill(int(number), signal.SIGKILL)
    while not (told := writers.stdout.readline()).startswith(b"gone"):
        acknowledged += told
    assert told == b"gone -9\n"
    saved: set[str] = set()
    journalled: dict[str, int] = {}
    for line in acknowledged.decode().splitlines():
        match line.split():
            case ["saved", ident]:
                saved.add(ident)
            case ["journal", ident, length]:
                journalled[ident] = int(length)
    return saved, journalled


def survive_kills(path: Path, rounds: int) -> None:
    randomness = random.Random(rounds)
    with writers_of(path) as writers:
        total = sum(survive_a_kill(path, writers, randomness) for _ in range(rounds))
    assert total > rounds


def survive_a_kill(path: Path, writers: subprocess.Popen[bytes], randomness: random.Random) -> int:
    """How many messages were saved by the writer that was killed; all of them are still there."""
    saved, journalled = kill_a_writer(writers, randomness)
    started = time.perf_counter()
    with closing(Store(path)) as store:
        assert time.perf_counter() - started < 3
        with store._database.read() as connection:
            assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
            rows = {r[0]: r[1:] for r in connection.execute("SELECT id, content, status FROM messages")}
        assert saved <= rows.keys()
        for ident, length in journalled.items():
            content, status = rows[ident]
            assert len(content) >= length
            assert status in ("complete", "interrupted")
    return len(saved)


def test_no_acknowledged_message_is_lost_in_200_kills(tmp_path: Path) -> None:
    survive_kills(tmp_path / "snug.db", 200)


class TwoTabs(RuleBasedStateMachine):
    """Clients that see an old state of one conversation write to it; a dict of every living message is the model."""

    seen = Bundle("seen")

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(self.folder / f"{time.monotonic_ns()}.db")
        self.chat = self.store.create("")
        self.living: dict[str, tuple[str | None, str]] = {}
        self.done: dict[str, str] = {}

    folder: Path

    def teardown(self) -> None:
        self.store.close()

    @rule(target=seen, client=st.integers(0, 3), text=st.text(max_size=5), op=st.integers(0, 40))
    def start(self, client: int, text: str, op: int) -> str:
        return self.add(None, client, text, op)

    @rule(target=seen, parent=seen, client=st.integers(0, 3), text=st.text(max_size=5), op=st.integers(0, 40))
    def send(self, parent: str, client: int, text: str, op: int) -> object:
        if parent not in self.living and f"{client}-{op}" not in self.done:
            with pytest.raises(StaleView):
                self.add(parent, client, text, op)
            return multiple()
        return self.add(parent, client, text, op)

    def add(self, parent: str | None, client: int, text: str, op: int) -> str:
        op_id = f"{client}-{op}"
        message = self.store.append("", self.chat.id, parent, "user", text, op_id=op_id)
        if op_id in self.done:
            assert message.id == self.done[op_id]
        else:
            assert message.id not in self.living
            self.done[op_id] = message.id
            self.living[message.id] = (parent, text)
        return message.id

    @rule(message=seen, text=st.text(max_size=5))
    def edit(self, message: str, text: str) -> None:
        if message in self.living:
            self.store.edit("", message, text)
            self.living[message] = (self.living[message][0], text)
        else:
            with pytest.raises(NotFound):
                self.store.edit("", message, text)

    @rule(message=seen)
    def show(self, message: str) -> None:
        if message in self.living:
            self.store.set_head("", self.chat.id, message)

    @rule(message=consumes(seen))
    def delete(self, message: str) -> None:
        if message not in self.living:
            with pytest.raises(NotFound):
                self.store.delete_message("", message)
            return
        self.store.delete_message("", message)
        gone = {message}
        for ident, (parent, _) in self.living.items():  # in order of creation: parents come first
            if parent in gone:
                gone.add(ident)
        self.living = {ident: kept for ident, kept in self.living.items() if ident not in gone}
        self.done = {op: ident for op, ident in self.done.items() if ident not in gone}

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        with self.store._database.read() as connection:
            rows = connection.execute("SELECT id, parent_id, content FROM messages ORDER BY sequence").fetchall()
        assert [(ident, parent, text) for ident, parent, text in rows] == [
            (ident, parent, text) for ident, (parent, text) in self.living.items()
        ]
        path = self.store.path("", self.chat.id)
        assert bool(path) == bool(self.living)
        assert [m.parent_id for m in path] == [None, *[m.id for m in path]][: len(path)]
        if path:
            assert path[-1].id not in {parent for parent, _ in self.living.values()}


def test_four_clients_on_one_conversation_lose_and_double_nothing(tmp_path: Path) -> None:
    TwoTabs.folder = tmp_path
    thorough = settings(
        max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
    )
    run_state_machine_as_test(TwoTabs, settings=thorough)


def test_threads_write_side_by_side_without_loss(store: Store) -> None:
    chat = store.create("")
    faults: list[Exception] = []

    def write(client: int) -> None:
        try:
            for n in range(25):
                store.append("", chat.id, None, "user", f"{client} {n}", op_id=f"{client}-{n}")
                store.list("", f"{client} {n}")
        except SnugError as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(client,)) for client in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert faults == []
    assert len(store.path("", chat.id)[0].siblings) == 150


def test_a_short_lock_is_waited_out_and_a_long_one_named(store: Store) -> None:
    chat = store.create("")
    with closing(sqlite3.connect(store._database.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(0.5, lambda: other.execute("COMMIT"))
        release.start()
        store.append("", chat.id, None, "user", "patient", op_id="1")
        release.join()
        store._database._writer.execute("PRAGMA busy_timeout = 100")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreFailed, match="locked") as caught:
            store.append("", chat.id, None, "user", "refused", op_id="2")
        assert caught.value.code == "not_saved"
        other.execute("COMMIT")
    store.append("", chat.id, None, "user", "works again", op_id="2")
    assert len(store.path("", chat.id)[0].siblings) == 2


FILL = """
import resource, sys
from pathlib import Path
from modules.chat.store import Store
from modules.errors import StoreFailed
store = Store(Path(sys.argv[1]))
chat = store.list("")[0]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for n in range(1000):
    try:
        store.append("", chat.id, None, "user", "x" * 5000, op_id=str(n))
    except StoreFailed as error:
        print(error.code, flush=True)
        assert len(store.path("", chat.id)[0].siblings) == n + 1
        break
    print("saved", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no file size limit for a process")
def test_a_full_disk_is_named_and_nothing_old_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    with closing(Store(path)) as store:
        chat = store.create("")
        store.append("", chat.id, None, "user", "old", op_id="old")
    for limit in (120_000, 200_000, 300_000):
        done = subprocess.run([sys.executable, "-c", FILL, str(path), str(limit)], capture_output=True, text=True)
        lines = done.stdout.split()
        assert lines[-1] == "not_saved", done.stderr
        with closing(Store(path)) as store:
            siblings = store.path("", chat.id)[0].siblings
            assert len(siblings) == 1 + lines.count("saved")
            assert store.message("", siblings[0]).content == "old"
            for ident in siblings[1:]:
                store.delete_message("", ident)


def damaged_copies(sound: bytes) -> dict[str, bytes]:
    randomness = random.Random(9)
    copies = {"truncated": sound[: len(sound) // 2], "text": b"hello", "zeroed": bytes(len(sound))}
    for n in range(20):
        bad = bytearray(sound)
        start = randomness.randrange(0, len(bad) - 600)
        bad[start : start + 600] = randomness.randbytes(600)
        copies[f"overwritten at {start} ({n})"] = bytes(bad)
    return copies


def test_a_damaged_file_is_named_with_its_backup_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    with closing(Store(path)) as store:
        chat = store.create("")
        for n in range(200):
            store.append("", chat.id, None, "user", "text " * 100, op_id=str(n))
    sound = path.read_bytes()
    refused = 0
    for label, bad in damaged_copies(sound).items():
        path.write_bytes(bad)
        try:
            Store(path).close()
        except StoreFailed as error:
            refused += 1
            assert "snug-" in error.remedy, label
            assert path.read_bytes() == bad, label
    assert refused >= 12  # the rest overwrote nothing but text or free space


def test_an_emptied_file_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    Store(path).close()
    path.write_bytes(b"")
    with pytest.raises(StoreFailed, match="is empty"):
        Store(path)
    shutil.rmtree(tmp_path / "backups")
    Store(path).close()


def test_a_newer_or_foreign_file_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    Store(path).close()
    for pragma, words in (
        (f"user_version = {len(MIGRATIONS) + 1}", "newer Snug"),
        ("application_id = 7", "another program"),
    ):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(f"PRAGMA {pragma}")
        before = path.read_bytes()
        with pytest.raises(StoreFailed, match=words):
            Store(path)
        assert path.read_bytes() == before


def test_a_kill_during_the_first_migration_leaves_a_file_that_opens(tmp_path: Path) -> None:
    for attempt in range(10):
        path = tmp_path / str(attempt) / "snug.db"
        path.parent.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", "import sys; from pathlib import Path; from modules.chat.store import Store; "
             "print(flush=True); Store(Path(sys.argv[1]))", str(path)],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.communicate()
        with closing(Store(path)) as store:
            assert store.list("") == []


CUT_OFF = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")  # so that the change is in the file before it is complete
connection.execute("BEGIN IMMEDIATE")
connection.execute("CREATE TABLE half (text)")
connection.executemany("INSERT INTO half VALUES (?)", [("x" * 4000,)] * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_change_that_a_kill_cut_off_before_the_file_had_its_kind_of_journal_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    assert subprocess.run([sys.executable, "-c", CUT_OFF, str(path)]).returncode == -signal.SIGKILL
    assert path.stat().st_size > 0 and (tmp_path / "snug.db-journal").exists()
    with closing(Store(path)) as store:
        assert store.list("") == []
        with store._database.read() as connection:
            assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)


def test_the_store_is_copied_once_a_day_and_seven_copies_are_kept(tmp_path: Path) -> None:
    path, folder = tmp_path / "snug.db", tmp_path / "backups"
    folder.mkdir()
    for day in range(10, 20):
        (folder / f"snug-2001-01-{day}.db").write_bytes(b"old")
    with closing(Store(path)) as store:
        chat = store.create("")
        store.backup_if_due()
        newest = sorted(folder.iterdir())[-1]
        assert len(list(folder.iterdir())) == database.BACKUPS_KEPT
        newest.unlink()
        store._database._backed_up = "yesterday"
        store.backup_if_due()
    with closing(Store(newest)) as copy:
        assert copy.get("", chat.id).id == chat.id


def test_copies_from_before_an_update_and_cut_off_ones_go_with_the_daily_ones(tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()

    def copied(name: str, at: float) -> None:
        (folder / name).write_bytes(b"old")
        os.utime(folder / name, (at, at))

    for day in range(5):
        copied(f"snug-2001-01-0{day + 1}.db", day * 86_400.0)
    for name in ("snug-version-2.db", "snug-2001-01-03.part", "users-version-2.db"):
        copied(name, 0.0)
    with closing(Store(tmp_path / "snug.db")) as store:
        assert {"snug-version-2.db", "users-version-2.db"} <= {path.name for path in folder.iterdir()}, "six days"
        assert not list(folder.glob("*.part"))
        copied("snug-2001-01-06.db", 6 * 86_400.0)
        (folder / "snug-2001-01-01.db").unlink()
        copied("snug-2001-01-07.db", 7 * 86_400.0)
        store._database._backed_up = "yesterday"
        store.backup_if_due()
        assert not (folder / "snug-version-2.db").exists()
        assert (folder / "users-version-2.db").exists()


def test_clock_jumps_do_not_change_the_order(tmp_path: Path) -> None:
    times = iter([5e9, -1.0, 0.0, 1e9, 3.0, 2.0, 1.0, 0.5, 0.4, 0.3])
    with closing(Store(tmp_path / "snug.db", now=lambda: next(times))) as store:
        first, second = store.create(""), store.create("")
        one = store.append("", first.id, None, "user", "1", op_id="1")
        store.append("", first.id, one.id, "assistant", "2", op_id="2")
        assert texts(store.path("", first.id)) == ["1", "2"]
        assert [c.id for c in store.list("")] == [first.id, second.id]


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store(tmp_path / "snug.db")
    store.close()
    store.close()
    with pytest.raises(StoreFailed, match="closed"):
        store.list("")
    with pytest.raises(StoreFailed, match="closed"):
        store.create("")


def test_a_system_prompt_that_no_model_could_read_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "MOST_OF_A_SYSTEM_PROMPT", 5)
    chat = store.create("", system_prompt="brief")
    with pytest.raises(BadValue, match="up to 5"):
        store.create("", system_prompt="longer")
    with pytest.raises(BadValue, match="up to 5"):
        store.set_system_prompt("", chat.id, "longer")
    assert store.get("", chat.id).system_prompt == "brief"


def test_a_backup_that_fails_leaves_the_room_that_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "backups"
    Store(tmp_path / "snug.db").close()
    (folder / "snug-2020-01-01.part").write_bytes(b"of a server that was killed")
    for path in folder.glob("*.db"):
        path.unlink()

    class Full(sqlite3.Connection):
        def backup(self, target: sqlite3.Connection, **_: object) -> None:
            target.execute("CREATE TABLE begun (x)")
            raise sqlite3.OperationalError("database or disk is full")

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **options: connect(*given, factory=Full, **options))
    with closing(Store(tmp_path / "snug.db")) as store:
        store.create("")
    assert list(folder.iterdir()) == []


def test_a_backup_is_not_begun_without_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    with closing(Store(tmp_path / "snug.db")) as store:
        store.create("")
    assert list((tmp_path / "backups").iterdir()) == []


def test_the_remedy_for_a_damaged_file_brings_its_backup_back(tmp_path: Path) -> None:
    path = tmp_path / "snug.db"
    with closing(Store(path)) as store:
        store.create("", title="kept")
    for backup in (tmp_path / "backups").iterdir():
        backup.unlink()
    Store(path).close()  # the day after
    (backup,) = (tmp_path / "backups").iterdir()
    killed = Store(path)  # leaves its journal, as a process that is killed
    for n in range(30):
        chat = killed.create("", title="later")
        killed.append("", chat.id, None, "user", "words " * 200, op_id=str(n))
    beside = {end: (tmp_path / f"snug.db-{end}").read_bytes() for end in ("wal", "shm")}
    killed.close()
    path.write_bytes(b"hello")
    for end, data in beside.items():
        (tmp_path / f"snug.db-{end}").write_bytes(data)
    with pytest.raises(StoreFailed, match="is no database") as refused:
        Store(path)
    assert "Move it away, and snug.db-wal and snug.db-shm with it." in refused.value.remedy
    for old in tmp_path.glob("snug.db*"):
        old.unlink()
    shutil.copyfile(backup, path)
    with closing(Store(path)) as store:
        assert [chat.title for chat in store.list("")] == ["kept"]
