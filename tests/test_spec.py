"""What a model is, from its headers: sound folders read right, everything else refused by name and never run."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modules.errors import (
    BadConfig,
    BadGguf,
    BadSafetensors,
    BadTokenizer,
    ModelNotFound,
    PickleRefused,
    RemoteCodeDisabled,
    SnugError,
    UnsupportedModel,
)
from modules.memory.model.families import base_prefix, check_can_generate, gguf_architectures
from modules.memory.model.listing import check_loadable, list_models
from modules.memory.model.shape import read_shape
from modules.memory.model.spec import block_of, inspect
from tests.test_formats import safetensors
from tests.test_gguf import ARCH, STRING, U32, array, gguf, pair, tensor, text

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 10,
    "max_position_embeddings": 64, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_TENSORS = (
    "model.embed_tokens",
    "model.layers.0.mlp.up_proj",
    "model.layers.1.mlp.up_proj",
    "model.norm",
    "lm_head",
)
AUTO_MAP = {"AutoModelForCausalLM": "modeling_evil.Evil"}


def weights(*modules: str) -> bytes:
    """A safetensors file with a small bf16 tensor for each module."""
    header = {
        f"{module}.weight": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8 * i, 8 * i + 8]}
        for i, module in enumerate(modules)
    }
    return safetensors(header, bytes(8 * len(modules)))


def make_model(folder: Path, modules: tuple[str, ...] = LLAMA_TENSORS, /, **changes: Any) -> Path:
    """A model folder; `changes` replace fields of config.json, None removes them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in {**LLAMA, **changes}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights(*modules))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_a_folder_is_read_into_its_shape_tensors_and_blocks(tmp_path: Path) -> None:
    spec = inspect(make_model(tmp_path / "small"))
    assert (spec.name, spec.architecture, spec.model_type) == ("small", "LlamaForCausalLM", "llama")
    assert (spec.layers, spec.hidden_size, spec.kv_heads, spec.head_dim, spec.max_context) == (2, 8, 1, 4, 64)
    assert (spec.stored_dtype, spec.tied_embeddings, spec.is_encoder_decoder) == ("bfloat16", False, False)
    assert {t.block for t in spec.tensors} == {"", "model.layers.0", "model.layers.1"}
    assert spec.bare_modules == ("model.rotary_emb",)
    assert spec.kv_elements == 2 * 1 * 4
    assert spec.warnings == ()


@pytest.mark.model
def test_the_starter_model_is_read_as_it_is(starter_model: Path) -> None:
    started = time.perf_counter()
    spec = inspect(starter_model)
    assert time.perf_counter() - started < 1
    assert (spec.layers, spec.kv_heads, spec.max_context, spec.tied_embeddings) == (30, 3, 8192, True)
    assert spec.bare_modules == ("lm_head", "model.rotary_emb")
    assert len(spec.tensors) == 272


def test_a_checkpoint_of_the_bare_base_model_gets_the_names_of_the_loaded_one(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 8,
        "n_layer": 1,
        "n_head": 2,
    }
    gone = dict.fromkeys(
        ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rope_theta")
    )
    spec = inspect(make_model(tmp_path / "m", ("wte", "h.0.mlp.c_fc", "ln_f"), **gone, **config))
    assert [t.name for t in spec.tensors] == [
        "transformer.wte.weight",
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.ln_f.weight",
    ]
    assert spec.learned_positions


def test_a_nested_text_config_is_the_language_model(tmp_path: Path) -> None:
    text_config = {name: value for name, value in LLAMA.items() if name not in ("architectures", "model_type")}
    gone: dict[str, Any] = dict.fromkeys(text_config)
    modules = ("language_model.model.layers.0.a", "language_model.model.layers.1.a", "vision_tower.b")
    spec = inspect(make_model(tmp_path / "m", modules, **{**gone, "model_type": "gemma3", "text_config": text_config},
                              architectures=["Gemma3ForConditionalGeneration"]))  # fmt: skip
    assert spec.layers == 2
    assert [t.name for t in spec.tensors][::2] == [
        "model.language_model.layers.0.a.weight",
        "model.vision_tower.b.weight",
    ]


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [-1, 0, "8", True, 1e18, 10**18, 1.5, [8], {}, 1e400])
def test_an_impossible_number_is_refused_and_the_field_named(field: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=field if value != 1e400 else "JSON|" + field):
        inspect(make_model(tmp_path / "m", **{field: value}))


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_number_is_refused_and_the_field_named(field: str, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=field) as caught:
        inspect(make_model(tmp_path / "m", **{field: None}))
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "JSON"), (b"{", "JSON"), (b"[1]", "object"), (b'"text"', "object"), (b"\xff\xfe{}", "JSON"),
        (b'{"hidden_size": NaN}', "JSON"), (b'{"a": ' + b"9" * 10_000 + b"}", "JSON"), (b'{"a":' * 100_000, "too many"),
        (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", "JSON|nested"), (b'{"a":' * 40 + b"1" + b"}" * 40, "nested"),
        (b" " * (10 * 2**20 + 1), "larger"), (b"{}", "model_type"),
    ],
)  # fmt: skip
def test_a_config_that_is_no_config_is_refused(raw: bytes, why: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "config.json").write_bytes(raw)
    with pytest.raises(BadConfig, match=why):
        inspect(folder)


FIELDS = st.sampled_from(
    [
        *LLAMA,
        "layer_types",
        "sliding_window",
        "kv_lora_rank",
        "multi_query",
        "state_size",
        "global_head_dim",
        "per_layer_config",
    ]
)
NUMBERS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(FIELDS, NUMBERS | st.text(max_size=5) | st.lists(st.text(max_size=9))))
def test_any_config_gives_a_shape_or_names_what_is_wrong(changes: dict[str, object]) -> None:
    try:
        shape = read_shape({**LLAMA, **changes}, "llama", encoder_decoder=False)
    except BadConfig as error:
        assert error.param
        return
    assert shape.layers == len(shape.layer_kinds) > 0
    assert shape.kv_elements > 0


def test_more_key_heads_than_heads_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="num_key_value_heads"):
        inspect(make_model(tmp_path / "m", num_key_value_heads=4))


def test_heads_that_cannot_share_their_key_heads_and_more_experts_a_token_than_there_are_are_refused() -> None:
    with pytest.raises(BadConfig, match="8 heads cannot be shared among them"):
        read_shape({**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 3}, "llama", encoder_decoder=False)
    with pytest.raises(BadConfig, match="num_experts_per_tok is 9, more than the 8 experts"):
        read_shape({**LLAMA, "num_local_experts": 8, "num_experts_per_tok": 9}, "mixtral", encoder_decoder=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_labels": 10**9},
        {"vision_config": {"num_hidden_layers": 10**9}},
        {"encoder": [{"depth": 1e6}]},
        {"chunk_size": 8192},
        {"text_config": {"mamba_chunk_size": 2**31}},
    ],
)
def test_counts_that_transformers_would_fill_the_memory_with_are_refused(
    changes: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(BadConfig, match="no model has more than 1"):
        inspect(make_model(tmp_path / "m", **changes))


def test_a_folder_with_fewer_blocks_than_its_config_says_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="should have 5 layers, but its files hold 2"):
        inspect(make_model(tmp_path / "m", num_hidden_layers=5))


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"sliding_window": 16}, ["sliding", "sliding"]),
        ({"sliding_window": 16, "use_sliding_window": False}, ["full", "full"]),
        ({"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, ["full", "sliding"]),
        ({"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]}, ["full", "sliding"]),
        ({"sliding_window": 16, "sliding_window_pattern": 2}, ["sliding", "full"]),
        ({"layer_types": ["linear_attention", "full_attention"]}, ["recurrent", "full"]),
        ({"num_kv_shared_layers": 1}, ["full", "shared"]),
    ],
)
def test_the_kind_of_each_layer_follows_the_config(
    changes: dict[str, object], kinds: list[str], tmp_path: Path
) -> None:
    assert list(inspect(make_model(tmp_path / "m", **changes)).layer_kinds) == kinds


def test_layers_with_heads_of_their_own_are_counted_one_by_one() -> None:
    """Gemma 4 as published: wider heads in full layers, fewer of them where keys serve as values."""
    published = {**LLAMA, "num_hidden_layers": 6, "head_dim": 4, "sliding_window": 16, "num_key_value_heads": 2}
    heads = {"num_global_key_value_heads": 1, "attention_k_eq_v": True}

    def sizes(config: dict[str, object]) -> tuple[int, ...]:
        return read_shape(config, "gemma4_text", encoder_decoder=False).layer_kv_elements

    assert sizes({**published, "global_head_dim": 8}) == (16,) * 5 + (32,)
    assert sizes({**published, "global_head_dim": 8, **heads}) == ()
    assert sizes({**published, "global_head_dim": 32, **heads}) == (16,) * 5 + (64,)
    assert sizes({**published, "global_head_dim": 32, **heads, "attention_k_eq_v": False}) == (16,) * 5 + (128,)
    assert sizes(published) == (16,) * 5 + (2048,)
    assert sizes({**published, "per_layer_config": {"1": {"head_dim": 2}}}) == (16, 8, 16, 16, 16, 16)
    with pytest.raises(BadConfig, match="head_dim"):
        sizes({**published, "per_layer_config": {"1": {"head_dim": "wide"}}})


def test_latent_and_multi_query_attention_have_small_caches(tmp_path: Path) -> None:
    latent = inspect(make_model(tmp_path / "a", kv_lora_rank=6, qk_rope_head_dim=2))
    assert latent.kv_elements == 8
    falcon: dict[str, Any] = {"model_type": "falcon", "architectures": ["FalconForCausalLM"], "multi_query": True}
    modules = ("transformer.h.0.a", "transformer.h.1.a")
    assert inspect(make_model(tmp_path / "b", modules, num_key_value_heads=None, **falcon)).kv_heads == 1


@pytest.mark.parametrize(
    ("model_type", "architecture", "why"),
    [
        ("bert", "BertForSequenceClassification", "cannot generate"),
        ("albert", "AlbertForMaskedLM", "cannot generate"),
        ("albert", "AlbertModel", "cannot generate"),
        ("big_bird", "BigBirdModel", "encoder"),
        ("big_bird", "", "encoder"),
        ("deberta-v2", "DebertaV2Model", "cannot generate"),
        ("distilbert", "DistilBertForSequenceClassification", "cannot generate"),
        ("llama", "LlamaForSequenceClassification", "cannot generate"),
        ("clip", "CLIPModel", "cannot generate"),
        ("whisper", "WhisperForConditionalGeneration", "sound"),
        ("paligemma", "PaliGemmaForConditionalGeneration", "sees"),
        ("no_such_type", "NoSuchForCausalLM", "does not know"),
    ],
)  # fmt: skip
def test_what_cannot_generate_is_refused_with_the_reason(
    model_type: str, architecture: str, why: str, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m", model_type=model_type, architectures=[architecture] if architecture else None)
    with pytest.raises(UnsupportedModel, match=why) as caught:
        inspect(folder)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("model_type", "architecture", "loaded", "encoder_decoder"),
    [
        ("t5", "T5WithLMHeadModel", "T5ForConditionalGeneration", True),
        ("bart", "BartModel", "BartForConditionalGeneration", True),
        ("bart", "BartForCausalLM", "BartForCausalLM", False),
        ("gpt2", "GPT2LMHeadModel", "GPT2LMHeadModel", False),
        ("gpt2", "", "GPT2LMHeadModel", False),
        ("qwen3", "Qwen3ForCausalLM", "Qwen3ForCausalLM", False),
    ],
)
def test_families_that_generate_are_known(
    model_type: str, architecture: str, loaded: str, encoder_decoder: bool
) -> None:
    family = check_can_generate(model_type, architecture, is_decoder=False, custom_code=False)
    assert (family.architecture, family.is_encoder_decoder) == (loaded, encoder_decoder)


def test_a_bert_trained_as_a_decoder_generates() -> None:
    assert (
        check_can_generate("bert", "BertLMHeadModel", is_decoder=True, custom_code=False).architecture
        == "BertLMHeadModel"
    )


def test_the_names_of_base_models_come_from_transformers() -> None:
    types = ("llama", "gpt2", "gpt_neox", "t5", "gemma3_text", "opt", "bart", "mamba")
    assert [base_prefix(name) for name in types] == [
        "model",
        "transformer",
        "gpt_neox",
        "",
        "model",
        "model",
        "model",
        "backbone",
    ]
    assert {"llama", "qwen3", "gemma3", "gpt2"} <= gguf_architectures()


def evil(folder: Path) -> None:
    """Leave Python code in a model folder that would create a file if it ran."""
    (folder / "modeling_evil.py").write_text(f"import pathlib\npathlib.Path({str(folder / 'canary')!r}).touch()\n")


def config_with(**changes: object) -> Callable[[Path], object]:
    """Rewrite config.json with these fields."""
    return lambda folder: (folder / "config.json").write_text(json.dumps({**LLAMA, **changes}))


@pytest.mark.parametrize(
    "plant",
    [
        config_with(auto_map=AUTO_MAP),
        config_with(text_config={"auto_map": AUTO_MAP}),
        config_with(deep=[{"deeper": {"auto_map": AUTO_MAP}}]),
        config_with(_attn_implementation_internal="someone/kernel"),
        config_with(attn_implementation="someone/kernel"),
        config_with(_attn_implementation={"decoder": "someone/kernel"}),
        config_with(trust_remote_code=True, auto_map=AUTO_MAP),
        evil,
        lambda folder: (folder / "tokenizer_config.json").write_text(
            json.dumps({"auto_map": {"AutoTokenizer": "x.Y"}})
        ),
    ],
)
def test_code_that_a_model_brings_is_refused_and_neither_imported_nor_opened(
    plant: Callable[[Path], object], tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "m")
    evil(folder) if plant is not evil else None
    plant(folder)
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event in ("import", "subprocess.Popen", "exec", "open"):
            opened.append(f"{event} {arguments[0]}")

    sys.addaudithook(watch)
    try:
        with pytest.raises(RemoteCodeDisabled) as caught:
            inspect(folder)
    finally:
        watching = False
    assert "--trust-remote-code" in caught.value.remedy
    assert opened
    assert not [line for line in opened if "evil.py" in line or "modeling_evil" in line or "subprocess" in line]
    assert not (folder / "canary").exists()


def test_trusted_code_passes_and_is_still_not_run_here(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", auto_map=AUTO_MAP, model_type="evil", architectures=["EvilForCausalLM"])
    evil(folder)
    assert inspect(folder, trust_remote_code=True).architecture == "EvilForCausalLM"
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
    ],
)
def test_bitsandbytes_checkpoints_are_read(quantization: dict[str, object], expected: str, tmp_path: Path) -> None:
    assert inspect(make_model(tmp_path / "m", quantization_config=quantization)).prequantized == expected


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "mxfp4", "os.system", ""])
def test_other_quantized_checkpoints_are_refused_with_what_they_need(method: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=rf"{method or 'unnamed'}.*needs"):
        inspect(make_model(tmp_path / "m", quantization_config={"quant_method": method, "bits": 4}))


@pytest.mark.parametrize(
    "named",
    [
        {"configuration_files": ["config.4.0.0.json"]},
        {"transformers_weights": "other.safetensors.index.json"},
        {"transformers_weights": "adapter_model.bin"},
        {"text_config": {"transformers_weights": "other.safetensors"}},
    ],
)
@pytest.mark.parametrize("trust", [False, True])
def test_no_other_files_are_read_than_those_that_are_checked(
    named: dict[str, Any], trust: bool, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedModel, match=r"names other files.*(configuration_files|transformers_weights)"):
        inspect(make_model(tmp_path / "m", **named), trust_remote_code=trust)


def test_the_usual_weights_may_be_named(tmp_path: Path) -> None:
    inspect(make_model(tmp_path / "m", transformers_weights="model.safetensors", configuration_files=[]))


@pytest.mark.parametrize("key", ["vocab", "vocab_file", "merges", "init_inputs", "bpe_file"])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_tokenizer_takes_no_file_of_the_machine_for_its_vocabulary(key: str, file: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2\n[UNK]\n")
    (folder / file).write_text(json.dumps({key: [str(secret)] if key == "init_inputs" else str(secret)}))
    with pytest.raises(BadTokenizer, match=rf"files of its folder alone; '{key}' in {file}"):
        inspect(folder)


@pytest.mark.parametrize("setting", [{"fast_tokenizer_files": ["../b/tokenizer.4.json"]}, {"gguf_file": "../b/x.gguf"}])
def test_a_tokenizer_takes_no_file_beside_its_folder(setting: dict[str, Any], tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    for name in ("tokenizer.4.json", "x.gguf"):
        (tmp_path / "b").mkdir(exist_ok=True)
        (tmp_path / "b" / name).touch()
    (folder / "tokenizer_config.json").write_text(json.dumps(setting))
    with pytest.raises(BadTokenizer, match="files of its folder alone"):
        inspect(folder)


def test_a_tokenizer_may_name_what_the_hubs_cache_keeps_as_links(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "snapshots" / "m")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0f3a").touch()
    (folder / "vocab.json").symlink_to(tmp_path / "blobs" / "0f3a")
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab_file": "vocab.json"}))
    inspect(folder)


@pytest.mark.parametrize("value", [5, {"/dev/null": 1}, "/dev/null", ["\0", []], True])
def test_a_tokenizer_gets_no_arguments_without_names(value: object, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text(json.dumps({"vocab": "\0", "merges": [5], "init_inputs": value}))
    with pytest.raises(BadTokenizer, match="'init_inputs'"):
        inspect(folder)


def test_what_publishers_machines_wrote_into_a_tokenizers_settings_is_let_be(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    usual: dict[str, Any] = {
        "name_or_path": "org/name", "tokenizer_file": __file__, "vocab_file": "/root/gone/vocab.txt", "init_inputs": [],
        "special_tokens_map_file": __file__, "vocab": None, "merges_file": None, "sep_token": "/dev/null",
        "model_max_length": 10**30, "chat_template": "{{ messages }}" * 1000, "padding_side": "right",
        "spm_file": str(folder / "tokenizer.json"),
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(usual))
    tokens = {
        "bos_token": {"content": "<s>"},
        "additional_special_tokens": ["<x>"],
        "pad_token_id": 0,
        "vocab_file": "v",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    inspect(folder)


@pytest.mark.parametrize("name", ["chat_template.jinja", "vocab.txt", "additional_chat_templates/a.jinja"])
def test_a_link_of_a_cloned_repository_to_another_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (tmp_path / "settings.yaml").write_text("secret: hunter2\n")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "settings.yaml")
    (folder / "loop").symlink_to("loop")
    with pytest.raises(BadConfig, match=rf"{Path(name).name} .* is a link to another file"):
        inspect(folder)


def test_links_of_the_hubs_cache_and_to_files_of_the_same_name_are_followed(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    folder = make_model(tmp_path / "m")
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / f"{number:040x}")
        file.symlink_to(f"../blobs/{number:040x}")
    (tmp_path / "chat_template.jinja").write_text("x")
    (folder / "chat_template.jinja").symlink_to("../chat_template.jinja")
    (tmp_path / "big.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "big.safetensors")
    (tmp_path / "linked").symlink_to(folder)
    inspect(folder)
    inspect(tmp_path / "linked")


def test_a_missing_tokenizer_is_a_warning(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in inspect(folder).warnings[0]


def test_what_cannot_be_loaded_for_want_of_a_file_says_so_in_the_list_and_at_the_load(tmp_path: Path) -> None:
    mute = make_model(tmp_path / "mute")
    (mute / "tokenizer.json").unlink()
    bytes_only = make_model(tmp_path / "bytes")
    (bytes_only / "tokenizer.json").unlink()
    (bytes_only / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    bare = make_model(tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    problems = {entry.name: entry.problem for entry in list_models(tmp_path)}
    assert "no tokenizer" in problems["mute"]
    assert "tokenizer.json" in problems["mute"]
    assert problems["bytes"] == ""
    assert "no weights" in problems["bare"]
    with pytest.raises(BadTokenizer, match="no tokenizer") as caught:
        check_loadable(inspect(mute))
    assert "tokenizer.json" in caught.value.remedy
    check_loadable(inspect(bytes_only))
    with pytest.raises(ModelNotFound, match="no weights"):
        check_loadable(replace(inspect(mute), weights_here=False))


def test_a_missing_config_names_itself_and_pickles_are_named_first(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "config.json").unlink()
    with pytest.raises(BadConfig, match=r"no config\.json"):
        inspect(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PickleRefused):
        inspect(folder)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        inspect(tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UnsupportedModel):
        inspect(tmp_path / "notes.txt")


def small_gguf(architecture: str = "llama", blocks: int = 2, *, embedding_length: int = 32) -> bytes:
    """A sound GGUF file of a tiny model."""
    fields = {
        "block_count": 2,
        "embedding_length": embedding_length,
        "context_length": 64,
        "attention.head_count": 4,
        "rope.dimension_count": 8,
    }
    pairs = [pair("general.architecture", STRING, text(architecture))]
    pairs += [pair(f"{architecture}.{key}", U32, value.to_bytes(4, "little")) for key, value in fields.items()]
    pairs.append(pair("tokenizer.ggml.tokens", 9, array(STRING, 3, text("a") * 3)))
    names = ["token_embd.weight", *(f"blk.{i}.ffn_up.weight" for i in range(blocks)), "output_norm.weight"]
    tensors = [tensor(name, (32, 2), 0, 256 * i) for i, name in enumerate(names)]
    return gguf(tuple(pairs), tuple(tensors), data=256 * len(names))


def test_a_gguf_file_is_read_as_the_model_that_it_becomes(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(small_gguf())
    spec = inspect(tmp_path / "m.gguf")
    assert (spec.name, spec.source, spec.architecture, spec.layers) == ("m", "gguf", "LlamaForCausalLM", 2)
    assert (spec.vocab_size, spec.stored_dtype, spec.tied_embeddings) == (3, "bfloat16", True)
    assert [t.name for t in spec.tensors][:2] == ["model.embed_tokens.weight", "model.layers.0.ffn_up.weight"]


def test_an_impossible_field_of_a_gguf_file_is_named_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(small_gguf(embedding_length=0))
    with pytest.raises(BadGguf, match=r"m\.gguf: hidden_size is 0; it must be"):
        inspect(tmp_path / "m.gguf")


def test_gguf_architectures_that_transformers_lacks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(small_gguf("rwkv7"))
    with pytest.raises(UnsupportedModel, match="rwkv7"):
        inspect(tmp_path / "m.gguf")
    (tmp_path / "n.gguf").write_bytes(small_gguf(blocks=1))
    with pytest.raises(BadConfig, match="2 layers"):
        inspect(tmp_path / "n.gguf")
    (tmp_path / "o.gguf").write_bytes(gguf((ARCH,)))
    with pytest.raises(BadGguf, match=r"o\.gguf lacks hidden_size"):
        inspect(tmp_path / "o.gguf")


def test_the_list_shows_models_with_their_problems_and_waits_on_nothing(tmp_path: Path) -> None:
    models = tmp_path / "models"
    make_model(models / "good")
    make_model(models / "Bad", hidden_size=-1)
    (models / "fine.gguf").write_bytes(small_gguf())
    (models / "broken.gguf").write_bytes(b"GGUF")
    (models / "README.md").write_text("x")
    (models / "empty").mkdir()
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "fifo.gguf")
    (models / "loop").symlink_to("loop")
    make_model(tmp_path / "outside")
    (models / "outside").symlink_to(tmp_path / "outside")
    (models / "inside").symlink_to(models / "good")
    (models / ".hidden").mkdir()
    started = time.perf_counter()
    entries = {entry.name: entry for entry in list_models(models)}
    assert time.perf_counter() - started < 2
    assert list(entries) == ["Bad", "broken.gguf", "fifo.gguf", "fine.gguf", "good", "inside"]
    assert entries["good"].problem == entries["fine.gguf"].problem == ""
    assert "hidden_size" in entries["Bad"].problem
    assert "regular file" in entries["fifo.gguf"].problem
    assert entries["good"].size_bytes == (models / "good" / "model.safetensors").stat().st_size
    assert (entries["good"].kind, entries["fine.gguf"].kind) == ("folder", "gguf")
    assert list_models(tmp_path / "nowhere") == []


def test_an_unreadable_file_is_listed_with_its_problem(tmp_path: Path) -> None:
    make_model(tmp_path / "m")
    weights_file = tmp_path / "m" / "model.safetensors"
    weights_file.unlink()
    weights_file.symlink_to("gone")
    (entry,) = list_models(tmp_path)
    assert entry.problem


def test_the_block_of_a_tensor_is_its_outermost_numbered_module() -> None:
    assert block_of("model.layers.3.mlp.experts.5.up.weight") == "model.layers.3"
    assert block_of("encoder.block.0.layer.1.wi.weight") == "encoder.block.0"
    assert block_of("h.11.ln_1.bias") == "h.11"
    assert block_of("model.norm.weight") == ""


def test_errors_of_the_files_keep_their_kind(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(BadSafetensors):
        inspect(folder)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(BadGguf):
        inspect(tmp_path / "m.gguf")
    assert issubclass(BadGguf, SnugError)
