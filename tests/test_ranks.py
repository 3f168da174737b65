"""Ranks find each other by a secret, orders arrive in order, and each end notices when the other is gone."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import stat
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from modules.engine.zero3.doors import _live_once, told_end
from modules.engine.zero3.ranks import Drop, Follower, Keep, Leader, Leave, Order, Read, World, connect, shared_secret
from modules.errors import EngineDied, LoadFailed

WAIT_S = 20


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    return tmp_path


def world(rank: int, size: int, port: int) -> World:
    return World(rank, size, rank, size, "127.0.0.1", port)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class Ranks:
    """A leader and its followers, all in this process."""

    def __init__(self, size: int, port: int) -> None:
        self.broken: list[str] = []
        self.leader_gone = threading.Event()
        self.followers: dict[int, Follower] = {}
        self.leader = Leader(world(0, size, port), on_broken=self.broken.append)
        threads = [threading.Thread(target=self._join, args=(rank, size, port)) for rank in range(1, size)]
        for thread in threads:
            thread.start()
        self.leader.gather(WAIT_S)
        for thread in threads:
            thread.join(WAIT_S)

    def _join(self, rank: int, size: int, port: int) -> None:
        self.followers[rank] = Follower(connect(world(rank, size, port)), self.leader_gone.set)


def test_orders_reach_every_follower_in_order(port: int) -> None:
    ranks = Ranks(3, port)
    orders: list[Order] = [Read(1, (5, 6)), Keep(1, 1), Leave()]
    for order in orders[:2]:
        ranks.leader.send(order)
    ranks.leader.close()
    for follower in ranks.followers.values():
        assert [follower.next() for _ in orders] == orders
    assert ranks.broken == []
    assert not ranks.leader_gone.is_set()


def test_forgotten_rows_are_dropped_with_the_next_order(port: int) -> None:
    ranks = Ranks(2, port)
    ranks.leader.forget(3)
    ranks.leader.forget(4)
    ranks.leader.send(Read(5, (1,)))
    assert [ranks.followers[1].next() for _ in range(2)] == [Drop((3, 4)), Read(5, (1,))]
    ranks.leader.close()


def test_a_follower_that_gives_up_says_why_and_the_leader_sends_nothing_more(port: int) -> None:
    ranks = Ranks(2, port)
    ranks.followers[1].give_up("its disk is full")
    assert ranks.leader.broken_within(WAIT_S) == "Rank 1 cannot go on: its disk is full."
    with pytest.raises(EngineDied, match="disk is full"):
        ranks.leader.send(Read(1, (5,)))


@pytest.mark.skipif(os.name == "nt", reason="DeepSpeed's launcher is for Linux")
def test_of_a_follower_that_was_killed_the_leader_hears_how_it_ended(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"HOME": str(tmp_path), "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in (variables | {"MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    broken: queue.SimpleQueue[str] = queue.SimpleQueue()
    leader = Leader(world(0, 2, port), on_broken=broken.put)
    before = {process.pid for process in psutil.Process().children()}
    lives = threading.Thread(target=_live_once, args=(1, []))
    lives.start()
    leader.gather(60)
    (follower,) = [one for one in psutil.Process().children() if one.pid not in before]
    follower.send_signal(signal.SIGSEGV)
    assert leader.broken_within(WAIT_S).startswith("Rank 1 cannot go on: its process ended (SIGSEGV)")
    lives.join(WAIT_S)
    assert broken.get(timeout=WAIT_S) == leader.broken  # which it knows a moment before it tells
    assert broken.empty()


def test_the_last_words_of_a_follower_are_told_with_its_end() -> None:
    assert told_end(-6, ("terminate called", "what(): broken")) == (
        "its process ended (SIGABRT), after: terminate called / what(): broken"
    )
    assert told_end(3, ()) == "its process ended (exit code 3)"


def test_one_rank_alone_needs_no_port(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        leader = Leader(world(0, 1, port), on_broken=print)
        leader.gather(WAIT_S)
        leader.send(Read(1, (5,)))
        leader.close()
    assert leader.broken_within(WAIT_S) == ""


def test_a_taken_port_is_an_error_that_names_it(port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), pytest.raises(LoadFailed, match=str(port)) as caught:
        Leader(world(0, 2, port), on_broken=print).gather(WAIT_S)
    assert "--master_port" in caught.value.remedy


def test_a_rank_that_stays_away_is_an_error(port: int) -> None:
    with pytest.raises(LoadFailed, match="only 1 came"):
        Leader(world(0, 2, port), on_broken=print).gather(0.3)


def test_a_stranger_without_the_secret_is_sent_away(port: int) -> None:
    leader = Leader(world(0, 2, port), on_broken=print)
    failure: list[LoadFailed] = []

    def gather() -> None:
        try:
            leader.gather(3)
        except LoadFailed as error:
            failure.append(error)

    gathering = threading.Thread(target=gather)
    gathering.start()
    for _ in range(100):
        try:
            stranger = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
            break
        except ConnectionRefusedError:
            gathering.join(0.05)
    with stranger:
        stranger.sendall(b"\x00\x00\x00\x08#WELCOME" * 20)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := stranger.recv(1000):
                received += chunk
    assert b"#WELCOME#" not in received
    gathering.join(WAIT_S)
    assert "only 1 came" in failure[0].message


def test_who_takes_the_port_cannot_let_one_follower_answer_what_another_asks(port: int) -> None:
    taken = socket.create_server(("127.0.0.1", port))
    for rank in (1, 2):
        threading.Thread(target=connect, args=(world(rank, 3, port),), daemon=True).start()
    first, second = (Connection(taken.accept()[0].detach()) for _ in range(2))
    taken.close()
    with first, second:
        first.send_bytes(b"#CHALLENGE#" + os.urandom(20))
        first.recv_bytes(256)
        first.send_bytes(b"#WELCOME#")
        second.send_bytes(first.recv_bytes(256))
        first.send_bytes(second.recv_bytes(256))
        assert first.recv_bytes(256) == b"#FAILURE#"


def test_the_secret_is_made_once_and_for_its_owner_only(home: Path) -> None:
    secrets = [shared_secret() for _ in range(3)]
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32
    files = list((home / ".cache" / "snug").iterdir())
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600]


def test_the_launchers_variables_make_a_world_and_nonsense_is_refused() -> None:
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29501"}
    assert World.from_environment(launched) == World(1, 2, 1, 2, "10.0.0.1", 29501)
    assert World.from_environment({}) == World(0, 1, 0, 1, "127.0.0.1", 29500)
    with pytest.raises(LoadFailed, match="numbers"):
        World.from_environment({"RANK": "first"})
