"""Which columns run at the same time, as the planner says before anything is loaded: side by side where all fits.

What the chat's model needs stays its own unless a column fits only without it. Nothing is loaded here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from modules.compare.offers import precision
from modules.compare.values import Arrangement, Asked, Batch, Job, Trial
from modules.errors import NotAvailableHere, SnugError
from modules.memory.planning.planner import Plan, PlanTable
from modules.memory.planning.problem import lacks_bytes
from modules.models.state import ModelState
from modules.settings import LoadOptions
from modules.units import format_size


class Planner(Protocol):
    """What is used of models/manager.py."""

    @property
    def state(self) -> ModelState:
        """See ModelManager."""

    def guest_plans(
        self, options: LoadOptions, *, tokens: int, instead: bool = False, taken: Mapping[str, int] | None = None
    ) -> PlanTable:
        """See ModelManager."""

    def guest_room(self, *, instead: bool = False) -> dict[str, int]:
        """See ModelManager."""


def arrange(models: Planner, trial: Trial) -> Arrangement:
    """What runs when. A column that cannot run here is refused with its reason; the others go on."""
    arranger = _Arranger(models, trial)
    jobs = arranger.jobs()
    own = [job for job in jobs if job.loaded]
    stay = [job for job in jobs if not job.loaded and not arranger.gives_way(job)]
    gone = [job for job in jobs if not job.loaded and arranger.gives_way(job)]
    beside = arranger.pack(stay, own, instead=False)
    batches = (*beside, *arranger.pack(gone, [], instead=True))
    return Arrangement(batches, arranger.refused, tuple(arranger.words(batches)))


class _Arranger:
    """The planner's answers to one trial."""

    def __init__(self, models: Planner, trial: Trial) -> None:
        self._models = models
        self._trial = trial
        self._instead: set[tuple[int, ...]] = set()
        self.refused: dict[int, SnugError] = {}
        state = models.state
        self._loaded = state.plan if state.status == "ready" else None

    def jobs(self) -> list[Job]:
        """The engines that are needed: columns that differ by sampling alone share one."""
        found: dict[object, Job] = {}
        for number, asked in enumerate(self._trial.columns):
            try:
                plan, loaded = self._plan(asked)
            except SnugError as error:
                self.refused[number] = error
                continue
            key = "loaded" if loaded else (plan.spec.path, plan.loader, precision(plan), plan.placement == {})
            job = found.get(key, Job((), plan, loaded))
            found[key] = replace(job, columns=(*job.columns, number))
        for job in found.values():
            if not job.loaded and self._alone(job, instead=False) is None:
                self._instead.add(job.columns)
        return list(found.values())

    def gives_way(self, job: Job) -> bool:
        """Whether the chat's model has to make room for it."""
        return job.columns in self._instead

    def pack(self, jobs: Sequence[Job], own: Sequence[Job], *, instead: bool) -> list[Batch]:
        """Batches of engines that fit at the same time; those of `own` take no more room."""
        batches: list[list[Job]] = [[job] for job in own]
        for job in jobs:
            placed = None if self._trial.in_turn else self._together(batches[-1:], job, instead=instead)
            if placed is None:
                batches.append([replace(job, plan=self._alone(job, instead=instead) or job.plan)])
            else:
                batches[-1].append(placed)
        return [Batch(tuple(batch), instead) for batch in batches]

    def words(self, batches: Sequence[Batch]) -> list[str]:
        """How it will run, why so, and what becomes of the chat's model."""
        if not batches:
            return []
        together = max(sum(len(job.columns) for job in batch.jobs) for batch in batches)
        shared = "" if together < 2 or self._trial.in_turn else "They share the machine: each is slower than alone."
        return [sentence for sentence in (self._verdict(batches), shared, self._of_chat(batches)) if sentence]

    def _plan(self, asked: Asked) -> tuple[Plan, bool]:
        """The plan of a column, and whether it is that of the loaded model. Raises SnugError."""
        loaded = self._loaded
        if loaded is not None and asked.model == loaded.spec.name and asked.flags is None:
            return loaded, True
        table = self._models.guest_plans(asked.options, tokens=self._trial.tokens, instead=True)
        if table.chosen is None:
            raise table.refusal or NotAvailableHere(f"{asked.model} cannot run here.", remedy="Choose another way.")
        plan = table.chosen
        if plan.loader in ("deepspeed", "vllm"):
            raise NotAvailableHere(
                f"{plan.loader} takes the whole machine and goes beside nothing.", remedy="Choose another way."
            )
        if loaded is not None and _answers_alike(plan, loaded):
            return loaded, True
        return plan, False

    def _alone(self, job: Job, *, instead: bool, taken: Mapping[str, int] | None = None) -> Plan | None:
        """The plan of a job where the chat's model stays, or `instead` of it; None where it would be another way."""
        asked = self._trial.columns[job.columns[0]]
        try:
            table = self._models.guest_plans(asked.options, tokens=self._trial.tokens, instead=instead, taken=taken)
        except SnugError:
            return None
        plan = table.chosen
        if plan is None or precision(plan) != precision(job.plan):
            return None
        return plan if plan.run.context_tokens >= job.plan.run.context_tokens else None

    def _together(self, batch: Sequence[Sequence[Job]], job: Job, *, instead: bool) -> Job | None:
        """The job as it fits beside those of a batch, placed as it would be alone; None where it does not."""
        if not batch:
            return None
        alone = self._alone(job, instead=instead)
        plan = self._alone(job, instead=instead, taken=_totals(batch[0]))
        if alone is None or plan is None or (plan.placement, plan.run) != (alone.placement, alone.run):
            return None
        return replace(job, plan=plan)

    def _verdict(self, batches: Sequence[Batch]) -> str:
        jobs = [job for batch in batches for job in batch.jobs]
        columns = sum(len(job.columns) for job in jobs)
        if columns == 1:
            return "One column runs."
        guests = [job for job in jobs if not job.loaded]
        if len(batches) == 1 and self._trial.in_turn:
            return "One after the other, as you asked, with the same model."
        if len(batches) == 1 and not guests:
            return "Side by side, with the model that is loaded: nothing else is loaded."
        if len(batches) == 1:
            return f"Side by side: all of it fits in memory together{self._figures(guests, batches[0].instead)}."
        if self._trial.in_turn:
            return "One after the other, as you asked: each has the machine to itself."
        return f"One after the other: together they do not fit in memory{self._lack(guests, batches)}."

    def _figures(self, guests: Sequence[Job], instead: bool) -> str:
        """`, 612 MiB more of 9.1 GiB free in CPU memory`."""
        free, totals = self._models.guest_room(instead=instead), _totals(guests)
        parts = [f"{format_size(size)} of {format_size(free[key])} free {place(key)}" for key, size in totals.items()]
        return f", {' and '.join(parts)}" if parts else ""

    def _lack(self, guests: Sequence[Job], batches: Sequence[Batch]) -> str:
        """`: 1.20 GiB more would have to be free in CPU memory`."""
        free = self._models.guest_room(instead=all(batch.instead for batch in batches))
        lacking = {key: lacks_bytes(free.get(key, 0), size) for key, size in _totals(guests).items()}
        parts = [f"{format_size(size, up=True)} {place(key)}" for key, size in lacking.items() if size]
        return f"; {' and '.join(parts)} more would have to be free" if parts else ""

    def _of_chat(self, batches: Sequence[Batch]) -> str:
        if self._loaded is None:
            return ""
        name = self._loaded.spec.name
        away = [number + 1 for batch in batches if batch.instead for job in batch.jobs for number in job.columns]
        if not away:
            return f"{name} stays loaded for the chat."
        which = f"column {away[0]}" if len(away) == 1 else f"columns {' and '.join(map(str, sorted(away)))}"
        return (
            f"For {which}, {name} is unloaded when its replies are complete, and loaded again afterwards; "
            "messages in the chat wait until then."
        )


def place(device: str) -> str:
    """`cuda:0` → `on GPU 0`."""
    return "in CPU memory" if device == "cpu" else f"on GPU {device.partition(':')[2]}"


def _totals(jobs: Sequence[Job]) -> dict[str, int]:
    """Bytes by device that engines take which are not loaded yet."""
    totals: dict[str, int] = {}
    for job in jobs:
        for device, budget in ({} if job.loaded else job.plan.budgets).items():
            if device != "disk":
                totals[device] = totals.get(device, 0) + budget.total
    return totals


def _answers_alike(plan: Plan, loaded: Plan) -> bool:
    """Whether the loaded model is what a column asks for, but for the length of its context."""
    same = (plan.spec.path, plan.loader, precision(plan), plan.run.compute_dtype, plan.run.kv_cache, plan.loras)
    return same == (
        loaded.spec.path, loaded.loader, precision(loaded), loaded.run.compute_dtype, loaded.run.kv_cache, loaded.loras
    )  # fmt: skip
