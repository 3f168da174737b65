"""Why a way was chosen and the others were not: sentences a reader can check, for machines we do not have."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from modules.hardware import Inventory
from modules.memory.model.spec import ModelSpec
from modules.memory.planning.planner import Plan, Question, list_plans
from modules.memory.planning.speed import middle
from modules.settings import LoadOptions
from tests.shapes import llama, machine, mixtral

KERNELS = frozenset({"avx512f", "avx512_bf16"})


def card(name: str, gib: float, *, count: int = 1, ram_gib: float = 64, cores: int = 8) -> Inventory:
    """A machine with these cards and a CPU that computes in 4 bits."""
    here = machine(count, gib, ram_gib=ram_gib)
    gpus = tuple(replace(gpu, name=name) for gpu in here.gpus)
    return replace(here, gpus=gpus, physical_cores=cores, cpu_features=KERNELS)


def chosen(spec: ModelSpec, inventory: Inventory, **flags: object) -> Plan:
    """The plan taken, with flags given as on the command line."""
    plan = list_plans(Question(spec, LoadOptions.model_validate(flags), inventory, Path("cache"))).chosen
    assert plan is not None
    return plan


def why(spec: ModelSpec, inventory: Inventory, **flags: object) -> str:
    return " ".join(chosen(spec, inventory, **flags).reasons)


def test_what_lacks_on_the_gpu_and_what_its_next_best_way_would_cost_is_one_sentence() -> None:
    said = why(llama("7B"), card("RTX 3060", 12, ram_gib=32))
    assert re.search(
        r"16-bit lacks 3\.\d+ GiB on the GPU; with \d+ of 32 layers on the GPU it would keep all of the quality, "
        r"but writes 1\d times slower and reads 1,000 tokens of prompt in 2 s instead of 1 s\.", said,
    )  # fmt: skip
    assert "8-bit would lose less quality, but writes 2.9 times slower." in said


def test_a_split_that_writes_more_slowly_than_the_cpu_alone_is_left_and_what_it_reads_faster_is_told() -> None:
    """The speed of a chat is that of writing; who reads long prompts is told what they would gain."""
    few_cores = card("RTX 3090", 24, cores=2)
    plan = chosen(llama("70B"), few_cores)
    assert plan.title == "4-bit (nf4) on the CPU"
    said = " ".join(plan.reasons)
    assert re.search(
        r"With \d+ of 80 layers on the GPU it would read 1,000 tokens of prompt in \d+ s instead of 76 min, "
        r"but write 2\.\d times slower: \d+\.\d GiB would pass into the GPU for each token\.", said,
    )  # fmt: skip
    split = chosen(llama("70B"), few_cores, load_in_4bit=True, use_double_quant=True, auto_devices=True)
    said = " ".join(split.reasons)
    assert "On the CPU alone it would write 2." in said
    assert re.search(r"times faster, but read 1,000 tokens of prompt in 76 min instead of \d+ s\.", said)
    assert "What is not on the GPU stays in 16 bits" in said


def test_a_sentence_and_the_column_of_tokens_a_second_say_the_same() -> None:
    """On two cores 16 bits write half as fast as 4: that reading takes long either way does not make them alike."""
    found = list_plans(
        Question(llama("7B"), LoadOptions.model_validate({}), replace(machine(ram_gib=22), cpu_features=KERNELS,
                 physical_cores=2), Path("cache"))
    )  # fmt: skip
    assert found.chosen is not None and found.chosen.title.startswith("4-bit")
    sixteen = next(plan for plan in found.plans if plan.title == "16-bit on the CPU")
    told = middle(found.chosen.tokens_per_s) / middle(sixteen.tokens_per_s)
    assert f"16-bit would keep all of the quality, but writes {told:.1f} times slower." in found.chosen.reasons


def test_a_context_is_not_shortened_for_more_bits() -> None:
    """A card on which 16 bits leave room for half the context: 4 bits hold all of it, as fast as one reads."""
    plan = chosen(llama("13B"), card("a card", 27.4, ram_gib=30, cores=2))
    assert plan.run.context_tokens == 4096
    assert "16-bit would keep all of the quality, but only 2,560 tokens of context fit" in " ".join(plan.reasons)


def test_a_gpu_that_is_left_idle_is_explained() -> None:
    plan = chosen(llama("70B"), card("RTX 3090", 24))
    assert plan.title == "4-bit (nf4) on the CPU"
    said = " ".join(plan.reasons)
    assert "On the GPU alone it lacks 16." in said
    assert "layers on the GPU it would read 1,000 tokens of prompt in" in said
    assert "would pass into the GPU for each token" in said
    experts = why(mixtral(), card("RTX 3090", 24, count=2, ram_gib=128))
    assert "On the GPUs alone it lacks" in experts


def test_speed_beyond_reading_is_told_but_does_not_buy_quality() -> None:
    plan = chosen(llama("13B"), card("RTX 3090", 24, count=2))
    assert plan.title == "16-bit on 2 GPUs"
    assert "4-bit (nf4) also fits, but loses 2 to 6 % of quality." in plan.reasons
    mixed = card("RTX 3060", 12, count=2)
    faster_second = replace(mixed, gpus=(mixed.gpus[0], card("RTX 3090", 24).gpus[0]))
    second = replace(faster_second.gpus[1], id="cuda:1")
    said = why(llama("13B"), replace(faster_second, gpus=(mixed.gpus[0], second)))
    assert "times faster, but loses 2 to 6 % of quality; this is as fast as one reads." in said


def test_a_way_that_loses_nothing_is_not_said_to_lose() -> None:
    """fp32 rounded to 16 bits loses less than is worth telling; a GGUF file is the same through either loader."""
    said = chosen(llama("7B", dtype="F32"), machine(1, 80)).reasons
    assert "16-bit would write 1.7 times faster; this is as fast as one reads." in said
    file = replace(llama("7B"), source="gguf", stored_dtype="bfloat16")
    said = chosen(file, card("A100 80GB", 80)).reasons
    assert any(re.fullmatch(r"As stored \(llama\.cpp\) also fits, but writes \d+ times slower.*", one) for one in said)
    assert "loses ." not in " ".join(chosen(file, machine(ram_gib=64)).reasons)


def test_a_close_fit_says_so_and_a_roomy_one_does_not() -> None:
    assert re.search(r"A close fit: \d{3} MiB on the GPU stay free\.", why(llama("13B"), card("RTX 3060", 11.75)))
    assert "close fit" not in why(llama("7B"), card("RTX 3090", 24))


def test_layers_off_the_gpu_are_not_called_quantized() -> None:
    plan = chosen(llama("7B"), card("card", 8), load_in_8bit=True, gpu_memory="5GiB")
    said = [reason for reason in plan.reasons if "in CPU memory" in reason and "=" in reason]
    assert said and said[0].startswith("fp16: ")


def test_what_llama_cpp_keeps_as_stored_is_not_called_16_bits() -> None:
    file = replace(llama("7B"), source="gguf", stored_dtype="bfloat16")
    said = chosen(file, machine(ram_gib=64), loader="llamacpp").reasons
    assert [reason.partition(":")[0] for reason in said if " = " in reason] == ["As stored"]


def test_where_quantizing_is_slow_on_this_cpu_the_stored_weights_are_taken() -> None:
    inventory = machine(ram_gib=64)
    assert chosen(llama("7B"), inventory).run.quantization == "none"
    assert chosen(llama("7B"), replace(inventory, cpu_features=KERNELS)).run.quantization == "nf4"
    forced = " ".join(chosen(llama("7B"), inventory, load_in_4bit=True).reasons)
    assert "AVX-512 BF16" in forced


def test_what_the_disk_is_taken_to_read_is_told_where_weights_come_from_it() -> None:
    said = why(llama("13B"), machine(ram_gib=16), dtype="bf16", disk=True)
    assert "The disk is taken to read 1.7 GB a second." in said
    assert "The disk" not in why(llama("7B"), machine(ram_gib=64))


@pytest.mark.parametrize("cores", [2, 16])
def test_no_reason_names_a_device_by_its_library_name(cores: int) -> None:
    for spec, count in ((llama("7B"), 1), (llama("13B"), 2), (llama("70B"), 2), (llama("70B"), 1)):
        inventory = card("RTX 3090", 24, count=count, cores=cores)
        for plan in list_plans(Question(spec, LoadOptions.model_validate({}), inventory, Path("cache"))).plans:
            assert "cuda" not in " ".join((plan.title, *plan.reasons))
