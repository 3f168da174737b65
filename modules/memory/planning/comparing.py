"""Why a way of running was chosen over the others, in words with numbers: one sentence for each that lost.

Pure. The other precisions come first, the best quality first; then other places for the same precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from modules.memory.planning.choosing import Ranked, lacks
from modules.memory.planning.explaining import place_name, whereabouts
from modules.memory.planning.fitting import Problem
from modules.memory.planning.quality import loss_text
from modules.memory.planning.speed import TURN_PROMPT_TOKENS
from modules.units import format_size

# From so much on, one way is said to be faster than another.
_CLEARLY = 1.3


def why_chosen(problem: Problem, chosen: Ranked, found: Sequence[Ranked]) -> Iterator[str]:
    """What speaks for `chosen` against the best of each other precision, and against other devices, of all `found`."""
    named = [one for one in found if one.solution.way.place != "zero3"]
    labels = {one.solution.way.label: one.quality for one in named if not one.solution.run.double_quant}
    if chosen.solution.run.double_quant and not problem.options.use_double_quant:
        plain = [one for one in named if one.solution.way.label == _plain_label(chosen)]
        yield from _against_plain(problem, chosen, plain)
    for label in sorted(labels, key=lambda label: -labels[label]):
        if label != _plain_label(chosen):
            yield from _against_precision(problem, chosen, [one for one in named if one.solution.way.label == label])
    same = [
        one for one in named
        if one.solution.way.label == chosen.solution.way.label and not one.solution.way.disk
        and one.solution.run.kv_cache == chosen.solution.run.kv_cache
    ]  # fmt: skip
    yield from _against_places(problem, chosen, same)


def _plain_label(one: Ranked) -> str:
    """The label without double quantization, which is told as one with plain 4 bits."""
    return one.solution.way.label.replace(", double)", ")")


def _against_plain(problem: Problem, chosen: Ranked, plain: Sequence[Ranked]) -> Iterator[str]:
    """What double quantization is for: what plain 4 bits lack, or how much slower they are."""
    place = chosen.solution.way.place
    fitting = [one for one in plain if one.solution.fits]
    if plain and not fitting:
        yield f"Without double quantization it {_lacks(problem, min(plain, key=lacks))}."
    if not fitting:
        return
    best = min(fitting, key=lambda one: (one.solution.way.place != place, one.estimate.turn_s))
    ratio = best.estimate.turn_s / chosen.estimate.turn_s
    if ratio > 1:
        yield f"Without double quantization it is {ratio - 1:.0%} slower.".replace("%", " %")


def _against_precision(problem: Problem, chosen: Ranked, others: Sequence[Ranked]) -> Iterator[str]:
    """One sentence on another precision: what it lacks, and how its best way that fits compares."""
    label = others[0].solution.way.label
    fitting = sorted((one for one in others if one.solution.fits), key=lambda one: one.estimate.turn_s)
    place = chosen.solution.way.place
    cache = chosen.solution.run.kv_cache
    misses = [one for one in others if not one.solution.fits and one.solution.run.kv_cache == cache]
    beside = [one for one in misses if one.solution.way.place == place] if fitting else []
    lacking = min(beside or misses, key=lacks, default=None)
    lost = _lacks(problem, lacking) if lacking is not None else ""
    if not fitting:
        if lost:
            yield f"{label} {lost}."
        return
    best = next((one for one in fitting if 2 * one.context >= chosen.context), fitting[0])
    better = best.quality > chosen.quality
    told = _compared(problem, chosen, best, better=better)
    if better and lost and best.solution.way.place != place:
        where = whereabouts(problem, best.solution)
        yield f"{label} {lost}; {where[0].lower()}{where[1:]} it {told}."
    else:
        yield f"{label} {told}."


def _compared(problem: Problem, chosen: Ranked, other: Ranked, *, better: bool) -> str:
    """`would keep all of the quality, but is 15 times slower`; `would be 1.8 times faster, but loses …`."""
    ratio = other.estimate.turn_s / chosen.estimate.turn_s
    slower = f"is {_times(ratio)} slower" if ratio >= _CLEARLY else ""
    if better:
        gain = "would lose less quality" if loss_text(other.quality) else "would keep all of the quality"
        if other.context * 2 < chosen.context:
            return f"{gain}, but only {other.context:,} tokens of context fit"
        if slower:
            disk = other.solution.budgets.get("disk")
            why = f": {format_size(disk.weights)} come from disk for each token" if disk and disk.weights else ""
            return f"{gain}, but {slower}{why}"
        return f"{gain} and is about as fast, but {_why_not_better(problem, other)}"
    lost = loss_text(other.quality)
    loss = f"loses {lost}" if lost else ""
    if ratio <= 1 / _CLEARLY:
        enough = "; this is as fast as one reads" if other.quality < chosen.quality else ""
        return f"would be {_times(1 / ratio)} faster" + (f", but {loss}{enough}" if loss else "")
    return f"also fits, but {' and '.join(filter(None, (slower, loss))) or 'is no faster'}"


def _why_not_better(problem: Problem, other: Ranked) -> str:
    """Why a way that is better and hardly slower is not taken: it is further down the ladder."""
    if other.solution.way.disk and not problem.options.disk:
        return "reads from disk, which only --disk allows"
    return f"takes {format_size(sum(budget.total for budget in other.solution.budgets.values()))}"


def _against_places(problem: Problem, chosen: Ranked, same: Sequence[Ranked]) -> Iterator[str]:
    """Sentences on the same precision elsewhere: on the CPU alone, with part on the GPU, all on the GPU."""
    place = chosen.solution.way.place
    if not problem.gpus or place == "zero3":
        return
    if place in ("split", "cpu"):
        whole = [one for one in same if one.solution.way.place in ("gpu", "gpus")]
        if whole and not any(one.solution.fits for one in whole):
            yield f"On {place_name(problem)} alone it lacks {format_size(min(map(lacks, whole)))}."
    other_place = {"cpu": "split", "split": "cpu"}.get(place)
    other = next((one for one in same if one.solution.way.place == other_place), None)
    if other is None:
        return
    where = whereabouts(problem, other.solution)
    if not other.solution.fits:
        yield f"{where} it {_lacks(problem, other)}."
        return
    writing = _rate_words("write", chosen, other, lambda one: one.estimate.tokens_per_s)
    reading = _rate_words("read a prompt", chosen, other, lambda one: one.estimate.prefill_tokens_per_s)
    but = "but" if ("faster" in writing) != ("faster" in reading) else "and"
    if other_place == "split" and other.solution.layout is not None:
        moved = format_size(other.solution.layout.streamed)
        yield f"{where} it would {reading}, {but} {writing}: {moved} would pass into the GPU for each token."
    else:
        yield f"{where} it would {writing}, {but} {reading}{_first_token(other)}."


def _first_token(other: Ranked) -> str:
    """How long a middling prompt takes."""
    seconds = TURN_PROMPT_TOKENS / _middle(other.estimate.prefill_tokens_per_s)
    shown = f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s" if seconds >= 1 else "under a second"
    return f": {TURN_PROMPT_TOKENS} tokens in {shown}"


def _rate_words(verb: str, chosen: Ranked, other: Ranked, rate: Callable[[Ranked], tuple[float, float]]) -> str:
    """`write 2.5 times faster`, `read a prompt about as fast`."""
    ratio = _middle(rate(other)) / _middle(rate(chosen))
    if 1 / _CLEARLY < ratio < _CLEARLY:
        return f"{verb} about as fast"
    return f"{verb} {_times(max(ratio, 1 / ratio))} {'faster' if ratio > 1 else 'slower'}"


def _middle(rates: tuple[float, float]) -> float:
    return math.sqrt(rates[0] * rates[1])


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{float(f'{ratio:.2g}'):.0f} times"


def _lacks(problem: Problem, one: Ranked) -> str:
    """`lacks 5.9 GiB in CPU memory`."""
    device = max(one.solution.short, key=lambda name: one.solution.short[name])
    return f"lacks {format_size(lacks(one))} {place_name(problem, device, preposition=True)}"
