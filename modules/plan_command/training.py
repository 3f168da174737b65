"""The ways to train a model on one device, with what each needs: for people who plan to; Snug trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from modules.errors import NotAvailableHere, OutOfMemory, SnugError
from modules.hardware import Device, Inventory
from modules.memory.forecasting.budget import Budget, Figure, Purpose
from modules.memory.forecasting.forecast import CPU_PROCESS_BYTES, CUDA_CONTEXT_BYTES
from modules.memory.forecasting.training import Optimizer, TrainingMode, TrainingRun, training_budget
from modules.memory.model.model_spec import ModelSpec
from modules.memory.planning.candidates import wished_context
from modules.memory.planning.problem import lacks_bytes
from modules.settings import LoadOptions
from modules.units import format_size

DEFAULT_TOKENS = 2048
# Checkpointing that leaves more than this of the bytes is not worth naming.
_LEAST_SAVED = 0.97
_TITLES: dict[TrainingMode, str] = {"full": "all weights", "lora": "LoRA", "qlora": "QLoRA (4-bit base)"}
_OPTIMIZERS: dict[Optimizer, str] = {"adamw": "AdamW", "adam8bit": "8-bit Adam", "sgd": "SGD"}
_CHECKPOINTING = "about a third slower: layers are computed twice"


@dataclass(frozen=True, slots=True)
class TrainingWay:
    """One way to train: what it holds on `device`, what lacks there (0 if it fits), what it costs in words."""

    title: str
    run: TrainingRun
    device: Device
    budget: Budget
    short_bytes: int
    cost: str

    @property
    def spare_bytes(self) -> int:
        """What stays free on the device."""
        return max(0, self.device.free_bytes - self.budget.total)


@dataclass(frozen=True, slots=True)
class TrainingTable:
    """The ways in the order of preference; `chosen` is the first that fits, `refusal` what would if none does."""

    spec: ModelSpec
    inventory: Inventory
    ways: tuple[TrainingWay, ...]
    chosen: TrainingWay | None
    refusal: SnugError | None


class StepPeaks(Protocol):
    """Bytes of one step as a dry run counted them: memory/dryruns/asking.py's TrainingPeaks."""

    @property
    def activations(self) -> int:
        """The most beyond weights, gradients and optimizer states."""


PeaksOf = Callable[[TrainingRun, Literal["cpu", "cuda"]], StepPeaks | None]


def list_ways(
    spec: ModelSpec,
    mode: TrainingMode,
    inventory: Inventory,
    *,
    tokens: int | None,
    cpu: bool,
    peaks: PeaksOf | None = None,
) -> TrainingTable:
    """Every way to train in `mode` on the roomiest GPU, or on the CPU; one sequence of `tokens` a step.

    `peaks` tells what a dry run counts, or None where it does not know. Raises BadValue for more tokens than the model
    was made for, NotAvailableHere for a model that embeds texts.
    """
    if spec.embedder is not None:
        raise NotAvailableHere(
            f"{spec.name} embeds texts; Snug plans the training of models that write.",
            remedy="Choose another model.",
        )
    length = min(tokens or DEFAULT_TOKENS, wished_context(spec, LoadOptions.model_validate({"ctx_size": tokens})))
    gpus = () if cpu else inventory.gpus
    device = max(gpus, key=lambda gpu: gpu.free_bytes) if gpus else inventory.cpu
    found = [_way(spec, run, device) for run in _runs(mode, length)]
    if peaks is not None:
        found = _counted(found, peaks)
    ways = tuple(_that_differ(found))
    chosen = next((way for way in ways if not way.short_bytes), None)
    return TrainingTable(spec, inventory, ways, chosen, None if chosen else _refusal(spec, mode, ways, device, length))


def training_notes(table: TrainingTable) -> list[str]:
    """What the figures take for granted, in words."""
    told = ["One device, one text a step; a data loader and what the trainer itself needs are not counted."]
    run = table.ways[0].run
    if run.mode == "full" and run.dtype != "float32":
        more = 8 * table.spec.parameters
        told.append(
            "Weights, gradients and Adam's states are in 16 bits. Mixed precision, with states and a copy of the "
            f"weights in 32 bits, takes {format_size(more)} more."
        )
    return told


def _that_differ(ways: Sequence[TrainingWay]) -> Iterator[TrainingWay]:
    """`ways` without checkpointing that hardly saves anything over the same without: it would only cost time."""
    for number, way in enumerate(ways):
        if not way.run.checkpointing or way.budget.total < _LEAST_SAVED * ways[number - 1].budget.total:
            yield way


def _runs(mode: TrainingMode, tokens: int) -> Iterator[TrainingRun]:
    """The settings worth naming, the fastest and most usual first."""
    optimizers: tuple[Optimizer, ...] = ("adamw", "adam8bit", "sgd") if mode == "full" else ("adamw",)
    for optimizer in optimizers:
        for checkpointing in (False, True):
            yield TrainingRun(mode=mode, tokens=tokens, optimizer=optimizer, checkpointing=checkpointing)


def _counted(ways: list[TrainingWay], peaks: PeaksOf) -> list[TrainingWay]:
    """`ways` as dry runs count them; all of them or none, so that they can be compared."""
    counted: list[TrainingWay] = []
    for way in ways:
        # The states of 8-bit Adam are known exactly; what lives beside them is the same as with SGD.
        like = replace(way.run, optimizer="sgd") if way.run.optimizer == "adam8bit" else way.run
        found = peaks(like, "cuda" if way.device.kind == "cuda" else "cpu")
        if found is None:
            return ways
        counted.append(_with_activations(way, found.activations))
    return counted


def _with_activations(way: TrainingWay, activations: int) -> TrainingWay:
    """`way` with counted activations, which hold what is dequantized on the way."""
    figures: dict[Purpose, Figure] = {
        purpose: figure for purpose, figure in way.budget.figures.items() if purpose != "dequant_buffer"
    }
    figures["activations"] = Figure(activations, "dry-run", "counted on the model without its weights")
    budget = Budget.of(figures)
    short = _short(budget, way.device)
    return replace(way, budget=budget, short_bytes=short, cost="" if short and way.cost == "nothing" else way.cost)


def _short(budget: Budget, device: Device) -> int:
    return lacks_bytes(device.free_bytes, budget.total)


def _way(spec: ModelSpec, run: TrainingRun, device: Device) -> TrainingWay:
    budget = training_budget(spec, run, context=CUDA_CONTEXT_BYTES if device.kind == "cuda" else CPU_PROCESS_BYTES)
    costs = [_CHECKPOINTING] if run.checkpointing else []
    if run.optimizer == "sgd":
        costs.append("learns more slowly than Adam")
    title = f"{_TITLES[run.mode]}, {_OPTIMIZERS[run.optimizer]}, {run.tokens:,} tokens"
    short = _short(budget, device)
    return TrainingWay(
        title=title + (", checkpointing" if run.checkpointing else ""),
        run=run,
        device=device,
        budget=budget,
        short_bytes=short,
        cost="; ".join(costs) or ("" if short else "nothing"),
    )


def _refusal(
    spec: ModelSpec, mode: TrainingMode, ways: tuple[TrainingWay, ...], device: Device, tokens: int
) -> OutOfMemory:
    """What the smallest way needs, and the smallest change that would fit."""
    least = min(ways, key=lambda way: way.budget.total)
    return OutOfMemory(
        f"{spec.name} cannot be trained here in this mode: {least.title} needs {format_size(least.budget.total)} "
        f"{'on the GPU' if device.kind == 'cuda' else 'in CPU memory'}, where {format_size(device.free_bytes)} "
        f"are free: it lacks {format_size(least.short_bytes, up=True)}.",
        remedy=_smaller(spec, mode, device, tokens),
    )


def _smaller(spec: ModelSpec, mode: TrainingMode, device: Device, tokens: int) -> str:
    """The first change under which training fits: shorter texts, then adapters, then adapters on a 4-bit base."""
    shorter = [(mode, tokens >> step) for step in (1, 2, 3) if tokens >> step >= 256]
    lighter: dict[TrainingMode, tuple[TrainingMode, ...]] = {"full": ("lora", "qlora"), "lora": ("qlora",), "qlora": ()}
    for other, length in [*shorter, *((other, tokens) for other in lighter[mode])]:
        for run in _runs(other, length):
            if not _way(spec, run, device).short_bytes:
                change = f"--ctx-size {length}" if other == mode else f"--mode {other}"
                checkpointing = " and gradient checkpointing" if run.checkpointing else ""
                return f"It would fit with {change}{checkpointing}."
    return "No mode fits this device; choose a smaller model."
