"""From a model, a machine and the user's flags to one Plan: what goes where, in which precision, and why.

Pure: it reads values and returns values. A value that says what will happen before a byte is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from modules.errors import BadFlag, BadValue, DiskFull, NotAvailableHere, OutOfMemory, SnugError
from modules.hardware import Inventory
from modules.memory.budget import Budget
from modules.memory.figures import device_budget
from modules.memory.fitting import LEAST_CONTEXT, Problem, Solution, asks_to_split, margin, peak_bytes, solve
from modules.memory.forecast import (
    DType,
    Quantization,
    RunSpec,
    dequantize_bytes,
    kv_cache_bytes,
    quantized_share,
    weight_bytes,
)
from modules.memory.ledger import ObservedErrors
from modules.memory.placement import (
    Layout,
    make_groups,
)
from modules.memory.spec import ModelSpec
from modules.memory.speed import Speeds
from modules.settings import LoadOptions
from modules.units import GiB, format_size

Loader = Literal["transformers", "deepspeed"]
DEFAULT_CONTEXT = 8192
_DTYPES: dict[str, DType] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
_LABELS = {"none": "", "int8": "8-bit", "nf4": "4-bit (nf4)", "fp4": "4-bit (fp4)"}


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that an engine needs to load a model. Picklable, torch-free; bytes are int.

    `placement` maps module names to "cuda:N", "cpu" or "disk", longest prefix wins ({"": "cpu"} is all on the CPU;
    {} leaves it to DeepSpeed). `limits` are the most weight bytes that each device may hold; `budgets` what each
    device will hold, by purpose. `flags` is what to type to get exactly this. `quality` is 1 for weights as stored,
    else the expected ratio of perplexities, below 1; speeds are (low, high), (0, 0) if unknown; `short_bytes` is what
    the worst device lacks, 0 if it fits.
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

    @property
    def offloads_quantized(self) -> bool:
        """Whether a quantized model leaves the GPU in part: it needs transformers' llm_int8_enable_fp32_cpu_offload."""
        devices = set(self.placement.values())
        return self.run.quantization != "none" and len(devices) > 1 and bool(devices & {"cpu", "disk"})


class RunPeaks(Protocol):
    """Measured or dry-run bytes of one run: memory/dryruns.py's Peaks."""

    @property
    def prefill_peak(self) -> int:
        """Most bytes beyond weights and cache while the prompt is read."""

    @property
    def decode_peak(self) -> int:
        """The same while a token is written."""


PeaksOf = Callable[[ModelSpec, RunSpec], RunPeaks | None]
ErrorsOf = Callable[[str, str], ObservedErrors]
"""(device name, quantization) → how far forecasts of such loads were off so far."""


@dataclass(frozen=True, slots=True)
class PlanTable:
    """Every way to run `spec` under `options` on this machine: the chosen one first, then what else is worth taking,
    best first, then what does not fit (`short_bytes` above 0).

    Where nothing fits `chosen` is None and `refusal` names the smallest change that would. `dropped` are ways with
    the reason why they change nothing for this model or cannot run here.
    """

    spec: ModelSpec
    inventory: Inventory
    options: LoadOptions
    plans: tuple[Plan, ...]
    chosen: Plan | None
    refusal: SnugError | None = None
    dropped: tuple[tuple[str, str], ...] = ()


def list_plans(
    spec: ModelSpec,
    options: LoadOptions,
    inventory: Inventory,
    *,
    user_cache_dir: Path,
    trust_remote_code: bool,
    speeds: Speeds | None = None,  # noqa: ARG001
    peaks: PeaksOf | None = None,  # noqa: ARG001
    observed: ErrorsOf | None = None,  # noqa: ARG001
) -> PlanTable:
    """Every way to run `spec`, narrowed by the user's flags. Raises BadValue and BadFlag for impossible flags."""
    try:
        plan = make_plan(spec, options, inventory, user_cache_dir=user_cache_dir, trust_remote_code=trust_remote_code)
    except (OutOfMemory, DiskFull) as error:
        return PlanTable(spec, inventory, options, (), None, error)
    return PlanTable(spec, inventory, options, (plan,), plan)


def longest_context(table: PlanTable, plan: Plan) -> int:
    """The most tokens of context with which `plan`'s way of running still fits this machine; 0 if none."""
    for tokens in range(plan.spec.max_context // 256 * 256, 0, -256):
        options = table.options.model_copy(update={"ctx_size": tokens})
        try:
            make_plan(
                plan.spec, options, table.inventory,
                user_cache_dir=plan.disk_cache_dir or Path(), trust_remote_code=plan.trust_remote_code,
            )  # fmt: skip
        except (OutOfMemory, DiskFull):
            continue
        return tokens
    return 0


def make_plan(
    spec: ModelSpec, options: LoadOptions, inventory: Inventory, *, user_cache_dir: Path, trust_remote_code: bool
) -> Plan:
    """The Plan for `spec` under the user's flags on this machine.

    Raises OutOfMemory or DiskFull with the smallest change that would help, BadValue for an impossible context,
    BadFlag for quantizing what is quantized already, NotAvailableHere for what this machine cannot do.
    """
    problem, reasons = _state(spec, options, inventory)
    if options.deepspeed:
        return _plan_deepspeed(problem, reasons, trust_remote_code=trust_remote_code)
    solution = solve(problem)
    if solution is None:
        raise _out_of_memory(problem, inventory)
    disk_needed = solution.layout.rewritten
    if disk_needed and disk_needed > problem.disk.free_bytes - margin(problem.disk.free_bytes):
        raise DiskFull(
            f"{spec.name}: {format_size(disk_needed)} must go to {problem.disk.name}, "
            f"which has {format_size(problem.disk.free_bytes)} free.",
            remedy="Choose another disk with --disk-cache-dir, or free some space.",
            param="disk_cache_dir",
        )
    return Plan(
        spec=spec,
        run=solution.run,
        loader="transformers",
        placement=solution.layout.device_map(),
        limits=solution.limits,
        budgets=solution.budgets,
        disk_cache_dir=(options.disk_cache_dir or user_cache_dir) if options.disk else None,
        trust_remote_code=trust_remote_code,
        reasons=(*reasons, *_explain(problem, solution)),
        title=_title(solution),
    )


def _title(solution: Solution) -> str:
    """`4-bit (nf4) on cuda:0`."""
    label = _LABELS[solution.run.quantization] or ("32-bit" if solution.run.dtype == "float32" else "16-bit")
    return f"{label} on {' and '.join(solution.layout.weights)}"


def _state(spec: ModelSpec, options: LoadOptions, inventory: Inventory) -> tuple[Problem, list[str]]:
    """Settle precision, context and devices; the reasons say what was chosen for the user."""
    reasons: list[str] = []
    gpus = () if options.cpu else inventory.gpus
    if options.gpu_memory and len(options.gpu_memory) < len(gpus):
        reasons.append(f"--gpu-memory names {len(options.gpu_memory)} of {len(gpus)} GPUs; the others are left alone.")
        gpus = gpus[: len(options.gpu_memory)]
    dtype = _choose_dtype(spec, options, reasons, on_cpu=not gpus)
    quantization = _choose_quantization(spec, options, reasons)
    run = RunSpec(
        dtype=dtype,
        quantization=quantization,
        double_quant=options.use_double_quant,
        compute_dtype=_DTYPES[options.compute_dtype] if options.compute_dtype else dtype,
        context_tokens=_choose_context(spec, options),
        attention="sdpa" if options.attn_implementation == "auto" else options.attn_implementation,
    )
    problem = Problem(
        spec, options, gpus, inventory.cpu, inventory.disk, run, make_groups(spec, run), dequantize_bytes(spec, run)
    )
    return problem, reasons


def _choose_dtype(spec: ModelSpec, options: LoadOptions, reasons: list[str], *, on_cpu: bool) -> DType:
    wanted = "bf16" if options.bf16 else options.dtype
    if wanted != "auto":
        return _DTYPES[wanted]
    stored: DType = next((dtype for dtype in _DTYPES.values() if dtype == spec.stored_dtype), "bfloat16")
    if stored == "float16" and on_cpu:
        reasons.append("The file is fp16; bf16 is used instead: CPUs are slow with fp16.")
        return "bfloat16"
    return stored


def _choose_quantization(spec: ModelSpec, options: LoadOptions, reasons: list[str]) -> Quantization:
    wanted: Quantization = "none"
    if options.load_in_8bit:
        wanted = "int8"
    elif options.load_in_4bit:
        wanted = options.quant_type or "nf4"
    if spec.prequantized != "none":
        if wanted not in ("none", spec.prequantized):
            flag = "--load-in-8bit" if wanted == "int8" else "--load-in-4bit"
            raise BadFlag(f"{flag}: {spec.name} is stored as {spec.prequantized} already.", remedy="Drop the flag.")
        reasons.append(f"The file is quantized already: {_LABELS[spec.prequantized]}.")
        return spec.prequantized
    if wanted != "none":
        share = quantized_share(spec)
        reasons.append(f"{_LABELS[wanted]} reaches {share:.1%} of the weights.")
        if share < 0.3:
            reasons[-1] += " It hardly helps this model: its experts or layers are of a kind that bitsandbytes skips."
    return wanted


def _choose_context(spec: ModelSpec, options: LoadOptions) -> int:
    if options.ctx_size is None:
        return min(spec.max_context, DEFAULT_CONTEXT)
    if options.ctx_size > spec.max_context:
        raise BadValue(
            f"--ctx-size {options.ctx_size}: {spec.name} was made for at most {spec.max_context} tokens.",
            remedy=f"Use --ctx-size {spec.max_context} or less.",
            param="ctx_size",
        )
    return options.ctx_size


def _explain(problem: Problem, solution: Solution) -> list[str]:
    """One sentence a decision and one a device, with the numbers."""
    run, layout = solution.run, solution.layout
    reasons = []
    if run.context_tokens < problem.base.context_tokens:
        reasons.append(f"The context is {run.context_tokens} tokens: {problem.base.context_tokens} do not fit.")
    elif problem.options.ctx_size is None and run.context_tokens < problem.spec.max_context:
        reasons.append(f"The context is {run.context_tokens} tokens; the model can take {problem.spec.max_context}.")
    reasons.append(_explain_split(problem, layout))
    free = {device.id: device.free_bytes for device in (*problem.gpus, problem.cpu, problem.disk)}
    label = _LABELS[run.quantization] or {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[run.dtype]
    for device, budget in solution.budgets.items():
        reasons.append(_explain_budget(label, device, budget, free[device]))
    if layout.weights.get("disk"):
        kept = layout.weights["disk"] - layout.rewritten
        written = (
            f"{format_size(layout.rewritten)} are written to the disk cache"
            if layout.rewritten
            else "nothing is written"
        )
        reasons.append(f"{format_size(kept)} are read from the model's own files at every use; {written}.")
    return reasons


def _explain_budget(label: str, device: str, budget: Budget, free_bytes: int) -> str:
    """`8-bit: 6.5 GiB weights + 1.0 GiB KV cache + 0.6 GiB buffers = 8.1 of 9.6 GiB free on cuda:0`."""
    if device == "disk":
        return f"{label}: {format_size(budget.weights)} weights stay on disk."
    parts = [
        (budget.weights + budget.quant_meta, "weights"),
        (budget.kv_cache, "KV cache"),
        (budget.transient + budget.offload_buffer, "buffers"),
        (budget.context, "CUDA context" if device.startswith("cuda") else "engine process"),
    ]
    shown = " + ".join(f"{format_size(size)} {what}" for size, what in parts if size)
    return f"{label}: {shown} = {format_size(budget.total)} of {format_size(free_bytes)} free on {device}."


def _explain_split(problem: Problem, layout: Layout) -> str:
    devices = set(layout.weights)
    if len(devices) == 1:
        device = devices.pop()
        why = "" if problem.gpus else " No GPU is used." if problem.options.cpu else " There is no GPU."
        return f"The whole model fits on {device}.{why}"
    blocks = [f"{layout.count_blocks(device)} on {device}" for device in sorted(devices)]
    chosen = "" if asks_to_split(problem.options) else " No device holds all of it, so Snug splits it by itself."
    return f"Layers: {', '.join(blocks)}.{chosen}"


def _out_of_memory(problem: Problem, inventory: Inventory) -> OutOfMemory:
    """What is needed against what is free, and the smallest change of flags that would fit."""
    run, spec = problem.base, problem.spec
    parts = [
        (weight_bytes(spec, run), "weights"),
        (kv_cache_bytes(spec, run, run.context_tokens), f"KV cache for {run.context_tokens} tokens"),
        (peak_bytes(problem, run), "buffers"),
    ]
    shown = " + ".join(f"{format_size(size)} {what}" for size, what in parts)
    places = [*problem.gpus, problem.cpu] if problem.gpus else [problem.cpu]
    free = " and ".join(f"{format_size(device.free_bytes)} on {device.id}" for device in places)
    return OutOfMemory(
        f"{spec.name} does not fit: it needs {shown} = {format_size(sum(size for size, _ in parts))}; "
        f"free are {free}{_limits(problem)}.",
        remedy=_smallest_changes(problem, inventory),
    )


def _limits(problem: Problem) -> str:
    """The user's limits, as they were given."""
    gpu, cpu = problem.options.gpu_memory, problem.options.cpu_memory
    limits = [f"--gpu-memory {' '.join(map(format_size, gpu))}"] if gpu else []
    limits += [f"--cpu-memory {format_size(cpu)}"] if cpu is not None else []
    return f", within {' and '.join(limits)}" if limits else ""


def _smallest_changes(problem: Problem, inventory: Inventory) -> str:
    """Up to three changes under each of which the model fits, the cheapest first."""
    found: list[str] = []
    for flag, changes in _changes(problem):
        options = problem.options.model_copy(update=changes)
        repeated = any(other.split()[0] == flag.split()[0] for other in found)
        if not repeated and len(found) < 3 and solve(_state(problem.spec, options, inventory)[0]) is not None:
            found.append(flag)
    if not found:
        return "No flag makes it fit here; choose a smaller model."
    return f"It would fit with {', or with '.join(found)}."


def _changes(problem: Problem) -> list[tuple[str, dict[str, object]]]:
    """Changes of flags that can save memory, the cheapest first, each with how to say it."""
    options, spec = problem.options, problem.spec
    quantized = problem.base.quantization != "none"
    changes: list[tuple[str, dict[str, object]]] = []
    if options.gpu_memory:
        most = max(gpu.free_bytes for gpu in problem.gpus) // GiB
        for size in range(max(options.gpu_memory) // GiB + 1, most + 1):
            changes.append((f"--gpu-memory {size}", {"gpu_memory": (size * GiB,) * len(options.gpu_memory)}))
    if options.cpu_memory is not None:
        changes.append(("no --cpu-memory", {"cpu_memory": None}))
    if options.ctx_size is not None:
        shorter = (tokens for tokens in (8192, 4096, 2048, LEAST_CONTEXT) if tokens < options.ctx_size)
        changes += [(f"--ctx-size {tokens}", {"ctx_size": tokens}) for tokens in shorter]
    if problem.base.dtype == "float32" and not quantized:
        changes.append(("--dtype bf16", {"dtype": "bf16"}))
    if spec.prequantized == "none" and not quantized:
        changes.append(("--load-in-8bit", {"load_in_8bit": True}))
    if spec.prequantized == "none" and not options.load_in_4bit:
        changes.append(("--load-in-4bit", {"load_in_8bit": False, "load_in_4bit": True}))
    if quantized and problem.gpus and not asks_to_split(options):
        changes.append(("--auto-devices (part of it then stays on the CPU)", {"auto_devices": True}))
    if not options.disk and (not quantized or problem.gpus):
        changes.append(("--disk (slow: the rest is read from disk for every token)", {"disk": True}))
    if quantized and spec.prequantized == "none" and not problem.gpus:
        unquantized: dict[str, object] = {"disk": True, "load_in_8bit": False, "load_in_4bit": False}
        changes.append(("--disk instead of quantization", unquantized))
    return changes


def _plan_deepspeed(problem: Problem, reasons: list[str], *, trust_remote_code: bool) -> Plan:
    """ZeRO-3 places the weights itself: in CPU memory, or on disk with --nvme-offload-dir. Only room is checked."""
    spec, run, options = problem.spec, problem.base, problem.options
    if spec.prequantized != "none":
        raise NotAvailableHere(f"--deepspeed: {spec.name} is quantized.", remedy="ZeRO-3 needs 16-bit weights.")
    weights, kv = weight_bytes(spec, run), kv_cache_bytes(spec, run, run.context_tokens)
    computing = problem.gpus[0].id if problem.gpus else "cpu"
    stored = "disk" if options.nvme_offload_dir else "cpu"
    live = max(group.loaded for group in problem.groups)
    budgets = {
        device: device_budget(
            spec,
            run,
            device,
            weights=weights if device == stored else 0,
            kv_cache=kv if device == computing else 0,
            offload_buffer=live if device == computing else 0,
            computes=device == computing,
        )
        for device in dict.fromkeys(("cpu", computing, stored))
    }
    free = {device.id: device.free_bytes for device in (*problem.gpus, problem.cpu, problem.disk)}
    for device, budget in budgets.items():
        if budget.total > free[device] - margin(free[device]):
            raise _zero3_lacks(problem, device, budget.total, free[device])
    label = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[run.dtype]
    told = [_explain_budget(label, device, budget, free[device]) for device, budget in sorted(budgets.items())]
    return Plan(
        spec=spec,
        run=run,
        loader="deepspeed",
        placement={},
        budgets=budgets,
        nvme_offload_dir=options.nvme_offload_dir,
        trust_remote_code=trust_remote_code,
        reasons=(*reasons, "DeepSpeed ZeRO-3 shares the weights among its processes.", *told),
    )


def _zero3_lacks(problem: Problem, device: str, needed: int, free: int) -> OutOfMemory | DiskFull:
    """The error for a device that is too small for its part of ZeRO-3."""
    kind = DiskFull if device == "disk" else OutOfMemory
    nvme_helps = device == "cpu" and problem.options.nvme_offload_dir is None
    return kind(
        f"{problem.spec.name} with ZeRO-3 needs {format_size(needed)} on {device}; {format_size(free)} are free.",
        remedy="Use --nvme-offload-dir FOLDER." if nvme_helps else "Free some, or choose a smaller model.",
    )
