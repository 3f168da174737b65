"""A model from its config alone: built without weights, in a process of its own, and held against headers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modules.memory.model.describing as describing
from modules.errors import BadConfig, RemoteCodeDisabled, SnugError, TimedOut, UnsupportedModel
from modules.memory.forecasting.forecast import RunSpec, weight_bytes
from modules.memory.forecasting.kinds import count_layers, quantizable
from modules.memory.model.crosscheck import with_description
from modules.memory.model.describing import cache_key, describe_in_process, describer_for, known_description
from modules.memory.model.meta import describe
from modules.memory.model.spec import inspect
from modules.memory.planning.placement import make_groups
from tests.test_spec import AUTO_MAP, LLAMA, make_model
from tests.tiny_families import CONFIGS, tiny_config, tiny_folder

LLAMA_70B = {
    **LLAMA, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 4096, "torch_dtype": "float16",
}  # fmt: skip


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    """A folder with nothing but a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_70b_config_is_known_in_a_process_of_its_own_and_at_once_the_second_time(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "llama-70b", LLAMA_70B)
    started = time.perf_counter()
    found = describe_in_process(folder, cache_folder=tmp_path / "cache")
    first = time.perf_counter() - started
    started = time.perf_counter()
    assert describe(folder / "config.json") == found
    building = time.perf_counter() - started
    started = time.perf_counter()
    assert describe_in_process(folder, cache_folder=tmp_path / "cache") == found
    again = time.perf_counter() - started
    print(f"with torch's import {first:.1f} s, building alone {building:.2f} s, from the cache {again * 1000:.0f} ms")
    assert building < 3
    assert again < 1
    spec = inspect(folder, describe=lambda _: found)
    assert spec.parameters == 68_976_648_192
    assert (spec.name, spec.stored_dtype, spec.weights_here) == ("llama-70b", "float16", False)
    assert spec.bare_modules == ("model.rotary_emb",)
    assert [buffer.name for buffer in spec.buffers][:1] == ["model.rotary_emb.inv_freq"]
    assert inspect(folder / "config.json", describe=lambda _: found) == spec


def test_a_lone_config_file_may_have_any_name(tmp_path: Path) -> None:
    file = tmp_path / "my-model.json"
    file.write_text(json.dumps(LLAMA))
    spec = inspect(file, describe=describe)
    assert (spec.name, spec.layers, spec.weights_here) == ("my-model", 2, False)
    assert "32 bits are assumed" in spec.warnings[0]
    assert spec.stored_dtype == "float32"


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "mixtral", "deepseek_v3", "mamba2", "qwen3_next", "t5"])
def test_headers_that_agree_with_their_config_get_buffers_and_no_warning(family: str, tmp_path: Path) -> None:
    folder = tiny_folder(family, tmp_path)
    plain, checked = inspect(folder), inspect(folder, describe=describe)
    assert checked.warnings == plain.warnings
    assert checked.tensors == plain.tensors
    assert set(plain.bare_modules) <= set(checked.bare_modules) | {"lm_head"}


def test_a_config_that_describes_another_model_is_a_warning(tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    (warning,) = [text for text in inspect(folder, describe=describe).warnings if "wrong" in text]
    assert "-14." in warning or "-1" in warning


@pytest.mark.parametrize(("change", "warned"), [(0.004, False), (0.006, True)])
def test_half_a_per_cent_is_where_the_warning_begins(change: float, warned: bool, tmp_path: Path) -> None:
    folder = tiny_folder("llama", tmp_path)
    spec = inspect(folder)
    found = describe(folder / "config.json")
    extra = replace(spec.tensors[0], name="model.extra", shape=(int(change * spec.parameters),))
    assert bool(with_description(replace(spec, tensors=(*spec.tensors, extra)), found).warnings[1:]) is warned


def test_headers_serve_where_their_config_builds_no_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", hidden_size=10, num_attention_heads=3, num_key_value_heads=3)
    (warning,) = inspect(folder, describe=describe).warnings
    assert "could not be held against" in warning


def test_what_is_asked_is_kept_by_content_and_damage_is_no_answer(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", LLAMA)
    cache = tmp_path / "cache"
    assert known_description(folder, cache) is None
    kept = cache / f"{cache_key(folder / 'config.json')}.json"
    cache.mkdir()
    for damage in (b"", b"{", b"{}", b"[1]", b'{"architecture": "x", "tensors": [[1]]}', b'{"error": {"code": "x"}}'):
        kept.write_bytes(damage)
        assert known_description(folder, cache) is None
    other = write_config(tmp_path / "n", {**LLAMA, "vocab_size": 11})
    assert cache_key(other / "config.json") != cache_key(folder / "config.json")


def test_a_process_is_asked_where_there_are_no_weights_only(tmp_path: Path) -> None:
    assert describer_for(write_config(tmp_path / "bare", LLAMA), tmp_path / "cache") is not None
    assert describer_for(make_model(tmp_path / "whole"), tmp_path / "cache") is None
    assert describer_for(tmp_path / "m.gguf", tmp_path / "cache") is None


def test_a_config_that_takes_for_ever_is_given_up(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", LLAMA_70B)
    with pytest.raises(TimedOut, match="longer than") as caught:
        describe_in_process(folder, timeout_s=0.05)
    assert caught.value.remedy


def test_the_errors_of_the_process_keep_their_kind(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", {**LLAMA, "hidden_size": 10, "num_attention_heads": 3,
                                           "num_key_value_heads": 3})  # fmt: skip
    with pytest.raises(BadConfig, match="llama") as caught:
        describe_in_process(folder)
    assert caught.value.remedy
    with pytest.raises(UnsupportedModel):
        describing.read_answer(
            json.dumps({"error": {"code": "unsupported_model", "message": "a", "remedy": "b"}}).encode()
        )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"hidden_size": -1}, BadConfig), ({"hidden_size": "8"}, BadConfig), ({"hidden_size": True}, BadConfig),
        ({"num_hidden_layers": 10**18}, BadConfig), ({"vocab_size": 0}, BadConfig), ({"vocab_size": None}, BadConfig),
        ({"num_attention_heads": 1e18}, BadConfig), ({"dtype": "os.system"}, BadConfig),
        ({"torch_dtype": 7}, BadConfig), ({"hidden_size": 7}, BadConfig),
        ({"rope_scaling": {"rope_type": "no_such_type", "factor": 2.0}}, BadConfig),
        ({"hidden_act": "no_such_function"}, BadConfig),
        ({"auto_map": AUTO_MAP}, RemoteCodeDisabled), ({"text_config": {"auto_map": AUTO_MAP}}, RemoteCodeDisabled),
        ({"_attn_implementation": "someone/kernel"}, RemoteCodeDisabled),
        ({"_attn_implementation_internal": "someone/kernel"}, RemoteCodeDisabled),
        ({"model_type": "no_such_type"}, UnsupportedModel), ({"model_type": "albert"}, UnsupportedModel),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModel),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, UnsupportedModel),
    ],
)  # fmt: skip
def test_hostile_and_broken_configs_without_weights_get_a_named_error(
    changes: dict[str, Any], error: type[SnugError], tmp_path: Path
) -> None:
    config = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    with pytest.raises(error) as caught:
        inspect(write_config(tmp_path / "m", config), describe=describe)
    assert caught.value.remedy


@pytest.mark.parametrize("raw", [b"", b"{", b"[1]", b'{"hidden_size": NaN}', b'{"a":' * 100_000, b" " * (11 * 2**20)])
def test_a_file_that_is_no_config_never_reaches_the_process(raw: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_bytes(raw)

    def never(_: Path) -> Any:
        raise AssertionError("asked")

    with pytest.raises(BadConfig):
        inspect(folder, describe=never)


NUMBERS = st.none() | st.booleans() | st.integers(-3, 200) | st.floats(0, 64) | st.text(max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*LLAMA, "head_dim", "rope_scaling", "sliding_window", "dtype"]), NUMBERS))
def test_any_config_builds_a_model_or_gets_a_named_error(tmp_path: Path, changes: dict[str, object]) -> None:
    try:
        spec = inspect(write_config(tmp_path / "m", {**LLAMA, **changes}), describe=describe)
    except SnugError as error:
        assert error.message
        return
    assert weight_bytes(spec, RunSpec("bfloat16")) > 0


def test_layers_are_counted_by_kind(tmp_path: Path) -> None:
    def kinds(family: str) -> dict[str, int]:
        tiny_config(family).save_pretrained(tmp_path / family)
        return count_layers(inspect(tmp_path / family, describe=describe))

    assert kinds("llama") == {"full attention": 3}
    assert kinds("gemma3_text") == {"full attention": 1, "sliding window": 6}
    assert kinds("mixtral") == {"full attention": 3, "mixture of experts": 3}
    assert kinds("qwen3_moe") == {"full attention": 3, "mixture of experts": 2}
    assert kinds("deepseek_v3") == {"latent attention (MLA)": 3, "mixture of experts": 2}
    assert kinds("mamba2") == {"linear attention or state space": 3}
    assert kinds("qwen3_next") == {
        "linear attention or state space": 3, "full attention": 1, "mixture of experts": 4,
    }  # fmt: skip
    assert kinds("falcon_h1") == {"attention beside a state": 3}
    assert kinds("gemma3n_text")["no cache of its own"] == 2
    assert kinds("bart") == {"full attention": 3, "cross-attention": 3}


def test_what_bitsandbytes_skips_is_told_with_the_reason(tmp_path: Path) -> None:
    mixtral = {
        **LLAMA, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2, "dtype": "bfloat16",
    }  # fmt: skip
    told = quantizable(inspect(write_config(tmp_path / "mixtral", mixtral), describe=describe))
    assert told.share == pytest.approx(0.029, abs=0.001)  # as published for transformers 5
    assert told.skipped[0].what == "experts"
    assert "3-D" in told.skipped[0].why
    llama = quantizable(inspect(write_config(tmp_path / "llama", LLAMA_70B), describe=describe))
    assert llama.share == pytest.approx(0.992, abs=0.001)
    assert {group.what for group in llama.skipped} == {"token tables", "the output head", "norms and biases"}


@pytest.mark.parametrize("family", ["llama", "gpt_neo", "gptj", "gpt_bigcode", "gemma3_text", "falcon", "t5", "bart"])
def test_a_placement_has_a_place_for_every_byte_buffers_too(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    spec = inspect(tmp_path, describe=describe)
    for run in (RunSpec("bfloat16"), RunSpec("float32"), RunSpec("bfloat16", "nf4")):
        groups = make_groups(spec, run)
        assert sum(group.loaded for group in groups) == weight_bytes(spec, run)
        names = [module for group in groups for module in group.modules]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("family", CONFIGS)
def test_quantized_and_skipped_parameters_are_all_of_them(family: str, tmp_path: Path) -> None:
    tiny_config(family).save_pretrained(tmp_path)
    spec = inspect(tmp_path, describe=describe)
    told = quantizable(spec)
    assert told.parameters + sum(group.parameters for group in told.skipped) == spec.parameters
    assert 0 <= told.share < 1
    if told.skipped:
        assert told.skipped[0].why
