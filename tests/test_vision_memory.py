"""What models that see take: every byte of the tower, what bitsandbytes makes of it, and a picture's activations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import BitsAndBytesConfig

from benchmarks.allocations import measure
from modules.errors import BadConfig, NotAvailableHere, UnsupportedModel
from modules.memory.dryruns.dryrun import count_peaks
from modules.memory.forecasting.forecast import RunSpec, kv_cache_bytes, weight_bytes
from modules.memory.forecasting.pictures import picture_figure
from modules.memory.model import meta
from modules.memory.model.formats import StoredTensor
from modules.memory.model.naming import name_tensors
from modules.memory.model.spec import inspect
from modules.memory.model.vision import Vision
from modules.memory.planning.planner import Question, make_plan
from modules.settings import LoadOptions
from tests.exact_rows import QUANTIZED, distinct_bytes, with_scales
from tests.fakes import fake_inventory
from tests.tiny_seeing import FAMILIES, tiny_seeing, tiny_seeing_config

QUANTIZED_HERE = ("idefics3", "llava", "qwen2_5_vl")  # the others' towers are built of the same layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny models of this file go."""
    return tmp_path_factory.getbasetemp().parent / "tiny seeing"


def loaded(path: Path, **options: Any) -> Any:
    """The model as the engine loads it."""
    auto: Any = transformers.AutoModelForImageTextToText
    return auto.from_pretrained(path, device_map={"": "cpu"}, **options).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_the_tower_are_exact_in_16_8_and_4_bits(family: str, folder: Path) -> None:
    path = tiny_seeing(family, folder)
    spec = inspect(path, describe=meta.describe)
    assert spec.warnings == () and spec.vision is not None
    assert spec.linear_weights is not None and any("vis" in name for name in spec.linear_weights)
    model = loaded(path, dtype=torch.bfloat16)
    assert weight_bytes(spec, RunSpec("bfloat16")) == distinct_bytes([*model.parameters(), *model.buffers()])
    for label, run, options in QUANTIZED if family in QUANTIZED_HERE else ():
        model = loaded(path, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(**options))
        measured = distinct_bytes([*with_scales(model), *model.buffers()])
        assert weight_bytes(spec, run) == measured, label


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_published_names_and_a_config_alone_say_the_same(family: str, folder: Path, tmp_path: Path) -> None:
    path = tiny_seeing(family, folder)
    tiny_seeing_config(family).save_pretrained(tmp_path)
    alone, whole = inspect(tmp_path / "config.json", describe=meta.describe), inspect(path, describe=meta.describe)
    assert {tensor.name for tensor in alone.tensors} == {tensor.name for tensor in whole.tensors}
    assert replace(alone.vision or _NO_VISION, tiles=0, image=0, most_pixels=0) == replace(
        whole.vision or _NO_VISION, tiles=0, image=0, most_pixels=0
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_for_a_picture_covers_what_is_allocated_and_not_much_more(
    family: str, dtype: Any, tmp_path: Path
) -> None:
    config = _wider(tiny_seeing_config(family))
    config.save_pretrained(tmp_path)
    vision = inspect(tmp_path / "config.json", describe=meta.describe).vision
    assert vision is not None
    run = RunSpec(dtype, picture_side=224)
    auto: Any = transformers.AutoModelForImageTextToText
    model = auto.from_config(config, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        _look(model, vision, run)  # what libraries set up once is not the picture's
        _, allocated = measure(lambda: _look(model, vision, run))
    formula = picture_figure(vision, run).bytes
    print(family, dtype, allocated.peak, formula, f"{formula / allocated.peak:.2f}")
    assert allocated.peak <= formula <= 3 * allocated.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dry_run_of_reading_text_counts_the_whole_model(family: str, tmp_path: Path) -> None:
    tiny_seeing_config(family).save_pretrained(tmp_path)
    file, run = tmp_path / "config.json", RunSpec("float32", context_tokens=64, prefill_chunk=16)
    counted, spec = count_peaks(file, run, "cpu"), inspect(file, describe=meta.describe)
    assert counted.weights == weight_bytes(spec, run)
    assert counted.kv_cache == kv_cache_bytes(spec, run, 64)
    assert counted.prefill_peak > 0


def test_names_as_published_become_those_of_the_loaded_model() -> None:
    published = {
        "llava": ("vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", "model.vision_tower.encoder.layers.3"),
        "qwen2_vl": ("visual.blocks.3.mlp.fc1.weight", "model.visual.blocks.3"),
        "qwen2_5_vl": ("model.layers.3.mlp.up_proj.weight", "model.language_model.layers.3"),
        "idefics3": ("model.text_model.layers.3.mlp.up_proj.weight", "model.text_model.layers.3"),
    }
    for family, (name, block) in published.items():
        (tensor,) = name_tensors((StoredTensor(name, (4, 4), "BF16", 32),), family)
        assert tensor.block == block and tensor.name.startswith(f"{block}.mlp.")
    (head,) = name_tensors((StoredTensor("language_model.lm_head.weight", (4, 4), "BF16", 32),), "llava")
    assert head.name == "lm_head.weight"


_NO_VISION = Vision(0, 0, 0, 1, 0, 0, 1, 0)


def _wider(config: Any) -> Any:
    """A tower whose layers, not the pixels, take most."""
    tower = config.vision_config
    if hasattr(tower, "embed_dim") and config.model_type == "qwen2_vl":
        tower.embed_dim, tower.mlp_ratio = 256, 4
    else:
        tower.hidden_size, tower.intermediate_size = 256, 512 if config.model_type == "qwen2_5_vl" else 1024
    return config


def _look(model: Any, vision: Vision, run: RunSpec) -> Any:
    """The largest picture that `run` allows, through the tower."""
    side = vision.image
    if vision.tiles == 1:
        return model.model.get_image_features(torch.rand(1, 3, side, side), return_dict=True)
    if vision.tiles:
        return model.model.get_image_features(torch.rand(1, vision.tiles, 3, side, side), return_dict=True)
    patches = vision.patches(run.picture_side)
    across = int(patches**0.5)
    pixels, grid = torch.rand(patches, vision.channels * vision.patch**2), torch.tensor([[1, across, across]])
    return model.model.get_image_features(pixels, grid, return_dict=True)


def _plan(path: Path, **options: Any) -> Any:
    return make_plan(
        Question(inspect(path, describe=meta.describe), LoadOptions(**options), fake_inventory(), path.parent)
    )


def test_the_plan_says_what_a_picture_takes_and_a_longer_side_takes_more(folder: Path) -> None:
    path = tiny_seeing("qwen2_vl", folder)
    usual, small = _plan(path), _plan(path, picture_side=56)
    assert usual.run.picture_side == 1536 and small.run.picture_side == 56
    assert usual.budgets["cpu"].picture_peak > small.budgets["cpu"].picture_peak > 0
    assert any("It sees" in reason for reason in usual.reasons)
    assert usual.speculate == "off"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kv_cache": "int8"}, "not built for models that see"),
        ({"loader": "vllm"}, "transformers alone"),
        ({"deepspeed": True}, "--deepspeed"),
    ],
)
def test_what_models_that_see_cannot_have_is_refused_by_name(options: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(NotAvailableHere, match=said) as refused:
        _plan(tiny_seeing("llava", folder), **options)
    assert refused.value.remedy


def test_families_that_see_otherwise_are_refused_with_those_that_snug_runs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "paligemma", "architectures": ["PaliGemmaForConditionalGeneration"]}'
    )
    with pytest.raises(UnsupportedModel, match="not been tried") as refused:
        inspect(tmp_path / "config.json", describe=meta.describe)
    assert "SmolVLM" in refused.value.remedy


def test_a_config_without_its_tower_is_refused(tmp_path: Path) -> None:
    config = tiny_seeing_config("llava").to_dict()
    del config["vision_config"]
    (tmp_path / "config.json").write_text(json.dumps(config, default=str))
    with pytest.raises(BadConfig, match="vision_config"):
        inspect(tmp_path / "config.json", describe=meta.describe)
