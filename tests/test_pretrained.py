"""modules/engine/loading/pretrained.py: what from_pretrained is asked for, on machines that we do not have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import BitsAndBytesConfig, GgufConfig

from modules.engine.loading.pretrained import from_pretrained_kwargs, source_folder
from modules.errors import NotAvailableHere, OutOfMemory
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.settings import LoadOptions
from tests.shapes import llama, machine

Size = Literal["7B", "13B", "70B"]
MACHINES = {"none": (0, 0), "1x8": (1, 8), "1x24": (1, 24), "2x24": (2, 24), "4x80": (4, 80)}
ENOUGH, LITTLE = 256, 8
INT8, NF4 = {"load_in_8bit": True}, {"load_in_4bit": True}
SPILL = {"auto_devices": True, "disk": True}
SPLIT = {"auto_devices": True}
NF4_SPLIT = {"load_in_4bit": True, "auto_devices": True}

# Model, GPUs, GiB of RAM, flags → the devices in use; "-" where it does not fit.
TABLE: list[tuple[Size, str, int, dict[str, Any], str]] = [
    ("7B", "none", ENOUGH, {}, "cpu"),
    ("7B", "none", LITTLE, {"bf16": True}, "-"),
    ("7B", "none", LITTLE, INT8, "cpu"),
    ("7B", "none", LITTLE, NF4, "cpu"),
    ("7B", "none", LITTLE, SPILL, "cpu disk"),
    ("70B", "none", ENOUGH, {}, "cpu"),
    ("70B", "none", LITTLE, SPILL, "cpu disk"),
    ("7B", "1x8", ENOUGH, SPLIT, "cuda:0 cpu"),
    ("7B", "1x8", LITTLE, INT8, "cuda:0"),
    ("7B", "1x8", LITTLE, NF4, "cuda:0"),
    ("13B", "1x8", LITTLE, SPLIT, "-"),
    ("13B", "1x8", ENOUGH, NF4_SPLIT, "cuda:0 cpu"),
    ("13B", "1x8", LITTLE, SPILL, "cuda:0 cpu disk"),
    ("7B", "1x24", LITTLE, {}, "cuda:0"),
    ("13B", "1x24", ENOUGH, SPLIT, "cuda:0 cpu"),
    ("13B", "1x24", LITTLE, INT8, "cuda:0"),
    ("70B", "1x24", ENOUGH, NF4_SPLIT, "cuda:0 cpu"),
    ("70B", "1x24", LITTLE, NF4_SPLIT, "-"),
    ("7B", "2x24", LITTLE, {}, "cuda:0"),
    ("13B", "2x24", LITTLE, {}, "cuda:0 cuda:1"),
    ("70B", "2x24", ENOUGH, SPLIT, "cuda:0 cuda:1 cpu"),
    ("70B", "2x24", LITTLE, SPILL, "cuda:0 cuda:1 cpu disk"),
    ("70B", "2x24", LITTLE, NF4, "cuda:0 cuda:1"),
    ("70B", "4x80", LITTLE, {"dtype": "fp16"}, "cuda:0 cuda:1"),
    ("70B", "4x80", LITTLE, INT8, "cuda:0"),
    ("70B", "4x80", ENOUGH, NF4, "cuda:0"),
]


def plan_for(size: Size, gpus: str, ram_gib: float, **flags: Any) -> Plan:
    count, gib = MACHINES[gpus]
    return make_plan(Question(llama(size), LoadOptions(**flags), machine(count, gib, ram_gib=ram_gib), Path("cache")))


def devices_of(kwargs: dict[str, Any]) -> set[str]:
    return {f"cuda:{device}" if isinstance(device, int) else device for device in kwargs["device_map"].values()}


@pytest.mark.parametrize(("size", "gpus", "ram_gib", "flags", "expected"), TABLE)
def test_each_machine_gets_the_devices_that_it_has(
    size: Size, gpus: str, ram_gib: int, flags: dict[str, Any], expected: str
) -> None:
    if expected == "-":
        with pytest.raises(OutOfMemory):
            plan_for(size, gpus, ram_gib, **flags)
        return
    kwargs = from_pretrained_kwargs(plan_for(size, gpus, ram_gib, **flags))
    assert devices_of(kwargs) == set(expected.split())
    assert ("offload_folder" in kwargs) == ("disk" in expected)
    assert kwargs["dtype"] == (torch.bfloat16 if gpus == "none" else torch.float16)  # the file is fp16
    assert kwargs["use_safetensors"] is True
    assert kwargs["trust_remote_code"] is False
    assert kwargs["local_files_only"] is True
    config = kwargs.get("quantization_config")
    assert (config is not None) == ("load_in_8bit" in flags or "load_in_4bit" in flags)
    if config is not None:
        assert (config.load_in_8bit, config.load_in_4bit) == ("load_in_8bit" in flags, "load_in_4bit" in flags)
        assert config.llm_int8_enable_fp32_cpu_offload == (expected == "cuda:0 cpu")


@pytest.mark.parametrize(("size", "gpus", "flags"), [("70B", "2x24", SPILL), ("13B", "1x8", NF4_SPLIT)])
def test_every_tensor_of_a_split_model_has_a_named_place(size: Size, gpus: str, flags: dict[str, bool]) -> None:
    plan = plan_for(size, gpus, ENOUGH, **flags)
    names = from_pretrained_kwargs(plan)["device_map"]
    assert "" not in names
    for tensor in plan.spec.tensors:
        assert any(tensor.name.startswith(f"{name}.") for name in names), tensor.name


def test_gpus_go_by_number_so_that_the_first_runs_what_is_offloaded() -> None:
    devices = set(from_pretrained_kwargs(plan_for("70B", "2x24", ENOUGH, **SPLIT))["device_map"].values())
    assert devices == {0, 1, "cpu"}
    assert next(iter(devices - {"cpu", "disk"})) == 0  # as accelerate's dispatch_model takes it


def test_four_bit_options_reach_bitsandbytes() -> None:
    plan = plan_for(
        "7B", "1x24", LITTLE, load_in_4bit=True, quant_type="fp4", use_double_quant=True, compute_dtype="bf16"
    )
    config = from_pretrained_kwargs(plan)["quantization_config"]
    assert isinstance(config, BitsAndBytesConfig)
    assert config.bnb_4bit_quant_type == "fp4"
    assert config.bnb_4bit_use_double_quant is True
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_the_files_own_quantization_is_left_to_the_files() -> None:
    plan = plan_for("7B", "1x24", LITTLE, load_in_4bit=True)
    stored = replace(plan, spec=replace(plan.spec, prequantized="nf4"))
    assert "quantization_config" not in from_pretrained_kwargs(stored)


def test_a_gguf_file_is_unpacked_from_its_folder_and_not_quantized_again() -> None:
    plan = plan_for("7B", "none", ENOUGH)
    gguf = replace(plan, spec=replace(plan.spec, source="gguf", path=Path("models/tiny.Q4_1.gguf")))
    kwargs = from_pretrained_kwargs(gguf)
    assert (source_folder(gguf), kwargs["gguf_file"]) == (Path("models"), "tiny.Q4_1.gguf")
    assert isinstance(kwargs["quantization_config"], GgufConfig)
    assert kwargs["quantization_config"].dequantize is True
    with pytest.raises(NotAvailableHere, match="second time"):
        from_pretrained_kwargs(replace(gguf, run=replace(gguf.run, quantization="int8")))


def test_disk_without_a_folder_is_refused() -> None:
    plan = plan_for("7B", "none", LITTLE, **SPILL)
    assert from_pretrained_kwargs(plan)["offload_folder"] == "cache"
    with pytest.raises(NotAvailableHere, match="no folder"):
        from_pretrained_kwargs(replace(plan, disk_cache_dir=None))


def test_the_plans_attention_precision_and_trust_reach_transformers() -> None:
    plan = plan_for("7B", "none", ENOUGH, dtype="fp32", attn_implementation="eager")
    kwargs = from_pretrained_kwargs(replace(plan, trust_remote_code=True))
    assert (kwargs["dtype"], kwargs["attn_implementation"]) == (torch.float32, "eager")
    assert kwargs["trust_remote_code"] is True
