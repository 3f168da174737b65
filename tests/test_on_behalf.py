"""Turns of people: modules/on_behalf.py."""

from __future__ import annotations

import threading
import time

import pytest

from modules.on_behalf import ASKED_FOR, FairLock


def test_who_waits_for_a_lock_often_waits_behind_the_own_turns() -> None:
    lock, order = FairLock(), []

    def take(whose: str) -> None:
        ASKED_FOR.set(whose)
        with lock:
            order.append(whose)

    threads = [threading.Thread(target=take, args=(whose,)) for whose in ("ben", "ben", "ben", "ana")]
    with lock:
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while sum(map(len, lock._waiting.values())) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(5.0)
    assert order == ["ben", "ana", "ben", "ben"]
    with lock:
        assert lock._taken
    assert not lock._taken, "nobody waits any more"


def test_who_is_interrupted_while_waiting_for_a_lock_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: threading.Event) -> bool:
        raise KeyboardInterrupt

    lock = FairLock()
    with lock, monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), lock:
            pytest.fail("it is taken")
    assert not lock._taken and not lock._waiting
    with lock:
        pass
