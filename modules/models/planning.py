"""Plans for models in the models folder, on this machine as it is at that moment. The planner itself is pure.

What people look at is counted by a dry run in the background, and asked for again when that has its answer; what is
loaded uses the answers that are there and waits for none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from modules.engine.base import EngineStats
from modules.errors import ModelNotFound, SnugError
from modules.files import safe_path
from modules.hardware import Device, Inventory
from modules.memory.dryruns.asking import Kind
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.known_gpus import Gpu, imagine
from modules.memory.llamacpp_build import can_use_gpus
from modules.memory.model.describing import describer_for
from modules.memory.model.listing import check_loadable
from modules.memory.model.lora import Lora, find_loras
from modules.memory.model.peft_lora import find_peft_loras
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.elsewhere import plan_elsewhere
from modules.memory.planning.native import check_native
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans, make_plan
from modules.memory.planning.ranking import PeaksOf, RunPeaks
from modules.memory.planning.smaller import Failure, smaller_plans
from modules.memory.planning.speed import Speeds
from modules.models.records import Records
from modules.remote_server import RemoteServer
from modules.settings import LoadOptions, Settings, check_machine, check_together

log = logging.getLogger(__name__)


class DryRunner(Protocol):
    """What is used of memory/dryruns/asking.py."""

    @property
    def answered(self) -> int:
        """See DryRuns."""

    @property
    def busy(self) -> bool:
        """See DryRuns."""

    @property
    def held_bytes(self) -> int:
        """See DryRuns."""

    def peaks(self, spec: ModelSpec, run: RunSpec, *, kind: Kind) -> RunPeaks | None:
        """See DryRuns."""

    def known_peaks(self, spec: ModelSpec, run: RunSpec, *, kind: Kind) -> RunPeaks | None:
        """See DryRuns."""

    def let_go(self) -> None:
        """See DryRuns."""

    def close(self) -> None:
        """See DryRuns."""


@dataclass(frozen=True, slots=True)
class DryRunProgress:
    """`answered` grows with every dry run that has its answer; `busy` while one is under way."""

    answered: int = 0
    busy: bool = False


class Planning:
    """Asks the planner about this machine; what an engine holds that would give way counts as free (`freed`)."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        *,
        read_inventory: Callable[[Path], Inventory],
        speeds: Callable[[Inventory], Speeds],
        dry_runs: DryRunner | None,
    ) -> None:
        self._settings = settings
        self._records = records
        self._read_inventory = read_inventory
        self._speeds = speeds
        self._dry_runs = dry_runs
        self._cache = settings.user_data_dir / "cache"

    def plan(self, options: LoadOptions, freed: EngineStats) -> Plan:
        """The plan to load by. Raises SnugError for impossible flags, and where nothing fits."""
        if (server := self.elsewhere(options)) is not None:
            return plan_elsewhere(server)
        return make_plan(self.question(options, freed))

    def table(self, options: LoadOptions, freed: EngineStats, *, sharpen: bool = False) -> PlanTable:
        """Every way to load. Raises SnugError for impossible flags. `sharpen` has a dry run of the chosen one made."""
        if (server := self.elsewhere(options)) is not None:
            plan = plan_elsewhere(server)
            return PlanTable(
                Question(plan.spec, options, self._read_inventory(self._cache), self._cache), (plan,), plan
            )
        return list_plans(self.question(options, freed, sharpen=sharpen))

    def table_of(self, spec: ModelSpec, options: LoadOptions, freed: EngineStats) -> PlanTable:
        """Every way to load a model that is not here, by formulas. Raises SnugError for impossible flags."""
        return list_plans(self.question(options, freed, spec=spec))

    def table_on(self, options: LoadOptions, gpus: Sequence[Gpu], ram_bytes: int | None) -> PlanTable:
        """Every way to load on a machine with these cards and this much RAM, else as this one. Raises as `table`."""
        machine = imagine(self._read_inventory(self._cache), gpus, ram_bytes)
        return list_plans(self.question(options, EngineStats(), imagined=machine))

    def guest(self, options: LoadOptions, freed: EngineStats, *, tokens: int, taken: Mapping[str, int]) -> PlanTable:
        """Every way to load a model for a few questions, with `tokens` of context or what it was made for.

        `taken` are bytes by device that are free still but spoken for. No dry run is set off. Raises as `table`.
        """
        if self.elsewhere(options) is not None:
            return self.table(options, freed)
        question = self.question(options.model_copy(update={"ctx_size": None}), freed)
        asked = options.model_copy(update={"ctx_size": min(tokens, question.spec.max_context)})
        return list_plans(replace(question.asking(asked), inventory=_without(question.inventory, taken)))

    def free_bytes(self, freed: EngineStats, taken: Mapping[str, int]) -> dict[str, int]:
        """What is free on each device for more engines."""
        inventory = _without(self._with_freed(self._read_inventory(self._cache), freed), taken)
        return {device.id: device.free_bytes for device in (*inventory.gpus, inventory.cpu)}

    def elsewhere(self, options: LoadOptions) -> RemoteServer | None:
        """The server whose model `options` name; None for a model of this machine."""
        server = self._settings.remote_server
        return server if server is not None and options.model == server.name else None

    def smaller(self, failure: Failure, freed: EngineStats) -> list[Plan]:
        """What to try instead of a plan that memory ran out for; nothing where that cannot be told."""
        try:
            table = self.table(failure.options, freed)
            return smaller_plans(failure, table, lambda options: make_plan(table.question.asking(options)))
        except SnugError as error:
            log.warning("no smaller plan: %s", error)
            return []

    @property
    def dry_run_progress(self) -> DryRunProgress:
        """How far the dry runs are: `table` says more when `answered` has grown."""
        runs = self._dry_runs
        return DryRunProgress() if runs is None else DryRunProgress(runs.answered, runs.busy)

    def end_dry_runs(self, *, for_good: bool = False) -> None:
        """Give back what the dry runs hold: a load wants it, or the server ends."""
        if self._dry_runs is not None:
            (self._dry_runs.close if for_good else self._dry_runs.let_go)()

    def question(
        self,
        options: LoadOptions,
        freed: EngineStats,
        *,
        sharpen: bool = False,
        spec: ModelSpec | None = None,
        imagined: Inventory | None = None,
    ) -> Question:
        """What to ask the planner, the machine as it is now or as it is `imagined`, and the model too unless it is
        given. Raises SnugError."""
        check_together(options)
        inventory = imagined or self._read_inventory(options.disk_cache_dir or options.nvme_offload_dir or self._cache)
        check_machine(options, inventory)
        trusted = self._settings.trust_remote_code
        spec = spec or self._inspected(options)
        return Question(
            spec,
            options,
            imagined or self._with_freed(inventory, freed),
            self._cache,
            trust_remote_code=trusted,
            draft=find_draft(self._settings, options),
            loras=adapters_for(self._settings, options, spec),
            speeds=self._speeds(inventory),
            peaks=self._peaks(sharpen=sharpen),
            observed=self._records.errors_of(spec.model_type),
            vllm_python=self._settings.vllm_python,
            imagined=imagined is not None,
            llamacpp_gpu=imagined is not None or can_use_gpus(),
        )

    def _inspected(self, options: LoadOptions) -> ModelSpec:
        path = find_model(self._settings.model_dir, options.model)
        return inspect(
            path,
            trust_remote_code=self._settings.trust_remote_code,
            describe=describer_for(path, self._cache / "described"),
        )

    def _peaks(self, *, sharpen: bool) -> PeaksOf | None:
        if self._dry_runs is None:
            return None
        look = self._dry_runs.peaks if sharpen else self._dry_runs.known_peaks
        return lambda spec, run, kind: look(spec, run, kind=kind)

    def _with_freed(self, inventory: Inventory, freed: EngineStats) -> Inventory:
        """The machine as it will be when what `freed` and the dry runs hold is given back."""

        def roomier(device: Device, more_bytes: int) -> Device:
            return replace(device, free_bytes=min(device.free_bytes + more_bytes, device.total_bytes))

        dry_runs = self._dry_runs.held_bytes if self._dry_runs is not None else 0
        return replace(
            inventory,
            cpu=roomier(inventory.cpu, freed.rss_bytes + dry_runs),
            gpus=tuple(roomier(gpu, freed.gpu_bytes.get(gpu.id, 0)) for gpu in inventory.gpus),
        )


def _without(inventory: Inventory, taken: Mapping[str, int]) -> Inventory:
    """A machine of which `taken` bytes, by device, are not free any more."""

    def smaller(device: Device) -> Device:
        return replace(device, free_bytes=max(0, device.free_bytes - taken.get(device.id, 0)))

    return replace(inventory, cpu=smaller(inventory.cpu), gpus=tuple(map(smaller, inventory.gpus)))


def find_draft(settings: Settings, options: LoadOptions) -> ModelSpec | None:
    """The model that --draft-model names; None where it names none. Raises SnugError."""
    if not options.draft_model:
        return None
    path = find_model(settings.model_dir, options.draft_model, param="draft_model")
    spec = inspect(
        path,
        trust_remote_code=settings.trust_remote_code,
        describe=describer_for(path, settings.user_data_dir / "cache" / "described"),
    )
    check_loadable(spec)
    return spec


def adapters_for(settings: Settings, options: LoadOptions, spec: ModelSpec) -> tuple[Lora, ...]:
    """The adapters that --lora names, checked against the file or folder of `spec`. Raises SnugError."""
    check_native(spec, options)
    if spec.source == "safetensors":
        return find_peft_loras(settings.lora_dir, options.lora, spec)
    return find_loras(settings.lora_dir, options.lora, spec.path)


def find_model(model_dir: Path, name: str | None, *, param: str = "model") -> Path:
    """Where the model `name` lies. Raises ModelNotFound, BadName."""
    if not name:
        raise ModelNotFound("No model is named.", remedy="Choose one from the list.", param="model")
    path = safe_path(model_dir, name)
    if not path.exists():
        raise ModelNotFound(
            f"There is no model {name!r} in {model_dir}.",
            remedy="Choose one that is there, or put its folder there.",
            param=param,
        )
    return path
