"""`--plan`: the right answer for the person who asks, in a terminal of any kind and as JSON, and nothing loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from modules.errors import BadConfig, BadValue, ModelNotFound, OutOfMemory
from modules.hardware import Inventory, read_inventory
from modules.memory.dryruns.asking import DryRuns, TrainingPeaks
from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.training import TrainingRun
from modules.memory.model.layers import LayerKind
from modules.memory.planning import budgeting
from modules.memory.planning.ledger import LEDGER_NAME, Entry, Ledger
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans
from modules.plan_command.as_json import SCHEMA_VERSION, entries_json, report_json, table_json, training_json
from modules.plan_command.bars import Signs, draw
from modules.plan_command.report import STARTER_CONFIG, find_sources, run_plan
from modules.plan_command.text import (
    Notes,
    layers_text,
    machine_table,
    overview_table,
    plan_parts,
    print_parts,
    report_table,
    training_parts,
)
from modules.plan_command.training import list_ways
from modules.settings import LoadOptions, Settings
from modules.starter import STARTER_NAME
from modules.ui.plan_values import Bar
from modules.units import GiB, MiB, parse_size
from tests.conftest import STARTER_MODEL
from tests.fakes import make_model_folder
from tests.shapes import llama, machine, mixtral

ROOT = Path(__file__).parent.parent
UNITS = ("_bytes", "_tokens", "_tokens_per_s", "_count", "_ratio", "schema_version")
ENTRY = Entry(
    model="Tiny", family="llama", loader="transformers", quantization="none", way="16-bit on the CPU", device="cpu",
    device_name="x86_64", moment="use", forecast_bytes=GiB, measured_bytes=GiB + 10 * MiB, context_used=0.5,
    version="torch 2",
)  # fmt: skip


def table_of(inventory: Inventory, size: Any = "7B", **options: object) -> PlanTable:
    given = LoadOptions.model_validate({"model": f"Llama-{size}", **options})
    return list_plans(Question(llama(size), given, inventory, Path("cache")))


def shown(parts: Sequence[Any], width: int = 80) -> str:
    """What a pipe of `width` columns gets."""
    out = StringIO()
    print_parts(Console(file=out, width=width), parts)
    return out.getvalue()


def text_of(table: PlanTable, notes: Notes | None = None, *, signs: Signs | None = None, width: int = 80) -> str:
    return shown([*plan_parts(table, notes or Notes(), width, signs or Signs())], width)


def flat(text: str) -> str:
    """In one line, as a reader takes it in."""
    return " ".join(text.split())


CARD = machine(1, 24, ram_gib=64)
TABLES = {"fits": table_of(CARD), "split": table_of(machine(1, 8), dtype="fp16", gpu_memory="7GiB"),
          "no gpu": table_of(machine(ram_gib=64)),
          "nothing": table_of(machine(1, 8, ram_gib=16), "70B", cpu_memory="4GiB")}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("width", [60, 80, 200])
def test_nothing_is_wider_than_the_terminal_and_no_colour_is_needed(name: str, width: int) -> None:
    text = text_of(TABLES[name], width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_the_answer_and_what_to_type_come_first() -> None:
    lines = [line for line in text_of(TABLES["fits"]).splitlines() if line.strip()]
    assert lines[0].startswith("Llama-7B")
    yes = next(number for number, line in enumerate(lines) if line.startswith("Yes."))
    typed = next(
        number for number, line in enumerate(lines) if line.startswith("Type: python server.py --model Llama-7B")
    )
    assert yes < typed < 8


def test_where_nothing_fits_it_says_so_and_what_would() -> None:
    table = TABLES["nothing"]
    assert isinstance(table.refusal, OutOfMemory)
    text = flat(text_of(table))
    assert "No. " in text and flat(table.refusal.message) in text and flat(table.refusal.remedy) in text
    assert "Type:" not in text


def test_a_model_that_fits_with_help_of_the_disk_alone_names_that_flag() -> None:
    table = table_of(machine(ram_gib=24, disk_gib=70), "70B")
    assert table.chosen is None and any(plan.fits for plan in table.plans)
    assert "--disk (" in flat(text_of(table)) and "--nvme-offload-dir" not in text_of(table)


def test_reasons_warnings_and_what_was_left_out_are_told() -> None:
    table = replace(TABLES["fits"], dropped=(("8-bit", "quantizes 2.9 % of this model"),))
    notes = Notes(imagined=True, to_get="First put the model into models/.", longest_context=4096 * 2)
    text = flat(text_of(table, notes))
    assert table.chosen is not None
    for reason in (
        *table.chosen.reasons,
        "8-bit: quantizes 2.9 %",
        "imagined",
        "First put the model",
        "up to 8,192 tokens",
    ):
        assert flat(reason) in text


def test_the_parts_of_each_bar_are_named_with_their_bytes() -> None:
    text = text_of(TABLES["split"])
    assert "GPU 0, card:" in text and "CPU memory:" in text
    for title in ("Weights", "KV cache", "Runtime"):
        assert title in text
    assert "exact" in text


def budget(**sizes: int) -> Budget:
    figures: dict[Purpose, Figure] = {name: Figure(size, "exact") for name, size in sizes.items()}  # type: ignore[misc]
    return Budget.of(figures)


def bar_line(*, free_gib: float = 10, signs: Signs | None = None, **sizes: int) -> str:
    """The bar of a device of 10 GiB, 50 cells wide."""
    device = replace(machine(1, 10).gpus[0], free_bytes=int(free_gib * GiB))
    return draw([Bar(device, budget(**sizes))], 50, signs or Signs())[1].plain


def test_a_bar_is_on_the_devices_total_with_a_mark_at_what_is_free() -> None:
    line = bar_line(free_gib=8, weights=4 * GiB, kv_cache=2 * GiB)
    assert len(line) == 50
    assert (line.count("█"), line.count("▓")) == (20, 10)
    assert line.index("┃") == 40 and line[41:] == "╌" * 9


def test_what_overruns_goes_past_the_mark() -> None:
    line = bar_line(free_gib=4, weights=6 * GiB)
    assert line.index("┃") == 20 and line[21:30] == "█" * 9
    assert len(bar_line(weights=20 * GiB)) == 50


def test_small_parts_are_seen_and_small_models_enlarged() -> None:
    line = bar_line(weights=8 * GiB, kv_cache=MiB, context=GiB // 2)
    assert line.count("▓") == 1 and len(line) == 50
    small = bar_line(weights=100 * MiB, context=300 * MiB)
    assert small.endswith("10.0 GiB") and small.count("█") >= 5 and len(small) == 50


def test_a_terminal_with_nothing_but_ascii_gets_letters() -> None:
    text = text_of(TABLES["split"], signs=Signs(ascii_only=True))
    bars = "".join(line for line in text.splitlines() if "####" in line)
    assert bars.isascii() and "k" in bars
    assert bar_line(free_gib=8, weights=4 * GiB, signs=Signs(ascii_only=True))[40] == "|"


def figures(value: Any, name: str = "") -> Iterator[tuple[str, int | float]]:
    """Every number of a JSON answer, with the name that it stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from figures(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from figures(inner, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def answers() -> list[dict[str, Any]]:
    tables = [table_json(table, longest_context=4096) for table in TABLES.values()]
    ways = [
        training_json(list_ways(llama("7B"), mode, CARD, tokens=None, cpu=False), mode) for mode in ("lora", "full")
    ]
    return [report_json(CARD, [*tables, *ways], imagined=True), entries_json([ENTRY])]


def test_every_number_of_the_json_says_its_unit_and_bytes_are_integers() -> None:
    for answer in answers():
        answer = json.loads(json.dumps(answer))
        assert answer["schema_version"] == SCHEMA_VERSION
        found = list(figures(answer))
        assert len(found) >= 5
        assert [name for name, _ in found if not name.endswith(UNITS)] == []
        assert [name for name, value in found if name.endswith("_bytes") and type(value) is not int] == []


def test_the_json_tells_what_the_terminal_tells() -> None:
    table = TABLES["split"]
    assert table.chosen is not None
    model = table_json(table, longest_context=0)
    assert (model["fits"], model["longest_context_tokens"]) == (True, None)
    (chosen,) = [plan for plan in model["plans"] if plan["chosen"]]
    for device, found in chosen["devices"].items():
        expected = table.chosen.budgets[device]
        assert found["total_bytes"] == expected.total
        loading = {"loading": expected.loading} if expected.loading else {}
        assert {part["purpose"]: part["size_bytes"] for part in found["parts"]} == {
            purpose: figure.bytes for purpose, figure in expected.figures.items()
        } | loading
    refused = table_json(TABLES["nothing"], longest_context=0)
    assert not refused["fits"] and refused["refusal"]["code"] == "out_of_memory" and refused["refusal"]["remedy"]


def test_a_program_can_add_up_the_json_of_every_device() -> None:
    """Running and loading as the peak, and training: what takes turns with a larger part counts nothing."""
    (report, _) = answers()
    loading = ours = 0
    for model in report["models"]:
        for plan in model["plans"]:
            for told in plan["devices"].values():
                assert sum(part["counted_bytes"] for part in told["parts"]) == told["total_bytes"]
                loading += any(part["purpose"] == "loading" for part in told["parts"])
                ours += any(part["size_bytes"] > part["counted_bytes"] for part in told["parts"])
    assert loading and ours
    assert "counted_bytes" in report["how_to_add_up"]


def test_the_sum_of_a_plan_whose_load_is_the_peak_adds_up() -> None:
    plan = table_of(machine(ram_gib=64), "70B", load_in_4bit=True).chosen
    assert plan is not None and plan.budgets["cpu"].loading
    (said,) = [reason for reason in plan.reasons if " = " in reason]
    addends, total = said.partition(": ")[2].partition(" of ")[0].split(" = ")
    assert "more while loading" in addends
    parts = [parse_size(size) for size in re.findall(r"[\d.]+ [GM]iB", addends)]
    assert sum(parts) == pytest.approx(parse_size(total), abs=GiB // 10)


def test_files_that_are_read_from_disk_are_drawn_as_files_that_are_there() -> None:
    """More than is free, and nothing is written: no overrun."""
    here = machine(ram_gib=20, disk_gib=200)
    full = replace(here, disk=replace(here.disk, free_bytes=60 * GiB))
    text = text_of(table_of(full, "70B", disk=True))
    assert re.search(r"Disk: 1\d\d GiB are read there, 60\.0 GiB stay free", text)
    lines = text.splitlines()
    bar = lines[next(number for number, line in enumerate(lines) if "are read there" in line) + 1]
    assert "┃" not in bar


def test_deepspeed_is_typed_with_its_launcher_and_a_cpu_does_not_get_fp16() -> None:
    text = flat(text_of(table_of(machine(ram_gib=64), deepspeed=True)))
    assert "Type: deepspeed --num_gpus=1 server.py --model" in text
    plan = table_of(machine(ram_gib=64), deepspeed=True).chosen
    assert plan is not None and plan.run.dtype == "bfloat16"
    on_card = table_of(machine(2, 24, ram_gib=64), deepspeed=True)
    assert on_card.chosen is not None and on_card.chosen.run.dtype == "float16"
    assert "deepspeed --num_gpus=2 server.py" in flat(text_of(on_card))


def test_a_context_that_the_model_does_not_state_is_said_to_be_assumed() -> None:
    spec = replace(llama("7B"), context_stated=False)
    table = list_plans(Question(spec, LoadOptions.model_validate({}), machine(ram_gib=64), Path("cache")))
    assert "tokens of context (assumed, since the model states no length)" in flat(text_of(table))
    assert "assumed" not in flat(text_of(table_of(machine(ram_gib=64))))


def test_what_is_far_off_is_said_to_be_far_off() -> None:
    """A share of what is not exact: large peaks are not known to 128 MiB."""
    plan = table_of(machine(ram_gib=64), "70B", load_in_4bit=True).chosen
    assert plan is not None
    budget = plan.budgets["cpu"]
    assert budget.margin >= 0.03 * budget.uncertain > 100 * MiB
    small = table_of(CARD).chosen
    assert small is not None and all(budget.margin >= 128 * MiB for budget in small.budgets.values())


def test_the_json_tells_how_each_figure_is_made_up() -> None:
    for table in TABLES.values():
        for plan in table_json(table, longest_context=0)["plans"]:
            for device, told in plan["devices"].items():
                for part in told["parts"]:
                    assert part["formula"], (plan["title"], device, part)


def test_layers_that_are_not_plain_attention_are_told_by_kind() -> None:
    assert layers_text(llama("7B")) == "32 layers"
    assert layers_text(mixtral()) == "32 layers (32 full attention, 32 mixture of experts)"
    pair: list[LayerKind] = ["sliding", "full"]
    assert (
        layers_text(replace(llama("7B"), layer_kinds=tuple(pair * 16)))
        == "32 layers (16 sliding window, 16 full attention)"
    )
    told = table_json(TABLES["split"], longest_context=0)["model"]
    assert told["layers"] == [{"kind": "full attention", "layer_count": told["layer_count"]}]


def test_training_prefers_the_fastest_that_fits_and_names_the_smallest_change() -> None:
    ways = list_ways(llama("7B"), "lora", machine(1, 80), tokens=None, cpu=False)
    assert ways.chosen is ways.ways[0] and not ways.chosen.run.checkpointing
    refused = list_ways(llama("7B"), "full", machine(1, 8), tokens=None, cpu=False)
    assert refused.chosen is None and refused.refusal is not None
    text = flat(shown([*training_parts(refused, Notes(), 80, Signs())]))
    assert flat(refused.refusal.message) in text and "lacks" in text


def test_the_report_shows_each_record_and_nothing_of_the_user() -> None:
    text = shown([report_table([ENTRY] * 30)], 80)
    assert "Tiny" in text and "1.010" in text and "16-bit on the CPU" in text and "30" in text
    assert len(text.splitlines()) < 8
    assert str(Path.home()) not in text


def test_the_models_folder_comes_before_paths_and_the_starter_before_nothing(
    settings: Settings, tmp_path: Path
) -> None:
    nobody_asked = DryRuns(tmp_path / "dryruns")
    (source,) = find_sources(settings, nobody_asked)
    assert (source.name, source.is_new) == (STARTER_NAME, True)
    make_model_folder(settings.model_dir, "a")
    make_model_folder(settings.model_dir, "b")
    assert [(source.name, source.is_new) for source in find_sources(settings, nobody_asked)] == [
        ("a", False), ("b", False),
    ]  # fmt: skip
    outside = make_model_folder(tmp_path / "elsewhere", "c")
    for name in (str(outside), str(outside / "config.json")):
        (source,) = find_sources(settings.model_copy(update={"model": name}), nobody_asked)
        assert source.to_get
    assert source.read().name == "c"
    with pytest.raises(ModelNotFound, match="absent"):
        find_sources(settings.model_copy(update={"model": "absent"}), nobody_asked)


@pytest.mark.model
def test_the_config_that_ships_is_the_starters_own(starter_model: Path) -> None:
    shipped, own = (json.loads((folder / "config.json").read_text()) for folder in (STARTER_CONFIG, STARTER_MODEL))
    assert shipped == own


def test_of_several_models_one_that_is_broken_has_its_line(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model_folder(settings.model_dir, "sound")
    make_model_folder(settings.model_dir, "broken").joinpath("config.json").write_text("{")
    assert run_plan(settings.model_copy(update={"plan": True})) == 0
    out = flat(capsys.readouterr().out)
    assert "sound" in out and "broken" in out and "config.json" in out
    with pytest.raises(BadConfig):
        run_plan(settings.model_copy(update={"plan": True, "model": "broken"}))


@pytest.mark.parametrize(("family", "counts"), [("falcon", False), ("llama", True)])
def test_a_plan_is_widened_by_what_was_seen_of_its_own_family(
    family: str,
    counts: bool,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budgeting, "LEAST_MARGIN", 0)  # models this small would have no other
    make_model_folder(settings.model_dir, "a")
    make_model_folder(settings.model_dir, "b")

    def margins() -> list[int]:
        run_plan(settings.model_copy(update={"plan": True, "json_output": True}))
        plans = [model["plans"][0] for model in json.loads(capsys.readouterr().out)["models"]]
        return [plan["devices"]["cpu"]["high_bytes"] - plan["devices"]["cpu"]["total_bytes"] for plan in plans]

    before = margins()
    name = read_inventory(settings.user_data_dir).cpu.name
    seen = replace(ENTRY, family=family, device_name=name, measured_bytes=2 * GiB)
    ledger = Ledger(settings.user_data_dir / LEDGER_NAME)
    for quantization in ("none", "int8", "nf4"):
        ledger.record([replace(seen, quantization=quantization)] * 3)
    assert (margins() > before) == counts


def test_the_ledgers_report_is_printed_or_that_there_is_none(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = settings.model_copy(update={"plan": True, "report": True})
    assert run_plan(asked) == 0
    assert "Nothing is recorded" in capsys.readouterr().out
    Ledger(settings.user_data_dir / LEDGER_NAME).record([ENTRY])
    assert run_plan(asked) == 0
    assert "Tiny" in capsys.readouterr().out
    assert run_plan(asked.model_copy(update={"json_output": True})) == 0
    assert json.loads(capsys.readouterr().out)["records"][0]["measured_to_forecast_ratio"] == ENTRY.ratio


def program(*argv: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """server.py with these flags, its models and user data in `folder`."""
    places = ("--model-dir", str(folder / "models"), "--user-data-dir", str(folder / "user_data"))
    return subprocess.run(
        [sys.executable, str(ROOT / "server.py"), "--plan", *places, *argv], cwd=folder, capture_output=True, text=True,
        encoding="utf-8", errors="replace", timeout=240, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_model_folder(tmp_path / "models", "a")
    return tmp_path


def test_the_program_answers_with_0_1_or_2_and_serves_nothing(home: Path) -> None:
    fits = program(folder=home)
    assert fits.returncode == 0 and "Yes." in fits.stdout and "Snug is at" not in fits.stdout
    assert "\x1b" not in fits.stdout and not fits.stderr
    lacking = program("--model", "a", "--gpu", "1MiB", "--ram", "1MiB", "--json", folder=home)
    assert lacking.returncode == 1
    assert json.loads(lacking.stdout)["models"][0]["fits"] is False
    wrong = program("--gpu", "3061", folder=home)
    assert wrong.returncode == 2 and wrong.stderr.startswith("snug: --gpu") and not wrong.stdout


def test_a_terminal_that_knows_only_ascii_or_cp1252_is_no_obstacle(home: Path) -> None:
    for encoding in ("ascii", "cp1252"):
        done = program(folder=home, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert done.returncode == 0, done.stderr
        assert "Yes." in done.stdout


def test_the_machine_is_listed_device_by_device() -> None:
    text = shown([machine_table(machine(2, 24), imagined=True)])
    assert "GPU 0" in text and "GPU 1" in text and "CPU memory" in text and "As if" in text
    assert "no GPU" in shown([machine_table(machine(), imagined=False)])


def test_only_the_first_of_many_ways_are_shown() -> None:
    table = TABLES["fits"]
    assert table.chosen is not None
    more: list[Plan] = [replace(table.chosen, title=f"way {number}") for number in range(30)]
    text = text_of(replace(table, plans=(table.chosen, *more)))
    assert "way 5" in text and "way 20" not in text and "--json" in text


def test_a_way_that_makes_one_wait_for_each_token_says_so_and_all_speeds_have_one_unit() -> None:
    table = table_of(machine(1, 24, ram_gib=256), "70B", dtype="fp16")
    text = flat(text_of(table))
    assert "Yes, but slowly. 16-bit" in text and re.search(r"a token in about [\d.]+ to [\d.]+ s\.", text)
    assert "s a token" not in text
    assert "slowly" not in text_of(TABLES["fits"])


def test_the_machines_cores_are_told_and_that_an_imagined_machine_has_those_of_this_one() -> None:
    assert "8 cores, no GPU" in shown([machine_table(machine(), imagined=False)])
    assert "8 cores, as here" in shown([machine_table(CARD, imagined=True)])


def test_checkpointing_that_saves_nothing_is_not_offered_and_what_is_taken_for_granted_is_told() -> None:
    full = list_ways(llama("7B"), "full", machine(1, 80), tokens=None, cpu=False)
    assert full.chosen is full.ways[0] and not any(way.run.checkpointing for way in full.ways)
    long = list_ways(llama("7B", context=32768), "full", machine(1, 80), tokens=16384, cpu=False)
    assert any(way.run.checkpointing for way in long.ways)
    text = flat(shown([*training_parts(full, Notes(), 80, Signs())]))
    assert "Mixed precision" in text and "50.2 GiB more" in text
    lora = list_ways(llama("7B"), "lora", machine(1, 80), tokens=None, cpu=False)
    assert [way.run.checkpointing for way in lora.ways] == [False, True]
    assert "Mixed precision" not in flat(shown([*training_parts(lora, Notes(), 80, Signs())]))


def test_of_several_models_one_that_does_not_fit_has_one_sentence() -> None:
    refusal = table_of(machine(ram_gib=4), "70B").refusal
    assert refusal is not None
    text = flat(shown([overview_table([("Llama-70B", "69 B", None, refusal.message)])], 120))
    assert "does not fit" in text and "nearest way" not in text


def test_training_on_longer_texts_than_the_model_was_made_for_is_refused_as_running_it_is() -> None:
    with pytest.raises(BadValue, match="at most 4096 tokens"):
        list_ways(llama("7B"), "lora", machine(1, 80), tokens=8192, cpu=False)
    assert list_ways(llama("7B"), "lora", machine(1, 80), tokens=512, cpu=False).ways[0].run.tokens == 512


def test_steps_are_counted_all_or_none() -> None:
    formulas = list_ways(llama("7B"), "full", machine(1, 80), tokens=None, cpu=False)
    asked: list[TrainingRun] = []

    def count(run: TrainingRun, kind: str) -> TrainingPeaks | None:
        asked.append(run)
        return TrainingPeaks(1, 1, 1, 3 * GiB, 1) if kind == "cuda" else None

    counted = list_ways(llama("7B"), "full", machine(1, 80), tokens=None, cpu=False, peaks=count)
    assert {way.budget.figures["activations"] for way in counted.ways} == {
        Figure(3 * GiB, "dry-run", "counted on the model without its weights")
    }
    assert [way.run.optimizer for way in counted.ways] == ["adamw", "adam8bit", "sgd"]  # checkpointing saves nothing
    assert {run.optimizer for run in asked} == {"adamw", "sgd"}
    without = list_ways(llama("7B"), "full", machine(1, 80), tokens=None, cpu=True, peaks=count)
    assert without == list_ways(llama("7B"), "full", machine(1, 80), tokens=None, cpu=True)
    assert formulas.ways[0].budget.weights == counted.ways[0].budget.weights
