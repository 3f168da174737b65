"""Plans for machines that we do not have, and placements that transformers really loads."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.errors import BadFlag, BadValue, DiskFull, NotAvailableHere, OutOfMemory, SnugError
from modules.hardware import Inventory
from modules.memory.forecasting.budget import Budget, Figure
from modules.memory.forecasting.forecast import CUDA_CONTEXT_BYTES, weight_bytes
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.placement import make_groups
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.memory.planning.problem import margin
from modules.settings import LoadOptions
from modules.units import GiB, MiB
from tests.shapes import gptj, llama, machine, t5_3b
from tests.tiny_models import CAUSAL, ENCODER_DECODER, tiny_model

MODELS = {"7B": llama("7B"), "13B": llama("13B"), "70B": llama("70B"), "GPT-J": gptj(), "T5-3B": t5_3b()}
MACHINES = {
    "none": machine(), "none, 8 GiB RAM": machine(ram_gib=8), "1x8": machine(1, 8),
    "1x8, 6 GiB RAM": machine(1, 8, ram_gib=6), "1x24": machine(1, 24), "2x24": machine(2, 24),
    "2x24, 16 GiB RAM": machine(2, 24, ram_gib=16), "4x80": machine(4, 80),
}  # fmt: skip


def plan_for(spec: ModelSpec, inventory: Inventory, **options: object) -> Plan:
    """make_plan with flags given as on the command line."""
    given_options = LoadOptions.model_validate(options)
    return make_plan(Question(spec, given_options, inventory, Path("cache")))


def devices(plan: Plan) -> str:
    """Where a plan puts the model, in short: `cuda:0+cpu`."""
    return "+".join(sorted(set(plan.placement.values()), key=lambda name: (name == "disk", name == "cpu", name)))


@pytest.mark.parametrize(
    ("model", "where", "flags", "expected"),
    [
        ("7B", "none", {}, "cpu"),
        ("7B", "none, 8 GiB RAM", {}, "nf4 cpu"),
        ("7B", "none, 8 GiB RAM", {"load_in_4bit": True}, "cpu"),
        ("7B", "none, 8 GiB RAM", {"disk": True}, "cpu+disk"),
        ("7B", "1x8", {}, "nf4 cuda:0"),
        ("7B", "1x8", {"load_in_4bit": True, "ctx_size": 2048}, "cuda:0"),
        ("7B", "1x8", {"load_in_8bit": True}, "cuda:0"),
        ("13B", "1x8, 6 GiB RAM", {"load_in_8bit": True}, "--load-in-4bit"),
        ("7B", "1x8", {"load_in_8bit": True, "auto_devices": True}, "cuda:0+cpu"),
        ("7B", "1x8", {"cpu": True}, "cpu"),
        ("7B", "1x8, 6 GiB RAM", {}, "nf4 cuda:0"),
        ("7B", "1x8, 6 GiB RAM", {"disk": True}, "cuda:0+cpu+disk"),
        ("7B", "1x24", {}, "cuda:0"),
        ("7B", "1x24", {"gpu_memory": "10"}, "cuda:0+cpu"),
        ("7B", "1x24", {"gpu_memory": "10", "cpu_memory": "1", "disk": True}, "cuda:0+cpu+disk"),
        ("7B", "2x24", {"gpu_memory": "10 10"}, "cuda:0+cuda:1"),
        ("7B", "2x24", {}, "cuda:0"),
        ("7B", "4x80", {}, "cuda:0"),
        ("13B", "1x8", {"auto_devices": True}, "cuda:0+cpu"),
        ("13B", "1x24", {"load_in_8bit": True}, "cuda:0"),
        ("13B", "1x24", {}, "nf4 cuda:0"),
        ("13B", "1x24", {"bf16": True}, "cuda:0+cpu"),
        ("13B", "2x24", {}, "cuda:0+cuda:1"),
        ("13B", "4x80", {}, "cuda:0"),
        ("70B", "none", {}, "nf4 cpu"),
        ("70B", "none", {"disk": True}, "cpu+disk"),
        ("70B", "2x24", {"load_in_4bit": True}, "cuda:0+cuda:1"),
        ("70B", "2x24", {"load_in_8bit": True}, "cuda:0+cuda:1+cpu"),
        ("70B", "none, 8 GiB RAM", {}, "--disk"),
        ("70B", "2x24, 16 GiB RAM", {"disk": True}, "cuda:0+cuda:1+cpu+disk"),
        ("70B", "2x24, 16 GiB RAM", {}, "nf4 cuda:0+cuda:1"),
        ("70B", "4x80", {"dtype": "fp16"}, "cuda:0+cuda:1"),
        ("70B", "4x80", {"load_in_4bit": True}, "cuda:0"),
        ("GPT-J", "none", {}, "cpu"),
        ("GPT-J", "1x8", {"load_in_8bit": True}, "cuda:0"),
        ("GPT-J", "1x24", {}, "cuda:0"),
        ("T5-3B", "1x8", {"dtype": "bf16"}, "cuda:0"),
        ("T5-3B", "1x8", {}, "cuda:0"),
        ("T5-3B", "1x24", {}, "cuda:0"),
    ],
)  # fmt: skip
def test_where_a_model_goes(model: str, where: str, flags: dict[str, object], expected: str) -> None:
    if expected.startswith("--"):
        with pytest.raises(OutOfMemory, match=expected) as caught:
            plan_for(MODELS[model], MACHINES[where], **flags)
        assert MODELS[model].name in caught.value.message
        assert "free are" in caught.value.message
        return
    plan = plan_for(MODELS[model], MACHINES[where], **flags)
    quantization, _, places = expected.rpartition(" ")
    assert devices(plan) == places
    assert plan.run.quantization == (quantization or plan.run.quantization)
    check_budgets(plan, MACHINES[where], LoadOptions.model_validate(flags))


def check_budgets(plan: Plan, inventory: Inventory, options: LoadOptions) -> None:
    """Every device stays within what is free and within the user's limit; the weights add up."""
    free = {device.id: device.free_bytes for device in (*inventory.gpus, inventory.cpu, inventory.disk)}
    for device, budget in plan.budgets.items():
        if device != "disk":
            assert budget.total <= free[device] - margin(free[device]), device
    for index, limit in enumerate(options.gpu_memory or ()):
        budget = plan.budgets.get(f"cuda:{index}", Budget.of({"context": Figure(CUDA_CONTEXT_BYTES, "formula")}))
        assert budget.total - CUDA_CONTEXT_BYTES <= limit
    if options.cpu_memory is not None and "cpu" in plan.budgets:
        assert plan.budgets["cpu"].weights <= options.cpu_memory
    if plan.loader == "transformers" and not plan.offloads_quantized:
        assert sum(budget.weights + budget.quant_meta for budget in plan.budgets.values()) == weight_bytes(
            plan.spec, plan.run
        )
    assert plan.fits
    assert plan.reasons


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_the_flags_a_plan_places_each_tensor_once_and_stays_within_every_limit(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from([MODELS["7B"], MODELS["13B"], MODELS["GPT-J"], MODELS["T5-3B"]]))
    gpus = data.draw(st.integers(0, 4))
    inventory = machine(gpus, data.draw(st.floats(1, 40)), ram_gib=data.draw(st.floats(2, 64)), disk_gib=500)
    sizes = st.integers(64 * MiB, 40 * GiB).map(lambda size: f"{size}B")
    flags: dict[str, object] = {"disk": data.draw(st.booleans()), "auto_devices": data.draw(st.booleans())}
    flags["cpu_memory"] = data.draw(st.none() | sizes)
    flags["gpu_memory"] = data.draw(st.none() | st.lists(sizes, min_size=1, max_size=gpus)) if gpus else None
    flags[data.draw(st.sampled_from(["load_in_8bit", "load_in_4bit", "bf16"]))] = True
    try:
        plan = plan_for(spec, inventory, **flags)
    except OutOfMemory as error:
        assert error.remedy
        return
    check_budgets(plan, inventory, LoadOptions.model_validate(flags))
    for tensor in spec.tensors:
        assert len(owners(plan.placement, tensor.name)) == 1, tensor.name
    assert plan_for(spec, inventory, **flags) == plan


def owners(placement: dict[str, str], name: str) -> list[str]:
    """The placement's modules that hold the tensor `name`."""
    return [module for module in placement if module == "" or name == module or name.startswith(module + ".")]


def test_every_block_stays_whole_with_its_cache_and_bare_modules_are_placed_too() -> None:
    plan = plan_for(MODELS["7B"], machine(1, 8), auto_devices=True)
    assert {f"model.layers.{i}" for i in range(32)} < set(plan.placement)
    assert plan.placement["model.rotary_emb"] == "cuda:0"
    groups = make_groups(MODELS["7B"], plan.run)
    assert [group.kind for group in groups].count("block") == 32


def test_the_embedding_leaves_the_gpu_before_any_block_and_the_head_stays() -> None:
    seven = MODELS["7B"]
    needed = plan_for(seven, machine(1, 24)).budgets["cuda:0"].total
    inventory = machine(1, (needed + margin(needed) - 64 * MiB) / GiB)
    plan = plan_for(seven, inventory, ctx_size=4096, auto_devices=True, kv_cache="plain")
    elsewhere = [module for module, device in plan.placement.items() if device == "cpu"]
    assert "model.embed_tokens" in elsewhere
    assert plan.placement["lm_head"] == "cuda:0"


def test_caches_and_buffers_of_offloaded_blocks_count_on_the_gpu_that_runs_them() -> None:
    plan = plan_for(MODELS["7B"], machine(1, 8), ctx_size=2048, auto_devices=True)
    assert plan.budgets["cuda:0"].kv_cache == 2048 * 524_288
    assert plan.budgets["cpu"].kv_cache == 0
    assert plan.budgets["cuda:0"].offload_buffer > 0


def test_one_gib_more_of_gpu_memory_never_puts_fewer_blocks_on_the_gpu() -> None:
    counts = []
    for gib in range(4, 16):
        placement = plan_for(MODELS["7B"], machine(1, 24), gpu_memory=str(gib), ctx_size=2048).placement
        counts.append(sum(device == "cuda:0" for device in placement.values()) if "" not in placement else 99)
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_gpu_memory_counts_the_cache_and_not_the_weights_alone() -> None:
    short = plan_for(MODELS["7B"], machine(1, 24), gpu_memory="8", ctx_size=512)
    long = plan_for(MODELS["7B"], machine(1, 24), gpu_memory="8", ctx_size=4096)
    assert short.budgets["cuda:0"].weights > long.budgets["cuda:0"].weights


def test_fewer_values_than_gpus_leave_the_other_gpus_alone_and_say_so() -> None:
    plan = plan_for(MODELS["13B"], machine(2, 24), gpu_memory="20")
    assert devices(plan) == "cuda:0+cpu"
    assert "names 1 of 2 GPUs" in " ".join(plan.reasons)


def test_a_busy_first_gpu_is_passed_over() -> None:
    inventory = machine(2, 24)
    busy = replace(inventory.gpus[0], free_bytes=2 * GiB)
    plan = plan_for(MODELS["7B"], replace(inventory, gpus=(busy, inventory.gpus[1])))
    assert plan.placement == {"": "cuda:1"}


def test_a_context_of_the_models_own_length_is_shortened_where_it_does_not_fit_and_a_wished_one_never() -> None:
    long = llama("7B", context=8192)
    plan = plan_for(long, machine(ram_gib=17.5), bf16=True)
    assert 4096 <= plan.run.context_tokens < 8192
    assert plan.run.context_tokens % 256 == 0
    assert "do not fit" in " ".join(plan.reasons)
    assert plan_for(long, machine(1, 17.5), ctx_size=8192).run.context_tokens == 8192


def test_a_context_beyond_the_models_is_refused_and_the_default_is_at_most_8192() -> None:
    with pytest.raises(BadValue, match="at most 4096") as caught:
        plan_for(MODELS["7B"], machine(), ctx_size=5000)
    assert caught.value.param == "ctx_size"
    assert plan_for(llama("7B", context=131072), machine()).run.context_tokens == 8192


def test_the_gpu_memory_that_would_work_is_named() -> None:
    with pytest.raises(OutOfMemory, match=r"with --gpu-memory 2\.\dGiB,") as caught:
        plan_for(MODELS["7B"], machine(1, 8, ram_gib=14), gpu_memory="2", cpu_memory="11")
    assert plan_for(MODELS["7B"], machine(1, 8, ram_gib=14), gpu_memory="3", cpu_memory="11").fits
    assert "within --gpu-memory 2.00 GiB and --cpu-memory 11.0 GiB" in caught.value.message


def test_a_machine_too_small_for_anything_is_told_so() -> None:
    with pytest.raises(OutOfMemory, match="more in CPU memory, or a smaller model"):
        plan_for(MODELS["70B"], machine(ram_gib=1))


@pytest.mark.parametrize(
    ("stored", "options", "gpus", "dtype"),
    [
        ("F16", {}, 1, "float16"),
        ("F16", {}, 0, "bfloat16"),
        ("F16", {"dtype": "fp16"}, 0, "float16"),
        ("BF16", {}, 1, "bfloat16"),
        ("F32", {}, 0, "bfloat16"),
        ("F32", {}, 1, "float32"),
        ("F32", {"bf16": True}, 1, "bfloat16"),
        ("BF16", {"dtype": "fp32"}, 0, "float32"),
    ],
)
def test_precision_is_as_stored_but_bf16_for_fp16_on_a_cpu(
    stored: str, options: dict[str, object], gpus: int, dtype: str
) -> None:
    plan = plan_for(llama("7B", dtype=stored), machine(gpus, 80, ram_gib=128), **options)
    assert plan.run.dtype == dtype
    assert plan.run.compute_dtype == dtype


def test_the_flags_of_quantization_reach_the_run() -> None:
    plan = plan_for(
        MODELS["7B"], machine(), load_in_4bit=True, quant_type="fp4", use_double_quant=True, compute_dtype="fp32"
    )
    assert (plan.run.quantization, plan.run.double_quant, plan.run.compute_dtype) == ("fp4", True, "float32")
    assert plan_for(MODELS["7B"], machine(), load_in_4bit=True).run.quantization == "nf4"
    assert plan_for(MODELS["7B"], machine(), load_in_8bit=True).run.quantization == "int8"


def test_a_quantized_model_that_leaves_the_gpu_in_part_says_so_to_the_loader() -> None:
    split = plan_for(MODELS["7B"], machine(1, 8), load_in_8bit=True, auto_devices=True)
    assert split.offloads_quantized
    assert not plan_for(MODELS["7B"], machine(), load_in_8bit=True).offloads_quantized
    assert not plan_for(MODELS["13B"], machine(2, 10), load_in_8bit=True).offloads_quantized


def test_on_a_cpu_a_quantized_model_does_not_go_to_disk_and_the_remedy_says_what_would() -> None:
    with pytest.raises(OutOfMemory, match="--disk instead of quantization"):
        plan_for(MODELS["13B"], machine(ram_gib=6), load_in_4bit=True, disk=False)


def test_a_model_that_bitsandbytes_hardly_reaches_is_told_so() -> None:
    falcon = replace(MODELS["7B"], model_type="falcon")
    assert "hardly helps" in " ".join(plan_for(falcon, machine(), load_in_4bit=True).reasons)


def test_a_model_quantized_already_keeps_its_format_and_refuses_another() -> None:
    stored = replace(MODELS["7B"], prequantized="nf4")
    assert plan_for(stored, machine()).run.quantization == "nf4"
    assert plan_for(stored, machine(), load_in_4bit=True).run.quantization == "nf4"
    with pytest.raises(BadFlag, match="--load-in-8bit"):
        plan_for(stored, machine(), load_in_8bit=True)


def test_disk_offload_writes_nothing_for_plain_safetensors_and_checks_room_for_what_it_writes() -> None:
    full = machine(ram_gib=8, disk_gib=1)
    plan = plan_for(MODELS["7B"], full, disk=True)
    assert "nothing is written" in " ".join(plan.reasons)
    assert plan.disk_cache_dir == Path("cache")
    with pytest.raises(DiskFull, match="/disk") as caught:
        plan_for(replace(MODELS["7B"], source="gguf"), full, disk=True, dtype="bf16")
    assert caught.value.param == "disk_cache_dir"


def test_deepspeed_places_nothing_itself_and_checks_its_room() -> None:
    plan = plan_for(MODELS["7B"], machine(1, 8), deepspeed=True)
    assert (plan.loader, plan.placement) == ("deepspeed", {})
    assert plan.budgets["cpu"].weights == weight_bytes(MODELS["7B"], plan.run)
    with pytest.raises(OutOfMemory, match="--nvme-offload-dir"):
        plan_for(MODELS["13B"], machine(1, 8, ram_gib=16), deepspeed=True)
    with pytest.raises(DiskFull):
        plan_for(MODELS["13B"], machine(1, 8, disk_gib=4), deepspeed=True, nvme_offload_dir="/nvme")
    on_disk = plan_for(MODELS["13B"], machine(1, 8, ram_gib=16), deepspeed=True, nvme_offload_dir="/nvme")
    assert on_disk.nvme_offload_dir == Path("/nvme")
    with pytest.raises(NotAvailableHere):
        plan_for(replace(MODELS["7B"], prequantized="int8"), machine(), deepspeed=True)


def test_the_reasons_show_the_sum_on_each_device() -> None:
    reasons = " ".join(plan_for(MODELS["7B"], machine(1, 24), load_in_8bit=True).reasons)
    assert "8-bit: 6.53 GiB weights + 2.00 GiB KV cache + " in reasons
    assert "of 24.0 GiB free on the GPU" in reasons


def test_a_plan_can_be_sent_to_another_process() -> None:
    plan = plan_for(MODELS["7B"], machine(1, 8))
    assert pickle.loads(pickle.dumps(plan)) == plan


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODER_DECODER])
def test_transformers_loads_our_placement_and_gives_the_same_tokens(family: str, tmp_path_factory: Any) -> None:
    torch = pytest.importorskip("torch")
    import transformers

    folder = tiny_model(family, tmp_path_factory.getbasetemp() / "tiny")
    spec = inspect(folder)
    total = weight_bytes(spec, replace(plan_for(spec, machine(), dtype="fp32").run))
    plan = plan_for(spec, machine(), dtype="fp32", cpu_memory=f"{int(total * 0.6)}B", disk=True)
    assert devices(plan) == "cpu+disk"
    auto = transformers.AutoModelForSeq2SeqLM if spec.is_encoder_decoder else transformers.AutoModelForCausalLM
    whole: Any = auto.from_pretrained(folder, dtype=torch.float32)
    assert weight_bytes(spec, plan.run) - sum(p.nbytes for p in whole.parameters()) in (0, bytes_of_buffers(spec))
    split: Any = auto.from_pretrained(
        folder, dtype=torch.float32, device_map=dict(plan.placement), offload_folder=tmp_path_factory.mktemp("cache")
    )
    on_disk = {name for name, parameter in split.named_parameters() if parameter.device.type == "meta"}
    assert on_disk
    assert all(plan.placement[owners(plan.placement, name)[0]] == "disk" for name in on_disk)
    prompt = torch.arange(5, 13).unsqueeze(0)
    with torch.no_grad():
        expected, got = (m.generate(prompt, max_new_tokens=4, do_sample=False) for m in (whole, split))
    assert torch.equal(expected, got)


def bytes_of_buffers(spec: ModelSpec) -> int:
    """Stored tensors that are buffers, not parameters: BART's final_logits_bias."""
    return sum(4 * t.shape[-1] for t in spec.tensors if t.name == "final_logits_bias")


def test_errors_are_ones_that_a_user_can_read() -> None:
    with pytest.raises(SnugError) as caught:
        plan_for(MODELS["70B"], machine(1, 8, ram_gib=8))
    assert "Llama-70B does not fit: it needs" in str(caught.value)
    assert "GiB on the GPU" in str(caught.value)
