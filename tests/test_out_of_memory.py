"""Memory that runs out: in a load, while the prompt is read, in mid-reply, by exception, by a limit, by the kernel."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from modules.chat.prompts import Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.chat.templates import TemplateWorker
from modules.engine.base import EXIT_GPU_LOST, Degraded, Delta, Event, Finished, GenerationRequest, TextPiece
from modules.engine.host.deaths import MemoryWatch, count_kills
from modules.engine.host.generation import Generation
from modules.engine.host.open_requests import OpenRequests
from modules.engine.host.verdicts import death_of
from modules.engine.host.wire import Cancel, Message, Submit
from modules.engine.loops.batched import BatchedEngine
from modules.engine.loops.loaded import LoadedModel
from modules.engine.loops.loop import LoopEngine
from modules.engine.loops.serial import SerialEngine
from modules.errors import EngineDied, OutOfMemory
from modules.hardware import Inventory
from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.planning.planner import Plan, PlanTable, Question
from modules.memory.planning.smaller import Failure, difference, smaller_plans
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from modules.ui.views import message_view
from modules.units import MiB
from tests.fakes import Script, ScriptedLoad, fake_inventory, fake_plan, fake_request, make_model_folder
from tests.loop_rig import Ask, generated, greedy, load
from tests.starving import Glutton, Kind, Limited, Starving, make_group, starve
from tests.test_host import until
from tests.tiny_models import tiny_model

PROSE = "The harbour wakes before the town does. "
REPLY = 60
NO_FLAGS = LoadOptions.model_validate({})
LOOPS: dict[str, Callable[[LoadedModel], LoopEngine]] = {"serial": SerialEngine, "batched": BatchedEngine}
# The prompt of 80 tokens is read in two calls of 64 at most; the third reads the first token of the reply.
WHEN = {"the prompt is read": 2, "the first token is read": 3, "token 50 is read": 52}


def told(events: list[Event]) -> list[str]:
    return [event.what for event in events if isinstance(event, Degraded)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def small(models: Path) -> LoadedModel:
    return load(tiny_model("llama", models), prefill_chunk=64)


@pytest.fixture
def prompt(small: LoadedModel) -> list[int]:
    ids: list[int] = small.tokenizer.encode(PROSE * 2, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("kind", ["torch", "python", "allocator"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_reply_survives_want_of_memory_at_any_time_with_the_tokens_it_would_have_had(
    loop: str, when: str, kind: Kind, small: LoadedModel, prompt: list[int]
) -> None:
    want = generated(small, prompt, REPLY)
    engine = LOOPS[loop](small)
    try:
        starve(small.model, kind, first=WHEN[when], last=WHEN[when])
        ask = Ask("1", prompt, greedy(REPLY)).run(engine)
    finally:
        engine.close()
    assert (ask.tokens, ask.end.reason) == (want, "length")
    assert len(told(ask.events)) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_each_thing_is_given_up_once_one_after_the_other_and_then_the_error_has_a_name(
    loop: str, small: LoadedModel, prompt: list[int]
) -> None:
    want = generated(small, prompt, REPLY)
    engine = LOOPS[loop](small)
    try:
        Ask("idle", [70, 71, 72], greedy(5)).run(engine)
        starve(small.model, "torch", first=52)
        ask = Ask("1", prompt, greedy(REPLY)).run(engine)
    finally:
        engine.close()
    first, second = told(ask.events)
    assert "other conversations" in first or "earlier conversations" in first
    assert "32 tokens at a time" in second
    assert isinstance(ask.end.error, OutOfMemory)
    assert ask.tokens == want[:50]


def test_a_pool_made_smaller_gives_its_memory_back_and_grows_again_for_who_needs_it(models: Path) -> None:
    loaded = load(tiny_model("llama", models), prefill_chunk=64, kv_bytes=512 * 512)
    long = [66 + n % 9 for n in range(400)]
    want = generated(loaded, long, 20)
    engine = BatchedEngine(loaded, page_tokens=16)
    try:
        starve(loaded.model, "torch", first=2, last=2)
        assert engine.stats().kv_tokens_total == 512
        assert Ask("1", [65] * 100, greedy(20)).run(engine).end.reason == "length"
        assert engine.stats().kv_tokens_total < 200
        assert Ask("2", long, greedy(20)).run(engine).tokens == want
        assert engine.stats().kv_tokens_total == 512
    finally:
        engine.close()


def test_others_in_the_batch_go_on_where_one_is_too_long(models: Path) -> None:
    loaded = load(tiny_model("llama", models), prefill_chunk=64)
    want = generated(loaded, [70] * 20, 30)
    engine = BatchedEngine(loaded)
    try:
        starve(loaded.model, "torch", first=20, last=22)
        long = Ask("long", [65] * 300, greedy(60), user="a").submit(engine)
        short = Ask("short", [70] * 20, greedy(30), user="b").submit(engine)
        assert short.wait().tokens == want
        assert isinstance(long.wait().end.error, OutOfMemory)
    finally:
        engine.close()


# The model in another way


def roomy(folder: Path) -> Inventory:
    return fake_inventory(ram_gib=16)


MakeManager = Callable[..., ModelManager]


@pytest.fixture
def make_manager(settings: Settings) -> Iterator[MakeManager]:
    """A ModelManager with a tiny Llama of 1,024 tokens of context and a loader with faults; closed after the test."""
    managers: list[ModelManager] = []

    def make(loader: object) -> ModelManager:
        manager = ModelManager(settings, loaders={"transformers": loader}, read_inventory=roomy)  # type: ignore[dict-item]
        managers.append(manager)
        return manager

    tiny_model("llama", settings.model_dir)
    yield make
    for manager in managers:
        manager.close()


def named(**options: object) -> LoadOptions:
    return LoadOptions.model_validate({"model": "llama", "dtype": "fp32"} | options)


def run(manager: ModelManager, ids: list[int]) -> tuple[list[int], list[Event]]:
    request = GenerationRequest("1", "", tuple(ids), greedy(REPLY))
    events = list(manager.engine().submit(request))
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids], events


# Every kind at every moment is told apart without a manager above; a manager loads two engines for each row here.
@pytest.mark.parametrize(
    ("kind", "first"), [("torch", 1), pytest.param("python", 2, marks=pytest.mark.slow), ("torch", 51)]
)
def test_where_the_engine_has_nothing_left_to_give_up_the_model_is_loaded_smaller_and_the_reply_goes_on(
    kind: Kind, first: int, make_manager: MakeManager, small: LoadedModel, prompt: list[int]
) -> None:
    manager = make_manager(Starving(kind, first, enough_tokens=512))
    manager.load(named())
    tokens, events = run(manager, prompt)
    assert tokens == generated(small, prompt, REPLY)
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.reason, end.error) == ("length", None)
    assert (end.usage.prompt_tokens, end.usage.completion_tokens) == (len(prompt), REPLY)
    assert told(events)[-1] == "llama is loaded again, with 512 tokens of context instead of 1,024."
    state = manager.state
    assert (state.status, state.info.context_tokens if state.info else 0) == ("ready", 512)
    assert isinstance(state.error, OutOfMemory)
    assert "512 tokens" in state.error.message


def test_replies_beside_it_go_on_too(make_manager: MakeManager, small: LoadedModel, prompt: list[int]) -> None:
    manager = make_manager(Starving("torch", 40, enough_tokens=512))
    manager.load(named())
    engine = manager.engine()
    asked = [[*prompt, 65 + n] for n in range(3)]
    running = [
        engine.submit(GenerationRequest(f"{n}", f"u{n}", tuple(ids), greedy(REPLY))) for n, ids in enumerate(asked)
    ]
    for ids, generation in zip(asked, running, strict=True):
        events = list(generation)
        tokens = [token for event in events if isinstance(event, Delta) for token in event.token_ids]
        assert tokens == generated(small, ids, REPLY)


def test_where_no_smaller_way_holds_the_text_the_error_has_a_name_and_the_text_stays(
    make_manager: MakeManager, small: LoadedModel, prompt: list[int]
) -> None:
    manager = make_manager(Starving("torch", 30, enough_tokens=0))
    manager.load(named(ctx_size=900))
    long = [65 + n % 20 for n in range(850)]
    tokens, events = run(manager, long)
    end = events[-1]
    assert isinstance(end, Finished)
    assert isinstance(end.error, OutOfMemory)
    assert "what was written is kept" in end.error.message
    assert 0 < len(tokens) < REPLY
    assert tokens == generated(small, long, REPLY)[: len(tokens)]


def test_a_reply_that_no_engine_has_memory_for_ends_after_a_few_reloads(settings: Settings) -> None:
    manager = scripted(settings, ScriptedLoad(Script(reply="0123456789", fault="oom", fault_at=3)))
    try:
        manager.load(LoadOptions.model_validate({"model": "scripted"}))
        events = list(manager.engine().submit(fake_request()))
        assert len(told(events)) == 2
        assert isinstance(events[-1], Finished)
        assert isinstance(events[-1].error, OutOfMemory)
        assert "".join(event.text for event in events if isinstance(event, Delta)) == "012345678"
    finally:
        manager.close()


@pytest.mark.parametrize("kind", ["torch", pytest.param("python", marks=pytest.mark.slow), "allocator"])
def test_memory_that_runs_out_in_the_load_leads_to_a_smaller_plan_that_is_told(
    kind: Kind, make_manager: MakeManager
) -> None:
    manager = make_manager(Starving(kind, 0, enough_tokens=512))
    assert manager.load(named()).context_tokens == 512
    assert isinstance(manager.state.error, OutOfMemory)
    assert "512 tokens of context instead of 1,024" in manager.state.error.message


def test_what_the_user_asked_for_is_not_taken_away_in_a_load(make_manager: MakeManager) -> None:
    manager = make_manager(Starving("torch", 0, enough_tokens=512))
    with pytest.raises(OutOfMemory):
        manager.load(named(ctx_size=1000))


# The kernel


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup with 150 MiB."""
    folder = make_group(150 * MiB)
    if folder is None:
        pytest.skip("no memory cgroup can be made here (needs root and cgroup v1)")
    yield folder
    until(lambda: not (folder / "cgroup.procs").read_text().split())
    folder.rmdir()


def scripted(settings: Settings, loader: object) -> ModelManager:
    make_model_folder(settings.model_dir, "scripted")
    return ModelManager(settings, loaders={"transformers": loader}, read_inventory=roomy)  # type: ignore[dict-item]


@pytest.mark.xdist_group("kernel kills")  # the kernel counts those of all processes together
def test_an_engine_killed_by_the_kernel_comes_back_smaller_and_its_reply_goes_on(
    settings: Settings, group: Path
) -> None:
    script = Script(reply="0123456789" * 20, tokens_per_s=100)
    manager = scripted(settings, Glutton(script, group, enough_tokens=2048))
    try:
        manager.load(LoadOptions.model_validate({"model": "scripted"}))
        first = manager.engine().pid
        events = list(manager.engine().submit(fake_request(max_new_tokens=1000)))
        assert "".join(event.text for event in events if isinstance(event, Delta)) == script.reply
        (degraded,) = [event for event in events if isinstance(event, Degraded)]
        assert "2,048 tokens of context instead of 4,096" in degraded.what
        assert "killed (SIGKILL), most likely because memory ran out" in degraded.why
        assert manager.engine().pid != first
    finally:
        manager.close()


@pytest.mark.xdist_group("kernel kills")
def test_an_engine_killed_by_somebody_else_comes_back_as_it_was(settings: Settings) -> None:
    loader = Glutton(Script(reply="and so on ", endless=True, tokens_per_s=100), settings.model_dir, 10**6)
    manager = scripted(settings, loader)
    try:
        manager.load(LoadOptions.model_validate({"model": "scripted"}))
        host = manager.engine()
        events = iter(host.submit(fake_request(max_new_tokens=10_000)))
        next(event for event in events if isinstance(event, Delta))
        os.kill(host.pid or 0, signal.SIGKILL)
        *_, end = events
        assert isinstance(end, Finished)
        assert isinstance(end.error, EngineDied)
        assert manager.engine().info.context_tokens == 4096
    finally:
        manager.close()


def test_the_kernels_own_count_tells_a_kill_for_memory_from_another(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("nr_free_pages 5\noom_kill 3\n")
    watch = MemoryWatch(os.getpid(), vmstat=vmstat)
    watch.look()
    assert watch.peak_bytes > MiB
    assert not watch.was_memory()
    vmstat.write_text("nr_free_pages 5\noom_kill 4\n")
    assert watch.was_memory()
    assert count_kills(tmp_path / "absent") is None


def test_without_a_count_little_free_memory_at_the_last_look_decides(tmp_path: Path) -> None:
    watch = MemoryWatch(os.getpid(), vmstat=tmp_path / "absent")
    assert not watch.was_memory()
    watch.look()
    watch.free_bytes = 100 * MiB
    assert watch.was_memory()
    assert "100 MiB were free" in watch.evidence()


def test_a_lost_gpu_is_named() -> None:
    error, starved = death_of(fake_plan(), EXIT_GPU_LOST, MemoryWatch(None), loading=False)
    assert str(error).startswith("The GPU failed, and the engine process ended with it.")
    assert not starved


# Seen by people


def test_what_was_given_up_is_kept_with_the_message_and_still_shown_after_a_reload_of_the_page(
    make_manager: MakeManager, settings: Settings
) -> None:
    manager = make_manager(Starving("torch", 20, enough_tokens=512))
    manager.load(named())
    worker = TemplateWorker()
    prompts, store = Prompts(worker), Store(settings.user_data_dir / "snug.db")
    chat = ChatService(manager, store, prompts)
    try:
        conversation = store.create("")
        reply = chat.reply("", conversation.id, None, "Hello", greedy(40), op_id="operation")
        view = reply.view()
        while not view.finished:
            view = reply.wait(view.version, 60)
        assert view.status == "complete"
        assert view.told[-1].startswith("Memory ran out. llama is loaded again, with 512 tokens")
        stored = store.path("", conversation.id)[-1]
        assert tuple(message_view(stored)["told"]) == view.told
    finally:
        chat.shutdown()
        store.close()
        prompts.close()


# Pure


def plan_of(total: int, *, context: int = 4096, **changes: object) -> Plan:
    plan = fake_plan(context_tokens=context)
    return replace(plan, budgets={"cpu": Budget.of({"kv_cache": Figure(total, "exact")})}, **changes)  # type: ignore[arg-type]


def table(*plans: Plan) -> PlanTable:
    return PlanTable(Question(fake_plan().spec, NO_FLAGS, fake_inventory(), Path("cache")), plans, None)


def refuse(options: LoadOptions) -> Plan:
    raise OutOfMemory("no")


def test_only_what_takes_clearly_less_fits_and_holds_the_text_is_tried() -> None:
    failed = plan_of(1000)
    good = plan_of(800, context=2048)
    others = [plan_of(950, context=2048), plan_of(500, context=512), plan_of(500, context=3000, short_bytes=5)]
    found = smaller_plans(Failure(failed, NO_FLAGS, least_tokens=1000), table(failed, *others, good), refuse)
    assert found == [good]


def test_a_shorter_context_comes_first_and_only_down_to_what_has_to_fit() -> None:
    def replan(options: LoadOptions) -> Plan:
        tokens = options.ctx_size or 0
        bits = "nf4" if options.load_in_4bit else "int8" if options.load_in_8bit else "none"
        plan = plan_of(tokens, context=tokens or 4096)
        return replace(plan, run=replace(plan.run, quantization=bits))  # type: ignore[arg-type]

    found = smaller_plans(Failure(plan_of(4096), NO_FLAGS, least_tokens=1000), table(), replan)
    assert [plan.run.context_tokens for plan in found][:2] == [2048, 1024]
    bound = Failure(plan_of(4096), LoadOptions.model_validate({"ctx_size": 4096}), least_tokens=1000, flags_bind=True)
    assert all(plan.run.quantization != "none" for plan in smaller_plans(bound, table(), replan))


def test_what_embeds_texts_as_long_as_before_is_tried_first_and_the_rest_says_what_it_does() -> None:
    def embeds(total: int, chunk: int) -> Plan:
        plan = plan_of(total, embeds=True)
        return replace(plan, run=replace(plan.run, prefill_chunk=chunk))

    failed, short, longer = embeds(1000, 512), embeds(500, 128), embeds(600, 512)
    assert smaller_plans(Failure(failed, NO_FLAGS), table(short, longer), refuse) == [longer, short]
    assert "texts of up to 128 tokens to embed instead of 512" in difference(failed, short)
    assert "to embed" not in difference(failed, longer)


def test_the_difference_is_said_in_words() -> None:
    before = plan_of(1000)
    after = replace(plan_of(500, context=1024), run=replace(before.run, context_tokens=1024, quantization="int8"))
    assert difference(before, after) == "1,024 tokens of context instead of 4,096, weights in 8-bit instead of bf16"


def test_a_reply_handed_on_is_cancelled_at_once_while_no_engine_has_it() -> None:
    generation = Generation(fake_request(), lambda: pytest.fail("the old engine is asked"))
    generation.push(Delta("a", (97,)))
    generation.park()
    generation.cancel()
    assert [type(event) for event in generation] == [Delta, Finished]


def test_a_cancel_in_the_moment_of_handing_on_reaches_the_new_engine() -> None:
    generation = Generation(fake_request(), lambda: None)
    generation.park()
    sent: list[Message] = []

    def post(message: Message) -> None:
        if isinstance(message, Submit):
            generation.cancel()  # another thread's: its Cancel goes out first
        sent.append(message)

    OpenRequests(post).adopt(generation)
    assert [type(message) for message in sent] == [Cancel, Submit, Cancel]


# A limit that is real


@pytest.mark.slow
@pytest.mark.model
def test_a_real_model_that_overruns_a_real_limit_on_a_long_prompt_goes_on_and_writes_the_same(
    starter_model: Path, tmp_path: Path
) -> None:
    settings = Settings.model_validate({"model_dir": starter_model.parent, "user_data_dir": tmp_path})
    replies = []
    for more_bytes in (2000 * MiB, 8 * MiB):
        manager = ModelManager(settings, loaders={"transformers": Limited(more_bytes)})
        try:
            manager.load(LoadOptions.model_validate({"model": starter_model.name}))
            engine = manager.engine()
            ids = engine.encode([TextPiece(PROSE * 400)])
            request = GenerationRequest("1", "", tuple(ids), greedy(12, ban_eos_token=True))
            replies.append(list(engine.submit(request)))
        finally:
            manager.close()
    texts = ["".join(event.text for event in events if isinstance(event, Delta)) for events in replies]
    assert texts[0] == texts[1] != ""
    assert told(replies[0]) == []
    assert told(replies[1])
    assert isinstance(replies[1][-1], Finished)
    assert replies[1][-1].error is None
