"""Loading, swapping, rolling back and reloading, with real engine processes that play scripts."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from modules.engine.base import Delta, Event, Finished, Progress, TextPiece
from modules.engine.host.host import EngineHost, Patience
from modules.engine.host.worker import LoadByName
from modules.errors import (
    BadFlag,
    BadName,
    BadSafetensors,
    Busy,
    EngineDied,
    LoadFailed,
    ModelChanged,
    ModelNotFound,
    NoModelLoaded,
    NotAvailableHere,
    OutOfMemory,
    SnugError,
    TimedOut,
)
from modules.hardware import Inventory
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from modules.units import GiB, MiB
from tests.fakes import Script, ScriptedLoad, fake_inventory, fake_plan, fake_request, make_model_folder, write_script
from tests.test_host import children, tree_bytes, until

QUICK = Patience(load_s=60.0, reply_s=30.0, cancel_s=0.2, call_s=20.0, close_s=1.0)
HASTY = replace(QUICK, load_s=5.0)
"""For loads that hang. Not shorter, since a healthy process on a busy machine must start within it."""
ENDLESS = Script(reply="and so on ", endless=True, tokens_per_s=200)
BALLAST = 400 * MiB
"""What an engine really holds in tests on a machine with room for one."""

MakeManager = Callable[..., ModelManager]


def roomy(folder: Path) -> Inventory:
    """A machine on which two engines fit."""
    return fake_inventory(ram_gib=16)


def tight(folder: Path) -> Inventory:
    """A machine of 1 GiB of which the engines take what they really take: room for one."""
    used = sum(_rss(process) for process in psutil.Process().children())
    cpu = fake_inventory(ram_gib=1).cpu
    return replace(fake_inventory(), cpu=replace(cpu, free_bytes=max(GiB - used, 0)))


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@pytest.fixture
def make_manager(settings: Settings) -> Iterator[MakeManager]:
    """A ModelManager over scripted models a (says "a") and b (says "b"); closed after the test."""
    managers: list[ModelManager] = []

    def make(**options: object) -> ModelManager:
        arguments = {"loaders": {"transformers": ScriptedLoad()}, "read_inventory": roomy, "patience": QUICK}
        manager = ModelManager(settings, **(arguments | {"drain_s": 0.3} | options))  # type: ignore[arg-type]
        managers.append(manager)
        return manager

    for name in "ab":
        make_model_folder(settings.model_dir, name, Script(reply=name))
    yield make
    for manager in managers:
        manager.close()


def script(settings: Settings, name: str, script: Script) -> None:
    write_script(settings.model_dir / name, script)


def named(name: str | None, **options: object) -> LoadOptions:
    return LoadOptions.model_validate({"model": name} | options)


def ask(manager: ModelManager, id: str = "ask") -> str:
    """What the loaded model says."""
    text, finished = manager.engine().submit(fake_request(id=id)).result(20)
    assert finished.error is None
    return text


def status_of(manager: ModelManager) -> str:
    return manager.state.status


def begin(manager: ModelManager, id: str = "long") -> Iterator[Event]:
    """A reply in full flow."""
    events = iter(manager.engine().submit(fake_request(id=id, max_new_tokens=100_000)))
    assert any(isinstance(event, Delta) for event in events)
    return events


def end(events: Iterator[Event]) -> Finished:
    *_, event = events
    assert isinstance(event, Finished)
    return event


def test_nothing_is_loaded_at_first(make_manager: MakeManager, settings: Settings) -> None:
    manager = make_manager()
    assert status_of(manager) == "empty"
    assert [entry.name for entry in manager.list()] == ["a", "b"]
    assert manager.defaults == settings.load_options
    with pytest.raises(NoModelLoaded):
        manager.engine()


def test_a_plan_tells_what_a_load_will_do(make_manager: MakeManager) -> None:
    plan = make_manager().plan(named("a", ctx_size=64, dtype="fp32"))
    assert plan.spec.name == "a"
    assert plan.run.context_tokens == 64
    assert plan.placement == {"": "cpu"}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (named(None), ModelNotFound),
        (named("c"), ModelNotFound),
        (named("c.gguf"), ModelNotFound),
        (named("../a"), BadName),
        (named("/etc"), BadName),
        (named("a", load_in_8bit=True, load_in_4bit=True), BadFlag),
        (named("a", gpu_memory="10"), NotAvailableHere),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_plan_and_load(
    make_manager: MakeManager, options: LoadOptions, kind: type[SnugError]
) -> None:
    manager = make_manager()
    with pytest.raises(kind):
        manager.plan(options)
    with pytest.raises(kind):
        manager.load(options)
    assert status_of(manager) == "failed"
    assert isinstance(manager.state.error, kind)
    assert children() == set()


def test_a_load_shows_its_progress_and_then_the_model(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "a", Script(reply="a", load_s=1.0))
    manager = make_manager()
    heard: list[Progress] = []
    seen: list[tuple[str, float]] = []

    def watch() -> None:
        state = manager.state
        while state.status != "ready":
            state = manager.wait_state(state.version, 30)
            seen.append((state.status, state.progress.fraction if state.progress else -1.0))

    watching = threading.Thread(target=watch)
    watching.start()
    info = manager.load(named("a"), heard.append)
    watching.join(30)
    assert info.name == "a"
    assert [progress.fraction for progress in heard] == sorted(progress.fraction for progress in heard)
    assert any(status == "loading" and 0 < fraction < 1 for status, fraction in seen)
    assert seen[-1] == ("ready", -1.0)
    assert manager.state.plan is not None
    assert manager.state.info == info
    assert ask(manager) == "a"


def test_the_options_are_those_of_the_model_that_answers(make_manager: MakeManager, settings: Settings) -> None:
    manager = make_manager()
    seen = [manager.options]
    manager.load(named("a", ctx_size=64))
    seen.append(manager.options)
    write_script(settings.model_dir / "b", Script(load_fault="refuse"))
    with pytest.raises(LoadFailed):
        manager.load(named("b"))
    seen.append(manager.options)
    manager.unload()
    seen.append(manager.options)
    assert seen == [None, named("a", ctx_size=64), named("a", ctx_size=64), None]


def test_start_load_returns_at_once_and_the_state_tells_the_rest(make_manager: MakeManager) -> None:
    manager = make_manager()
    manager.start_load(named("a"))
    assert ask(manager) == "a"  # engine() waits for a load that runs
    manager.start_load(named("missing"))
    until(lambda: manager.state.error is not None)
    assert status_of(manager) == "ready"
    assert isinstance(manager.state.error, ModelNotFound)


def test_a_second_load_meanwhile_is_refused_as_busy(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "a", Script(load_fault="hang"))
    manager = make_manager(patience=HASTY)
    manager.start_load(named("a"))
    for load in (manager.load, manager.start_load):
        with pytest.raises(Busy, match="a is being loaded"):
            load(named("b"))
    until(lambda: status_of(manager) == "failed")
    assert isinstance(manager.state.error, TimedOut)
    manager.load(named("b"))


def test_where_two_fit_the_old_model_answers_until_the_new_one_does(
    make_manager: MakeManager, settings: Settings
) -> None:
    manager = make_manager()
    manager.load(named("a"))
    script(settings, "b", Script(reply="b", load_s=3.0))
    manager.start_load(named("b"))
    until(lambda: len(children()) == 2)
    assert ask(manager) == "a"
    assert status_of(manager) == "loading"
    assert manager.state.info is not None
    assert manager.state.info.name == "a"
    until(lambda: status_of(manager) == "ready")
    assert ask(manager) == "b"
    until(lambda: len(children()) == 1)


def test_where_only_one_fits_the_old_model_goes_first(make_manager: MakeManager, settings: Settings) -> None:
    for name in "ab":
        script(settings, name, Script(reply=name, ballast_bytes=BALLAST))
    manager = make_manager(read_inventory=tight)
    manager.load(named("a"))
    most = 0

    def count(progress: Progress) -> None:
        nonlocal most
        most = max(most, len(children()))

    manager.load(named("b"), count)
    assert most == 1
    assert ask(manager) == "b"


def test_the_plan_counts_on_the_memory_of_the_loaded_model(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "a", Script(ballast_bytes=BALLAST))
    manager = make_manager(read_inventory=tight)
    manager.load(named("a"))
    assert manager.plan(named("b")).fits


FAULTS: list[tuple[str, type[SnugError]]] = [
    ("truncated", BadSafetensors),
    ("flags", BadFlag),
    ("raise", LoadFailed),
    ("oom", OutOfMemory),
    ("exit", EngineDied),
    ("kill", OutOfMemory),
    ("hang", TimedOut),
]


# On the tight machine what matters is when the load fails: before the old model went, or after, in words or by death.
ON_TIGHT = ("truncated", "raise", "kill", "hang")


@pytest.mark.parametrize(
    ("machine", "fault", "kind"),
    [
        pytest.param(machine, fault, kind, marks=pytest.mark.slow if machine is tight and fault not in ON_TIGHT else ())
        for machine in (roomy, tight)
        for fault, kind in FAULTS
    ],
)
def test_after_a_failed_load_the_old_model_answers(
    make_manager: MakeManager,
    settings: Settings,
    machine: Callable[[Path], Inventory],
    fault: str,
    kind: type[SnugError],
) -> None:
    script(settings, "a", Script(reply="a", ballast_bytes=BALLAST if machine is tight else 0))
    options = named("b", load_in_8bit=fault == "flags", load_in_4bit=fault == "flags")
    if fault == "truncated":
        weights = settings.model_dir / "b" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault != "flags":
        script(settings, "b", Script(load_fault=fault))  # type: ignore[arg-type]
    manager = make_manager(read_inventory=machine, patience=HASTY if fault == "hang" else QUICK)
    manager.load(named("a"))
    with pytest.raises(kind, match=r"a is (still loaded|loaded again)\.") as caught:
        manager.load(options)
    assert caught.value.remedy
    assert ask(manager) == "a"
    assert (manager.state.status, manager.state.name) == ("ready", "a")
    assert isinstance(manager.state.error, kind)
    assert len(children()) == 1


def test_if_the_old_model_cannot_come_back_both_errors_are_told(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "a", Script(reply="a", ballast_bytes=BALLAST))
    script(settings, "b", Script(load_fault="raise"))
    manager = make_manager(read_inventory=tight)
    manager.load(named("a"))
    script(settings, "a", Script(load_fault="oom"))
    with pytest.raises(LoadFailed, match=r"scripted failure.*a could not be loaded again either.*no memory left"):
        manager.load(named("b"))
    assert status_of(manager) == "failed"
    assert manager.state.info is None
    with pytest.raises(NoModelLoaded):
        manager.engine()


def test_the_same_model_can_be_loaded_anew_with_other_options(make_manager: MakeManager) -> None:
    manager = make_manager()
    assert manager.load(named("a")).context_tokens == 4096
    assert manager.load(named("a", ctx_size=128)).context_tokens == 128


def test_deepspeed_engines_never_overlap(make_manager: MakeManager) -> None:
    manager = make_manager(loaders={"transformers": ScriptedLoad(), "deepspeed": ScriptedLoad()})
    manager.load(named("a"))
    most: list[int] = []
    for options in (named("b", deepspeed=True), named("a")):
        manager.load(options, lambda _: most.append(len(children())))
    assert max(most) == 1


def test_a_reply_that_ends_in_time_survives_a_swap(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "a", Script(reply="x" * 60, tokens_per_s=60))
    manager = make_manager(drain_s=30)
    manager.load(named("a"))
    running = manager.engine().submit(fake_request())
    manager.load(named("b"))
    text, finished = running.result(20)
    assert (text, finished.reason) == ("x" * 60, "stop")


def test_a_request_on_its_way_at_a_swap_still_gets_its_reply(make_manager: MakeManager) -> None:
    manager = make_manager(drain_s=30)
    manager.load(named("a"))
    replies: list[str] = []

    def slow_to_ask(engine: EngineHost) -> None:
        load.start()
        until(lambda: manager.state.status == "ready" and manager.state.name == "b")
        time.sleep(0.1)  # the idle old model would be gone by now
        replies.append(engine.submit(fake_request()).result(20)[0])

    load = threading.Thread(target=manager.load, args=(named("b"),))
    manager.with_engine(slow_to_ask)
    load.join(20)
    assert replies == ["a"]
    assert ask(manager, "next") == "b"


def test_a_reply_that_runs_too_long_ends_with_the_reason_at_a_swap(
    make_manager: MakeManager, settings: Settings
) -> None:
    script(settings, "a", ENDLESS)
    manager = make_manager()
    manager.load(named("a"))
    running = begin(manager)
    manager.load(named("b"))
    finished = end(running)
    assert isinstance(finished.error, ModelChanged)
    assert (finished.error.http_status, "changed" in finished.error.message) == (503, True)


def test_unload_ends_replies_and_gives_back_all_memory(make_manager: MakeManager, settings: Settings) -> None:
    manager = make_manager()
    manager.load(named("b"))
    manager.unload()
    before = tree_bytes()
    script(settings, "a", replace(ENDLESS, ballast_bytes=BALLAST))
    manager.load(named("a"))
    assert tree_bytes() > before + BALLAST
    running = begin(manager)
    manager.unload()
    finished = end(running)
    assert isinstance(finished.error, ModelChanged)
    assert "unloaded" in finished.error.message
    assert tree_bytes() < before * 1.05
    assert children() == set()
    assert status_of(manager) == "empty"
    with pytest.raises(NoModelLoaded):
        manager.engine()
    manager.unload()


def test_unload_stops_a_load_that_runs(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "b", Script(load_fault="hang"))
    manager = make_manager()
    manager.load(named("a"))
    failures: list[SnugError] = []

    def load() -> None:
        try:
            manager.load(named("b"))
        except SnugError as error:
            failures.append(error)

    loading = threading.Thread(target=load)
    loading.start()
    until(lambda: len(children()) == 2)
    manager.unload()
    loading.join(30)
    assert status_of(manager) == "empty"
    assert [type(error) for error in failures] == [LoadFailed]
    assert "stopped" in failures[0].message
    assert children() == set()


@pytest.mark.parametrize("fault", ["kill", "exit"])
def test_an_engine_that_died_comes_back_with_the_next_message(
    make_manager: MakeManager, settings: Settings, fault: str
) -> None:
    script(settings, "a", ENDLESS)
    manager = make_manager()
    manager.load(named("a"))
    running = begin(manager)
    pid = manager.engine().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGTERM)
    assert isinstance(end(running).error, EngineDied)
    until(lambda: status_of(manager) == "died")
    assert isinstance(manager.state.error, EngineDied)
    assert manager.state.name == "a"
    script(settings, "a", Script(reply="back"))
    assert ask(manager) == "back"
    assert (status_of(manager), manager.wait_state(-1, 0).error) == ("ready", None)
    assert manager.engine().pid != pid


def test_what_the_engine_was_asked_as_it_died_is_asked_again_of_the_next_one(make_manager: MakeManager) -> None:
    manager = make_manager()
    manager.load(named("a"))
    asked: list[int | None] = []

    def encode(host: EngineHost) -> list[int]:
        asked.append(host.pid)
        if len(asked) == 1:
            os.kill(host.pid or 0, signal.SIGKILL)
        return host.encode([TextPiece("hi")])

    assert manager.with_engine(encode) == [104, 105]
    assert len(set(asked)) == 2


def test_many_messages_after_a_death_cause_one_reload(make_manager: MakeManager) -> None:
    manager = make_manager()
    manager.load(named("a"))
    kill(manager.engine())
    hosts: set[EngineHost] = set()
    threads = [threading.Thread(target=lambda: hosts.add(manager.engine())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(hosts) == 1
    assert len(children()) == 1


def test_a_reload_that_fails_says_why_and_is_tried_again(make_manager: MakeManager, settings: Settings) -> None:
    manager = make_manager()
    manager.load(named("a"))
    kill(manager.engine())
    script(settings, "a", Script(load_fault="oom"))
    with pytest.raises(OutOfMemory):
        manager.engine()
    assert status_of(manager) == "died"
    assert isinstance(manager.state.error, OutOfMemory)
    script(settings, "a", Script(reply="at last"))
    assert ask(manager) == "at last"


def test_another_model_can_be_loaded_after_a_death(make_manager: MakeManager) -> None:
    manager = make_manager()
    manager.load(named("a"))
    kill(manager.engine())
    manager.load(named("b"))
    assert ask(manager) == "b"


def test_a_dead_engine_can_be_unloaded(make_manager: MakeManager) -> None:
    manager = make_manager()
    manager.load(named("a"))
    kill(manager.engine())
    manager.unload()
    with pytest.raises(NoModelLoaded):
        manager.engine()


def kill(host: EngineHost) -> None:
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    until(lambda: not host.alive)


def test_close_ends_replies_as_cancelled_and_refuses_loads(make_manager: MakeManager, settings: Settings) -> None:
    script(settings, "a", ENDLESS)
    manager = make_manager()
    manager.load(named("a"))
    running = begin(manager)
    manager.close()
    assert end(running).reason == "cancelled"
    assert children() == set()
    with pytest.raises(Busy):
        manager.load(named("a"))
    with pytest.raises(NoModelLoaded):
        manager.engine()


@pytest.mark.parametrize("seed", range(8))
def test_no_interleaving_of_loads_unloads_and_replies_breaks_anything(
    make_manager: MakeManager, settings: Settings, seed: int
) -> None:
    """Three threads act at random. Every reply ends, every refusal is a SnugError, and the end state holds together."""
    for name, fault in (("c", "raise"), ("d", "kill")):
        make_model_folder(settings.model_dir, name, Script(load_fault=fault))  # type: ignore[arg-type]
    make_model_folder(settings.model_dir, "e", Script(fault="exit", fault_at=2))
    manager = make_manager()
    finished: list[Finished] = []
    surprises: list[BaseException] = []
    most = 0

    def act(number: int) -> None:
        nonlocal most
        dice = random.Random(seed * 10 + number)
        for step in range(6):
            most = max(most, len(children()))
            try:
                match dice.choice(["load", "load", "start", "unload", "reply", "reply", "reply"]):
                    case "load":
                        manager.load(named(dice.choice("abcde")))
                    case "start":
                        manager.start_load(named(dice.choice("abcde")))
                    case "unload":
                        manager.unload()
                    case "reply":
                        request = fake_request(id=f"{number} {step}")
                        finished.append(manager.engine().submit(request).result(20)[1])
            except SnugError:
                pass
            except BaseException as error:
                surprises.append(error)
                raise

    threads = [threading.Thread(target=act, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert surprises == []
    assert most <= 2
    assert all(entry.reason in ("stop", "error") for entry in finished)
    manager.unload()
    assert children() == set()
    manager.load(named("a"))
    assert ask(manager) == "a"


@pytest.mark.model
@pytest.mark.timeout(300)
def test_the_starter_model_survives_kill_9_in_mid_reply(starter_model: Path, tmp_path: Path) -> None:
    """F2 and F6 with the real thing: load, talk, kill, talk again, unload, and all memory is back."""
    pytest.importorskip("modules.engine.loading.huggingface", reason="the transformers engine is not built yet")
    settings = Settings.model_validate({"model_dir": starter_model.parent, "user_data_dir": tmp_path})
    manager = ModelManager(settings)
    before = tree_bytes()
    try:
        info = manager.load(named(starter_model.name, ctx_size=512))
        assert info.context_tokens == 512
        host = manager.engine()
        running = begin(manager)
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        assert isinstance(end(running).error, EngineDied)
        text, finished = manager.engine().submit(fake_request(max_new_tokens=8)).result(60)
        assert finished.error is None
        assert text
        manager.unload()
        assert children() == set()
        assert tree_bytes() < before * 1.05
    finally:
        manager.close()


def test_a_loader_can_be_named_without_being_imported() -> None:
    load = LoadByName("modules.engine.nonexistent:load")
    with pytest.raises(LoadFailed, match="nonexistent"):
        EngineHost.start(fake_plan(), load)
