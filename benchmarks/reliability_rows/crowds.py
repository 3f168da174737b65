"""Figures of crowds: many streams, those who never read or never end asking, and a long day."""

from __future__ import annotations

import asyncio
import contextlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.common import median, snug
from benchmarks.reliability_rows.outcome import Outcome, Scale
from modules.units import MiB
from tests.conftest import starter_present
from tests.crowd import ask, frozen_reader, holdings, percentile, slow_sender, stream
from tests.fakes import Script, make_model_folder
from tests.scripted_server import scripted_server
from tests.server_rig import free_port

FAST = Script(reply="and so on ", endless=True, tokens_per_s=100)
SLOW_SENDERS, FROZEN = 200, 20
SOAK_MIN = 60.0


@contextmanager
def server(script: Script = FAST) -> Iterator[tuple[int, int, Path]]:
    """A server of its own: port, pid, folder."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        with scripted_server(port, Path(folder), script) as process:
            asyncio.run(stream(port, max_tokens=20))
            yield port, process.pid, Path(folder)


def streams(scale: Scale) -> Outcome:
    """64 at once over a scripted engine, 16 over the starter model."""
    tokens = scale.of(500, 150)
    with server() as (port, pid, _):
        before = holdings(pid).rss_bytes

        async def crowd() -> tuple[int, list[float]]:
            seen = await asyncio.gather(*(stream(port, max_tokens=tokens) for _ in range(64)))
            wrong = sum(not one.sound or one.characters != tokens for one in seen)
            return wrong, [gap for one in seen for gap in one.gaps_s]

        wrong, gaps = asyncio.run(crowd())
        grown = holdings(pid).rss_bytes - before
    gap_s = percentile(gaps, 0.99)
    told, real_wrong = "the starter model is not here", 0
    if starter_present():
        with snug("--dtype", "bf16") as base:
            real_port = int(base.rpartition(":")[2])

            async def real() -> int:
                body = {"max_tokens": 64, "ban_eos_token": True}
                seen = await asyncio.gather(*(stream(real_port, timeout_s=300, **body) for _ in range(16)))
                return sum(not one.sound for one in seen)

            real_wrong = asyncio.run(real())
        told = f"16 on the 135M model: {real_wrong} errors"
    return Outcome(
        "64 streaming clients, 500 tokens at 100 tok/s: 0 errors, p99 gap within 2 s, RSS +150 MB at most; 16 clients "
        "on the 135M model: 0 errors",
        f"64 × {tokens} tokens: {wrong} errors, p99 gap {gap_s * 1000:.0f} ms, RSS +{grown / MiB:.0f} MiB; {told}",
        not wrong and gap_s <= 2 and grown <= 150 * MiB and not real_wrong,
        not scale.quick and starter_present(),
        {
            "errors": wrong,
            "p99_gap_s": gap_s,
            "longest_gap_s": max(gaps),
            "grown_bytes": grown,
            "real_errors": real_wrong,
        },
    )


def slow(scale: Scale) -> Outcome:
    """A chat beside those who never read and those whose requests never end."""
    times = scale.of(5, 2)

    async def beside(port: int) -> list[float]:
        stop, firsts = asyncio.Event(), list[float]()
        async with asyncio.TaskGroup() as group:
            for _ in range(SLOW_SENDERS):
                group.create_task(slow_sender(port, stop))
            for _ in range(FROZEN):
                group.create_task(frozen_reader(port, stop))
            await asyncio.sleep(3)  # they are all at it
            for _ in range(times):
                seen = await stream(port, max_tokens=5)
                firsts.append(seen.first_s if seen.sound else 999.0)
            stop.set()
        return firsts

    with server() as (port, _, _):
        firsts = asyncio.run(beside(port))
    return Outcome(
        "20 frozen readers + 200 slowloris sockets: a normal chat still starts within 1 s",
        f"{FROZEN} frozen, {SLOW_SENDERS} that send a byte a second: {times} chats, first text after at most "
        f"{max(firsts):.2f} s",
        max(firsts) <= 1,
        figures={"first_s": firsts},
    )


def soak(scale: Scale) -> Outcome:
    """A mixed day: chats, stops, departures, models that are switched."""
    warm_s = min(300.0, scale.soak_min * 60 / 4)
    with server() as (port, pid, folder):
        make_model_folder(folder / "models", "other", FAST)
        figures = asyncio.run(_soak(port, pid, scale.soak_min * 60, warm_s))
    return judged(figures, scale.soak_min, warm_s)


def judged(figures: dict[str, float], minutes: float, warm_s: float) -> Outcome:
    """What a soak of so many minutes gave."""
    growth = (figures["rss_after"] - figures["rss_before"]) / figures["rss_before"]
    more = figures["descriptors_after"] - figures["descriptors_before"]
    return Outcome(
        "60 minutes of soak: RSS growth (web process) within 5 % after 5 minutes, descriptors ± 5, 0 × 5xx",
        f"{minutes:.3g} minutes with pauses ({figures['cores']:.2f} cores busy), {figures['requests']:,.0f} requests, "
        f"{figures['switches']:.0f} switches of models: RSS {growth:+.1%} after the first {warm_s / 60:.2g} minutes, "
        f"descriptors {more:+.0f}, {figures['crashes']:.0f} × 5xx, {figures['broken']:.0f} without an answer",
        growth <= 0.05 and abs(more) <= 5 and not figures["crashes"] and not figures["broken"],
        minutes >= SOAK_MIN,
        dict(figures),
    )


async def _soak(port: int, pid: int, seconds: float, warm_s: float) -> dict[str, float]:
    statuses, left, switches = Counter[int](), 0, 0
    for name in ("other", "tiny"):  # what a first switch makes or lets go is done
        await ask(port, "/v1/internal/model/load", model=name)
    going, started, used_s = asyncio.Event(), time.monotonic(), _used_s(pid)
    going.set()

    async def client(number: int) -> None:
        nonlocal left
        chance = random.Random(number)
        while time.monotonic() - started < seconds:
            await going.wait()
            if chance.random() < 0.3:
                await stream(port, timeout_s=chance.random() * 0.5, max_tokens=200)  # leaves in the midst
                left += 1
            else:
                statuses[await ask(port, max_tokens=chance.randrange(1, 40))] += 1
            await asyncio.sleep(chance.random() * 2 * PAUSE_S)

    async def switch() -> None:
        nonlocal switches
        while time.monotonic() - started < seconds:
            await asyncio.sleep(min(5.0, seconds / 10))
            await going.wait()
            await ask(port, "/v1/internal/model/load", model=("other", "tiny")[switches % 2])
            switches += 1

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(client(number))
        group.create_task(switch())
        await asyncio.sleep(warm_s)
        before = await _usual(pid)
        going.clear()
        await asyncio.sleep(QUIET_S)  # connections that were closed are gone
        idle = holdings(pid).descriptors
        going.set()
        await asyncio.sleep(max(0.0, seconds - (time.monotonic() - started) - USUAL_S))
        after = await _usual(pid)
    used_s, lasted_s = _used_s(pid) - used_s, time.monotonic() - started
    await asyncio.sleep(QUIET_S)
    crashes = sum(count for status, count in statuses.items() if status >= 500 and status != 503)
    return {
        "requests": sum(statuses.values()) + left, "left": left, "broken": statuses[0], "switches": switches,
        "crashes": crashes, "cores": used_s / lasted_s, "rss_before": before, "rss_after": after,
        "descriptors_before": idle, "descriptors_after": holdings(pid).descriptors,
        **{f"status_{status}": count for status, count in statuses.items() if count},
    }  # fmt: skip


PAUSE_S = 0.2  # of a client between two requests, on average: the machine is for others too
QUIET_S = 5.0


def _used_s(pid: int) -> float:
    """Seconds of processor that the server, its engines and the clients here have used so far."""
    server, used_s = psutil.Process(pid), 0.0
    for process in (psutil.Process(), server, *server.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used_s += times.user + times.system
            if process == server:  # engines that it has ended
                used_s += times.children_user + times.children_system
    return used_s


USUAL_S = 5.0


async def _usual(pid: int) -> float:
    """The web process's memory in the middle of some seconds: clients come and go meanwhile."""
    seen = []
    for _ in range(25):
        seen.append(holdings(pid).own_rss_bytes)
        await asyncio.sleep(USUAL_S / 25)
    return median(seen)
