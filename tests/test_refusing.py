"""A refusal names changes that help, each the smallest of its kind: applied it fits, one step less does not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from modules.errors import OutOfMemory
from modules.hardware import Device, Inventory
from modules.memory.known_gpus import find_gpu, imagine
from modules.memory.model.lora import Lora
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.planner import PlanTable, Question, list_plans
from modules.settings import LoadOptions
from modules.units import GiB, MiB, format_size, parse_size
from tests.big_gguf import big_gguf
from tests.shapes import llama, machine, mixtral, small_llama

MODELS = {"1B": small_llama(), "7B": llama("7B"), "7B, 32k": llama("7B", context=32768)}


def table(spec: ModelSpec, inventory: Inventory, **flags: object) -> PlanTable:
    return list_plans(Question(spec, LoadOptions.model_validate(flags), inventory, Path("cache")))


def refusal(spec: ModelSpec, inventory: Inventory, **flags: object) -> OutOfMemory:
    """The refusal, which must be one."""
    error = table(spec, inventory, **flags).refusal
    assert isinstance(error, OutOfMemory), error
    return error


def fits(spec: ModelSpec, inventory: Inventory, **flags: object) -> bool:
    """By the whole table, which is not how the remedy was found."""
    return table(spec, inventory, **flags).chosen is not None


def imagined(ram: str, *gpus: str) -> Inventory:
    """The machine that --ram and --gpu describe."""
    here = machine(ram_gib=24)
    return imagine(here, [find_gpu(card) for card in gpus], parse_size(ram))


def told(spec: ModelSpec, inventory: Inventory) -> PlanTable:
    """The plans for an imagined machine."""
    options = LoadOptions.model_validate({})
    return list_plans(Question(spec, options, inventory, Path("cache"), imagined=True))


@pytest.mark.parametrize("size", ["7B", "13B", "70B"])
@pytest.mark.parametrize("ram", ["1GiB", "3GiB", "5.9GiB", "7.3GiB"])
def test_the_ram_that_a_refusal_names_for_an_imagined_machine_is_enough_when_it_is_typed(
    size: Literal["7B", "13B", "70B"], ram: str
) -> None:
    refused = told(llama(size), imagined(ram))
    if refused.refusal is None:
        assert refused.chosen is not None
        return
    remedy = refused.refusal.remedy
    named = re.search(r"--ram ([\d.]+GiB)", remedy)
    assert named is not None and "close other programs" not in remedy and "more in CPU" not in remedy
    assert told(llama(size), imagined(named.group(1))).chosen is not None
    less = f"{float(named.group(1)[:-3]) - 0.2:.1f}GiB"
    assert told(llama(size), imagined(less)).chosen is None


@pytest.mark.parametrize("cards", [("4GiB",), ("6GiB", "6GiB")])
def test_the_cards_that_a_refusal_names_for_an_imagined_machine_are_enough_when_they_are_typed(
    cards: tuple[str, ...],
) -> None:
    refused = told(llama("70B"), imagined("6GiB", *cards))
    assert refused.refusal is not None
    named = re.findall(r"--(gpu|ram) ([\d.]+GiB)", refused.refusal.remedy)
    assert named
    gpus = tuple(size for kind, size in named if kind == "gpu") or cards
    ram = next((size for kind, size in named if kind == "ram"), "6GiB")
    assert told(llama("70B"), imagined(ram, *gpus)).chosen is not None


@pytest.mark.parametrize("ram_gib", [3, 8, 12])
def test_one_number_says_what_is_lacking_in_the_sentence_the_remedy_and_the_table(ram_gib: float) -> None:
    refused = table(llama("70B"), machine(ram_gib=ram_gib))
    assert refused.refusal is not None
    least = min(plan.short_bytes for plan in refused.plans if not plan.fits)
    shown = format_size(least, up=True)
    assert f"lacks {shown} there" in refused.refusal.message
    assert f"{shown} more in CPU memory" in refused.refusal.remedy


def test_the_parts_of_a_sum_add_up_to_it_also_where_loading_is_the_peak() -> None:
    message = refusal(llama("70B"), machine(ram_gib=24)).message
    addends, total = re.findall(r"takes (.+?) = ([\d.]+ GiB) in CPU memory", message)[0]
    assert "more while loading" in addends
    parts = [parse_size(size) for size in re.findall(r"[\d.]+ [GM]iB", addends)]
    assert sum(parts) == pytest.approx(parse_size(total), abs=GiB // 10)


def test_what_several_cards_lack_they_lack_together() -> None:
    found = table(llama("70B"), machine(2, 24, ram_gib=128))
    assert found.chosen is not None
    assert "over both GPUs" in " ".join(found.chosen.reasons)


def with_more(inventory: Inventory, where: str, size: int) -> Inventory:
    """The machine with so many bytes more, in total and free."""

    def grown(device: Device) -> Device:
        return replace(device, total_bytes=device.total_bytes + size, free_bytes=device.free_bytes + size)

    if "GPU" in where:
        return replace(inventory, gpus=tuple(map(grown, inventory.gpus)))
    return replace(inventory, cpu=grown(inventory.cpu))


def test_a_context_that_cannot_fit_is_answered_with_the_longest_that_can() -> None:
    spec, inventory = llama("7B", context=262144), machine(ram_gib=24)
    named = re.search(r"--ctx-size (\d+)", refusal(spec, inventory, ctx_size=262144).remedy)
    assert named is not None
    tokens = int(named.group(1))
    assert fits(spec, inventory, ctx_size=tokens) and not fits(spec, inventory, ctx_size=tokens + 256)


@settings(max_examples=25, deadline=None)
@example(model="7B", gpus=2, gpu_gib=1.0, ram_gib=1.0, flags={}, gpu_memory=None, cpu_memory=None)
@given(
    model=st.sampled_from(list(MODELS)), gpus=st.integers(0, 2), gpu_gib=st.floats(1, 24), ram_gib=st.floats(1, 40),
    flags=st.sampled_from([{}, {"load_in_8bit": True}, {"load_in_4bit": True}, {"bf16": True}, {"ctx_size": 2048}]),
    gpu_memory=st.none() | st.floats(0.5, 8), cpu_memory=st.none() | st.floats(0.5, 8),
)  # fmt: skip
def test_every_change_that_is_named_helps_and_the_next_smaller_one_does_not(
    model: str, gpus: int, gpu_gib: float, ram_gib: float, flags: dict[str, object],
    gpu_memory: float | None, cpu_memory: float | None,
) -> None:  # fmt: skip
    spec, inventory = MODELS[model], machine(gpus, gpu_gib, ram_gib=ram_gib)
    given_flags = dict(flags)
    if gpus and gpu_memory is not None:
        given_flags["gpu_memory"] = f"{gpu_memory:.1f}GiB"
    if cpu_memory is not None:
        given_flags["cpu_memory"] = f"{cpu_memory:.1f}GiB"
    error = table(spec, inventory, **given_flags).refusal
    assume(isinstance(error, OutOfMemory))
    assert error is not None
    remedy = error.remedy
    for flag, name in (("--gpu-memory", "gpu_memory"), ("--cpu-memory", "cpu_memory")):
        for size in re.findall(rf"{flag} ([\d.]+GiB)", remedy):
            assert fits(spec, inventory, **given_flags | {name: size})
            less = f"{float(size[:-3]) - 0.1:.1f}GiB"
            assert less == "0.0GiB" or not fits(spec, inventory, **given_flags | {name: less})
    for tokens in re.findall(r"--ctx-size (\d+)", remedy):
        assert fits(spec, inventory, **given_flags | {"ctx_size": int(tokens)})
        assert not fits(spec, inventory, **given_flags | {"ctx_size": int(tokens) + 256})
    for size, where in re.findall(r"([\d.]+ [GM]iB) more (in CPU memory|on (?:the|each) GPU)", remedy):
        assert fits(spec, with_more(inventory, where, parse_size(size)), **given_flags)
        assert not fits(spec, with_more(inventory, where, parse_size(size) - GiB // 8), **given_flags)
    for flag in ("load_in_8bit", "load_in_4bit", "disk"):
        if f"--{flag.replace('_', '-')}" in remedy and "instead of" not in remedy:
            asked = {key: value for key, value in given_flags.items() if not key.startswith("load_in")}
            assert fits(spec, inventory, **asked | {flag: True}) or fits(spec, inventory, **given_flags | {flag: True})


def test_the_sum_of_the_nearest_way_and_what_it_is_too_much_are_told() -> None:
    message = refusal(llama("7B"), machine(ram_gib=4)).message
    assert "The nearest way, 4-bit (nf4, double) on the CPU" in message
    assert "1,024 tokens of context, takes 3.6" in message
    assert (
        "engine process + " in message
        and "more while loading = " in message
        and " there (256 MiB are kept free)" in message
    )


def test_memory_that_other_programs_hold_is_told_apart_from_memory_that_is_not_there() -> None:
    inventory = machine(ram_gib=4)
    busy = replace(inventory, cpu=replace(inventory.cpu, total_bytes=32 * GiB))
    assert "(close other programs)" in refusal(llama("7B"), busy).remedy
    assert "(close other programs)" not in refusal(llama("7B"), inventory).remedy


@pytest.mark.parametrize("ram_gib", [6, 16])
def test_a_split_that_lacks_memory_says_in_which(ram_gib: float) -> None:
    message = refusal(llama("70B"), machine(1, 8, ram_gib=ram_gib)).message
    assert "on the GPU and" in message and "GiB in CPU memory" in message
    assert "lacks" in message


def test_a_model_that_bitsandbytes_does_not_shrink_may_fit_as_a_gguf_file() -> None:
    """Experts are fused: 4 bits by flag change nothing, 4 bits in a file do."""
    assert "GGUF file of it in 4 bits (Q4_K_M) would take about 26." in refusal(mixtral(), machine(ram_gib=48)).remedy
    assert "GGUF" not in refusal(mixtral(), machine(ram_gib=24)).remedy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    folder = tmp_path_factory.mktemp("models")
    return {"7B": inspect(big_gguf(folder, "7B")), "1B": inspect(big_gguf(folder, "1B"))}


STEP = 10 * MiB
LORAS = tuple(Lora(name, Path(f"{name}.gguf"), 1.0, size * GiB) for name, size in (("large", 3), ("small", 1)))


def native(files: dict[str, ModelSpec], there: Inventory, **flags: object) -> Question:
    """The 7B file as a GGUF, with what the flags put beside it."""
    options = LoadOptions.model_validate({"ctx_size": 1024, "kv_cache": "plain", **flags})
    draft = files["1B"] if options.draft_model else None
    loras = tuple(lora for lora in LORAS if lora.name in options.lora)
    return Question(files["7B"], options, there, Path("cache"), draft=draft, loras=loras)


def just_enough(files: dict[str, ModelSpec], **flags: object) -> Inventory:
    """A machine on which that fits, with a few MiB to spare."""
    low, high, roomy = 0, 64 * GiB, machine(ram_gib=64)
    while high - low > STEP // 2:
        middle = (low + high) // 2
        there = replace(roomy, cpu=replace(roomy.cpu, free_bytes=middle))
        low, high = (low, middle) if list_plans(native(files, there, **flags)).chosen else (middle, high)
    return replace(roomy, cpu=replace(roomy.cpu, free_bytes=high))


@pytest.mark.parametrize(
    ("asked", "kept", "told"),
    [
        ({"embeddings": True}, {}, "without --embeddings"),
        ({"draft_model": "1B"}, {}, "without --draft-model 1B"),
        ({"lora": "small"}, {}, "without --lora small"),
        ({"lora": "small,large"}, {"lora": "large"}, "without --lora small"),
        ({"lora": "small,large"}, {"lora": "small"}, "without --lora large"),
        ({"lora": "small,large"}, {}, "without --lora,"),
        ({"lora": "small", "embeddings": True}, {"embeddings": True}, "without --lora small"),
    ],
)
def test_what_is_put_beside_a_model_is_named_where_dropping_it_is_enough(
    files: dict[str, ModelSpec], asked: dict[str, object], kept: dict[str, object], told: str
) -> None:
    there = just_enough(files, loader="llamacpp", **kept)
    error = list_plans(native(files, there, loader="llamacpp", **asked)).refusal
    assert isinstance(error, OutOfMemory)
    assert told in error.remedy and "with without" not in error.remedy
    assert len(re.findall("without --lora", error.remedy)) <= 1
    assert list_plans(native(files, there, loader="llamacpp", **kept)).chosen is not None
    poorer = replace(there, cpu=replace(there.cpu, free_bytes=there.cpu.free_bytes - STEP))
    again = list_plans(native(files, poorer, loader="llamacpp", **asked)).refusal
    assert again is not None and told not in again.remedy, "it was the smallest of its kind"


def test_a_draft_model_for_transformers_is_named_too() -> None:
    spec, draft = llama("13B"), replace(llama("7B"), name="small")
    options = LoadOptions.model_validate({"dtype": "bf16", "ctx_size": 2048, "cpu": True, "draft_model": "small"})
    there = machine(0, ram_gib=36)
    error = list_plans(Question(spec, options, there, Path("cache"), draft=draft)).refusal
    assert error is not None and "without --draft-model small" in error.remedy
    dropped = options.model_copy(update={"draft_model": None})
    assert list_plans(Question(spec, dropped, there, Path("cache"))).chosen is not None


def test_a_change_that_gives_a_flag_up_reads_as_a_sentence(files: dict[str, ModelSpec]) -> None:
    there = replace(machine(1, 24, ram_gib=64), gpus=machine(1, 2).gpus)
    question = replace(native(files, there, loader="llamacpp", gpu_layers=33), llamacpp_gpu=True)
    error = list_plans(question).refusal
    assert error is not None
    assert re.match(r"It would fit with --gpu-layers \d+|It would fit without --gpu-layers", error.remedy), error.remedy
