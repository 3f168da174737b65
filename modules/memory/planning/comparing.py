"""Why a way of running was chosen over the others, in words with numbers: one sentence for each that lost.

Pure. The other precisions come first, the best quality first; then other places for the same precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from modules.memory.planning.choosing import COMFORTABLE_S, QUALITY_FLOOR, Ranked, lacks
from modules.memory.planning.explaining import place_name, whereabouts
from modules.memory.planning.problem import Problem
from modules.memory.planning.quality import loss_text
from modules.memory.planning.speed import middle
from modules.units import format_size

# From so much on, one way is said to be faster than another; a better one that is passed over is slower by the less.
_CLEARLY, _HARDLY = 1.3, 1.1
# A prompt to tell the time of reading by.
_PROMPT_TOKENS = 1000
# A wait for it that is shorter is not worth a word.
_NOTICED_S = 2.0


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
    best = min(fitting, key=lambda one: (one.solution.way.place != place, one.pace_s))
    if best.context < chosen.context:
        yield f"Without double quantization only {best.context:,} tokens of context fit."
    elif (ratio := _writes(chosen, best)) < 1:
        yield f"Without double quantization it writes {1 / ratio - 1:.0%} slower.".replace("%", " %")


def _against_precision(problem: Problem, chosen: Ranked, others: Sequence[Ranked]) -> Iterator[str]:
    """One sentence on another precision: what it lacks, and how its best way that fits compares."""
    label = others[0].solution.way.label
    fitting = sorted((one for one in others if one.solution.fits), key=lambda one: one.pace_s)
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
    """`would keep all of the quality, but writes 15 times slower`; `would write 1.8 times faster, but loses …`.

    Ways of one quality (a GGUF file through either loader) and losses too small to tell have nothing to lose.
    """
    short = f"only {other.context:,} tokens of context fit" if other.context < chosen.context else ""
    if better:
        gain = "would lose less quality" if loss_text(other.quality) else "would keep all of the quality"
        against = [short, *_slower(chosen, other, _HARDLY)]
        disk = other.solution.budgets.get("disk")
        why = f": {format_size(disk.weights)} come from disk for each token" if disk and disk.weights else ""
        if any(against):
            return f"{gain}, but {_joined(against)}{why if any(against[1:]) else ''}"
        return f"{gain} and is about as fast, but {_why_not_better(problem, other)}"
    lost = loss_text(other.quality)
    against = [*_slower(chosen, other, _CLEARLY), short, f"loses {lost}" if lost else ""]
    but = f", but {_joined(against)}" if any(against) else ""
    if (ratio := _writes(chosen, other)) >= _CLEARLY:
        return f"would write {_times(ratio)} faster{but}{_enough(chosen, other)}"
    return f"also fits{but or ' and is about as fast'}"


def _joined(told: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`, without what is empty."""
    said = [one for one in told if one]
    return f"{', '.join(said[:-1])} and {said[-1]}" if len(said) > 1 else "".join(said)


def _enough(chosen: Ranked, other: Ranked) -> str:
    """Why what would be faster is not worth the quality."""
    if other.quality >= chosen.quality:
        return ""
    if other.quality < QUALITY_FLOOR:
        return "; Snug takes no such loss unasked"
    return "; this is as fast as one reads" if chosen.pace_s <= COMFORTABLE_S else ""


def _slower(chosen: Ranked, other: Ranked, least: float) -> Iterator[str]:
    """What `other` does slower by `least` times or more, in the units that are shown: writing, and reading a prompt."""
    writes = 1 / _writes(chosen, other)
    if writes >= least:
        yield f"writes {_times(writes)} slower"
    if _reads(chosen, other) <= 1 / least and _reading_s(other) >= _NOTICED_S:
        yield f"reads {_reading_words(chosen, other)}"


def _why_not_better(problem: Problem, other: Ranked) -> str:
    """Why a way that is better and as fast is not taken: it is further down the ladder."""
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
            yield f"On {place_name(problem)} alone it lacks {format_size(min(map(lacks, whole)), up=True)}."
    other_place = {"cpu": "split", "split": "cpu"}.get(place)
    other = next((one for one in same if one.solution.way.place == other_place), None)
    if other is None:
        return
    where = whereabouts(problem, other.solution)
    if not other.solution.fits:
        yield f"{where} it {_lacks(problem, other)}."
        return
    writing, reading = _writing_words(chosen, other), f"read {_reading_words(chosen, other)}"
    but = "but" if (_writes(chosen, other) > 1) != (_reads(chosen, other) > 1) else "and"
    if other_place == "split" and other.solution.layout is not None and other.solution.layout.streamed:
        moved = format_size(other.solution.layout.streamed)
        yield f"{where} it would {reading}, {but} {writing}: {moved} would pass into the GPU for each token."
    else:
        yield f"{where} it would {writing}, {but} {reading}."


def _writes(chosen: Ranked, other: Ranked) -> float:
    """How many times faster `other` writes, by the ranges that are shown."""
    return middle(other.estimate.tokens_per_s) / middle(chosen.estimate.tokens_per_s)


def _reads(chosen: Ranked, other: Ranked) -> float:
    """How many times faster `other` reads a prompt, likewise."""
    return middle(other.estimate.prefill_tokens_per_s) / middle(chosen.estimate.prefill_tokens_per_s)


def _reading_s(one: Ranked) -> float:
    return _PROMPT_TOKENS / middle(one.estimate.prefill_tokens_per_s)


def _reading_words(chosen: Ranked, other: Ranked) -> str:
    """`1,000 tokens of prompt in 8 s instead of 100 s`."""
    theirs, ours = _seconds(_reading_s(other)), _seconds(_reading_s(chosen))
    return f"{_PROMPT_TOKENS:,} tokens of prompt in {theirs}{'' if theirs == ours else f' instead of {ours}'}"


def _seconds(seconds: float) -> str:
    """`39 min`, `8 s`, `under a second`."""
    return f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s" if seconds >= 1 else "under a second"


def _writing_words(chosen: Ranked, other: Ranked) -> str:
    """`write 2.5 times faster`, `write about as fast`."""
    ratio = _writes(chosen, other)
    if 1 / _HARDLY < ratio < _HARDLY:
        return "write about as fast"
    return f"write {_times(max(ratio, 1 / ratio))} {'faster' if ratio > 1 else 'slower'}"


def _times(ratio: float) -> str:
    return f"{ratio:.1f} times" if ratio < 10 else f"{float(f'{ratio:.2g}'):.0f} times"


def _lacks(problem: Problem, one: Ranked) -> str:
    """`lacks 5.9 GiB in CPU memory`."""
    device = max(one.solution.short, key=lambda name: one.solution.short[name])
    size = format_size(lacks(one), up=True)
    if one.solution.way.place == "gpus" and device.startswith("cuda"):
        return f"lacks {size} over {'both' if len(problem.gpus) == 2 else 'all'} GPUs"
    return f"lacks {size} {place_name(problem, device, preposition=True)}"
