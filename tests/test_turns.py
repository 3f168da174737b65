"""Turns of people: modules/engine/turns.py."""

from __future__ import annotations

import threading
import time

import pytest

from modules.engine.turns import Turns


def test_who_waits_for_a_lock_often_waits_behind_the_own_turns() -> None:
    turns, order = Turns(), []

    def take(whose: str) -> None:
        with turns.turn(whose):
            order.append(whose)

    threads = [threading.Thread(target=take, args=(whose,)) for whose in ("ben", "ben", "ben", "ana")]
    with turns.turn("cy"):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._waiting) < number:
                time.sleep(0.001)
    for thread in threads:
        thread.join(5.0)
    assert order == ["ben", "ana", "ben", "ben"]
    with turns.turn("ana"):
        assert turns._taken
    assert not turns._taken, "nobody waits any more"


def test_who_is_interrupted_while_waiting_for_a_lock_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: threading.Condition, timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    turns = Turns()
    with turns.turn("ana"), monkeypatch.context() as patched:
        patched.setattr(threading.Condition, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), turns.turn("ben"):
            pytest.fail("it is taken")
    assert not turns._taken and not turns.wanted
    with turns.turn("ana"):
        pass
