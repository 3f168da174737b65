"""The engine in its process: requests, events, faults and ends. Every engine here is scripted, every process real."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.engine.base import (
    Delta,
    Emit,
    Event,
    Finished,
    GenerationRequest,
    OnProgress,
    Prefill,
    Progress,
    Queued,
    TextPiece,
    Timings,
    Usage,
)
from modules.engine.host.calls import LongReads
from modules.engine.host.child import engine_environment
from modules.engine.host.host import EngineHost, Generation, Patience, ignore
from modules.engine.host.wire import Emitted, Loaded, fold, fold_messages
from modules.engine.host.worker import FORMS_LIMIT, OOM_SCORE
from modules.errors import (
    ContextLengthExceeded,
    EngineDied,
    GenerationFailed,
    LoadFailed,
    NotFound,
    OutOfMemory,
    QueueFull,
    SnugError,
    TimedOut,
)
from modules.memory.planning.planner import Plan
from modules.units import MiB
from tests.fakes import (
    Script,
    ScriptedEngine,
    ScriptedLoad,
    decode_tokens,
    encode_piece,
    fake_plan,
    fake_request,
    load_scripted,
)
from tests.rendering import TEMPLATES

QUICK = Patience(load_s=60.0, reply_s=1.0, cancel_s=0.2, call_s=20.0, close_s=1.0)
ENDLESS = Script(reply="and so on ", endless=True, tokens_per_s=200)

StartHost = Callable[..., EngineHost]


@pytest.fixture
def start() -> Iterator[StartHost]:
    """EngineHost.start for a Script, closed after the test."""
    hosts: list[EngineHost] = []

    def start_host(script: Script, on_progress: OnProgress = ignore, **options: object) -> EngineHost:
        host = EngineHost.start(fake_plan(), ScriptedLoad(script), on_progress, **options)  # type: ignore[arg-type]
        hosts.append(host)
        return host

    yield start_host
    for host in hosts:
        host.close()


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for what another thread or process brings about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def first_delta(generation: Generation) -> tuple[Iterator[Event], Delta]:
    """Read up to the first text."""
    events = iter(generation)
    return events, next(event for event in events if isinstance(event, Delta))


def last(events: Iterator[Event]) -> Finished:
    *_, event = events
    assert isinstance(event, Finished)
    return event


@pytest.mark.parametrize("in_process", [False, True])
def test_a_request_comes_back_as_its_text_with_usage(start: StartHost, in_process: bool) -> None:
    host = start(Script(reply="Grüße!"), in_process=in_process)
    text, finished = host.submit(fake_request("Hi")).result(20)
    assert text == "Grüße!"
    assert finished.reason == "stop"
    assert finished.usage.prompt_tokens == 2
    assert finished.usage.completion_tokens == len("Grüße!".encode())
    assert host.alive
    assert (host.pid is None) == in_process


@pytest.mark.parametrize("in_process", [False, True])
def test_tokens_and_stats_are_asked_for_across_the_border(start: StartHost, in_process: bool) -> None:
    host = start(Script(), in_process=in_process)
    pieces = [TextPiece("<|im_start|>", template=True), TextPiece("<|im_end|>")]
    ids = host.encode(pieces)
    assert ids == [256, *b"<|im_end|>"]
    assert host.decode(ids) == "<|im_start|><|im_end|>"
    assert host.stats().active == 0
    assert host.info.name == "scripted"


def test_load_progress_arrives_in_order(start: StartHost) -> None:
    seen: list[Progress] = []
    start(Script(load_s=0.1), seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) == 11


def test_a_failing_progress_listener_does_not_stop_the_load(start: StartHost) -> None:
    def listener(progress: Progress) -> None:
        raise RuntimeError("no interest")

    assert start(Script(), listener).alive


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("raise", LoadFailed, "scripted failure while loading"),
        ("refuse", LoadFailed, "The script refuses to load."),
        ("oom", OutOfMemory, "no memory left"),
        ("exit", EngineDied, "exit code 7"),
        ("kill", OutOfMemory, "killed while it was loading, most likely because memory ran out"),
        ("hang", TimedOut, "no sign of life"),
    ],
)
def test_a_load_that_fails_says_why_and_leaves_no_process(fault: str, kind: type[Exception], says: str) -> None:
    before = children()
    patience = replace(QUICK, load_s=2.0) if fault == "hang" else QUICK
    with pytest.raises(kind, match=says):
        EngineHost.start(fake_plan(), ScriptedLoad(Script(load_fault=fault)), patience=patience)  # type: ignore[arg-type]
    assert children() <= before


def test_a_load_that_cannot_be_sent_to_the_process_is_an_error() -> None:
    def local_load(plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
        return ScriptedLoad()(plan, on_progress)

    before = children()
    with pytest.raises(LoadFailed, match="did not start"):
        EngineHost.start(fake_plan(), local_load)
    assert children() <= before


@pytest.mark.parametrize("in_process", [False, True])
def test_a_message_that_cannot_be_read_ends_the_load(in_process: bool) -> None:
    before = children()
    host = EngineHost(fake_plan(), garbled, in_process=in_process, patience=QUICK)
    until(lambda: host.death is not None)
    with pytest.raises(LoadFailed, match="any further: garbled"):
        host.wait_loaded()
    assert children() <= before


def test_a_process_that_cannot_be_made_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(LoadFailed, match="did not start"):
        EngineHost.start(fake_plan(), ScriptedLoad(Script()))


def test_closing_during_a_load_ends_it_at_once() -> None:
    host = EngineHost(fake_plan(), ScriptedLoad(Script(load_fault="hang")))
    host.close()
    assert host.pid is not None
    assert not psutil.pid_exists(host.pid)
    with pytest.raises(LoadFailed, match="stopped"):
        host.wait_loaded()


@pytest.mark.parametrize("fault", ["kill", "exit"])
def test_death_in_mid_reply_keeps_the_text_and_ends_with_an_error(start: StartHost, fault: str) -> None:
    host = start(Script(fault=fault, fault_at=9))  # type: ignore[arg-type]
    text, finished = host.submit(fake_request()).result(20)
    assert "The quick".startswith(text)
    assert finished.reason == "error"
    assert isinstance(finished.error, EngineDied)
    assert ("SIGKILL" in str(finished.error)) == (fault == "kill")
    assert "memory" not in str(finished.error)  # plenty was free
    assert not host.alive


@pytest.mark.parametrize("by_host", [False, True])
def test_what_another_engine_wrote_counts_as_the_replys_and_not_as_prompt(by_host: bool) -> None:
    begun = replace(fake_request(), reply_ids=(65,))
    generation = Generation(begun, lambda: None)
    generation.push(Delta("ab", (66, 67)))
    rest = generation.move(lambda: None, set())
    assert rest is not None
    generation.push(Delta("c", (68,)))
    if by_host:
        generation.finish("cancelled")
    else:
        generation.push(Finished("stop", Usage(rest.held_tokens, rest.held_tokens, 1), Timings(0, 0, 0, 0, 0)))
    _, end = generation.result()
    assert end.usage == Usage(begun.held_tokens, 0 if by_host else begun.held_tokens, 3)


def test_kill_9_ends_every_open_generation_within_two_seconds() -> None:
    deaths: list[Exception] = []
    host = EngineHost(fake_plan(), ScriptedLoad(ENDLESS), on_death=deaths.append)
    readers = [first_delta(host.submit(fake_request(id=f"r{n}", max_new_tokens=100_000))) for n in range(8)]
    assert host.pid is not None
    killed = time.monotonic()
    os.kill(host.pid, signal.SIGKILL)
    for events, _ in readers:
        finished = last(events)
        assert isinstance(finished.error, EngineDied)
        assert "SIGKILL" in finished.error.message
        assert finished.usage.completion_tokens > 0
    assert time.monotonic() - killed < 2.0
    until(lambda: deaths == [host.death])


def test_a_dead_engine_answers_everything_with_engine_died(start: StartHost) -> None:
    host = start(Script(fault="exit"))
    host.submit(fake_request()).result(20)
    text, finished = host.submit(fake_request(id="r2")).result(20)
    assert (text, finished.reason) == ("", "error")
    assert isinstance(finished.error, EngineDied)
    for call in (lambda: host.encode([TextPiece("x")]), lambda: host.decode([1]), host.stats):
        with pytest.raises(EngineDied):
            call()
    assert host.info.name == "scripted"


def test_a_call_that_is_under_way_when_the_engine_dies_raises(start: StartHost) -> None:
    host = start(Script())
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)
    caught: list[Exception] = []

    def ask() -> None:
        try:
            host.stats()
        except EngineDied as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: host._calls.waiting > 0)
    os.kill(host.pid, signal.SIGKILL)
    asking.join(20)
    assert len(caught) == 1


def test_a_call_that_gets_no_answer_times_out(start: StartHost) -> None:
    host = start(Script(), patience=replace(QUICK, call_s=0.2))
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)
    with pytest.raises(TimedOut):
        host.stats()
    host.close()
    assert not psutil.pid_exists(host.pid)


def test_what_nobody_waits_for_any_more_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    may_go_on, encoded = threading.Event(), []

    def slow(_: ScriptedEngine, pieces: Sequence[TextPiece]) -> list[int]:
        encoded.append(pieces[0].text)
        may_go_on.wait(60)
        return [1]

    monkeypatch.setattr(ScriptedEngine, "encode", slow)
    quick = replace(QUICK, call_s=0.1)
    with contextlib.closing(EngineHost.start(fake_plan(), load_scripted, in_process=True, patience=quick)) as host:
        try:
            for number in range(5):
                with pytest.raises(TimedOut):
                    host.encode([TextPiece(f"{number}")])
        finally:
            may_go_on.set()
        host._patience = QUICK
        assert host.encode([TextPiece("last")]) == [1]
    assert encoded == ["0", "1", "last"], "two were under way, three waited until nobody asked any more"


@pytest.mark.parametrize(("fault", "kind"), [("raise", GenerationFailed), ("oom", OutOfMemory)])
def test_a_fault_in_a_step_costs_that_request_only(start: StartHost, fault: str, kind: type[Exception]) -> None:
    host = start(Script(fault=fault, fault_at=4))  # type: ignore[arg-type]
    text, finished = host.submit(fake_request()).result(20)
    assert (text, finished.reason) == ("The ", "error")
    assert isinstance(finished.error, kind)
    assert host.submit(fake_request(id="r2", max_new_tokens=3)).result(20)[0] == "The"


def test_replies_that_memory_ran_out_for_end_where_the_listener_fails() -> None:
    def listener(host: EngineHost, error: SnugError, replies: list[Generation]) -> None:
        raise RuntimeError("no thread to be had")

    host = EngineHost(fake_plan(), ScriptedLoad(Script(fault="oom", fault_at=4)), on_starved=listener)
    try:
        host.wait_loaded()
        text, finished = host.submit(fake_request()).result(20)
        assert text == "The "
        assert isinstance(finished.error, OutOfMemory)
        assert host.alive
    finally:
        host.close()


def test_a_hung_engine_is_stopped_and_named(start: StartHost) -> None:
    host = start(Script(fault="hang", fault_at=3), patience=QUICK)
    text, finished = host.submit(fake_request()).result(20)
    assert text == "The"
    assert isinstance(finished.error, EngineDied)
    assert "no sign of life" in finished.error.message
    until(lambda: not host.alive)


def test_calls_do_not_make_a_hung_engine_look_alive(start: StartHost) -> None:
    host = start(Script(fault="hang", fault_at=0), patience=QUICK)
    generation = host.submit(fake_request())
    deadline = time.monotonic() + 20
    while not generation.ended and time.monotonic() < deadline:
        try:
            host.stats()
        except EngineDied:
            break
    assert isinstance(generation.result(20)[1].error, EngineDied)


def test_cancelling_a_hung_engine_frees_the_reader(start: StartHost) -> None:
    host = start(Script(fault="hang", fault_at=3), patience=replace(QUICK, reply_s=60))
    generation = host.submit(fake_request())
    events = iter(generation)
    until(lambda: generation._clock.tokens == 3)
    generation.cancel()
    assert last(events).reason == "cancelled"


def test_refusals_come_as_the_first_event(start: StartHost) -> None:
    host = start(Script(rows=1, queue=1, endless=True, tokens_per_s=50))
    long = host.submit(fake_request("x" * 5000, id="long"))
    assert isinstance(last(iter(long)).error, ContextLengthExceeded)
    running, _ = first_delta(host.submit(fake_request(id="running")))
    waiting = host.submit(fake_request(id="waiting"))
    refused = host.submit(fake_request(id="refused"))
    assert isinstance(last(iter(refused)).error, QueueFull)
    assert Queued(0) in [next(iter(waiting))]
    assert next(running)


def test_two_running_requests_may_not_share_an_id(start: StartHost) -> None:
    host = start(ENDLESS)
    kept = host.submit(fake_request())
    with pytest.raises(ValueError, match="running already"):
        host.submit(fake_request())
    kept.cancel()


def test_cancel_ends_one_generation_and_no_other(start: StartHost) -> None:
    host = start(ENDLESS)
    stopped = host.submit(fake_request(id="stopped", max_new_tokens=100_000))
    other = host.submit(fake_request(id="other", max_new_tokens=100))
    events, _ = first_delta(stopped)
    asked = time.monotonic()
    stopped.cancel()
    stopped.cancel()
    assert last(events).reason == "cancelled"
    assert time.monotonic() - asked < 2.0
    assert other.result(20)[1].reason == "length"
    stopped.cancel()


def test_cancel_right_after_submit_is_safe(start: StartHost) -> None:
    host = start(replace(ENDLESS, prefill_s=30))
    generation = host.submit(fake_request())
    generation.cancel()
    assert generation.result(20)[1].reason == "cancelled"
    until(lambda: host.stats().active == 0)


def test_reading_the_form_of_a_reply_keeps_nobody_waiting() -> None:
    FORM_IS_READ.clear()
    FORMS_BEGUN.clear()
    with contextlib.closing(EngineHost.start(fake_plan(), reads_slowly, in_process=True)) as host:
        try:
            read = host.submit(fake_request(id="read", grammar='root ::= "a"', max_new_tokens=10**6))
            until(lambda: FORMS_BEGUN == ["read"])
            waiting = [
                host.submit(fake_request(id=f"waits {n}", grammar='root ::= "a"', max_new_tokens=10**6))
                for n in range(FORMS_LIMIT + 1)
            ]
            assert host.submit(fake_request(id="free", max_new_tokens=5)).result(60)[1].reason == "length"
            assert isinstance(last(iter(waiting.pop())).error, QueueFull)
            read.cancel()
            for generation in waiting:
                generation.cancel()
            assert host.submit(fake_request(id="free too", max_new_tokens=5)).result(60)[1].reason == "length"
        finally:
            FORM_IS_READ.set()
        assert {generation.result(60)[1].reason for generation in (read, *waiting)} == {"cancelled"}
        until(lambda: host.stats().active == 0 and host.stats().queued == 0)
        again = host.submit(fake_request(id="again", grammar='root ::= "a"', max_new_tokens=5))
        assert again.result(60)[1].reason == "length"


def test_forms_are_read_in_turn_however_many_one_user_sends() -> None:
    FORM_IS_READ.clear()
    FORMS_BEGUN.clear()
    asked: dict[str, Any] = {"grammar": 'root ::= "a"', "max_new_tokens": 1}
    with contextlib.closing(EngineHost.start(fake_plan(), reads_slowly, in_process=True)) as host:
        try:
            ids = [f"flood {number}" for number in range(FORMS_LIMIT)]
            sent = [host.submit(fake_request(id=id, user="ben", **asked)) for id in ids]
            until(lambda: len(FORMS_BEGUN) == 1)
            sent.append(host.submit(fake_request(id="one", user="ana", **asked)))
            host.stats()  # what came before it has arrived
        finally:
            FORM_IS_READ.set()
        assert {generation.result(60)[1].reason for generation in sent} == {"length"}
    assert "one" in FORMS_BEGUN[:3]


def test_a_generation_that_nobody_holds_is_cancelled(start: StartHost) -> None:
    host = start(ENDLESS)
    generation = host.submit(fake_request(max_new_tokens=100_000))
    until(lambda: host.stats().active == 1)
    del generation
    gc.collect()
    assert host.wait_idle(20)
    assert host.stats().active == 0


def test_leaving_a_with_block_early_frees_the_row(start: StartHost) -> None:
    host = start(ENDLESS)
    with host.submit(fake_request(max_new_tokens=100_000)) as generation:
        first_delta(generation)
    until(lambda: host.stats().active == 0)
    with pytest.raises(RuntimeError, match="closed"):
        iter(generation)


def test_events_can_be_read_once(start: StartHost) -> None:
    generation = start(Script()).submit(fake_request())
    generation.result(20)
    with pytest.raises(RuntimeError, match="is read already"):
        iter(generation)
    with pytest.raises(RuntimeError, match="is read already"):
        generation.result()


def test_result_past_its_time_cancels(start: StartHost) -> None:
    host = start(ENDLESS)
    generation = host.submit(fake_request(max_new_tokens=100_000))
    with pytest.raises(TimedOut):
        generation.result(0.3)
    until(lambda: host.stats().active == 0)


async def test_a_hundred_generations_are_awaited_without_a_thread_each(start: StartHost) -> None:
    host = start(Script(reply="ab" * 20, tokens_per_s=400))
    before = threading.active_count()

    async def read(number: int) -> str:
        text = ""
        async for event in host.submit(fake_request(id=f"r{number}")):
            text += event.text if isinstance(event, Delta) else ""
            assert threading.active_count() <= before
        return text

    async with asyncio.timeout(60):
        assert await asyncio.gather(*(read(n) for n in range(100))) == ["ab" * 20] * 100


async def test_a_waiting_task_that_nobody_holds_is_not_lost(start: StartHost) -> None:
    host = start(Script(prefill_s=0.3))
    done = asyncio.Event()

    async def read() -> None:
        async for event in host.submit(fake_request()):
            if isinstance(event, Finished):
                done.set()

    asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(read()) and None)
    async with asyncio.timeout(20):
        while not done.is_set():
            gc.collect()
            await asyncio.sleep(0.02)


async def test_a_cancelled_task_frees_the_row(start: StartHost) -> None:
    host = start(ENDLESS)

    async def read() -> None:
        with host.submit(fake_request(max_new_tokens=100_000)) as generation:
            async for _ in generation:
                pass

    task = asyncio.create_task(read())
    await asyncio.to_thread(until, lambda: host.stats().active == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(until, lambda: host.stats().active == 0)


async def test_death_reaches_a_reader_that_awaits(start: StartHost) -> None:
    host = start(replace(ENDLESS, prefill_s=30))
    generation = host.submit(fake_request())
    reading = asyncio.create_task(_collect(generation))
    await asyncio.to_thread(until, lambda: host.stats().active == 1)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        events = await reading
    assert isinstance(events[-1], Finished)
    assert isinstance(events[-1].error, EngineDied)


async def _collect(generation: Generation) -> list[Event]:
    return [event async for event in generation]


def test_events_survive_the_loop_of_their_reader(start: StartHost) -> None:
    host = start(replace(ENDLESS, prefill_s=0.3))
    generation = host.submit(fake_request(max_new_tokens=20))

    async def give_up() -> None:
        async with asyncio.timeout(0.1):
            await _collect(generation)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    until(lambda: generation.ended)


def test_a_slow_reader_gets_few_long_deltas_that_hold_all_the_text(start: StartHost) -> None:
    host = start(Script(reply="0123456789", endless=True))
    generation = host.submit(fake_request(max_new_tokens=20_000))
    until(lambda: generation.ended, 20)
    assert len(generation._events) < 300
    text, finished = generation.result(1)
    assert text == "0123456789" * 2000
    assert finished.usage.completion_tokens == 20_000


def test_closing_ends_open_generations_and_the_process(start: StartHost) -> None:
    host = start(ENDLESS)
    events, _ = first_delta(host.submit(fake_request(max_new_tokens=100_000)))
    pid = host.pid
    assert pid is not None
    host.close()
    assert last(events).reason == "cancelled"
    assert not psutil.pid_exists(pid)
    assert not host.alive
    host.close()


def test_closing_with_a_reason_tells_it_to_open_generations(start: StartHost) -> None:
    host = start(ENDLESS)
    events, _ = first_delta(host.submit(fake_request(max_new_tokens=100_000)))
    host.close(GenerationFailed("The model was changed.", remedy="Regenerate."))
    finished = last(events)
    assert finished.reason == "error"
    assert finished.error is not None
    assert finished.error.message == "The model was changed."


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux asks whom to end when memory runs out")
def test_where_memory_runs_out_the_engine_ends_before_the_server(start: StartHost) -> None:
    host = start(Script())
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (host.pid, "self")]
    assert scores[0] >= OOM_SCORE > scores[1]


def test_closing_a_stopped_process_kills_it(start: StartHost) -> None:
    host = start(Script(), patience=QUICK)
    assert host.pid is not None
    os.kill(host.pid, signal.SIGSTOP)
    host.close()
    assert not psutil.pid_exists(host.pid)


def test_all_memory_comes_back_after_close() -> None:
    EngineHost.start(fake_plan(), ScriptedLoad(Script())).close()
    before = tree_bytes()
    host = EngineHost.start(fake_plan(), ScriptedLoad(Script(ballast_bytes=100 * MiB)))
    assert tree_bytes() > before + 100 * MiB
    host.close()
    assert tree_bytes() < before * 1.05


def test_a_flood_of_output_neither_blocks_the_engine_nor_gets_lost(
    start: StartHost, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "modules.engine.host.child"):
        host = EngineHost.start(fake_plan(), flood)
        assert host.submit(fake_request(max_new_tokens=3)).result(20)[0] == "The"
        host.close()
        until(lambda: any("engine warns" in record.message for record in caplog.records))
    assert any(record.levelno == logging.WARNING and "engine warns" in record.message for record in caplog.records)
    assert sum("flooding" in record.message for record in caplog.records) == 20_000


def flood(plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
    """A load that prints 2 MB."""
    for _ in range(20_000):
        print("flooding " + "x" * 90)
    logging.getLogger("tests.flood").warning("engine warns")
    return ScriptedLoad(Script())(plan, on_progress)


def test_ctrl_c_does_not_reach_the_engine(start: StartHost) -> None:
    host = start(Script())
    assert host.pid is not None
    os.kill(host.pid, signal.SIGINT)
    assert host.submit(fake_request(max_new_tokens=3)).result(20)[0] == "The"
    assert os.getpgid(host.pid) != os.getpgid(0)


PARENT = """
import threading, time
from modules.engine.host.host import EngineHost
from tests.fakes import *
if {loading}:
    host = EngineHost(fake_plan(), ScriptedLoad(Script(load_fault="hang")))
else:
    # Started from a thread that ends, as ModelManager.start_load does: the engine must not end with that thread.
    box = []
    thread = threading.Thread(target=lambda: box.append(EngineHost.start(fake_plan(), ScriptedLoad(Script()))))
    thread.start(); thread.join(); host = box[0]
    time.sleep(0.3)
    assert host.submit(fake_request(max_new_tokens=3)).result(20)[0] == "The"
print(host.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("loading", [False, True])
def test_the_engine_dies_with_its_host(loading: bool) -> None:
    code = PARENT.format(loading=loading)
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    )
    assert parent.stdout is not None
    engine = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait(10)
    parent.stdout.close()
    until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)


def test_what_the_engine_started_dies_with_it(start: StartHost, tmp_path: Path) -> None:
    host = EngineHost.start(fake_plan(), SpawnsHelper(tmp_path / "pid"))
    helper = psutil.Process(int((tmp_path / "pid").read_text()))
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    until(lambda: not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE)
    host.close()


class SpawnsHelper:
    """A load that leaves a process of its own behind."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file

    def __call__(self, plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        self.pid_file.write_text(str(helper.pid))
        return ScriptedLoad(Script())(plan, on_progress)


def test_the_engine_process_has_no_network_and_one_thread_a_core() -> None:
    environment = engine_environment({"PATH": "/bin", "HF_HUB_OFFLINE": "0"})
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["TIKTOKEN_CACHE_DIR"] == "", "else tokenizers come from /tmp, whoever put them there"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert int(environment["OMP_NUM_THREADS"]) >= 1
    assert engine_environment({"OMP_NUM_THREADS": "3"})["OMP_NUM_THREADS"] == "3"


EVENTS = st.one_of(
    st.builds(Delta, st.text(max_size=3), st.tuples(st.integers(0, 9))),
    st.builds(Queued, st.integers(0, 5)),
    st.builds(Prefill, st.integers(0, 5), st.just(5)),
)


@given(st.lists(EVENTS))
def test_folding_keeps_all_text_and_tokens_in_order(events: list[Event]) -> None:
    folded = fold(events)
    for field in ("text", "token_ids"):
        before = [part for event in events if isinstance(event, Delta) for part in getattr(event, field)]
        after = [part for event in folded if isinstance(event, Delta) for part in getattr(event, field)]
        assert before == after
    assert all(type(one) is not type(two) for one, two in itertools.pairwise(folded))
    assert folded[-1:] == events[-1:] or isinstance(events[-1], Delta)


@given(st.lists(st.tuples(st.sampled_from("ab"), EVENTS)))
def test_folded_messages_keep_each_requests_events_apart(sent: list[tuple[str, Event]]) -> None:
    messages = fold_messages([Emitted(key, event) for key, event in sent])
    for key in "ab":
        mine = [message.event for message in messages if isinstance(message, Emitted) and message.request_id == key]
        assert mine == fold([event for name, event in sent if name == key])


def test_folding_keeps_other_messages() -> None:
    loaded = Loaded(ScriptedLoad(Script())(fake_plan(), ignore).info)
    assert fold_messages([Emitted("a", Queued(1)), loaded, Emitted("a", Queued(0))]) == [
        loaded,
        Emitted("a", Queued(0)),
    ]


@given(st.text(st.characters(codec="utf-8")))
def test_the_byte_tokenizer_decodes_what_it_encodes(text: str) -> None:
    assert decode_tokens(encode_piece(TextPiece(text))) == text


def test_errors_keep_their_kind_across_the_border(start: StartHost) -> None:
    host = EngineHost.start(fake_plan(), deaf)
    with pytest.raises(NotFound) as caught:
        host.encode([TextPiece("x")])
    assert (caught.value.remedy, caught.value.param) == ("Listen.", "ears")
    with pytest.raises(GenerationFailed, match="ZeroDivisionError"):
        host.decode([1])
    host.close()


class Deaf(ScriptedEngine):
    """An engine whose calls fail."""

    def encode(self, pieces: object) -> list[int]:
        raise NotFound("Nothing heard.", remedy="Listen.", param="ears")

    def decode(self, token_ids: object) -> str:
        raise ZeroDivisionError("deaf")


def deaf(plan: Plan, on_progress: OnProgress) -> Deaf:
    return Deaf(Script(), plan)


FORM_IS_READ = threading.Event()
FORMS_BEGUN: list[str] = []


class ReadsSlowly(ScriptedEngine):
    """An engine that reads forms until it is told to be done."""

    def submit(self, request: GenerationRequest, emit: Emit) -> None:
        if request.params.grammar:
            FORMS_BEGUN.append(request.id)
            FORM_IS_READ.wait(120)
        super().submit(request, emit)


def reads_slowly(plan: Plan, on_progress: OnProgress) -> ReadsSlowly:
    return ReadsSlowly(ENDLESS, plan)


class Garbled(NotFound):
    """An error that can be sent and not be received."""

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return fail_to_read, ()


def fail_to_read() -> object:
    raise LookupError("garbled")


def garbled(plan: Plan, on_progress: OnProgress) -> ScriptedEngine:
    raise Garbled("never read")


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)} - TEMPLATES.pids


def tree_bytes() -> int:
    this = psutil.Process()
    return int(sum(process.memory_info().rss for process in (this, *this.children(recursive=True))))


def test_long_texts_are_read_one_at_a_time_with_as_long_a_pause_after_each() -> None:
    reads, spans = LongReads(long=3), []

    def read() -> None:
        with reads.turn(4):
            began = time.monotonic()
            time.sleep(0.05)
            spans.append((began, time.monotonic()))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    with reads.turn(3):
        assert time.monotonic() - began < 0.05, "a short one waits for none"
    for thread in threads:
        thread.join()
    spans.sort()
    for before, after in itertools.pairwise(spans):
        assert after[0] - before[1] > 0.8 * (before[1] - before[0])
