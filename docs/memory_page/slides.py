"""“Why won't Llama13B fit on my 4090?”: four sources of memory, inference and training, 4-bit and QLoRA."""

from __future__ import annotations

from dataclasses import replace

from docs.memory_page.asking import FP16, INT8, NF4, on_one_gpu, plans
from docs.memory_page.models import Models
from docs.memory_page.picture import Bar, Line, draw
from docs.memory_page.text import gb, gib, gib_number, table
from modules.memory.forecasting.budget import Budget
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes
from modules.memory.forecasting.kinds import quantizable
from modules.memory.forecasting.training import TrainingRun, saved_per_token, targets, trained_count, training_budget
from modules.memory.known_gpus import find_gpu
from modules.memory.model.model_spec import ModelSpec

CARD = "RTX 4090"
TOKENS = 512
CONTEXT = 2048
# Of the public slides: “13B: 25GB”, “load in 4 bit so 25/4 = 6.2GB! OOM”.
THIRTEEN_GB, FOUR_BIT_GB = 25, 6.2

_TRAINING = (
    ("all weights, AdamW", TrainingRun("full", tokens=TOKENS)),
    ("all weights, 8-bit Adam", TrainingRun("full", tokens=TOKENS, optimizer="adam8bit")),
    ("all weights, SGD", TrainingRun("full", tokens=TOKENS, optimizer="sgd")),
    ("LoRA", TrainingRun("lora", tokens=TOKENS)),
    ("QLoRA", TrainingRun("qlora", tokens=TOKENS)),
    ("QLoRA, 2,048 tokens", TrainingRun("qlora", tokens=2048)),
    ("… with checkpointing", TrainingRun("qlora", tokens=2048, checkpointing=True)),
)


def render(models: Models) -> dict[str, str]:
    """The tables of these slides, by the name of their place on the page."""
    spec = models["LLaMA-13B"]
    return {"slides_inference": _inference(spec), "slides_training": _training(spec), "slides_claims": _claims(spec),
            **_numbers(spec)}  # fmt: skip


def picture(models: Models) -> str:
    """13B on a 24 GB card, used and trained, as SVG."""
    spec = models["LLaMA-13B"]
    used = [Bar(f"use it in {way.title}", on_one_gpu(spec, way, CONTEXT), f"{CONTEXT:,} tokens")
            for way in (FP16, INT8, NF4)]  # fmt: skip
    names = {"all weights, AdamW": "train all of it", "LoRA": "train with LoRA", "QLoRA": "train with QLoRA"}
    trained = [Bar(names[title], training_budget(spec, run), f"AdamW, {run.tokens:,} tokens")
               for title, run in _TRAINING if title in names]  # fmt: skip
    card = Line("a 24 GB card", find_gpu(CARD).total_bytes)
    return draw("LLaMA-13B and a 24 GB card", [*used, *trained], [card], overrun_of=card)


def _inference(spec: ModelSpec) -> str:
    free = find_gpu(CARD).free_bytes
    rows = []
    for way in (FP16, INT8, NF4):
        budget = on_one_gpu(spec, way, CONTEXT)
        weights = budget.weights + budget.quant_meta
        rest = budget.total - weights - budget.kv_cache - budget.context
        spare = free - budget.total
        told = f"{gib(spare)} to spare" if spare >= 0 else f"**lacks {gib(-spare)}**"
        sizes = (weights, budget.kv_cache, rest, budget.context, budget.total)
        rows.append((way.title, *map(gib_number, sizes), told))
    head = (f"{CONTEXT:,} tokens", "weights:", "KV cache:", "buffers:", "runtime:", "GiB in all:",
            f"of {gib(free)} free")  # fmt: skip
    return table(head, rows)


def _training(spec: ModelSpec) -> str:
    free = find_gpu(CARD).free_bytes
    rows = []
    for title, run in _TRAINING:
        budget = training_budget(spec, run)
        spare = free - budget.total
        told = f"{gib(spare)} to spare" if spare >= 0 else f"**lacks {gib(-spare)}**"
        weights = budget.weights + budget.quant_meta
        sizes = (weights, budget.gradients, budget.optimizer, _coming_and_going(budget), budget.total)
        rows.append((title, *map(gib_number, sizes), told))
    head = (f"one text of {TOKENS} tokens", "weights:", "gradients:", "optimizer:", "activations, buffers:",
            "GiB in all:", f"of {gib(free)} free")  # fmt: skip
    return table(head, rows)


def _coming_and_going(budget: Budget) -> int:
    return budget.total - budget.weights - budget.quant_meta - budget.gradients - budget.optimizer - budget.context


def _claims(spec: ModelSpec) -> str:
    gpu = find_gpu(CARD)
    half, four = FP16.weights(spec), NF4.weights(spec)
    left_out = 1 - quantizable(spec).share
    full, lora = TrainingRun("full", tokens=TOKENS), TrainingRun("lora", tokens=TOKENS)
    gradients = training_budget(spec, full).gradients
    adapters, trained = trained_count(spec, lora), trained_count(spec, full)
    inputs = len(targets(spec)) // spec.layers
    fast = training_budget(spec, replace(full, optimizer="sgd"))
    rows = [
        ("a 4090 with 23GB of VRAM",
         f"{gpu.total_bytes // 2**20:,} MiB = {gib(gpu.total_bytes)}; Snug counts on {gib(gpu.free_bytes)}",
         "both: 23-odd GiB are what a program gets"),
        (f"13B is {THIRTEEN_GB}GB on disk, and in 16-bit does not load",
         f"{gb(half)} = {gib(half)} of weights alone, more than the whole card",
         "they are; 25 lies between the size in GB and in GiB"),
        (f"load_in_4bit: “{THIRTEEN_GB}/4 = {FOUR_BIT_GB}GB! OOM”",
         f"4 bits are 4.5 with their scales, and {100 * left_out:.1f} % of the weights (the tables of words) stay "
         f"16-bit: {gb(four)}; at {CONTEXT:,} tokens {gib(on_one_gpu(spec, NF4, CONTEXT).total)} in all, which fits",
         f"their size is {100 * (1 - FOUR_BIT_GB / (four / 1e9)):.0f} % too small, and yet it is not the weights that "
         "ran out. What can: a long input read at once, attention that keeps its scores, a load that holds 16-bit "
         "copies, training. 4-bit shrinks weights and nothing else"),
        ("with full finetuning model memory = gradient memory",
         f"{trained:,} · 2 bytes = {gib(gradients)}", "they are, where both are kept in the same precision"),
        ("Adam = 2 · model memory, SGD none",
         f"2 · {gib(gradients)} = {gib(training_budget(spec, full).optimizer)} if the states are 16-bit as the weights "
         "are; in fp32 beside 16-bit weights 8 bytes each, twice that",
         "they are, where nothing is kept in fp32"),
        ("Use SGD (or don't …)",
         f"{gib(fast.total)} instead of {gib(training_budget(spec, full).total)}",
         "both: it saves the most, and still does not fit"),
        ("LoRA increases model memory",
         f"by {adapters:,} numbers of rank {lora.rank} beside {inputs} matrices a layer, 4 bytes each: "
         f"{gib(4 * adapters)}; gradients and optimizer shrink from "
         f"{gib(gradients + training_budget(spec, full).optimizer)} to {gib(12 * adapters)}",
         "they are: a little more model, far less of the rest"),
        ("QLoRA: decrease activation memory",
         f"a layer keeps {saved_per_token(spec, full):,} bytes a token where all is trained, and "
         f"{saved_per_token(spec, lora):,} with LoRA or QLoRA: frozen matrices keep no inputs, but each of {inputs} "
         "adapters in fp32 keeps a copy of its own",
         f"Snug: {_change(saved_per_token(spec, full), saved_per_token(spec, lora))} with adapters beside every "
         "matrix; fewer adapters, or autocast to 16-bit, need less. 4 bits have no part in it: activations stay "
         "16-bit. Checkpointing is what shrinks them"),
        ("KV cache: biggest values are seqlen e.g. 512 and d_model 4096",
         f"for 13B {kv_cache_bytes(spec, RunSpec('float16'), 1):,} bytes a token: 512 tokens "
         f"{gib(kv_cache_bytes(spec, RunSpec('float16'), 512))}, 4,096 tokens "
         f"{gib(kv_cache_bytes(spec, RunSpec('float16'), 4096))}",
         "they are: it grows with layers · KV heads · head_dim · tokens"),
    ]  # fmt: skip
    return table(("they say", "Snug counts", "who is right"), rows)


def _change(before: int, after: int) -> str:
    share = after / before - 1
    return f"{abs(100 * share):.0f} % {'more' if share > 0 else 'less'}"


def _numbers(spec: ModelSpec) -> dict[str, str]:
    """Figures that the page's sentences name."""
    card = find_gpu(CARD)
    chosen = plans(spec, [CARD], ram_gib=32).chosen
    split = plans(spec, [CARD], ram_gib=32, dtype="fp16").chosen
    return {
        "thirteen_gb": gb(FP16.weights(spec)), "thirteen_gib": gib(FP16.weights(spec)),
        "card_24_mib": f"{card.total_bytes // 2**20:,}", "card_24_gib": gib(card.total_bytes),
        "card_24_free": gib(card.free_bytes), "thirteen_choice": chosen.title if chosen else "nothing",
        "thirteen_split": split.title if split else "nothing",
        "thirteen_adam": gib(training_budget(spec, _TRAINING[0][1]).total),
    }  # fmt: skip
