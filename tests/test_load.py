"""A crowd at one server, its engine a script in a process of its own: everybody is served or told, and nothing stays.

The counts here are for every day; benchmarks/reliability.py has the whole ones, with figures.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.common import snug
from benchmarks.reliability_rows.crowds import soak
from benchmarks.reliability_rows.outcome import Scale
from modules.units import MiB
from tests.crowd import (
    Holdings,
    ask,
    busy_programs,
    connected,
    frozen_reader,
    head,
    holdings,
    percentile,
    slow_sender,
    stream,
)
from tests.fakes import Script
from tests.scripted_server import scripted_server
from tests.server_rig import free_port

pytestmark = [
    pytest.mark.xdist_group("crowd"),
    pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors as Linux tells them"),
]
FAST = Script(reply="and so on ", endless=True, tokens_per_s=100, queue=64)


@dataclass(frozen=True)
class Crowded:
    """A server for crowds."""

    port: int
    pid: int

    def holds(self) -> Holdings:
        return holdings(self.pid)

    async def settles(self, within: Callable[[Holdings], bool]) -> Holdings:
        """What it holds once that is `within` bounds."""
        deadline = time.monotonic() + 30
        while not within(self.holds()):
            assert time.monotonic() < deadline, self.holds()
            await asyncio.sleep(0.1)
        return self.holds()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowded]:
    port = free_port()
    with scripted_server(port, tmp_path_factory.mktemp("crowd"), FAST) as process:
        asyncio.run(stream(port, max_tokens=20))  # whatever is made once is made now
        yield Crowded(port, process.pid)


async def test_64_streams_at_once_all_flow_and_come_to_their_end(crowded: Crowded) -> None:
    before = crowded.holds()
    seen = await asyncio.gather(*(stream(crowded.port, max_tokens=150) for _ in range(64)))
    assert [one for one in seen if not one.sound] == []
    assert {one.characters for one in seen} == {150}
    assert percentile((gap for one in seen for gap in one.gaps_s), 0.99) < 2
    assert crowded.holds().rss_bytes - before.rss_bytes < 150 * MiB


@pytest.mark.slow
async def test_beside_programs_that_keep_every_core_busy_all_streams_come_to_their_end(crowded: Crowded) -> None:
    with busy_programs(2 * (os.cpu_count() or 1)):
        seen = await asyncio.gather(*(stream(crowded.port, max_tokens=100, timeout_s=250) for _ in range(32)))
    assert [one for one in seen if not one.sound] == []


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("busy", [0, 2])
async def test_16_at_once_at_the_real_model_all_get_their_reply_in_a_fair_order(busy: int) -> None:
    with busy_programs(busy), snug("--dtype", "bf16") as base:
        port = int(base.rpartition(":")[2])
        body = {"max_tokens": 64, "ban_eos_token": True, "timeout_s": 250}
        seen = await asyncio.gather(*(stream(port, **body) for _ in range(16)))
    assert [one for one in seen if not one.sound] == []
    waits = [one.first_s for one in seen]
    assert max(waits) <= 3 * sum(waits) / len(waits)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_mixed_quarter_of_an_hour_leaves_memory_and_descriptors_as_they_were() -> None:
    outcome = soak(Scale(quick=False, soak_min=15))
    assert outcome.passed, outcome.measured


async def test_those_who_never_finish_asking_or_never_read_keep_nobody_from_an_answer(crowded: Crowded) -> None:
    before, stop = crowded.holds(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(slow_sender(crowded.port, stop, every_s=0.2))
        for _ in range(10):
            group.create_task(frozen_reader(crowded.port, stop))
        await crowded.settles(lambda now: now.descriptors >= before.descriptors + 110)
        other = await stream(crowded.port, max_tokens=5)
        stop.set()
    assert other.sound and other.first_s < 5  # a second where nothing else runs: benchmarks/reliability.py
    await crowded.settles(lambda now: now.descriptors <= before.descriptors + 2)


async def test_500_connections_that_wait_cost_little_and_a_new_chat_starts(crowded: Crowded) -> None:
    before = crowded.holds()
    async with asyncio.TaskGroup() as group:
        ready, leave = asyncio.Semaphore(0), asyncio.Event()

        async def wait() -> None:
            async with connected(crowded.port, limit=1024) as (reader, writer):
                writer.write(head(crowded.port, "/health", b"", "GET").replace(b"close", b"keep-alive"))
                await reader.readuntil(b"\r\n\r\n")
                ready.release()
                await leave.wait()

        waiting = [group.create_task(wait()) for _ in range(500)]
        for _ in waiting:
            await ready.acquire()
        there = crowded.holds()
        other = await stream(crowded.port, max_tokens=5)
        leave.set()
    assert other.sound and other.first_s < 5
    assert there.rss_bytes - before.rss_bytes < 500 * MiB
    await crowded.settles(lambda now: now.descriptors <= before.descriptors + 2)


async def test_of_many_requests_at_once_each_is_answered_or_told_to_come_back(crowded: Crowded) -> None:
    answers = await asyncio.gather(*(ask(crowded.port, max_tokens=20) for _ in range(300)))
    assert 200 in answers and set(answers) <= {200, 503}, answers
    assert await ask(crowded.port, max_tokens=5) == 200


async def test_many_who_come_and_go_leave_nothing_behind(crowded: Crowded) -> None:
    async def come_and_go(number: int) -> None:
        async with connected(crowded.port) as (reader, writer):
            writer.write(head(crowded.port, "/v1/chat/completions", b'{"stream": true, "messages": []}'[: number % 40]))
            if number % 3 == 0:
                await reader.readline()

    async def crowds(times: int) -> None:
        for _ in range(times):
            await asyncio.gather(*(come_and_go(number) for number in range(50)))

    await crowds(6)  # the pool of threads has grown to its bound, and keeps them
    await asyncio.sleep(2)
    before = crowded.holds()
    await crowds(6)
    after = await crowded.settles(
        lambda now: now.descriptors <= before.descriptors + 2 and now.threads <= before.threads + 2
    )
    assert after.children == before.children
    assert await ask(crowded.port, max_tokens=5) == 200


async def test_a_server_out_of_descriptors_comes_back_when_the_crowd_has_gone(tmp_path: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))

    port = free_port()
    with scripted_server(port, tmp_path, FAST, before=few) as process:
        async with asyncio.TaskGroup() as group:
            leave = asyncio.Event()

            async def hold() -> None:
                async with connected(port, limit=1024):
                    await leave.wait()

            for _ in range(200):
                group.create_task(hold())
            deadline = time.monotonic() + 30
            while holdings(process.pid).descriptors < 120:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            leave.set()
        while holdings(process.pid).descriptors > 60:  # it sees that they have gone, and closes nobody else's for them
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert await ask(port, max_tokens=5) == 200
        assert process.poll() is None
