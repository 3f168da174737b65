"""Comparisons with real engine processes that play scripts: what runs together, what waits, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from modules.chat.prompts import Prompts
from modules.chat.service import ChatService
from modules.chat.store import Store
from modules.chat.templates import TemplateWorker
from modules.compare.arranging import arrange
from modules.compare.offers import base_options, offers
from modules.compare.runner import Comparison, Comparisons
from modules.compare.values import Asked, Trial, View
from modules.errors import Busy, LoadFailed, ModelNotFound, OutOfMemory
from modules.hardware import Inventory
from modules.models.manager import ModelManager
from modules.sampling import GenerationParams
from modules.settings import LoadOptions, Settings
from modules.units import GiB, MiB
from tests.fakes import Script, ScriptedLoad, fake_inventory, make_model_folder
from tests.test_host import children, until
from tests.test_models import QUICK, ask, begin, end, named, script

WAIT_S = 60
SLOW = Script(reply="and so on ", endless=True, tokens_per_s=50)
GREEDY = GenerationParams(temperature=0.0)


def engines() -> dict[int, int]:
    """The engine processes, by id, with their bytes."""
    found = {}
    for process in psutil.Process().children():
        try:
            if "modules.engine.host.worker" in process.cmdline():
                found[process.pid] = int(process.memory_info().rss)
        except psutil.Error:  # it has just ended
            continue
    return found


class Bench:
    """A manager over scripted models a, b and c, on a machine whose memory engines take as their plans say."""

    def __init__(self, settings: Settings, parts: ExitStack) -> None:
        self.settings = settings
        self.capacity = 16 * GiB
        self.models = ModelManager(
            settings, loaders={"transformers": ScriptedLoad()}, read_inventory=self.machine, patience=QUICK, drain_s=0.3
        )
        parts.callback(self.models.close)
        worker = TemplateWorker()
        parts.callback(worker.close)
        self.prompts = Prompts(worker)
        self.comparisons = Comparisons(self.models, self.prompts, unwatched_s=WAIT_S)
        for name in "abc":
            make_model_folder(settings.model_dir, name, Script(reply=f"One word {name}."))

    def machine(self, _: Path) -> Inventory:
        cpu = fake_inventory().cpu
        free = max(0, self.capacity - sum(engines().values()))
        return replace(fake_inventory(), cpu=replace(cpu, total_bytes=self.capacity, free_bytes=free))

    def room_for(self, engines: float) -> None:
        """From now on the machine holds so many engines."""
        plan = self.models.guest_plans(base_options(self.models.defaults, "b"), tokens=512, instead=True).plans[0]
        self.capacity = int(engines * plan.budgets["cpu"].total) + 300 * MiB

    def trial(self, *columns: Asked, **changes: Any) -> Trial:
        trial = Trial("Say one word.", columns, 64, 7)
        return replace(trial, **changes)

    def column(self, name: str, params: GenerationParams = GREEDY, **options: object) -> Asked:
        base = base_options(self.models.defaults, name)
        flags = ("--flag",) if options else None
        return Asked(name, flags, base.model_copy(update=options), "greedy", params)

    def start(self, *columns: Asked, **changes: Any) -> Comparison:
        return self.comparisons.start("", self.trial(*columns, **changes))

    def run(self, *columns: Asked, **changes: Any) -> View:
        comparison = self.start(*columns, **changes)
        assert comparison.wait(WAIT_S)
        return comparison.view()


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    with ExitStack() as parts:
        yield Bench(settings, parts)
    assert children() == set()


def texts(view: View) -> list[str]:
    return [column.text for column in view.columns]


def stages(view: View) -> list[str]:
    return [column.stage for column in view.columns]


def writing(comparison: Comparison) -> Callable[[], bool]:
    return lambda: all(column.stage == "writing" for column in comparison.view().columns)


def test_two_models_that_fit_are_written_side_by_side_and_their_engines_end(bench: Bench) -> None:
    bench.models.load(named("a"))
    for name in "bc":
        script(bench.settings, name, SLOW)
    before = set(engines())
    comparison = bench.start(bench.column("b"), bench.column("c"), max_new_tokens=60)
    until(writing(comparison))
    assert len(engines()) == len(before) + 2
    assert comparison.wait(WAIT_S)
    seen = comparison.view()
    assert stages(seen) == ["done", "done"]
    assert seen.words[0].startswith("Side by side: all of it fits in memory together")
    assert seen.words[-1] == "a stays loaded for the chat."
    assert seen.columns[0].tokens == seen.columns[1].tokens != ()
    assert all(column.memory and column.tokens_per_s and column.first_token_s for column in seen.columns)
    assert set(engines()) == before
    assert ask(bench.models) == "One word a."


def test_a_column_of_the_loaded_model_uses_it_as_it_is_and_presets_share_it(bench: Bench) -> None:
    bench.models.load(named("a"))
    before = set(engines())
    warm = GenerationParams(temperature=1.0)
    comparison = bench.start(bench.column("a"), bench.column("a", warm), bench.column("a", dtype="fp32"))
    assert comparison.wait(WAIT_S)
    assert texts(comparison.view()) == ["One word a."] * 3
    assert comparison.view().words[0] == "Side by side, with the model that is loaded: nothing else is loaded."
    assert set(engines()) == before


def test_without_a_loaded_model_each_column_brings_its_own(bench: Bench) -> None:
    seen = bench.run(bench.column("a"), bench.column("b"), bench.column("a", GenerationParams()))
    assert texts(seen) == ["One word a.", "One word b.", "One word a."]
    assert bench.models.state.status == "empty"
    assert not engines()


def test_what_does_not_fit_together_runs_one_after_the_other_beside_the_chat(bench: Bench) -> None:
    bench.models.load(named("a"))
    bench.room_for(2.5)
    most = 0
    script(bench.settings, "b", Script(reply="b b b b", tokens_per_s=20))
    comparison = bench.start(bench.column("b"), bench.column("c"))
    while not comparison.wait(0.02):
        most = max(most, len(engines()))
        assert bench.models.state.status == "ready"
    assert ask(bench.models) == "One word a."
    seen = comparison.view()
    assert texts(seen) == ["b b b b", "One word c."]
    assert seen.words[0].startswith("One after the other: together they do not fit in memory; ")
    assert seen.words[0].endswith("in CPU memory more would have to be free.")
    assert seen.words[-1] == "a stays loaded for the chat."
    assert most == 2


def test_the_chat_s_model_makes_room_after_its_reply_and_comes_back_for_the_message_that_waits(bench: Bench) -> None:
    script(bench.settings, "a", Script(reply="long " * 12, tokens_per_s=30))
    script(bench.settings, "b", Script(reply="b" * 40, tokens_per_s=20))
    bench.models.load(named("a", ctx_size=512))
    bench.room_for(1.2)
    reply = begin(bench.models)
    comparison = bench.start(bench.column("a"), bench.column("b"))
    assert "For column 2, a is unloaded when its replies are complete, and loaded again" in comparison.view().words[-1]
    assert end(reply).reason == "stop"
    until(lambda: bench.models.state.lent)
    with ExitStack() as parts:
        store = Store(bench.settings.user_data_dir / "snug.db")
        parts.callback(store.close)
        chat = ChatService(bench.models, store, bench.prompts)
        parts.callback(chat.shutdown)
        message = chat.reply("", store.create("").id, None, "Hello?", GenerationParams(), op_id="a message")
        until(lambda: message.view().notice.startswith("A comparison has the memory"))
        assert comparison.wait(WAIT_S)
        until(lambda: message.view().finished)
        assert (message.view().status, message.view().text) == ("complete", "long " * 12)
    assert texts(comparison.view()) == [("long " * 12).strip() + " ", "b" * 40]
    state = bench.models.state
    assert (state.status, state.lent, state.name) == ("ready", False, "a")
    assert bench.models.options == named("a", ctx_size=512)
    assert len(engines()) == 1


def test_a_model_that_fits_in_no_way_is_refused_in_its_column_and_the_other_goes_on(bench: Bench) -> None:
    bench.models.load(named("a"))
    bench.room_for(0.5)
    seen = bench.run(bench.column("a"), bench.column("b"))
    assert stages(seen) == ["done", "failed"]
    error = seen.columns[1].error
    assert isinstance(error, OutOfMemory)
    assert error.remedy
    assert seen.words[0] == "One column runs."


def test_a_failed_load_is_told_in_its_column_with_the_remedy_and_the_others_go_on(bench: Bench) -> None:
    bench.models.load(named("a"))
    script(bench.settings, "b", Script(load_fault="refuse"))
    seen = bench.run(bench.column("a"), bench.column("b"), bench.column("c"))
    assert stages(seen) == ["done", "failed", "done"]
    error = seen.columns[1].error
    assert isinstance(error, LoadFailed)
    assert (error.message, error.remedy) == ("The script refuses to load.", "Write another script.")


def test_what_memory_ran_out_for_beside_others_is_tried_once_more_alone(bench: Bench) -> None:
    script(bench.settings, "b", Script(load_fault="oom"))
    comparison = bench.start(bench.column("b"), bench.column("c"))
    assert comparison.wait(WAIT_S)
    seen = comparison.view()
    assert stages(seen) == ["failed", "done"]
    assert seen.columns[0].note == "Memory ran out beside the others: it is tried alone."
    assert isinstance(seen.columns[0].error, OutOfMemory)


def test_an_engine_that_is_killed_ends_its_own_column_with_what_it_wrote(bench: Bench) -> None:
    script(bench.settings, "b", Script(reply="Half of it", fault="kill", fault_at=4, tokens_per_s=20))
    seen = bench.run(bench.column("b"), bench.column("c"))
    assert stages(seen) == ["failed", "done"]
    assert seen.columns[0].text == "Half"
    assert seen.columns[1].text == "One word c."


def test_stop_ends_replies_loads_and_engines_and_keeps_the_texts(bench: Bench) -> None:
    bench.models.load(named("a"))
    script(bench.settings, "b", SLOW)
    comparison = bench.start(bench.column("a"), bench.column("b"), max_new_tokens=100_000)
    until(lambda: len(comparison.view().columns[1].text) > 12)
    comparison.stop()
    assert comparison.wait(WAIT_S)
    assert stages(comparison.view()) == ["done", "stopped"]
    assert comparison.view().columns[1].text.startswith("and so on")
    assert len(engines()) == 1
    script(bench.settings, "b", Script(load_fault="hang"))
    comparison = bench.start(bench.column("c"), bench.column("b"))
    until(lambda: comparison.view().columns[1].stage == "loading")
    comparison.stop()
    assert comparison.wait(WAIT_S)
    assert stages(comparison.view()) == ["stopped", "stopped"]
    assert len(engines()) == 1
    assert ask(bench.models) == "One word a."


def test_stop_while_it_waits_for_the_chat_s_reply_leaves_that_alone(bench: Bench) -> None:
    script(bench.settings, "a", Script(reply="long " * 20, tokens_per_s=40))
    bench.models.load(named("a"))
    bench.room_for(1.2)
    reply = begin(bench.models)
    comparison = bench.start(bench.column("b"), bench.column("c"))
    until(lambda: "Waiting for the replies of a" in comparison.view().phase)
    comparison.stop()
    assert comparison.wait(WAIT_S)
    assert stages(comparison.view()) == ["stopped", "stopped"]
    assert end(reply).reason == "stop"
    assert bench.models.state.status == "ready"


def test_nobody_looking_on_any_more_stops_it(bench: Bench) -> None:
    script(bench.settings, "b", SLOW)
    comparisons = Comparisons(bench.models, bench.prompts, unwatched_s=0.5)
    comparison = comparisons.start("", bench.trial(bench.column("b"), bench.column("c"), max_new_tokens=100_000))
    with comparison.watched():
        until(lambda: bool(comparison.view().columns[0].text))
        assert not comparison.wait(2)
    assert comparison.wait(WAIT_S)
    assert stages(comparison.view())[0] == "stopped"
    assert comparison.view().words[-1] == "It was stopped: its page was closed."
    assert not engines()


@pytest.mark.parametrize("lent", [False, True])
def test_the_server_s_end_leaves_no_engine_behind(bench: Bench, lent: bool) -> None:
    script(bench.settings, "b", SLOW)
    bench.models.load(named("a"))
    bench.room_for(1.2 if lent else 4)
    comparison = bench.start(bench.column("b"), bench.column("b", GenerationParams()), max_new_tokens=100_000)
    until(writing(comparison))
    assert bench.models.state.lent is lent
    bench.models.close()
    assert comparison.wait(WAIT_S)
    assert not engines()


def test_unloading_stops_it_and_wins(bench: Bench) -> None:
    script(bench.settings, "b", SLOW)
    bench.models.load(named("a"))
    bench.room_for(1.2)
    comparison = bench.start(bench.column("b"), bench.column("b", GenerationParams()), max_new_tokens=100_000)
    until(writing(comparison))
    bench.models.unload()
    assert comparison.wait(WAIT_S)
    assert bench.models.state.status == "empty"
    assert "It was stopped: the chat's model was unloaded" in comparison.view().words[-1]
    assert not engines()


def test_a_model_that_does_not_come_back_is_told_and_the_next_message_tries_again(bench: Bench) -> None:
    script(bench.settings, "b", Script(reply="b" * 10, tokens_per_s=10))
    bench.models.load(named("a"))
    bench.room_for(1.2)
    comparison = bench.start(bench.column("b"), bench.column("b", GenerationParams()))
    script(bench.settings, "a", Script(load_fault="refuse"))
    assert comparison.wait(WAIT_S)
    state = bench.models.state
    assert state.status == "died"
    assert state.error is not None
    assert state.error.message.startswith("a could not be loaded again after the comparison: ")
    script(bench.settings, "a", Script(reply="Here again."))
    assert ask(bench.models) == "Here again."


def test_one_comparison_at_a_time_and_no_load_beside_it(bench: Bench) -> None:
    script(bench.settings, "b", SLOW)
    comparison = bench.start(bench.column("b"), bench.column("c"), max_new_tokens=100_000)
    for attempt in (lambda: bench.start(bench.column("b"), bench.column("c")), lambda: bench.models.load(named("a"))):
        with pytest.raises(Busy, match="A comparison is running"):
            attempt()
    comparison.stop()
    assert comparison.wait(WAIT_S)
    assert bench.run(bench.column("a"), bench.column("c")).finished


def test_nothing_that_can_run_is_told_at_once_and_holds_nothing(bench: Bench) -> None:
    with pytest.raises(ModelNotFound):
        bench.start(bench.column("x"), bench.column("y"))
    bench.models.load(named("a"))
    assert ask(bench.models) == "One word a."


def test_in_turn_each_has_the_machine_to_itself(bench: Bench) -> None:
    bench.models.load(named("a"))
    comparison = bench.start(bench.column("b"), bench.column("c"), bench.column("c", GenerationParams()), in_turn=True)
    most = 0
    while not comparison.wait(0.02):
        most = max(most, sum(column.stage in ("reading", "writing") for column in comparison.view().columns))
    assert most == 1
    assert comparison.view().words[0] == "One after the other, as you asked: each has the machine to itself."


def test_the_offers_are_what_the_planner_says_is_possible(bench: Bench) -> None:
    bench.models.load(named("a"))
    found = offers(bench.models, "a", tokens=512)
    assert found[0].title.startswith("As loaded: ")
    assert found[0].flags is None
    assert any("--load-in-4bit" in (offer.flags or ()) and offer.possible for offer in found)
    assert not any("--ctx-size" in (offer.flags or ()) for offer in found)
    bench.models.unload()
    bench.room_for(0.5)
    assert all(not offer.possible and "lacks" in offer.why for offer in offers(bench.models, "b", tokens=512))
    assert offers(bench.models, "b", tokens=512)


def test_what_is_foreseen_loads_nothing(bench: Bench) -> None:
    found = arrange(bench.models, bench.trial(bench.column("b"), bench.column("c")))
    assert len(found.batches) == 1
    assert [job.columns for job in found.batches[0].jobs] == [(0,), (1,)]
    assert not engines()
    assert bench.models.state.status == "empty"


@pytest.mark.model
def test_the_starter_model_in_bf16_and_4_bits(settings: Settings, starter_model: Path) -> None:
    """The loaded bf16 model answers for its column; nf4 is loaded beside it: token ids, figures, the ledger."""
    real = settings.model_copy(update={"model_dir": starter_model.parent})
    with ExitStack() as parts:
        models = ModelManager(real)
        parts.callback(models.close)
        worker = TemplateWorker()
        parts.callback(worker.close)
        models.load(LoadOptions.model_validate({"model": starter_model.name, "ctx_size": 1024}))
        base = base_options(models.defaults, starter_model.name)
        columns = (
            Asked(starter_model.name, None, base, "greedy", GREEDY),
            Asked(starter_model.name, ("--load-in-4bit",), base.model_copy(update={"load_in_4bit": True}), "", GREEDY),
        )
        trial = Trial("What is the capital of France?", columns, 12, 7)
        comparison = Comparisons(models, Prompts(worker)).start("", trial)
        with comparison.watched():
            assert comparison.wait(300)
        first, second = comparison.view().columns
    assert (first.stage, second.stage) == ("done", "done")
    assert "Paris" in first.text
    assert first.vocabulary == second.vocabulary != ""
    assert first.tokens != ()
    assert "4-bit" in second.way
    assert all(memory.forecast and memory.measured for memory in second.memory)
    assert second.tokens_per_s > 0
