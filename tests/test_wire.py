"""The writer of the pipe: what cannot be sent is told in the log and takes nothing else with it."""

from __future__ import annotations

import logging
import multiprocessing
from typing import Any

import pytest

from modules.engine.host.wire import MAX_BATCH, SMALL_BYTES, Answer, Writer


def received(pipe: Any) -> list[Any]:
    """Everything until the other side closes."""
    values = []
    while True:
        try:
            values += [message.value for message in pipe.recv()]
        except EOFError:
            return values


@pytest.mark.parametrize("large", [False, True])
def test_a_message_that_cannot_be_pickled_is_dropped_alone_and_told(
    large: bool, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = multiprocessing.Pipe()
    writer = Writer(ours, "test outbox")
    filler = "x" * (SMALL_BYTES if large else 1)  # small messages are sent by who posts, large ones by the thread
    with caplog.at_level(logging.ERROR):
        for number in range(20):
            writer.post(Answer(number, lambda: None) if number == 10 else Answer(number, f"{number}{filler}"))
        writer.finish(10)
    ours.close()
    assert received(theirs) == [f"{number}{filler}" for number in range(20) if number != 10]
    assert [record.getMessage() for record in caplog.records] == [
        "A message to the other process cannot be sent: Answer"
    ]


def test_everything_arrives_in_order_whatever_its_size() -> None:
    ours, theirs = multiprocessing.Pipe()
    writer = Writer(ours, "test outbox")
    sent = ["x" * (SMALL_BYTES * 2 if number % 7 == 0 else 1) + str(number) for number in range(MAX_BATCH // 64)]
    for number, value in enumerate(sent):
        writer.post(Answer(number, value))
    writer.finish(10)
    ours.close()
    assert received(theirs) == sent
