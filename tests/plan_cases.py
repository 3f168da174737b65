"""Plans for the page's picture: a small model on a CPU, one that fits a GPU, one spread over two GPUs, CPU and disk,
one that does not fit. Numbers are plausible, nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from modules.errors import OutOfMemory
from modules.hardware import Device, Inventory
from modules.memory.forecasting.budget import Budget, Figure, Method, Purpose
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.planning.planner import Plan, PlanTable, Question
from modules.settings import LoadOptions
from modules.units import GiB
from tests.fakes import fake_spec


def budget(sizes: Mapping[Purpose, float], *, margin: float = 0.0, load_peak: float = 0.0) -> Budget:
    """A budget of these GiB, with formulas."""
    methods: dict[Purpose, Method] = {"weights": "exact", "quant_meta": "exact", "kv_cache": "exact"}
    formulas: dict[Purpose, str] = {
        "weights": "8,030,261,248 weights · 2 B",
        "quant_meta": "124,780,544 blocks of 64 · 4 B",
        "kv_cache": "2 · 32 layers · 8 heads · 128 · 8,192 tokens · 2 B",
        "prefill_peak": "512 tokens · 2 B · (4 · 4,096 + 3 · 14,336)",
        "context": "CUDA context, cuBLAS and kernels",
    }
    figures = {
        purpose: Figure(int(gib * GiB), methods.get(purpose, "formula"), formulas.get(purpose, ""))
        for purpose, gib in sizes.items()
    }
    return Budget.of(figures, load_peak=int(load_peak * GiB), margin=int(margin * GiB))


def device(id: str, total: float, free: float, name: str = "") -> Device:
    """A device of these GiB."""
    kind = id.partition(":")[0]
    assert kind in ("cuda", "cpu", "disk")
    return Device(id, kind, name or id, int(total * GiB), int(free * GiB))  # type: ignore[arg-type]


ONE_GPU = Inventory(
    (device("cuda:0", 12, 10.9, "NVIDIA GeForce RTX 3060"),), device("cpu", 32, 24), device("disk", 931, 402), 8
)
TWO_GPUS = Inventory(
    (device("cuda:0", 24, 21.3, "NVIDIA GeForce RTX 3090"), device("cuda:1", 12, 11.4, "NVIDIA GeForce RTX 3060")),
    device("cpu", 64, 30), device("disk", 931, 402), 8,
)  # fmt: skip
NO_GPU = Inventory((), device("cpu", 24, 20.7), device("disk", 250, 90), 2)

_RUN = RunSpec(dtype="bfloat16", context_tokens=8192)
_SPEC = replace(fake_spec("Llama-3.1-8B-Instruct"), layers=32, max_context=131072)

SMALL = Plan(
    spec=replace(fake_spec("SmolLM2-135M-Instruct"), layers=30, max_context=8192), run=_RUN, loader="transformers",
    placement={"": "cpu"}, title="16-bit on the CPU", tokens_per_s=(38, 61),
    budgets={
        "cpu": budget({"weights": 0.251, "kv_cache": 0.176, "prefill_peak": 0.0066, "context": 0.469}, margin=0.06)
    },
    reasons=("The whole model fits in CPU memory. There is no GPU.", "bf16: 257 MiB weights + 180 MiB KV cache."),
)  # fmt: skip
ON_GPU = Plan(
    spec=_SPEC, run=replace(_RUN, quantization="int8"), loader="transformers", placement={"": "cuda:0"},
    title="8-bit on the GPU", flags=("--load-in-8bit",), quality=0.998, tokens_per_s=(11.4, 17.8),
    budgets={
        "cuda:0": budget(
            {"weights": 7.35, "quant_meta": 0.01, "kv_cache": 1.0, "prefill_peak": 0.12, "dequant_buffer": 0.09,
             "allocator": 0.11, "context": 0.64}, margin=0.35,
        ),
        "cpu": budget({"context": 0.9}, margin=0.05),
    },
    reasons=(
        "8-bit: 7.36 GiB weights + 1.00 GiB KV cache + 0.96 GiB for computing = 9.32 of 10.9 GiB free on GPU 0.",
        "16-bit lacks 5.7 GiB; 4-bit fits too but loses more quality.",
    ),
)  # fmt: skip
SPREAD = Plan(
    spec=replace(_SPEC, name="Llama-3.1-70B-Instruct", layers=80), run=_RUN, loader="transformers",
    placement={f"model.layers.{n}": "cuda:0" if n < 11 else "cuda:1" if n < 16 else "cpu" if n < 29 else "disk"
               for n in range(80)},
    title="16-bit, 16 of 80 layers on 2 GPUs, 51 on disk", flags=("--auto-devices", "--disk"),
    tokens_per_s=(0.012, 0.02), budgets={
        "cuda:0": budget({"weights": 17.6, "kv_cache": 0.34, "prefill_peak": 0.35, "offload_buffer": 1.59,
                          "allocator": 0.2, "context": 0.64}, margin=0.5),
        "cuda:1": budget({"weights": 8.8, "kv_cache": 0.16, "prefill_peak": 0.35, "allocator": 0.2, "context": 0.64},
                         margin=0.4),
        "cpu": budget({"weights": 22.4, "context": 0.9}, margin=0.6),
        "disk": budget({"weights": 82.6}),
    },
    reasons=("Layers: 11 on GPU 0, 5 on GPU 1, 13 in CPU memory, 51 on disk.",),
)  # fmt: skip
TOO_LARGE = replace(
    ON_GPU, run=replace(_RUN, context_tokens=8192), title="16-bit on the GPU", flags=("--dtype", "bf16"), quality=1.0,
    fits=False, short_bytes=int(5.96 * GiB), tokens_per_s=(18, 24),
    budgets={"cuda:0": budget({"weights": 14.96, "kv_cache": 1.0, "prefill_peak": 0.26, "context": 0.64}, margin=0.4)},
)  # fmt: skip
FOUR_BIT = replace(
    ON_GPU, run=replace(_RUN, quantization="nf4", double_quant=True),
    title="4-bit (nf4, double quantization) on the GPU",
    flags=("--load-in-4bit", "--use-double-quant"), quality=0.962, tokens_per_s=(31, 44),
    budgets={
        "cuda:0": budget(
            {"weights": 4.9, "quant_meta": 0.12, "kv_cache": 1.0, "prefill_peak": 0.2, "context": 0.64}, margin=0.3
        )
    },
)  # fmt: skip
OFFLOADED = replace(
    SPREAD, spec=_SPEC, title="16-bit, 22 of 32 layers on the GPU", flags=("--auto-devices",), tokens_per_s=(2.1, 3.4),
    budgets={"cuda:0": budget({"weights": 9.0, "kv_cache": 0.7, "context": 0.64}),
             "cpu": budget({"weights": 5.9, "kv_cache": 0.3, "context": 0.9})},
)  # fmt: skip
REFUSAL = OutOfMemory(
    "Llama-3.1-8B-Instruct does not fit: it needs 16.9 GiB, 10.9 GiB are free on GPU 0.",
    remedy="It would fit with --load-in-8bit, or with --auto-devices (part of it then stays on the CPU).",
)
LOADING = replace(SMALL, budgets={"cpu": budget({"weights": 0.251, "context": 0.469}, load_peak=1.2, margin=0.06)})


def table(*plans: Plan, inventory: Inventory = ONE_GPU, dropped: tuple[tuple[str, str], ...] = ()) -> PlanTable:
    """These ways, the first that fits chosen."""
    chosen = next((plan for plan in plans if plan.fits), None)
    options = LoadOptions.model_validate({"model": plans[0].spec.name})
    question = Question(plans[0].spec, options, inventory, Path("cache"))
    return PlanTable(question, plans, chosen, None if chosen else REFUSAL, dropped)


ALL_WAYS = table(
    ON_GPU,
    FOUR_BIT,
    OFFLOADED,
    TOO_LARGE,
    dropped=(("8-bit", "quantizes 2.9 % of this model: its experts are fused."),),
)
