"""The guide on GPU requirements (LLaMA, 2023): what was used, what a size needs, the cache formula."""

from __future__ import annotations

from collections.abc import Iterable

from docs.memory_page.asking import FP16, FP32, INT8, fits, on_one_gpu, plans
from docs.memory_page.models import Models
from docs.memory_page.text import gb, gb_number, gib, table
from modules.memory.forecasting.forecast import RunSpec, elements, kv_cache_bytes
from modules.memory.known_gpus import find_gpu
from modules.memory.model.model_spec import ModelSpec

# The guide's own numbers.
SIZES = ("LLaMA-7B", "LLaMA-13B", "LLaMA-33B", "LLaMA-65B")
PARAMETERS = ("6.7", "13", "32.5", "65.2")
ON_DISK_GB = (13, 26, 65, 130)
CACHE_GB = (1, 1, 2, 3)
TOTAL_GB = (14, 27, 67, 133)
TOKENS = 1024
# model, card, GB used in int8, iterations a second
USED = (
    ("LLaMA-7B", "RTX 3060", 9.1, "4–9"), ("LLaMA-7B", "RTX 3080", 9.2, "??"), ("LLaMA-7B", "RTX 3090", 9.4, "29–55"),
    ("LLaMA-13B", "RTX 3090 Ti", 16.2, "13–29"), ("LLaMA-13B", "RTX 4090", 16.5, "11–32"),
    ("LLaMA-33B", "RTX A6000", 35.8, "19–38"), ("LLaMA-33B", "A100", 36.2, "21–39"),
    ("LLaMA-65B", "A100 80GB", 74.3, "15–35"),
)  # fmt: skip
# card as they write it, our name of it, precision as they write it
NO_OOM = (("A100 40GB", "A100", "TF32"), ("3090 24GB", "RTX 3090", "FP32"), ("A4000 16GB", "RTX A4000", "TF32"))
CLUSTER_INT8_GB, CLUSTER_FP16_GB = 125, 250


def render(models: Models) -> dict[str, str]:
    """The tables of this guide, by the name of their place on the page."""
    return {
        "guide_used": _used(models), "guide_precision": _precision(models["LLaMA-7B"]), "guide_sizes": _sizes(models),
        "guide_claims": _claims(models), **_numbers(models),
    }  # fmt: skip


def _used(models: Models) -> str:
    rows = []
    for name, card, used, speed in USED:
        spec, gpu = models[name], find_gpu(card)
        budget = on_one_gpu(spec, INT8, TOKENS)
        weights = budget.weights + budget.quant_meta
        rest = budget.total - weights - budget.kv_cache
        most = gpu.read_Bps / weights
        fastest = float(speed.partition("–")[2] or 0)
        told = "**more than the card can read**" if fastest > most else "possible" if fastest else "not told"
        rows.append(
            (name.removeprefix("LLaMA-"), card, f"{used} GB",
             f"{gb_number(weights)} + {gb_number(budget.kv_cache)} + {gb_number(rest)} = **{gb(budget.total)}**",
             f"{used - budget.total / 1e9:+.1f} GB", speed, f"{most:.0f}", told)
        )  # fmt: skip
    head = ("model", "card", "they saw:", "Snug: weights + cache + rest:", "difference:", "their it/s:",
            "most tokens/s:", "their speed is")  # fmt: skip
    return table(head, rows)


def _precision(spec: ModelSpec) -> str:
    full, half = on_one_gpu(spec, FP32, TOKENS), on_one_gpu(spec, FP16, TOKENS)
    rows = []
    for written, card, precision in NO_OOM:
        gpu = find_gpu(card)
        verdict = (
            "possible either way" if fits(full, gpu) else
            f"**wrong**: 32-bit lacks {gib(full.total - gpu.free_bytes)}; the weights were 16-bit"
        )  # fmt: skip
        rows.append((written, precision, gib(full.total), gib(half.total), gib(gpu.free_bytes), verdict))
    head = ("card, “no OOM”", "they say", "32-bit needs:", "16-bit needs:", "free on it:", "who is right")
    return table(head, rows)


def _sizes(models: Models) -> str:
    specs = [models[name] for name in SIZES]
    run = RunSpec("float16")
    disk = [FP16.weights(spec) for spec in specs]
    cache = [kv_cache_bytes(spec, run, TOKENS) for spec in specs]
    rows = [
        ("parameters, billions", *_both(PARAMETERS, (f"{sum(map(elements, s.tensors)) / 1e9:.2f}" for s in specs))),
        ("on disk in 16-bit, GB", *_both(map(str, ON_DISK_GB), map(gb_number, disk))),
        (f"cache of {TOKENS:,} tokens, GB", *_both(map(str, CACHE_GB), map(gb_number, cache))),
        ("total, GB", *_both(map(str, TOTAL_GB), (gb_number(a + b) for a, b in zip(disk, cache, strict=True)))),
    ]
    return table(("theirs → Snug's", *(f"{name.removeprefix('LLaMA-')}:" for name in SIZES)), rows)


def _both(theirs: Iterable[str], ours: Iterable[str]) -> list[str]:
    return [f"{a} → **{b}**" for a, b in zip(theirs, ours, strict=True)]


def _claims(models: Models) -> str:
    seven, thirteen, large = models["LLaMA-7B"], models["LLaMA-13B"], models["LLaMA-65B"]
    run = RunSpec("float16")
    token = kv_cache_bytes(seven, run, 1)
    grouped = models["Llama-3-8B"]
    true, by_formula = kv_cache_bytes(grouped, run, 1), 4 * grouped.layers * grouped.hidden_size
    first, second = FP16.weights(thirteen), FP16.weights(large)
    rows = [
        ("cache a token = 2 · 2 · n_layers · n_heads · head_dim; for 7B 524,288 bytes",
         f"2 (K and V) · 2 bytes · {seven.layers} · {seven.attention_heads} · {seven.head_dim} = **{token:,} bytes**",
         "they are, for models of that age"),
        ("the same for every model",
         f"Llama-3-8B has {grouped.attention_heads} heads and {grouped.kv_heads} KV heads: 2 · 2 · {grouped.layers} · "
         f"{grouped.kv_heads} · {grouped.head_dim} = **{true:,} bytes**; their formula says {by_formula:,}",
         f"Snug: only KV heads are cached (grouped-query attention); theirs is {by_formula // true} times too much"),
        ("524288 · 1 · 1024 = 536870912 (~1GB)",
         f"{token:,} · {TOKENS:,} = {token * TOKENS:,} = **{gib(token * TOKENS)}** = {gb(token * TOKENS)}",
         "the product is right, “~1GB” is twice too much"),
        ("7B requires at least 14GB in 16-bit",
         f"{gb_number(FP16.weights(seven))} weights + {gb_number(token * TOKENS)} cache = "
         f"{gb(FP16.weights(seven) + token * TOKENS)} = {gib(FP16.weights(seven) + token * TOKENS)}, without the "
         f"runtime",
         "both, if GB is 10⁹ bytes; a card of 14 GiB would be left with 1 GiB"),
        ("… or 7GB in 8-bit, half of it",
         f"weights {gb(INT8.weights(seven))}; with cache and runtime "
         f"{gb(on_one_gpu(seven, INT8, TOKENS).total)}; their own table says 9.1 to 9.4",
         "the weights alone: yes. A 7 GB card: no"),
        ("13B is 26 GB in the table, and “24GB because it has two files of 12GB” in the note",
         f"{gb(first)} = {gib(first)}: two files of {gib(first / 2)}", "both: the table counts GB, the note GiB"),
        (f"65B needs a total of {CLUSTER_INT8_GB}GB in int8 or {CLUSTER_FP16_GB}GB in fp16",
         f"int8 {gb(INT8.weights(large))}, fp16 {gb(second)} = {gib(second)} + cache; their own table: 133 GB in fp16, "
         f"74.3 GB seen in int8",
         "Snug and their own table: the sentence is twice too much. An older version of the page called 120 "
         "(the fp16 size in GiB) “8-bit”, added 5 of cache, and doubled it for fp16"),
        ("Can 65B fit on 4x RTX 3090?", _four_cards(large), "yes in 8-bit and 4-bit, no in 16-bit"),
    ]  # fmt: skip
    return table(("they say", "Snug counts", "who is right"), rows)


def _four_cards(spec: ModelSpec) -> str:
    told = []
    for precision in (FP16, INT8):
        budget = on_one_gpu(spec, precision, TOKENS)
        told.append(f"{precision.title} needs {gib(budget.total)}")
    four_bit = plans(spec, ["RTX 3090"] * 4, load_in_4bit=True).chosen
    free = 4 * find_gpu("RTX 3090").free_bytes
    title = four_bit.title if four_bit else "4-bit does not fit"
    return f"4 · {gib(free / 4)} = {gib(free)} free; {', '.join(told)}; Snug would take {title}"


def _numbers(models: Models) -> dict[str, str]:
    """Figures that the page's sentences name."""
    seven = models["LLaMA-7B"]
    block = [tensor for tensor in seven.tensors if tensor.block == seven.tensors[1].block]
    outside = [tensor for tensor in seven.tensors if not tensor.block]
    ratio = [used / (on_one_gpu(models[name], INT8, TOKENS).total / 1e9) for name, _, used, _ in USED]
    return {
        "one_block_fp32": gb(4 * sum(map(elements, block))),
        "outside_fp32": gb(4 * sum(map(elements, outside))),
        "used_lowest": f"{(min(ratio) - 1) * 100:.0f}", "used_highest": f"{(max(ratio) - 1) * 100:.0f}",
        "longer_context": gb(kv_cache_bytes(seven, RunSpec("float16"), 2048)),
    }  # fmt: skip
