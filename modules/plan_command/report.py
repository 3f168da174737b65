"""`server.py --plan`: every way to run a model here, or on a machine that is not here, before anything is loaded.

Finds the models, asks the planner, waits a moment for the dry runs of what it chose, and prints for people or programs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from modules.errors import BadName, ModelNotFound, SnugError
from modules.files import safe_path
from modules.hardware import Inventory, read_inventory
from modules.machine_speeds import MACHINE_FILE, MachineSpeeds
from modules.memory.dryruns.asking import DryRuns, Kind, Peaks, TrainingPeaks
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.forecasting.training import TrainingRun
from modules.memory.known_gpus import find_gpu, imagine
from modules.memory.llamacpp_build import can_use_gpus
from modules.memory.model.describing import describer_for, known_description
from modules.memory.model.hub import inspect_hub
from modules.memory.model.hub_client import is_hub_name
from modules.memory.model.listing import list_models
from modules.memory.model.model_spec import ModelSpec
from modules.memory.model.spec import inspect
from modules.memory.planning.ledger import LEDGER_NAME, Ledger
from modules.memory.planning.planner import PlanTable, Question, list_plans, longest_context
from modules.memory.planning.speed import Speeds
from modules.models.planning import adapters_for, find_draft
from modules.plan_command.as_json import entries_json, error_json, report_json, table_json, training_json
from modules.plan_command.bars import Signs
from modules.plan_command.elsewhere import ask, elsewhere_json, print_elsewhere
from modules.plan_command.text import (
    Notes,
    machine_table,
    overview_table,
    parameters_text,
    plan_parts,
    print_parts,
    report_table,
    training_parts,
)
from modules.plan_command.training import TrainingTable, list_ways
from modules.remote_server import RemoteServer
from modules.settings import Settings, check_machine
from modules.starter import STARTER_NAME, is_wanted

STARTER_CONFIG = Path(__file__).parent.parent / "starter_config" / STARTER_NAME
_DRY_RUNS_S = 6.0
_STEPS_S = 20.0  # six ways to train whole weights, twice each with fewer layers


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model's description comes from. `to_get` says how to get the model itself; "" if it is in models/.

    `is_new`: it was not built before, without weights, to see what it consists of.
    """

    name: str
    read: Callable[[], ModelSpec]
    to_get: str = ""
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found out about one model: a table of ways, or the error that it has."""

    source: Source
    table: PlanTable | TrainingTable | None = None
    longest: int = 0
    error: SnugError | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What is planned for."""

    inventory: Inventory
    speeds: Speeds
    imagined: bool


def run_plan(settings: Settings) -> int:
    """Print the plans, or the report of the ledger; returns 0 if something fits (or was reported), else 1.

    Raises SnugError for flags and models that cannot be planned with.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    if settings.report:
        return _report(settings, console)
    if (server := settings.remote_server) is not None:
        return _elsewhere(server, console, as_json=settings.json_output)
    with closing(DryRuns(settings.user_data_dir / "cache" / "dryruns")) as dry_runs:
        sources = find_sources(settings, dry_runs)
        alone = len(sources) == 1
        if alone and sources[0].is_new:
            dry_runs.prepare()
        machine = _machine(settings)
        check_machine(settings, machine.inventory)
        answers = [_answer(source, settings, machine, dry_runs, alone=alone) for source in sources]
    if settings.json_output:
        models = [_as_json(answer, settings.mode) for answer in answers]
        _write_json(report_json(machine.inventory, models, imagined=machine.imagined))
    else:
        console.print(machine_table(machine.inventory, imagined=machine.imagined), highlight=False)
        console.print()
        _show(console, answers, imagined=machine.imagined)
    return 0 if any(answer.table is not None and answer.table.chosen is not None for answer in answers) else 1


def _elsewhere(server: RemoteServer, console: Console, *, as_json: bool) -> int:
    answer = ask(server)
    if as_json:
        _write_json({"models": [elsewhere_json(server, answer)]})
    else:
        print_elsewhere(console, server, answer)
    return 1 if isinstance(answer, SnugError) else 0


def _report(settings: Settings, console: Console) -> int:
    entries = Ledger(settings.user_data_dir / LEDGER_NAME).entries()
    if settings.json_output:
        _write_json(entries_json(entries))
    elif entries:
        console.print(report_table(entries), highlight=False)
    else:
        console.print("Nothing is recorded yet: load a model and talk to it, then look again.", highlight=False)
    return 0


def _write_json(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer, indent=1) + "\n")


def _machine(settings: Settings) -> Machine:
    """The machine that --gpu and --ram describe; what they do not name is as here."""
    here = read_inventory(settings.disk_cache_dir or settings.nvme_offload_dir or settings.user_data_dir / "cache")
    imagined = bool(settings.gpu) or settings.ram is not None
    inventory = imagine(here, [find_gpu(card) for card in settings.gpu], settings.ram)
    speeds = MachineSpeeds(settings.user_data_dir / MACHINE_FILE).speeds(inventory)
    return Machine(inventory, speeds, imagined)


def find_sources(settings: Settings, dry_runs: DryRuns) -> list[Source]:
    """The models that are meant: the one named, else all in models/, else the starter model. Raises ModelNotFound."""
    if settings.model is not None:
        return [_named(settings.model, settings, dry_runs)]
    names = [entry.name for entry in list_models(settings.model_dir)]
    if names:
        return [_named(name, settings, dry_runs, check=False) for name in names]
    return [_named(STARTER_NAME, settings, dry_runs)]


def _named(name: str, settings: Settings, dry_runs: DryRuns, *, check: bool = True) -> Source:
    """A model in models/, a path, or a name on the hub, in this order; `check` holds files against their config."""
    look = partial(inspect, trust_remote_code=settings.trust_remote_code)
    described = settings.user_data_dir / "cache" / "described"
    describe = partial(dry_runs.describe, cache_folder=described)

    def local(path: Path, to_get: str = "") -> Source:
        ask = describe if check else describer_for(path, described, dry_runs.describe)
        is_new = check and path.suffix != ".gguf" and known_description(path, described) is None
        return Source(name, partial(look, path, describe=ask), to_get, is_new)

    with suppress(BadName):
        path = safe_path(settings.model_dir, name)
        if path.exists():
            return local(path)
    outside = Path(name).expanduser()
    if outside.exists():
        return local(outside, f"First put the model into {settings.model_dir}/.")
    if is_wanted(settings.model_dir, name) or name == STARTER_NAME:
        return local(STARTER_CONFIG, "The first start fetches it (94 MiB).")
    if is_hub_name(name):
        there = partial(inspect_hub, name, cache_folder=settings.user_data_dir / "cache" / "hub", describe=describe)
        return Source(name, there, f"First fetch it: python server.py --download {name}", is_new=True)
    raise ModelNotFound(
        f"There is no model {name!r} in {settings.model_dir}, and no such file.",
        remedy="Name one that is there, a folder, a config.json, a .gguf file, or organisation/model on the hub.",
        param="model",
    )


def _answer(source: Source, settings: Settings, machine: Machine, dry_runs: DryRuns, *, alone: bool) -> Answer:
    """What can be said of one model; its error is raised if it is the only one."""
    try:
        spec = source.read()
        if settings.mode != "infer":
            table = list_ways(
                spec, settings.mode, machine.inventory, tokens=settings.ctx_size, cpu=settings.cpu,
                peaks=_step_peaks(spec, dry_runs) if alone else None,
            )  # fmt: skip
            return Answer(source, table)
        plans = _plan(spec, settings, machine, dry_runs, patience_s=_DRY_RUNS_S if alone else 0.0)
        longest = longest_context(plans, plans.chosen) if plans.chosen and alone else 0
        return Answer(source, plans, longest)
    except SnugError as error:
        if alone:
            raise
        return Answer(source, error=error)


def _step_peaks(spec: ModelSpec, dry_runs: DryRuns) -> Callable[[TrainingRun, Kind], TrainingPeaks | None]:
    """What dry runs of training steps count, all of them within a patience of some seconds."""
    deadline = time.monotonic() + _STEPS_S

    def counted(run: TrainingRun, kind: Kind) -> TrainingPeaks | None:
        try:
            return dry_runs.training(spec, run, max(0.0, deadline - time.monotonic()), kind=kind)
        except SnugError:
            return None  # the formulas serve

    return counted


def _plan(spec: ModelSpec, settings: Settings, machine: Machine, dry_runs: DryRuns, *, patience_s: float) -> PlanTable:
    """The table of plans, made once more with the dry run of the chosen one if that is there within `patience_s`."""
    cache = settings.user_data_dir / "cache"
    ledger = Ledger(settings.user_data_dir / LEDGER_NAME)
    known: dict[RunSpec, Peaks] = {}
    question = Question(
        spec,
        settings.load_options.model_copy(update={"model": spec.name}),
        machine.inventory,
        cache,
        trust_remote_code=settings.trust_remote_code,
        draft=find_draft(settings, settings.load_options),
        loras=adapters_for(settings, settings.load_options, spec),
        imagined=machine.imagined,
        speeds=machine.speeds,
        peaks=lambda _spec, run, _kind: known.get(run),
        observed=partial(ledger.observed_error, spec.model_type),
        llamacpp_gpu=machine.imagined or can_use_gpus(),
    )
    table = list_plans(question)
    deadline = time.monotonic() + patience_s
    while (plan := table.chosen) and plan.run not in known and time.monotonic() < deadline:
        if plan.gpu_layers:
            break  # llama.cpp's dry fit is asked on the CPU
        kind: Kind = "cuda" if any(device.startswith("cuda") for device in plan.budgets) else "cpu"
        try:
            known[plan.run] = dry_runs.measure(spec, plan.run, deadline - time.monotonic(), kind=kind)
        except SnugError:
            break  # the formulas serve, and are named on every figure
        table = list_plans(question)
    return table


def _as_json(answer: Answer, mode: str) -> dict[str, Any]:
    if isinstance(answer.table, PlanTable):
        return table_json(answer.table, longest_context=answer.longest)
    if isinstance(answer.table, TrainingTable):
        return training_json(answer.table, mode)
    error = error_json(answer.error) if answer.error else None
    return {"model": {"name": answer.source.name}, "mode": mode, "fits": False, "error": error}


def _show(console: Console, answers: list[Answer], *, imagined: bool) -> None:
    """All about one model; of several a line each, and how to see more."""
    signs = Signs(ascii_only=console.options.ascii_only)
    if len(answers) == 1:
        answer = answers[0]
        notes = Notes(imagined, answer.source.to_get, answer.longest)
        width = min(console.width, 120)
        if isinstance(answer.table, PlanTable):
            print_parts(console, plan_parts(answer.table, notes, width, signs))
        elif isinstance(answer.table, TrainingTable):
            print_parts(console, training_parts(answer.table, notes, width, signs))
        return
    rows = []
    for answer in answers:
        parameters = parameters_text(answer.table.spec.parameters) if answer.table else ""
        plan = answer.table.chosen if isinstance(answer.table, PlanTable) else None
        problem = answer.error or (answer.table.refusal if answer.table else None)
        rows.append((answer.source.name, parameters, plan, problem.message if problem else ""))
    console.print(overview_table(rows), highlight=False)
    console.print(Text("\nFor every way to run one of them: python server.py --plan --model NAME"))
