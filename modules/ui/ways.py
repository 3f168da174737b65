"""The ways to run a model, as a table under the picture: does it fit, how fast, at what cost; one click takes one."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence

from modules.errors import BadValue
from modules.hardware import Inventory
from modules.memory.planning.candidates import wished_context
from modules.memory.planning.planner import Plan, PlanTable
from modules.memory.planning.quality import loss_text
from modules.settings import LoadOptions, build_parser, flag_of
from modules.ui.plan_picture import speed_text
from modules.ui.words import format_size, t, told

FOLDERS = tuple(name for name in LoadOptions.model_fields if flag_of(name).metavar == "FOLDER")
"""Options whose disk a plan looks at: of who is no administrator only those count that the server has already."""
SHOWN = 8  # rows before the rest is folded away


def ways_html(table: PlanTable, shown: Plan | None, *, narrowed: bool) -> str:
    """One row a way of `table`, the one on show marked; then what was left out, with the reason.

    `narrowed`: the user's options have ruled ways out, so there is something to take back.
    """
    plans = list(table.plans)
    if shown is not None and not any(same_load(plan, shown) for plan in plans):
        plans.insert(0, shown)
    rows = [_row_html(plan, table, taken=shown is not None and same_load(plan, shown)) for plan in plans]
    more = t("{count} more", count=len(rows) - SHOWN)
    rest = (
        f'<details class="ways-more"><summary>{more}</summary>{"".join(rows[SHOWN:])}</details>'
        if len(rows) > SHOWN
        else ""
    )
    dropped = "".join(
        f"<li><b>{html.escape(told(way))}</b> {html.escape(told(why))}</li>" for way, why in table.dropped
    )
    left_out = f'<ul class="ways-dropped" aria-label="{t("Left out")}">{dropped}</ul>' if dropped else ""
    head = (
        f'<div class="way way-head" role="row"><span role="columnheader">{t("Way to run it")}</span>'
        f'<span role="columnheader">{t("Fits by")}</span><span role="columnheader">{t("Tokens/s")}</span>'
        f'<span role="columnheader">{t("What it costs")}</span>'
        f'<span role="columnheader"><span class="visually-hidden">{t("Take it")}</span></span></div>'
    )
    free = f'<button type="button" class="text-button" data-take="[]">{t("Let Snug choose")}</button>'
    back = free if narrowed else ""
    body = f"{head}{''.join(rows[:SHOWN])}{rest}" if rows else ""
    return (
        f'<div class="ways-box"><div class="ways-head"><h2>{t("Ways to run it")}</h2>{back}</div>'
        f'<div class="ways" role="table" aria-label="{t("Ways to run it")}">{body}</div>{left_out}</div>'
    )


def _row_html(plan: Plan, table: PlanTable, *, taken: bool) -> str:
    flags = html.escape(json.dumps(list(plan.flags)))
    title, lacks = told(plan.title), t("lacks {size}", size=format_size(plan.short_bytes, up=True))
    room = (
        f'<span class="way-room" role="cell">{format_size(spare_bytes(plan, table.inventory))}</span>'
        if plan.fits
        else f'<span class="way-room lacks" role="cell">{lacks}</span>'
    )
    speed = speed_text(plan.tokens_per_s, short=True)
    unit = "" if speed[-1:].isdigit() else " worded"
    verb = t("Take") if plan.fits else t("Show")
    does = t("Take: {way}", way=title) if plan.fits else t("Show: {way}", way=title)
    take = (
        f'<span class="way-taken">{t("shown")}</span>'
        if taken
        else f'<button type="button" class="way-take" data-take="{flags}" '
        f'aria-label="{html.escape(does)}">{verb}</button>'
    )
    kind = "way taken" if taken else "way" if plan.fits else "way unfit"
    return (
        f'<div class="{kind}" role="row"><span class="way-title" role="cell">{html.escape(title)}</span>{room}'
        f'<span class="way-speed{unit}" role="cell">{speed}</span>'
        f'<span class="way-cost" role="cell">{html.escape(cost_text(plan, table))}</span>'
        f'<span class="way-act" role="cell">{take}</span></div>'
    )


def reasons_html(plan: Plan) -> str:
    """Why the plan is as it is, one sentence a decision."""
    reasons = "".join(f"<li>{html.escape(told(reason))}</li>" for reason in plan.reasons)
    return f'<div class="why"><h2>{t("Why")}</h2><ul class="reasons">{reasons}</ul></div>' if reasons else ""


def same_load(one: Plan, other: Plan) -> bool:
    """Whether two plans load the same thing in the same places."""
    first, second = (
        (plan.spec.name, plan.loader, plan.run, plan.placement, plan.loras, plan.embeds) for plan in (one, other)
    )
    return first == second


def spare_bytes(plan: Plan, inventory: Inventory) -> int:
    """What stays free on the fullest device that holds more than the engine itself; a disk is only read from."""
    rooms = [
        device.free_bytes - plan.budgets[device.id].total
        for device in (*inventory.gpus, inventory.cpu)
        if device.id in plan.budgets and plan.budgets[device.id].total > plan.budgets[device.id].context
    ]
    return max(0, min(rooms, default=0))


def cost_text(plan: Plan, table: PlanTable) -> str:
    """What is given up against weights as stored, all of them in fast memory, with the longest context."""
    if not plan.fits:
        short = plan.run.context_tokens < wished_context(plan.spec, table.options)
        return t("even with {count} tokens", count=plan.run.context_tokens) if short else ""
    costs = []
    if lost := loss_text(plan.quality):
        costs.append(told(lost))
    longest = max((other.run.context_tokens for other in table.plans), default=0)
    if plan.run.context_tokens < longest:
        costs.append(t("only {count} tokens", count=plan.run.context_tokens))
    disk = plan.budgets.get("disk")
    if disk is not None and disk.weights:
        costs.append(t("reads {size} from disk for each token", size=format_size(disk.weights)))
    return ", ".join(costs) or t("nothing")


def options_of(flags: Sequence[str], base: LoadOptions) -> LoadOptions:
    """What `flags` ask for, of the model that `base` names; raises BadFlag or BadValue.

    Context length, disk cache, attention, adapters and embeddings are kept from `base` unless the flags name them.
    """
    refusal = BadValue(f"{' '.join(flags)[:100]}: not a way to load.", remedy="Reload the page.")
    if any(flag == "--help" or flag.startswith("-h") for flag in flags):
        raise refusal  # argparse would print it and end the server
    given = {
        name: value
        for name, value in vars(build_parser().parse_known_args(list(flags))[0]).items()
        if name in LoadOptions.model_fields
    }
    kept = {
        name: getattr(base, name)
        for name in ("ctx_size", "disk_cache_dir", "attn_implementation", "lora", "embeddings", "picture_side")
    }
    try:
        return LoadOptions.model_validate(kept | given | {"model": base.model})
    except ValueError as error:
        raise refusal from error
