"""Which of the ways that fit is taken, and which others are worth showing.

Pure. The fastest way above a floor of quality; but speed beyond what one can read along with buys nothing, so a way
that keeps the weights as they are stored is taken over a faster one if it is as fast as that. A context is shortened
only for what is far faster. Near ties follow the seeds' ladder: 16-bit, 8-bit, 4-bit, split, disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modules.memory.planning.candidates import Way, Wishes
from modules.memory.planning.problem import LEAST_CONTEXT, Solution
from modules.memory.planning.speed import Estimate

QUALITY_FLOOR = 0.9
# As stored; or in 16 bits what is stored in 32.
_NO_LOSS = (1.0, 0.999)
# Forecasts of speed are no better than this: what is closer counts as the same.
TIE = 1.1
# A reply that takes no longer is as fast as one reads: 250 words a minute are about 5 tokens a second.
COMFORTABLE_S = 50.0
# So many times faster must be what has a shorter context than another way; of those cut short anyway, this share of
# the longest counts as long as it.
FAR_FASTER = 3.0
_NEARLY_AS_LONG = 0.75


@dataclass(frozen=True, slots=True)
class Ranked:
    """A way with its solution and its speed."""

    solution: Solution
    estimate: Estimate

    @property
    def context(self) -> int:
        """Tokens of context."""
        return self.solution.run.context_tokens

    @property
    def quality(self) -> float:
        """As in Plan."""
        return self.solution.way.quality

    @property
    def pace_s(self) -> float:
        """As in Estimate."""
        return self.estimate.pace_s

    @property
    def kept_bytes(self) -> int:
        """Weights and caches on all devices."""
        budgets = self.solution.budgets.values()
        return sum(budget.weights + budget.quant_meta + budget.kv_cache for budget in budgets)


def choose(found: Sequence[Ranked], wishes: Wishes, wished_context: int) -> Ranked | None:
    """The way to take, of those that fit and that may be taken unasked; None if there is none."""
    allowed = [one for one in found if one.solution.fits and may_take(one.solution.way, wishes)]
    if wishes.gpus and (wishes.options.gpu_memory or wishes.options.auto_devices):
        allowed = [one for one in allowed if one.solution.way.place != "cpu"] or allowed
    # Whoever asks for a split wants its context; otherwise a quarter is better than a way that is far slower.
    enough = wished_context // 2 if wishes.placement else max(min(wished_context, LEAST_CONTEXT), wished_context // 4)
    usable = [one for one in allowed if one.context >= enough] or allowed
    if wishes.options.ctx_size is None:  # no context was asked for: a shorter one is better than a smaller cache
        usable = [one for one in usable if one.solution.run.kv_cache == "plain"] or usable
    if not usable:
        return None
    usable = _long_enough(usable, wished_context)
    limit_s = TIE * min(one.pace_s for one in usable)
    kept = [one for one in usable if 2 * one.context >= wished_context]
    for loss in _NO_LOSS:
        as_stored = [one for one in kept if one.quality >= loss]
        quick = [one for one in as_stored if one.pace_s <= max(limit_s, COMFORTABLE_S)]
        if quick:
            limit_s = TIE * min(one.pace_s for one in quick)
            usable = quick
            break
    return min(
        (one for one in usable if one.pace_s <= limit_s),
        key=lambda one: (
            2 * one.context < wished_context,
            one.solution.way.rung,
            -one.context,
            len(one.solution.budgets),
            one.pace_s,
        ),
    )


def _long_enough(usable: Sequence[Ranked], wished_context: int) -> list[Ranked]:
    """Those with the whole context (or where none has it, nearly the longest), unless shorter ones are far faster."""
    longest = max(one.context for one in usable)
    least = wished_context if longest >= wished_context else _NEARLY_AS_LONG * longest
    long = [one for one in usable if one.context >= least]
    best_s = min(one.pace_s for one in long)
    faster = [one for one in usable if FAR_FASTER * one.pace_s < best_s] if best_s > COMFORTABLE_S else []
    return _long_enough(faster, wished_context) if faster else long


def may_take(way: Way, wishes: Wishes) -> bool:
    """Disk and offloaded caches are slow, DeepSpeed has its own start: only where a flag asks. Quality above the floor,
    or asked for.
    """
    if way.place == "zero3":
        return wishes.options.deepspeed
    if way.disk and not wishes.options.disk:
        return False
    if way.run.kv_cache == "offloaded" and wishes.options.kv_cache != "offloaded":
        return False
    return wishes.precision or way.quality >= QUALITY_FLOOR


def front(found: Sequence[Ranked]) -> list[Ranked]:
    """Those that fit and that no other beats in quality, speed, context and bytes at once; the fastest first."""
    fitting = sorted((one for one in found if one.solution.fits), key=lambda one: one.pace_s)
    kept: list[Ranked] = []
    for one in fitting:
        if not any(_beats(other, one) for other in fitting if other is not one):
            kept.append(one)
    return kept


def _beats(one: Ranked, other: Ranked) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better; of two alike the lower rung."""
    mine = (one.quality, -one.pace_s, one.context, -one.kept_bytes)
    theirs = (other.quality, -other.pace_s, other.context, -other.kept_bytes)
    if mine == theirs:
        return one.solution.way.rung < other.solution.way.rung
    return all(a >= b for a, b in zip(mine, theirs, strict=True))


def nearest_misses(found: Sequence[Ranked], *, cut: bool = False) -> list[Ranked]:
    """Of each precision without disk that fits nowhere, the way that lacks least; the highest quality first.

    `cut`: they are cut down as far as they can be, their caches included.
    """
    best: dict[str, Ranked] = {}
    plain = found if cut else [one for one in found if one.solution.run.kv_cache == "plain"] or found
    fits = {one.solution.way.label for one in plain if one.solution.fits}
    for one in plain:
        key = one.solution.way.label
        if key in fits or one.solution.way.disk or one.solution.way.place == "zero3":
            continue
        if key not in best or lacks(one) < lacks(best[key]):
            best[key] = one
    return sorted(best.values(), key=lambda one: -one.quality)


def lacks(one: Ranked) -> int:
    """Bytes that the worst device lacks; 0 if it fits."""
    return max(one.solution.short.values(), default=0)
