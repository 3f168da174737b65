"""Plans of models in the models folder: dry runs sharpen what people look at, and no load waits for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modules.hardware import Inventory
from modules.memory.dryruns.asking import DryRuns, Kind, Peaks
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.planner import Plan
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from modules.units import MiB
from tests.fakes import Script, ScriptedLoad, fake_inventory
from tests.test_host import until
from tests.tiny_models import tiny_model

PEAKS = Peaks(weights=1, kv_cache=1, prefill_peak=777_216, decode_peak=5_120)
WAIT_S = 60


@dataclass
class FakeDryRuns:
    """Answers when the test says so."""

    known: Peaks | None = None
    asked: list[tuple[RunSpec, Kind]] = field(default_factory=list)
    looked_up: list[tuple[RunSpec, Kind]] = field(default_factory=list)
    answered: int = 0
    busy: bool = False
    held_bytes: int = 0
    ended: int = 0
    closed: bool = False

    def peaks(self, spec: ModelSpec, run: RunSpec, *, kind: Kind) -> Peaks | None:
        self.asked.append((run, kind))
        self.busy = self.known is None
        return self.known

    def known_peaks(self, spec: ModelSpec, run: RunSpec, *, kind: Kind) -> Peaks | None:
        self.looked_up.append((run, kind))
        return self.known

    def answer(self, peaks: Peaks) -> None:
        self.known, self.busy, self.answered = peaks, False, self.answered + 1

    def let_go(self) -> None:
        self.ended += 1

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def options(settings: Settings) -> LoadOptions:
    """A tiny model, in the settings' folder."""
    settings.model_dir.mkdir(parents=True, exist_ok=True)
    return LoadOptions.model_validate({"model": tiny_model("llama", settings.model_dir).name})


@pytest.fixture
def make_manager(settings: Settings) -> Iterator[Callable[..., ModelManager]]:
    """Managers on a machine of a given kind; all of them are closed."""
    made: list[ModelManager] = []

    def make(dry_runs: object, *, gpus: tuple[float, ...] = (), free_share: float = 1.0) -> ModelManager:
        def machine(folder: Path) -> Inventory:
            return fake_inventory(gpus, free_share=free_share)

        made.append(
            ModelManager(
                settings, loaders={"transformers": ScriptedLoad(Script())}, read_inventory=machine, in_process=True,
                dry_runs=dry_runs,  # type: ignore[arg-type]
            )
        )  # fmt: skip
        return made[-1]

    yield make
    for manager in made:
        manager.close()


def method(plan: Plan | None) -> str:
    """How the prefill peak of the device that computes was found."""
    assert plan is not None
    device = next((name for name in plan.budgets if name.startswith("cuda")), "cpu")
    return plan.budgets[device].figures["prefill_peak"].method


def test_formulas_are_there_at_once_and_what_a_dry_run_counts_takes_their_place(
    make_manager: Callable[..., ModelManager], options: LoadOptions
) -> None:
    runs = FakeDryRuns()
    manager = make_manager(runs)
    before = manager.plans(options)
    assert method(before.chosen) == "formula"
    assert manager.dry_run_progress.busy
    runs.answer(PEAKS)
    assert (manager.dry_run_progress.answered, manager.dry_run_progress.busy) == (1, False)
    after = manager.plans(options)
    assert method(after.chosen) == "dry-run"
    assert after.chosen is not None and before.chosen is not None
    assert after.chosen.budgets["cpu"].prefill_peak == PEAKS.prefill_peak
    assert after.chosen.run == before.chosen.run
    assert {kind for _, kind in runs.asked} == {"cpu"}


def test_what_runs_on_a_gpu_is_counted_as_a_gpu_allocates(
    make_manager: Callable[..., ModelManager], options: LoadOptions
) -> None:
    runs = FakeDryRuns(PEAKS)
    table = make_manager(runs, gpus=(24,)).plans(options)
    assert method(table.chosen) == "dry-run"
    assert {kind for _, kind in runs.asked} == {"cuda"}


def test_a_load_uses_the_answers_that_are_there_sets_nothing_off_and_gets_the_workers_memory(
    make_manager: Callable[..., ModelManager], options: LoadOptions
) -> None:
    runs = FakeDryRuns()
    manager = make_manager(runs)
    assert method(manager.plan(options)) == "formula"
    manager.load(options)
    assert not runs.asked
    assert runs.looked_up
    assert runs.ended == 1
    runs.answer(PEAKS)
    assert method(manager.plan(options)) == "dry-run"
    manager.close()
    assert runs.closed


def test_the_memory_of_the_dry_runs_counts_as_free(
    make_manager: Callable[..., ModelManager], options: LoadOptions
) -> None:
    runs = FakeDryRuns()
    manager = make_manager(runs, free_share=0.5)
    before = manager.plans(options).inventory.cpu.free_bytes
    runs.held_bytes = 300 * MiB
    assert manager.plans(options).inventory.cpu.free_bytes == before + 300 * MiB


def test_the_page_gets_the_counted_figures_of_a_real_model_from_a_real_worker(
    make_manager: Callable[..., ModelManager], options: LoadOptions, tmp_path: Path
) -> None:
    with_cache = tmp_path / "dryruns"
    manager = make_manager(DryRuns(with_cache, idle_s=0.1))
    assert method(manager.plans(options).chosen) == "formula"
    until(lambda: manager.dry_run_progress.answered == 1, WAIT_S)
    assert method(manager.plans(options).chosen) == "dry-run"
    manager.close()
    runs = DryRuns(with_cache)
    again = make_manager(runs)
    assert method(again.plan(options)) == "dry-run"
    assert (runs.answered, runs.held_bytes) == (0, 0)
