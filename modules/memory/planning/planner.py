"""From a model, a machine and the user's flags to every way of running it, the best first, and to one Plan.

Pure: it reads values and returns values. A value that says what will happen before a byte is loaded.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from modules.errors import SnugError
from modules.hardware import Device, Inventory
from modules.lora_names import name_of
from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.lora import Lora
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.candidates import DEFAULT_CONTEXT, Loader, Place, Way, Wishes, list_ways, wished_context
from modules.memory.planning.choosing import Ranked, choose, front, lacks, may_take, nearest_misses
from modules.memory.planning.comparing import why_chosen
from modules.memory.planning.drafts import Speculate, check_draft, how_to_speculate
from modules.memory.planning.explaining import notes, speed_note, title
from modules.memory.planning.fitting import longest, solve_at
from modules.memory.planning.idle_cache import with_idle_cache
from modules.memory.planning.native import check_native
from modules.memory.planning.plan_flags import gpu_layers, options_for, words
from modules.memory.planning.problem import CONTEXT_STEP, LEAST_CONTEXT, Problem
from modules.memory.planning.ranking import (
    ErrorsOf,
    PeaksOf,
    count_run,
    rank_cut,
    rank_way,
    rank_ways,
    widened,
    with_dry_runs,
)
from modules.memory.planning.refusing import refusal
from modules.memory.planning.speed import Speeds, defaults
from modules.remote_server import RemoteServer
from modules.settings import LoadOptions

__all__ = ["DEFAULT_CONTEXT", "Loader", "Plan", "PlanTable", "Question", "list_plans", "longest_context", "make_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that an engine needs to load a model. Picklable, torch-free; bytes are int.

    `placement` maps module names to "cuda:N", "cpu" or "disk", longest prefix wins ({"": "cpu"} is all on the CPU;
    {} leaves it to DeepSpeed). `limits` are the most weight bytes that each device may hold; `budgets` what each
    device will hold, by purpose. `flags` is what to type to get exactly this. `quality` is 1 for weights as stored,
    else the expected ratio of perplexities, below 1; speeds are (low, high), (0, 0) if unknown; `short_bytes` is what
    the worst device lacks, 0 if it fits. `speculate` says what guesses ahead: nothing, look-up in the conversation, or
    the model `draft`; `loras` change the model, `embeds` says whether it makes embeddings beside its replies (one that
    embeds alone says so in its spec; its speeds are those of reading). `remote` is where the
    model runs if that is not here, `vllm_python` the Python that has vLLM, None for this one. `gpu_layers` are how many
    layers llama.cpp computes on each GPU, the output counted as one; () where it uses none.
    """

    spec: ModelSpec
    run: RunSpec
    loader: Loader
    placement: dict[str, str]
    limits: dict[str, int] = field(default_factory=dict)
    budgets: dict[str, Budget] = field(default_factory=dict)
    disk_cache_dir: Path | None = None
    nvme_offload_dir: Path | None = None
    trust_remote_code: bool = False
    fits: bool = True
    reasons: tuple[str, ...] = ()
    title: str = ""
    flags: tuple[str, ...] = ()
    quality: float = 1.0
    tokens_per_s: tuple[float, float] = (0.0, 0.0)
    prefill_tokens_per_s: tuple[float, float] = (0.0, 0.0)
    short_bytes: int = 0
    speculate: Speculate = "off"
    draft: ModelSpec | None = None
    loras: tuple[Lora, ...] = ()
    embeds: bool = False
    remote: RemoteServer | None = None
    vllm_python: Path | None = None
    gpu_layers: tuple[int, ...] = ()

    @property
    def offloads_quantized(self) -> bool:
        """Whether a quantized model leaves the GPU in part: it needs transformers' llm_int8_enable_fp32_cpu_offload."""
        devices = set(self.placement.values())
        return self.run.quantization != "none" and len(devices) > 1 and bool(devices & {"cpu", "disk"})


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be planned: a model, what the user asks for, a machine, and what is known of how it behaves there.

    `draft` is the model that --draft-model names, `loras` are what --lora does. `user_cache_dir` is where the disk
    cache goes if no flag says otherwise; `imagined`: the machine is not here. `speeds` None: the published ones.
    `peaks` tells what a dry run counted, or None while it is not known; it must not block, and is asked for chosen ways
    only. `observed` tells how far such forecasts were off so far. `llamacpp_gpu`: llama.cpp's build there can compute
    on GPUs.
    """

    spec: ModelSpec
    options: LoadOptions
    inventory: Inventory
    user_cache_dir: Path
    _: KW_ONLY
    trust_remote_code: bool = False
    draft: ModelSpec | None = None
    loras: tuple[Lora, ...] = ()
    imagined: bool = False
    speeds: Speeds | None = None
    peaks: PeaksOf | None = field(default=None, compare=False, repr=False)
    observed: ErrorsOf | None = field(default=None, compare=False, repr=False)
    vllm_python: Path | None = None
    llamacpp_gpu: bool = False

    def asking(self, options: LoadOptions) -> Question:
        """The same of other options: without a draft model and adapters that they name no more."""
        draft = self.draft if options.draft_model else None
        named = {name_of(text) for text in options.lora}
        loras = tuple(lora for lora in self.loras if lora.name in named)
        return replace(self, options=options, draft=draft, loras=loras)


@dataclass(frozen=True, slots=True)
class PlanTable:
    """Every way to run a model as was asked: the chosen one first, then what else is worth taking, the fastest first,
    then what does not fit (`short_bytes` above 0).

    Where nothing fits `chosen` is None and `refusal` names the smallest change that would. `dropped` are ways with
    the reason why they change nothing for this model or cannot run here.
    """

    question: Question
    plans: tuple[Plan, ...]
    chosen: Plan | None
    refusal: SnugError | None = None
    dropped: tuple[tuple[str, str], ...] = ()

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.question.spec

    @property
    def options(self) -> LoadOptions:
        """The user's flags."""
        return self.question.options

    @property
    def inventory(self) -> Inventory:
        """The machine."""
        return self.question.inventory


def list_plans(question: Question) -> PlanTable:
    """Every way to run a model on a machine, narrowed by the user's flags.

    Raises BadValue for an impossible context, BadFlag for quantizing what is quantized already, NotAvailableHere for
    what cannot be here.
    """
    spec, options = question.spec, question.options
    check_draft(spec, question.draft, options)
    check_native(spec, options)
    problem = _problem(question)
    ways, dropped = list_ways(spec, options, len(problem.gpus), llamacpp_gpu=question.llamacpp_gpu)
    wishes, wished = Wishes(options, len(problem.gpus), question.llamacpp_gpu), wished_context(spec, options)
    speeds = question.speeds or defaults(question.inventory)
    observed = None if question.observed is None else cache(question.observed)
    rank = partial(rank_way, problem, speeds=speeds, observed=observed)
    found = rank_ways(ways, rank, wished)
    chosen = choose(found, wishes, wished)
    if chosen is not None and question.peaks is not None:
        found, chosen = with_dry_runs(
            spec, found, chosen, question.peaks, rank, lambda all_ways: choose(all_ways, wishes, wished)
        )
    others = [one for one in front(found) if one is not chosen]
    cut = [] if chosen else [one for way in ways if (one := rank_cut(problem, way, speeds=speeds, observed=observed))]
    misses = nearest_misses(found) if chosen else nearest_misses(cut, cut=True)
    to_plan = partial(_plan, question, problem, speeds=speeds, wished=wished)
    compared = chosen is not None and spec.embedder is None  # its ways differ in nothing that those words tell of
    why = tuple(why_chosen(problem, chosen, found)) if chosen is not None and compared else ()
    best = [] if chosen is None else [to_plan(chosen, why=why)]
    plans = (*best, *map(to_plan, others), *map(to_plan, misses))
    refused = None
    if chosen is None:
        refused = refusal(problem, found, cut, partial(_would_fit, replace(question, observed=observed)))
    return PlanTable(question, plans, best[0] if best else None, refused, dropped)


def make_plan(question: Question) -> Plan:
    """The chosen Plan of `list_plans`. Raises what that does, and its refusal where nothing fits."""
    table = list_plans(question)
    if table.refusal is not None:
        raise table.refusal
    return table.plans[0]


def longest_context(table: PlanTable, plan: Plan) -> int:
    """The most tokens of context with which `plan`'s way of running still fits this machine; 0 if none do.

    Held to what a dry run of the chosen plan counted, as that plan is; of other plans no dry run is asked for.
    """
    question, counted = table.question, None
    if question.peaks is not None and plan is table.chosen:
        counted = count_run(question.peaks, plan.spec, plan.run, plan.budgets)
    problem = _problem(question.asking(question.options.model_copy(update={"ctx_size": None})))
    way = Way(plan.run, _place(plan), _uses_disk(plan), plan.quality)
    problem = replace(problem, widened=widened(problem, way, question.observed), counted=counted)
    most, own = plan.spec.max_context, plan.run.context_tokens if plan.fits else 0
    if solve_at(problem, way, most) is not None:
        return most
    found = longest(problem, way, most, least=CONTEXT_STEP)
    # Its own length may lie between two steps, or be counted as less than the formulas of its neighbours.
    return max(own, found.run.context_tokens if found else 0)


def _problem(question: Question) -> Problem:
    """The model and the part of the machine that the flags leave."""
    options, inventory = question.options, question.inventory
    gpus = () if options.cpu else inventory.gpus
    there = len(gpus)
    if options.gpu_memory:
        gpus = gpus[: len(options.gpu_memory)]
    if question.spec.embedder is not None:  # it does nothing else: the flag changes nothing
        options = options.model_copy(update={"embeddings": False})
    return Problem(
        question.spec, options, gpus, inventory.cpu, inventory.disk, there, imagined=question.imagined,
        draft=question.draft, loras=question.loras,
    )  # fmt: skip


def _plan(
    question: Question, problem: Problem, one: Ranked, *, speeds: Speeds, wished: int, why: tuple[str, ...] = ()
) -> Plan:
    """The Plan of a solved way."""
    options, folder = question.options, question.user_cache_dir
    seen = replace(problem, widened=widened(problem, one.solution.way, question.observed))
    solution = with_idle_cache(seen, one.solution)
    way, layout = solution.way, solution.layout
    nvme = folder / "nvme"
    flags = words(options_for(problem, solution, wished_context=wished, nvme_folder=nvme))
    told = (*notes(problem, solution, wished), *why, speed_note(one, speeds, embeds=problem.spec.embedder is not None))
    return Plan(
        spec=problem.spec,
        run=solution.run,
        loader="vllm" if options.loader == "vllm" and way.loader == "transformers" else way.loader,
        placement=layout.device_map() if layout else {},
        limits=solution.limits,
        budgets=solution.budgets,
        disk_cache_dir=(options.disk_cache_dir or folder) if layout and (way.disk or options.disk) else None,
        nvme_offload_dir=(options.nvme_offload_dir or nvme) if layout is None and way.disk else None,
        trust_remote_code=question.trust_remote_code,
        fits=solution.fits,
        reasons=told,
        title=title(problem, solution),
        flags=flags,
        quality=way.quality,
        tokens_per_s=one.estimate.tokens_per_s,
        prefill_tokens_per_s=one.estimate.prefill_tokens_per_s,
        short_bytes=lacks(one),
        speculate=how_to_speculate(problem.spec, problem.draft, options, solution.run),
        draft=problem.draft,
        loras=problem.loras,
        embeds=problem.options.embeddings,
        vllm_python=question.vllm_python if options.loader == "vllm" else None,
        gpu_layers=gpu_layers(problem, solution),
    )


def _would_fit(question: Question, options: LoadOptions, *, more_cpu: int = 0, more_gpu: int = 0) -> bool:
    """Whether anything that may be chosen under `options` fits, with so many bytes more in memory and on each GPU."""
    inventory = replace(
        question.inventory,
        cpu=_roomier(question.inventory.cpu, more_cpu),
        gpus=tuple(_roomier(gpu, more_gpu) for gpu in question.inventory.gpus),
    )
    problem = _problem(replace(question.asking(options), inventory=inventory))
    wishes = Wishes(options, len(problem.gpus), question.llamacpp_gpu)
    wished = wished_context(question.spec, options)
    tokens = wished if options.ctx_size is not None else min(wished, LEAST_CONTEXT)
    try:
        check_native(question.spec, options)
        ways, _ = list_ways(question.spec, options, len(problem.gpus), llamacpp_gpu=question.llamacpp_gpu)
    except SnugError:  # the change and what the user gave cannot go together
        return False
    return any(
        may_take(way, wishes)
        and solve_at(replace(problem, widened=widened(problem, way, question.observed)), way, tokens) is not None
        for way in ways
    )


def _roomier(device: Device, more: int) -> Device:
    return replace(device, free_bytes=device.free_bytes + more, total_bytes=device.total_bytes + more)


def _place(plan: Plan) -> Place:
    """The place of a Plan's way, read off its devices."""
    devices = set(plan.placement.values())
    gpus = {device for device in devices if device.startswith("cuda")}
    if plan.loader == "deepspeed":
        return "zero3"
    left = sum(plan.gpu_layers) <= plan.spec.layers if plan.gpu_layers else bool(devices - gpus)
    if gpus:
        return "split" if left else "gpus" if len(gpus) > 1 else "gpu"
    return "cpu"


def _uses_disk(plan: Plan) -> bool:
    return "disk" in plan.placement.values() or plan.nvme_offload_dir is not None
