"""One life of a rank above 0: wait for rank 0, load its model, follow its steps, end with it.

`python -m modules.engine.zero3.follower PARENT SOCKET` is started by doors.follow, again and again. torch is imported
only when rank 0 loads a model. Its connection to rank 0 is left with its parent too, which tells how it ended where it
cannot say so itself.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from functools import partial
from multiprocessing.connection import Connection

from modules.engine.host.worker import die_with, go_first
from modules.engine.zero3.ranks import Begin, Follower, World, connect
from modules.errors import SnugError

log = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Follow rank 0 once; returns the exit code."""
    die_with(int(argv[0]))
    go_first()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    world = World.from_environment(os.environ)
    parent = socket.socket(fileno=int(argv[1]))
    connection = connect(world, lambda connection: _leave_with(parent, connection))
    follower = Follower(connection, on_leader_gone=partial(os._exit, 0))
    order = follower.next()
    if not isinstance(order, Begin):
        log.error("Rank 0 began with %s", type(order).__name__)
        return 1
    try:
        from modules.engine.zero3.engine import follow

        follow(world, order.plan, follower)
    except Exception as error:
        log.exception("Rank %d ends", world.rank)
        follower.give_up(str(error) if isinstance(error, SnugError) else type(error).__name__)
        return 1
    return 0


def _leave_with(parent: socket.socket, connection: Connection) -> None:
    socket.send_fds(parent, [b"."], [connection.fileno()])


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the interpreter's own end would wait for collectives that never end
