"""A download and an offer in words, for the terminal and the page."""

from __future__ import annotations

from modules.downloads.choices import Choice
from modules.downloads.job import DownloadView
from modules.downloads.offers import Offer
from modules.memory.planning.planner import Plan
from modules.units import format_duration, format_rate, format_size

LONG_S = 99 * 3600.0


def download_label(choice: Choice) -> str:
    """`Q4_K_M, 4.58 GiB`."""
    return f"{choice.title}, {format_size(choice.size_bytes)}"


def size_line(offer: Offer) -> str:
    """`269 MiB in 5 files; 34.2 GiB are free on the disk`; with what is there already, and what the disk lacks."""
    files = "1 file" if len(offer.choice.files) == 1 else f"{len(offer.choice.files)} files"
    told = f"{format_size(offer.choice.size_bytes)} in {files}"
    if offer.is_here:
        return f"{told}; it is here already."
    if offer.needed_bytes < offer.choice.size_bytes:
        told += f", of which {format_size(offer.needed_bytes)} are still to come"
    lacks = f": {format_size(offer.lacks_bytes, up=True)} too few" if offer.lacks_bytes else ""
    return f"{told}; {format_size(offer.free_bytes)} are free on the disk{lacks}."


def plan_line(offer: Offer) -> str:
    """How it would run on this machine, in one sentence; what keeps it from that."""
    if offer.problem is not None:
        return f"On this machine: {offer.problem.message}"
    if offer.table is None:
        return ""
    if offer.table.chosen is None:
        refusal = offer.table.refusal
        return f"On this machine: {refusal.message if refusal else 'it does not fit.'}"
    return f"On this machine: it fits. {_way(offer.table.chosen)}"


def _way(plan: Plan) -> str:
    total = sum(budget.total for budget in plan.budgets.values())
    low, high = (format_rate(rate) for rate in plan.tokens_per_s)
    speed = f", about {low if low == high else f'{low}–{high}'} tokens/s" if plan.tokens_per_s[1] else ""
    if plan.spec.embedder is not None:
        return f"{plan.title}: {format_size(total)} for texts of up to {plan.run.context_tokens:,} tokens{speed}."
    return f"{plan.title}: {format_size(total)} for {plan.run.context_tokens:,} tokens of context{speed}."


def progress_line(view: DownloadView) -> str:
    """`120 MiB of 269 MiB · 12.0 MiB/s · 12 s left`, or what happens instead."""
    told = [f"{format_size(view.done_bytes)} of {format_size(view.total_bytes)}"]
    if view.state == "waiting":
        told.append("waits for its turn")
    elif view.pausing:
        told.append("pausing")
    elif view.note:
        told.append(view.note)
    elif view.checking:
        told.append(f"checking {view.file}")
    elif view.speed_Bps:
        told.append(f"{format_size(view.speed_Bps)}/s")
        if 0 < view.left_s < LONG_S:
            told.append(f"{format_duration(max(1.0, view.left_s)).replace('1.00 s', '1 s')} left")
    return " · ".join(told)
