"""A comparison in words and figures: what the page shows beside each text, and the whole as Markdown. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from modules.compare.agreement import Agreement, agreement, parting
from modules.compare.arranging import place
from modules.compare.values import ColumnView, View
from modules.units import format_duration, format_rate, format_size

_STAGES = {
    "waiting": "Waiting", "loading": "Loading", "reading": "Reading the prompt", "writing": "Writing", "done": "Done",
    "stopped": "Stopped", "failed": "Failed",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a column's text; with `others`, the numbers of columns from which it differs from here on."""

    text: str
    others: tuple[int, ...] = ()


def agreement_of(view: View, number: int) -> Agreement | None:
    """How far a column agrees with the first one; None for the first, and while there is nothing to compare."""
    first, mine = view.columns[0], view.columns[number]
    if not number or not first.text or not mine.text:
        return None
    same = bool(first.tokens and mine.tokens and first.vocabulary) and first.vocabulary == mine.vocabulary
    return agreement(
        mine.tokens if same else mine.text,
        first.tokens if same else first.text,
        mine_ended=mine.ended == "stop",
        others_ended=first.ended == "stop",
    )


def pieces(view: View, number: int) -> list[Piece]:
    """A column's text, cut where it parts from the first column; the first one's where others part from it."""
    text = view.columns[number].text
    others = range(1, len(view.columns)) if number == 0 else (0,)
    cuts: dict[int, list[int]] = {}
    for other in others:
        at = parting(text, view.columns[other].text)
        if at is not None:
            cuts.setdefault(at, []).append(other + 1)
    starts = sorted({0, *cuts})
    return [
        Piece(text[start:end], tuple(cuts.get(start, ())))
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
        if start < len(text)
    ]


def stage_words(column: ColumnView) -> str:
    """`Writing`, `Loading: Reading weights`, `Done: length limit reached`."""
    if column.progress is not None:
        return column.progress.stage
    words = _STAGES[column.stage]
    return f"{words}: length limit reached" if column.stage == "done" and column.ended == "length" else words


def facts(view: View, number: int) -> list[tuple[str, str]]:
    """What there is to say of a column so far: (name, value)."""
    column = view.columns[number]
    if column.error is not None and not column.text:
        return []
    found = [
        ("Agreement", _agreement(view, number)),
        ("First difference", _first_difference(view, number)),
        ("Speed", _speed(column)),
        ("First token", format_duration(column.first_token_s) if column.first_token_s else ""),
        *((_place_name(memory.device), _memory(memory.forecast, memory.measured)) for memory in column.memory),
        ("Loaded in", format_duration(column.load_s) if column.load_s else ""),
        ("Length", _length(column)),
    ]
    return [(name, value) for name, value in found if value]


def as_markdown(view: View) -> str:
    """The whole comparison, to keep or to show to others."""
    trial = view.trial
    lines = ["# Comparison", "", *(f"> {line}" for line in trial.prompt.splitlines()), ""]
    sampled = any(not asked.params.greedy for asked in trial.columns)
    lines += [" ".join((*view.words, *([f"Seed {trial.seed}."] if sampled else []))).strip(), ""]
    names = list(dict.fromkeys(name for number in range(len(view.columns)) for name, _ in facts(view, number)))
    table = [("", *(_title(view, number) for number in range(len(view.columns))))]
    table += [
        (name, *(dict(facts(view, number)).get(name, "") for number in range(len(view.columns)))) for name in names
    ]
    lines += [_row(table[0]), _row(("---",) * len(table[0])), *map(_row, table[1:]), ""]
    for number, column in enumerate(view.columns):
        lines += [f"## {_title(view, number)}", "", f"{stage_words(column)}.", ""]
        if column.error is not None:
            lines += [str(column.error), ""]
        marked = "".join(("⟨≠⟩" if piece.others else "") + piece.text for piece in pieces(view, number))
        lines += [fence(marked), ""] if marked else []
    lines.append("⟨≠⟩ marks where a text parts from the first one, and in the first one where others part from it.")
    return "\n".join(lines) + "\n"


def fence(text: str) -> str:
    """`text` as a block that is shown as it is, whatever marks it holds."""
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}text\n{text}\n{marks}"


def _title(view: View, number: int) -> str:
    column = view.columns[number]
    return ", ".join(part for part in (f"{number + 1}. {column.model}", column.way, column.sampling) if part)


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def _agreement(view: View, number: int) -> str:
    if not number:
        return "the others are compared with this one" if view.columns[0].text else ""
    found = agreement_of(view, number)
    if found is None or not found.common:
        return ""
    percent = 100 if found.equal == found.common else min(99, round(100 * found.share))
    return f"{percent} %: {found.equal:,} of {found.common:,} {found.unit} are the same"


def _first_difference(view: View, number: int) -> str:
    found = agreement_of(view, number)
    if found is None:
        return ""
    if found.first is None:
        over = view.columns[0].over and view.columns[number].over
        return f"none in {found.common:,} {found.unit}" if over else ""
    return f"{found.unit[:-1]} {found.first + 1:,}"


def _speed(column: ColumnView) -> str:
    if not column.tokens_per_s:
        return ""
    low, high = column.forecast_tokens_per_s
    expected = f" (forecast alone: {format_rate(low)} to {format_rate(high)})" if high else ""
    return f"{format_rate(column.tokens_per_s)} tokens/s{expected if column.over else ''}"


def _place_name(device: str) -> str:
    """`CPU memory`, `Memory on GPU 0`."""
    return "CPU memory" if device == "cpu" else f"Memory {place(device)}"


def _memory(forecast: int, measured: int) -> str:
    return f"{format_size(measured)} (forecast {format_size(forecast)})" if forecast else format_size(measured)


def _length(column: ColumnView) -> str:
    if not column.over or not column.count:
        return ""
    return f"{column.count:,} token{'s' if column.count != 1 else ''}"
