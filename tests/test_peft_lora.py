"""LoRA adapters as PEFT writes them: merged as computing beside the weights would have it, or refused by name."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from modules.engine.base import TextPiece
from modules.engine.loading.huggingface import load
from modules.engine.loading.merging import merge_loras
from modules.errors import BadLora, BadName, ModelNotFound, NotAvailableHere, PickleRefused
from modules.memory.model.lora import Lora, find_loras, list_loras
from modules.memory.model.peft_lora import find_peft_loras
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans, make_plan
from modules.models.manager import ModelManager
from modules.settings import LoadOptions, Settings
from tests.loading_rig import plain_model, quiet
from tests.loop_rig import Ask, greedy
from tests.shapes import NO_FLAGS, llama, machine
from tests.tiny_models import tiny_gguf, tiny_model

RANK, ALPHA = 4, 8
TARGETS = {"llama": ("q_proj", "v_proj", "down_proj"), "gpt2": ("c_attn", "c_proj")}
TOKENS = 24


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def loras(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of PEFT's form, one a family, named after it."""
    folder = tmp_path_factory.mktemp("loras")
    for family in TARGETS:
        write_adapter(folder / family, matrices(plain_model(tiny_model(family, models), torch.float32), family),
                      fan_in_fan_out=family == "gpt2")  # fmt: skip
    return folder


def matrices(model: Any, family: str, *, strength: float = 0.3) -> dict[str, torch.Tensor]:
    """A (rank, in) and B (out, rank) for every targeted matrix of `model`, under PEFT's names."""
    chance = torch.Generator().manual_seed(3)
    found = {}
    for name, parameter in model.named_parameters():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in TARGETS[family] or parameter.ndim != 2:
            continue
        rows, columns = parameter.shape[::-1] if family == "gpt2" else parameter.shape
        for half, shape in (("A", (RANK, columns)), ("B", (rows, RANK))):
            found[f"base_model.model.{module}.lora_{half}.weight"] = torch.randn(shape, generator=chance) * strength
    return found


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none", "init_lora_weights": True} | config
    (folder / "adapter_config.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def table(spec: ModelSpec, folder: Path, *wanted: str, gpus: int = 0, **flags: Any) -> PlanTable:
    options = LoadOptions.model_validate({"lora": wanted, **flags})
    found = find_peft_loras(folder, wanted, spec)
    return list_plans(Question(spec, options, machine(gpus, 8, ram_gib=8), folder / "cache", loras=found))


def planned(model: Path, folder: Path, *wanted: str, **flags: Any) -> Plan:
    plan = table(inspect(model), folder, *wanted, **flags).chosen
    assert plan is not None
    return plan


def beside(model: Any, tensors: dict[str, torch.Tensor], family: str, scale: float) -> Any:
    """`model`, each changed layer computing its low-rank change beside its own product, as PEFT attaches it."""
    for name, a in tensors.items():
        if ".lora_A." not in name:
            continue
        b = tensors[name.replace("lora_A", "lora_B")]
        layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))

        def add(_layer: Any, inputs: Any, output: Any, a: torch.Tensor = a, b: torch.Tensor = b) -> Any:
            return output + scale * ALPHA / RANK * (inputs[0] @ a.T @ b.T)

        layer.register_forward_hook(add)
    return model


@torch.inference_mode()
def continued(model: Any, ids: list[int]) -> list[int]:
    made = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return [int(token) for token in made[0, len(ids) :]]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_adapters_write_what_the_model_writes_that_computes_them_beside(
    models: Path, loras: Path, family: str
) -> None:
    path = tiny_model(family, models)
    tensors = matrices(plain_model(path, torch.float32), family)
    replies = {}
    for scale in (0, 1, 0.5):
        plan = planned(path, loras, f"{family}={scale}", dtype="fp32", ctx_size=256)
        with closing(load(plan, quiet)) as engine:
            ids = engine.encode([TextPiece("The harbour wakes before the town does.")])
            replies[scale] = Ask("one", ids, greedy(TOKENS, ban_eos_token=True)).run(engine).tokens
            assert engine.info.adapters == ((family,) if scale == 1 else (f"{family} × {scale}",))
        model = plain_model(path, torch.float32)
        model.generation_config.suppress_tokens = list(model_ends(model))
        assert replies[scale] == continued(beside(model, tensors, family, scale), ids)
    assert replies[1] != replies[0]


def model_ends(model: Any) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list) else {ends}


def test_a_change_is_computed_in_fp32_and_rounded_once(models: Path, loras: Path) -> None:
    path = tiny_model("llama", models)
    model, tensors = plain_model(path, torch.bfloat16), matrices(plain_model(path, torch.float32), "llama")
    name = "model.layers.1.self_attn.v_proj"
    before = model.get_submodule(name).weight.clone()
    other = model.get_submodule("model.layers.1.self_attn.k_proj").weight.clone()
    told: list[float] = []
    merge_loras(planned(path, loras, "llama=0.5", dtype="bf16"), model, told.append)
    a, b = (tensors[f"base_model.model.{name}.lora_{half}.weight"] for half in "AB")
    expected = (before.float() + 0.5 * ALPHA / RANK * (b @ a)).to(torch.bfloat16)
    torch.testing.assert_close(model.get_submodule(name).weight.data, expected, atol=0, rtol=0)
    assert torch.equal(model.get_submodule("model.layers.1.self_attn.k_proj").weight, other)
    assert told == sorted(told) and told[-1] == 1


def test_two_adapters_add_up_and_rank_stabilized_ones_have_another_factor(models: Path, tmp_path: Path) -> None:
    path = tiny_model("llama", models)
    tensors = matrices(plain_model(path, torch.float32), "llama")
    write_adapter(tmp_path / "plain", tensors)
    write_adapter(tmp_path / "stable", tensors, use_rslora=True, lora_alpha=ALPHA / 2)  # / sqrt(4): as much again
    twice, both = plain_model(path, torch.float32), plain_model(path, torch.float32)
    merge_loras(planned(path, tmp_path, "plain=2", dtype="fp32"), twice, lambda _: None)
    merge_loras(planned(path, tmp_path, "plain", "stable", dtype="fp32"), both, lambda _: None)
    for one, other in zip(twice.parameters(), both.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_plan_merges_in_16_or_32_bits_where_weights_lie_and_counts_the_load(models: Path, loras: Path) -> None:
    spec = inspect(tiny_model("llama", models))
    found, plain = table(spec, loras, "llama", gpus=2), planned(tiny_model("llama", models), loras, dtype="bf16")
    ways = {(plan.run.quantization, plan.loader, "disk" in plan.budgets) for plan in found.plans}
    assert ways == {("none", "transformers", False)}
    assert any("merged into weights" in why for _, why in found.dropped)
    merged = planned(tiny_model("llama", models), loras, "llama", dtype="bf16")
    assert merged.budgets["cpu"].resident == plain.budgets["cpu"].resident, "merged they take nothing"
    assert merged.budgets["cpu"].load_peak >= plain.budgets["cpu"].load_peak
    assert any("llama, merged into the weights while they are loaded" in reason for reason in merged.reasons)
    assert merged.flags[merged.flags.index("--lora") + 1] == "llama"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"load_in_4bit": True}, "--load-in-4bit"), ({"load_in_8bit": True}, "--load-in-8bit"),
        ({"disk": True}, "--disk"), ({"loader": "vllm"}, "--loader vllm"),
    ],
)  # fmt: skip
def test_what_cannot_be_merged_into_is_refused_with_the_flag(
    models: Path, loras: Path, flags: dict[str, Any], named: str
) -> None:
    with pytest.raises(NotAvailableHere, match=f"--lora llama: .*not with {named}") as caught:
        planned(tiny_model("llama", models), loras, "llama", **flags)
    assert caught.value.param == "lora" and f"Drop {named}" in caught.value.remedy


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"), ({"use_dora": True}, "it is a DoRA"),
        ({"modules_to_save": ["lm_head"]}, "replaces whole modules"), ({"bias": "all"}, "changes biases"),
        ({"alpha_pattern": {"q": 1}}, "alpha differs by layer"), ({"lora_alpha": "8"}, "lora_alpha is 8"),
        ({"lora_alpha": True}, "lora_alpha is True"), ({"init_lora_weights": "pissa_niter_4"}, "begun as 'pissa"),
        ({"fan_in_fan_out": True}, "which do not fit"),
    ],
)  # fmt: skip
def test_adapters_of_other_kinds_are_refused_by_what_they_are(
    models: Path, tmp_path: Path, config: dict[str, Any], why: str
) -> None:
    path = tiny_model("llama", models)
    write_adapter(tmp_path / "odd", matrices(plain_model(path, torch.float32), "llama"), **config)
    with pytest.raises(BadLora, match=why) as caught:
        find_peft_loras(tmp_path, ["odd"], inspect(path))
    assert caught.value.param == "lora" and caught.value.remedy


def test_files_that_do_not_fit_the_model_are_refused_before_torch_sees_them(
    models: Path, loras: Path, tmp_path: Path
) -> None:
    path = tiny_model("llama", models)
    spec, whole = inspect(path), matrices(plain_model(path, torch.float32), "llama")
    first = next(iter(whole))
    cases = {
        "cut": ({name: tensor for name, tensor in whole.items() if name != first}, "lacks its A"),
        "wide": (whole | {first: torch.zeros(RANK, 3)}, "which do not fit"),
        "whole numbers": (whole | {first: whole[first].to(torch.int32)}, "stored as I32"),
        "other": ({"base_model.model.x.lora_A.weight": whole[first]}, "'x.weight', which llama does not have"),
        "table": (
            whole | {"base_model.model.model.embed_tokens.lora_embedding_A": whole[first].clone()},
            "no plain LoRA's",
        ),
        "bare": ({"x.weight": whole[first]}, "no plain LoRA's"),
    }
    for name, (tensors, why) in cases.items():
        write_adapter(tmp_path / name, tensors)
        with pytest.raises(BadLora, match=why):
            find_peft_loras(tmp_path, [name], spec)
    with pytest.raises(BadLora, match="which llama does not have"):
        find_peft_loras(loras, ["gpt2"], spec)
    pickled = write_adapter(tmp_path / "pickled", whole)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(PickleRefused):
        find_peft_loras(tmp_path, ["pickled"], spec)
    broken = write_adapter(tmp_path / "broken", whole)
    (broken / "adapter_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BadLora, match=r"adapter_config\.json"):
        find_peft_loras(tmp_path, ["broken"], spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadLora, match=r"adapter_config\.json"):
        find_peft_loras(tmp_path, ["empty"], spec)


def test_names_lead_to_the_kind_that_the_model_takes(models: Path, loras: Path, tmp_path: Path) -> None:
    spec = inspect(tiny_model("llama", models))
    (tmp_path / "style.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadLora, match="it is a GGUF file, for models"):
        find_peft_loras(tmp_path, ["style"], spec)
    with pytest.raises(ModelNotFound):
        find_peft_loras(tmp_path, ["absent"], spec)
    with pytest.raises((BadName, ValueError)):
        find_peft_loras(tmp_path, ["../models"], spec)
    with pytest.raises(BadLora, match="a folder, as PEFT writes them"):
        find_loras(loras, ["llama"], tiny_gguf(models))
    assert list_loras(loras) == ["gpt2", "llama"] and list_loras(tmp_path) == ["style"]


def test_an_adapter_that_changed_after_it_was_checked_is_checked_again(models: Path, tmp_path: Path) -> None:
    path = tiny_model("llama", models)
    tensors = matrices(plain_model(path, torch.float32), "llama")
    write_adapter(tmp_path / "late", tensors)
    plan = planned(path, tmp_path, "late", dtype="fp32")
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "late" / "adapter_model.safetensors")
    with pytest.raises(BadLora):
        load(replace(plan), quiet)


def test_a_server_finds_them_in_its_folder_and_loads_a_model_with_them(settings: Settings) -> None:
    path = tiny_model("llama", settings.model_dir)
    settings = settings.model_copy(update={"lora_dir": settings.model_dir.parent / "loras"})
    settings.lora_dir.mkdir()
    write_adapter(settings.lora_dir / "style", matrices(plain_model(path, torch.float32), "llama"))
    manager = ModelManager(settings, read_inventory=lambda _: machine(0, ram_gib=8), in_process=True)
    try:
        info = manager.load(LoadOptions.model_validate({"model": "llama", "lora": "style=0.5"}))
        assert info.adapters == ("style × 0.5",) and manager.state.error is None
        with pytest.raises(ModelNotFound):
            manager.plan(LoadOptions.model_validate({"model": "llama", "lora": "absent"}))
    finally:
        manager.close()


def test_no_change_is_named_that_cannot_go_with_an_adapter() -> None:
    lora, there = Lora("style", Path("style"), 1.0, 40_000_000), machine(0, ram_gib=24)
    question = Question(
        llama("13B"), LoadOptions.model_validate({"lora": "style"}), there, Path("cache"), loras=(lora,)
    )
    error = list_plans(question).refusal
    assert error is not None and "without --lora style" in error.remedy, "then 8 bits fit"
    assert "--load-in" not in error.remedy and "--disk" not in error.remedy


def test_dropping_one_is_named_where_its_merging_is_what_does_not_fit(models: Path, loras: Path) -> None:
    spec = inspect(tiny_model("llama", models))
    huge = tuple(replace(lora, largest=2**33) for lora in find_peft_loras(loras, ["llama"], spec))
    options = LoadOptions.model_validate({"lora": "llama"})
    error = list_plans(Question(spec, options, machine(0, ram_gib=8), loras / "cache", loras=huge)).refusal
    assert error is not None and "without --lora llama" in error.remedy
    assert make_plan(Question(spec, NO_FLAGS, machine(0, ram_gib=8), loras / "cache")).fits
