"""How rank 0 of a DeepSpeed run leads the other ranks: one connection to each, orders one way, a watch at both ends.

No torch and no DeepSpeed here: a follower waits for its orders as a small process. Connections are checked with a
secret that only this user can read, because orders are pickled. Ranks on other machines need the same file.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import queue
import secrets
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge, wait
from pathlib import Path

from modules.errors import EngineDied, LoadFailed
from modules.memory.planning.planner import Plan
from modules.units import format_duration

log = logging.getLogger(__name__)
GATHER_TIMEOUT_S = 180.0
CONNECT_AGAIN_S = 0.2
CONNECT_S = 10.0


@dataclass(frozen=True, slots=True)
class World:
    """This process among the ranks; `host` and `port` are where rank 0 takes connections."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> World:
        """What the deepspeed launcher has set; without a launcher, one rank alone. Raises LoadFailed for bad values."""
        get = environment.get
        try:
            size = int(get("WORLD_SIZE", "1"))
            return cls(
                rank=int(get("RANK", "0")),
                size=size,
                local_rank=int(get("LOCAL_RANK", "0")),
                local_size=int(get("LOCAL_SIZE", get("LOCAL_WORLD_SIZE", str(size)))),
                host=get("MASTER_ADDR", "127.0.0.1"),
                port=int(get("MASTER_PORT", "29500")),
            )
        except ValueError as error:
            raise LoadFailed(
                f"RANK, WORLD_SIZE and MASTER_PORT must be numbers: {error}.",
                remedy="Start with: deepspeed --num_gpus=N server.py --deepspeed",
            ) from error


@dataclass(frozen=True, slots=True)
class Begin:
    """Load `plan`; the first order of all."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class Meet:
    """Join the process group whose store is at `port` of rank 0's host."""

    port: int


@dataclass(frozen=True, slots=True)
class Read:
    """Let row `row` read `ids`; a row that is not known is new."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Encode:
    """Make row `row` of an encoder-decoder model, its encoder reading `ids`."""

    row: int
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Let row `row` forget all but its first `length` tokens."""

    row: int
    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Make row `copy` from the first `length` tokens of `row`."""

    row: int
    copy: int
    length: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free these rows."""

    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """The model is unloaded: end."""


Order = Begin | Meet | Read | Encode | Keep | Copy | Drop | Leave


class Leader:
    """Rank 0's end. Orders are sent by one thread at a time; `on_broken` is called once when a follower is lost."""

    def __init__(self, world: World, on_broken: Callable[[str], None]) -> None:
        self.world = world
        self.broken = ""
        self._broke = threading.Event()
        self._on_broken = on_broken
        self._followers: dict[int, Connection] = {}
        self._forgotten: deque[int] = deque()
        self._lock = threading.Lock()
        self._closing = False

    def gather(self, timeout_s: float = GATHER_TIMEOUT_S) -> None:
        """Wait until every other rank is connected. Raises LoadFailed where the port is taken or a rank stays away."""
        if self.world.size == 1:
            return
        secret = shared_secret()
        greeted: queue.SimpleQueue[tuple[int, Connection]] = queue.SimpleQueue()
        deadline = time.monotonic() + timeout_s
        with self.listen(self.world.port) as listener:
            listener.settimeout(CONNECT_AGAIN_S)
            while len(self._followers) < self.world.size - 1:
                with contextlib.suppress(TimeoutError):
                    connection = Connection(listener.accept()[0].detach())
                    threading.Thread(target=_greet, args=(connection, secret, greeted), daemon=True).start()
                while not greeted.empty():
                    rank, connection = greeted.get()
                    self._followers[rank] = connection
                if time.monotonic() > deadline:
                    raise LoadFailed(
                        f"Of {self.world.size} ranks only {len(self._followers) + 1} came within "
                        f"{format_duration(timeout_s)}.",
                        remedy="Stop everything and start again with the deepspeed launcher.",
                    )
        threading.Thread(target=self._watch, name="watch over ranks", daemon=True).start()

    def send(self, order: Order) -> None:
        """Give `order` to every follower. Raises EngineDied if one is lost."""
        if self.broken:
            raise EngineDied(self.broken, remedy="Try again: the model is loaded anew.")
        orders: list[Order] = [order]
        if self._forgotten:
            orders.insert(0, Drop(tuple(self._forgotten.popleft() for _ in range(len(self._forgotten)))))
        for rank, follower in self._followers.items():
            try:
                for one in orders:
                    follower.send(one)
            except OSError as error:
                self.break_off(f"Rank {rank} has ended.")
                raise EngineDied(self.broken, remedy="Try again: the model is loaded anew.") from error

    def forget(self, row: int) -> None:
        """Nobody holds `row` any more; the followers hear of it with the next order. Safe in a finalizer."""
        if self._followers:
            self._forgotten.append(row)

    def break_off(self, why: str) -> None:
        """The ranks are no longer in step: this engine can only end."""
        with self._lock:
            if self.broken or self._closing:
                return
            self.broken = why
            self._broke.set()
        log.error("%s", why)
        self._on_broken(why)

    def broken_within(self, timeout_s: float) -> str:
        """Why the ranks are out of step, waiting for that at most `timeout_s`; "" if they are not."""
        if self._followers:
            self._broke.wait(timeout_s)
        return self.broken

    def close(self) -> None:
        """Let the followers go."""
        with self._lock:
            self._closing = True
        for follower in self._followers.values():
            with contextlib.suppress(OSError):
                follower.send(Leave())
                with socket.socket(fileno=os.dup(follower.fileno())) as link:
                    link.shutdown(socket.SHUT_RDWR)  # closing alone would wait for the watch to look up
            follower.close()

    def listen(self, port: int) -> socket.socket:
        """Take connections at `port` (0: any that is free) of the address where ranks look for rank 0, and of no other.
        Raises LoadFailed where it is taken.
        """
        try:
            return socket.create_server((self.world.host, port), backlog=self.world.size)
        except OSError as error:
            raise LoadFailed(
                f"Port {port} of {self.world.host}, where the ranks meet: {error.strerror or error}.",
                remedy="Choose another: deepspeed --master_port=PORT …",
            ) from error

    def _watch(self) -> None:
        """Followers only ever say why they end."""
        ranks = {connection: rank for rank, connection in self._followers.items()}
        try:
            ready = wait(list(ranks))[0]
        except OSError:
            return  # closed
        connection = next(one for one in ranks if one is ready)
        try:
            why = connection.recv_bytes(10_000).decode("utf-8", "replace")
        except (EOFError, OSError):
            why = "it has ended"
        self.break_off(f"Rank {ranks[connection]} cannot go on: {why}.")


class Follower:
    """The end of another rank. `on_leader_gone` is called as soon as rank 0 is gone without a Leave."""

    def __init__(self, connection: Connection, on_leader_gone: Callable[[], None]) -> None:
        self._connection = connection
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._on_leader_gone = on_leader_gone
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def next(self) -> Order:
        """The next order; waits as long as it takes."""
        return self._orders.get()

    def give_up(self, why: str) -> None:
        """Tell rank 0 why this rank ends."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(why.encode()[:10_000])

    def _listen(self) -> None:
        try:
            order: Order | None = None
            while not isinstance(order, Leave):
                order = self._connection.recv()
                self._orders.put(order)
        except (EOFError, OSError):
            self._on_leader_gone()


def connect(world: World, share: Callable[[Connection], None] | None = None) -> Connection:
    """A connection to rank 0; waits until rank 0 loads a model, however long that takes. `share` gets it before rank 0
    counts on this rank.
    """
    secret = shared_secret()
    while True:
        with contextlib.suppress(OSError, EOFError, AuthenticationError):
            link = socket.create_connection((world.host, world.port), timeout=CONNECT_S)
            if link.getsockname() == link.getpeername():  # nobody listens, and the port was taken for this end
                raise ConnectionRefusedError
            link.settimeout(None)
            connection = Connection(link.detach())
            answer_challenge(connection, _for_followers(secret))
            deliver_challenge(connection, _for_leader(secret))
            if share is not None:
                share(connection)
            connection.send_bytes(str(world.rank).encode())
            return connection
        time.sleep(CONNECT_AGAIN_S)


def shared_secret() -> bytes:
    """32 bytes that only this user's processes know; made at the first call."""
    path = Path.home() / ".cache" / "snug" / "ranks.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # readable by its owner only
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(temporary)
        Path(temporary).unlink()
    return path.read_bytes()


def _for_followers(secret: bytes) -> bytes:
    """With what followers show that they know `secret`. Rank 0 has another key: whoever takes its port while it is away
    could else have one follower answer what another one asks."""
    return hmac.digest(secret, b"follower", "sha256")


def _for_leader(secret: bytes) -> bytes:
    return hmac.digest(secret, b"leader", "sha256")


def _greet(connection: Connection, secret: bytes, greeted: queue.SimpleQueue[tuple[int, Connection]]) -> None:
    """Check a newcomer and learn its rank; a stranger is sent away."""
    try:
        deliver_challenge(connection, _for_followers(secret))
        answer_challenge(connection, _for_leader(secret))
        greeted.put((int(connection.recv_bytes(20)), connection))
    except (OSError, EOFError, AuthenticationError, ValueError):
        log.warning("A stranger knocked where the ranks meet")
        connection.close()
