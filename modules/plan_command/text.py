"""What `--plan` prints for people: a verdict, the ways to run a model, the picture of one of them, and why.

Values in, rich renderables out. Readable at 80 columns and without colour; what to type stands on a line of its own.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from modules.errors import SnugError
from modules.hardware import Inventory
from modules.memory.forecasting.budget import PURPOSE_TITLES, Method
from modules.memory.forecasting.kinds import count_layers
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.ledger import Entry, summarize
from modules.memory.planning.planner import Plan, PlanTable
from modules.plan_command.bars import Signs, draw
from modules.plan_command.training import TrainingTable, TrainingWay, training_notes
from modules.settings import LoadOptions
from modules.ui.picture import device_title
from modules.ui.plan_values import Bar, bars_of
from modules.ui.ways import cost_text, spare_bytes
from modules.units import format_rate, format_size

FITTING_SHOWN, LACKING_SHOWN = 7, 4
_SLOW = 1.0  # tokens a second below which one waits for each
_METHODS: dict[Method, str] = {"exact": "exact", "dry-run": "by dry run", "formula": "by formula"}


@dataclass(frozen=True, slots=True)
class Row:
    """One way: its name, tokens a second, what it leaves or lacks, what it costs, and what to type."""

    title: str
    speed: str
    room: str
    cost: str
    typed: str = ""
    fits: bool = True
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Notes:
    """What the report must say beside the plans: whether the machine is imagined, how the model is to be had ("" if it
    is there), and how long a context the chosen way takes (0: unknown)."""

    imagined: bool = False
    to_get: str = ""
    longest_context: int = 0


def machine_table(inventory: Inventory, *, imagined: bool) -> Table:
    """One line a device: `GPU 0  RTX 3060  11.8 GiB of 12.0 GiB free`."""
    table = Table.grid(padding=(0, 2, 0, 0))
    title = Text("As if here were" if imagined else "This machine", style="bold")
    cores = f"{inventory.physical_cores} cores{', as here' if imagined else ''}"
    for device in (*inventory.gpus, inventory.cpu, inventory.disk):
        name = device.name if device.kind == "cuda" else cores if device.kind == "cpu" else ""
        if device.kind == "cpu" and not inventory.gpus:
            name += ", no GPU"
        sizes = f"{format_size(device.free_bytes)} of {format_size(device.total_bytes)} free"
        table.add_row(title, device_title(device.id), sizes, name)
        title = Text()
    return table


def model_text(spec: ModelSpec) -> Text:
    """The model's name, and below it `6.74 B parameters · 32 layers · up to 4,096 tokens · float16, 12.6 GiB`."""
    facts = [
        f"{parameters_text(spec.parameters)} parameters",
        layers_text(spec),
        f"up to {spec.max_context:,} tokens",
        f"{spec.stored_dtype}, {format_size(sum(tensor.size_bytes for tensor in spec.tensors))}",
    ]
    return Text(spec.name, style="bold").append("\n" + " · ".join(facts), style="not bold dim")


def layers_text(spec: ModelSpec) -> str:
    """`32 layers`; where not all are plain attention `48 layers (8 full attention, 40 sliding window)`.

    A model that embeds keeps nothing in any of them: there it says what it does.
    """
    if spec.embedder is not None:
        return f"{spec.layers} layers, embeds texts"
    counts = count_layers(spec)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{spec.layers} layers" + (f" ({kinds})" if counts.keys() - {"full attention"} else "")


def parameters_text(count: int) -> str:
    """`6.74 B`, `135 M`."""
    value, unit = (count / 1e9, "B") if count >= 1e9 else (count / 1e6, "M")
    return f"{value:.3g} {unit}"


def plan_parts(table: PlanTable, notes: Notes, width: int, signs: Signs) -> Iterable[RenderableType]:
    """Everything about running one model, top to bottom."""
    yield model_text(table.spec)
    yield Text()
    yield from _verdict(table, notes)
    if table.plans:
        yield Text()
        yield from rows_parts([_row(plan, table) for plan in table.plans], "ways to run it")
    if table.chosen is not None:
        yield Text()
        yield Text(table.chosen.title, style="bold")
        bars = bars_of(table.chosen, table.inventory)
        yield from draw(bars, width, signs)
        yield Text(methods_text(bars), style="dim")
    yield from _list("Why", table.chosen.reasons if table.chosen else ())
    yield from _list("Mind", warnings_of(table.spec, notes))
    yield from _list("Left out", [f"{way}: {why}" for way, why in table.dropped])


def _verdict(table: PlanTable, notes: Notes) -> Iterable[Text]:
    """One sentence that answers the question, and what to type."""
    plan = table.chosen
    if plan is None:
        yield from refusal_text(table.refusal)
        return
    low, high = plan.tokens_per_s
    told = f" {plan.title}, {plan.run.context_tokens:,} tokens of context"
    if table.spec.embedder is not None:
        told = f" {plan.title}, texts of up to {plan.run.context_tokens:,} tokens"
    if table.options.ctx_size is None and not table.spec.context_stated:
        told += " (assumed, since the model states no length)"
    if low > 0 and high < _SLOW:
        told += f", a token in about {format_rate(1 / high)} to {format_rate(1 / low)} s."
    else:
        told += f", about {_speed(plan)} tokens/s." if high else "."
    if notes.longest_context > plan.run.context_tokens:
        told += f" It would fit up to {notes.longest_context:,} tokens."
    yes = "Yes, but slowly." if 0 < high < _SLOW else "Yes."
    yield Text(yes, style="bold green").append(told, style="not bold default")
    if notes.to_get:
        yield Text(notes.to_get)
    yield Text("Type: ").append(command(table, plan), style="bold")
    if not narrowed(table.options) and plan.flags:
        yield Text(f"Snug chooses this by itself. To have exactly this: {shlex.join(plan.flags)}", style="dim")


def refusal_text(refusal: SnugError | None) -> Iterable[Text]:
    """Why nothing fits, and the smallest change that would."""
    yield Text("No.", style="bold red").append(f" {refusal.message if refusal else ''}", style="not bold default")
    if refusal is not None and refusal.remedy:
        yield Text(refusal.remedy)


def command(table: PlanTable, plan: Plan) -> str:
    """What to type to get this plan: its flags only where the user gave some, since Snug chooses the same without."""
    flags = plan.flags if narrowed(table.options) else ()
    ranks = max(1, len(table.inventory.gpus))
    start = f"deepspeed --num_gpus={ranks}" if plan.loader == "deepspeed" else "python"
    return f"{start} server.py --model {shlex.join([plan.spec.name, *flags])}"


def narrowed(options: LoadOptions) -> bool:
    """Whether the user asked for anything but a model."""
    return options.model_copy(update={"model": None}) != LoadOptions.model_validate({})


def _speed(plan: Plan) -> str:
    """`12–39`, `0.012–0.034`: tokens a second in two digits; "" where unknown."""
    low, high = map(format_rate, plan.tokens_per_s)
    return f"{low}–{high}" if plan.tokens_per_s[1] else ""


def _row(plan: Plan, table: PlanTable) -> Row:
    return Row(
        title=plan.title,
        speed=_speed(plan),
        room=format_size(spare_bytes(plan, table.inventory))
        if plan.fits
        else f"lacks {format_size(plan.short_bytes, up=True)}",
        cost=cost_text(plan, table),
        typed=shlex.join(plan.flags) if plan.fits else "",
        fits=plan.fits,
        chosen=plan is table.chosen,
    )


def rows_parts(rows: Sequence[Row], title: str) -> Iterable[RenderableType]:
    """The ways, best first; of those that fit and those that lack something only the first few; then what to type."""
    shown = [row for row in rows if row.fits][:FITTING_SHOWN] + [row for row in rows if not row.fits][:LACKING_SHOWN]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column(title, ratio=1)
    table.add_column("tokens/s" if any(row.speed for row in shown) else "", justify="right", no_wrap=True)
    table.add_column("fits by", justify="right", no_wrap=True)
    table.add_column("what it costs", max_width=20)
    typed = Table.grid(padding=(0, 2, 0, 0))
    for number, row in enumerate(shown, start=1):
        style = "bold" if row.chosen else "" if row.fits else "dim"
        table.add_row(str(number), row.title, row.speed, row.room, row.cost, style=style)
        if row.typed and not row.chosen:
            typed.add_row(str(number), Text(row.typed))
    yield table
    if len(rows) > len(shown):
        yield Text(f"and {len(rows) - len(shown)} more: see --json", style="dim")
    if typed.row_count:
        yield Text("\nTo have another one, add", style="dim")
        yield typed


def warnings_of(spec: ModelSpec, notes: Notes) -> list[str]:
    """What the reader should know before trusting the figures."""
    imagined = "The machine is imagined: nothing else runs on it, and its figures are published ones."
    return [*spec.warnings, *([imagined] if notes.imagined else [])]


def methods_text(bars: Sequence[Bar]) -> str:
    """`weights, KV cache: exact · reading the prompt: by dry run`: how each figure was got."""
    found: dict[Method, list[str]] = {"exact": [], "dry-run": [], "formula": []}
    for purpose, title in PURPOSE_TITLES.items():
        for method in {bar.budget.figures[purpose].method for bar in bars if purpose in bar.budget.figures}:
            found[method].append(title)
    return " · ".join(f"{', '.join(titles)}: {_METHODS[method]}" for method, titles in found.items() if titles)


def training_parts(table: TrainingTable, notes: Notes, width: int, signs: Signs) -> Iterable[RenderableType]:
    """Everything about training one model, top to bottom."""
    yield model_text(table.spec)
    yield Text()
    if table.chosen is None:
        yield from refusal_text(table.refusal)
    else:
        yield Text("Yes.", style="bold green").append(f" {table.chosen.title} fits.", style="not bold default")
        yield Text("Snug plans training and does not train: these are settings for the trainer of your choice.")
    yield Text()
    rows = [_training_row(way, chosen=way is table.chosen) for way in table.ways]
    yield from rows_parts(rows, "ways to train it")
    pictured = table.chosen or table.ways[0]
    yield Text()
    yield Text(pictured.title, style="bold")
    bars = [Bar(pictured.device, pictured.budget)]
    yield from draw(bars, width, signs)
    yield Text(methods_text(bars), style="dim")
    yield from _list("Mind", [*training_notes(table), *warnings_of(table.spec, notes)])


def _training_row(way: TrainingWay, *, chosen: bool) -> Row:
    room = f"lacks {format_size(way.short_bytes, up=True)}" if way.short_bytes else format_size(way.spare_bytes)
    return Row(way.title, "", room, way.cost, fits=not way.short_bytes, chosen=chosen)


def overview_table(rows: Sequence[tuple[str, str, Plan | None, str]]) -> Table:
    """One line a model: (name, parameters, the plan or None, why not)."""
    table = Table("model", "parameters", "way", "tokens/s", box=None, pad_edge=False, header_style="dim")
    for name, parameters, plan, problem in rows:
        way = plan.title if plan else Text(problem.partition(". ")[0].rstrip("."), style="red")
        table.add_row(name, parameters, way, _speed(plan) if plan else "")
    return table


def report_table(entries: Sequence[Entry]) -> Table:
    """Measured over forecast, one row a model, way and device: no paths, nothing of a user in it."""
    table = Table(box=None, pad_edge=False, header_style="dim", caption_justify="left")
    table.add_column("measured over forecast", ratio=1)
    for title in ("", "times", "weights", "in use", "worst"):
        table.add_column(title, justify="right", no_wrap=True)
    model = ""
    for summary in summarize(entries):
        if summary.model != model:
            model = summary.model
            table.add_row(Text(model, style="bold"))
        ratios = [summary.ratios.get(moment) for moment in ("weights", "use")]
        shown = [f"{ratio:.3f}" if ratio else "" for ratio in (*ratios, summary.worst)]
        table.add_row(f"  {summary.way}", device_title(summary.device), str(summary.count), *shown)
    table.caption = "Above 1: forecast too low; later ones are raised by it. Every record: --json"
    return table


def _list(title: str, items: Iterable[str]) -> Iterable[RenderableType]:
    """A heading and its sentences; nothing if there are none."""
    lines = list(items)
    if lines:
        yield Text()
        yield Text(title, style="bold")
        grid = Table.grid(padding=(0, 1, 0, 0))
        for line in lines:
            grid.add_row("-", Text(line))
        yield grid


def print_parts(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print one after the other."""
    for part in parts:
        console.print(part, highlight=False)
