"""modules/engine/loading/huggingface.py: tiny models of every family load and stream, bad ones are refused by name."""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from modules.engine.base import ModelInfo, Progress, TextPiece
from modules.engine.loading import huggingface
from modules.engine.loading.huggingface import bytes_to_write, find_eos_ids, load, make_own_folder
from modules.errors import (
    BadConfig,
    BadSafetensors,
    BadTokenizer,
    BadValue,
    DiskFull,
    LoadFailed,
    ModelNotFound,
    NotAvailableHere,
    RemoteCodeDisabled,
    SnugError,
)
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.spec import inspect
from modules.memory.planning.planner import Plan
from tests.loading_rig import plan_of, quiet, spread
from tests.loop_rig import Ask, greedy
from tests.tiny_models import ENCODER_DECODER, FAMILIES, tiny_gguf, tiny_model

TEXT = "The harbour wakes before the town."
SERIAL = {"gptj", "bloom", "falcon", "mamba2", "t5", "bart"}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny model that a test may damage."""

    def copy(family: str) -> Path:
        return Path(shutil.copytree(tiny_model(family, tiny_folder), tmp_path / "models" / family))

    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_streams_and_says_what_generate_says(family: str, tiny_folder: Path) -> None:
    folder = tiny_model(family, tiny_folder)
    engine = load(plan_of(folder), quiet)
    try:
        ids = engine.encode([TextPiece(TEXT)])
        ask = Ask("r1", ids, greedy(24)).run(engine)
        kind: Any = AutoModelForSeq2SeqLM if family in ENCODER_DECODER else AutoModelForCausalLM
        plain = kind.from_pretrained(folder).eval()
        out = plain.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0].tolist()
        assert ask.end.error is None
        assert ask.tokens == out[-24:]
        assert len(set(ask.tokens)) > 3  # a collapsed model would prove nothing
        assert engine.info.loop == ("serial" if family in SERIAL else "batched"), engine.info.loop_reason
        assert engine.info.loop_reason
        assert engine.info.is_encoder_decoder == (family in ENCODER_DECODER)
    finally:
        engine.close()


def test_a_loaded_model_says_truthfully_what_it_is(tiny_folder: Path) -> None:
    folder = tiny_model("llama", tiny_folder)
    engine = load(plan_of(folder, ctx_size=256), quiet)
    engine.close()
    info: ModelInfo = engine.info
    stored = sum(tensor.numel() * 4 for tensor in load_file(folder / "model.safetensors").values())
    assert info.architecture == "LlamaForCausalLM"
    assert (info.dtype, info.quantization, info.context_tokens, info.vocab_size) == ("float32", "none", 256, 260)
    assert set(info.placement) == {"cpu"}
    assert stored <= info.placement["cpu"] <= stored + 4096  # rotary tables are computed, not stored
    assert info.modules == {"": "cpu"}
    assert info.end_texts == ("<|im_end|>",)
    assert info.special_tokens["eos_token"] == "<|im_end|>"
    assert "im_start" in info.chat_template
    assert info.load_s > 0
    assert info.peak_bytes > 50 * 2**20


def test_a_loaded_model_takes_no_gradients_and_is_in_evaluation_mode(tiny_folder: Path) -> None:
    engine: Any = load(plan_of(tiny_model("gpt2", tiny_folder)), quiet)
    engine.close()
    model = engine.loaded.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_progress_rises_from_nothing_to_ready_in_words_for_people(tiny_folder: Path) -> None:
    seen: list[Progress] = []
    load(plan_of(tiny_model("llama", tiny_folder)), seen.append).close()
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    stages = list(dict.fromkeys(progress.stage for progress in seen))
    assert stages == ["Reading the tokenizer", "Building the model", "Loading weights", "Trying it out", "Ready"]


def test_nothing_is_printed_while_a_model_loads_and_advice_goes_into_the_log(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(tiny_model("bloom", tiny_folder))
    capfd.readouterr()
    with caplog.at_level(logging.INFO):
        load(plan, quiet).close()
    assert capfd.readouterr() == ("", "")
    advice = [record for record in caplog.records if record.name == "modules.engine.loading.library_messages"]
    assert advice
    assert all(record.levelno == logging.INFO for record in advice)


def test_a_gguf_file_is_unpacked_and_streams_and_draws_no_bar(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = plan_of(tiny_gguf(tiny_folder / "gguf"))
    seen: list[Progress] = []
    capfd.readouterr()
    engine = load(plan, seen.append)
    try:
        ask = Ask("r1", engine.encode([TextPiece(TEXT)]), greedy(8)).run(engine)
    finally:
        engine.close()
    assert ask.end.error is None
    assert len(set(ask.tokens)) > 3
    assert capfd.readouterr() == ("", "")
    assert [progress.fraction for progress in seen] == sorted(progress.fraction for progress in seen)
    assert "Unpacking the GGUF file" in {progress.stage for progress in seen}


def test_experts_on_disk_are_written_to_the_cache_read_back_and_removed_with_the_model(
    copied: Callable[[str], Path],
) -> None:
    folder = copied("mixtral")
    whole = load(plan_of(folder), quiet)
    ids = whole.encode([TextPiece(TEXT)])
    expected = Ask("r1", ids, greedy(12)).run(whole).tokens
    whole.close()
    plan = spread(folder, "cpu", "disk")
    engine: Any = load(plan, quiet)
    written = list((folder.parent / "cache").rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in written) >= bytes_to_write(plan) > 0
    assert Ask("r2", ids, greedy(12)).run(engine).tokens == expected
    assert engine.info.placement["disk"] >= bytes_to_write(plan)
    assert engine.info.modules["model.layers.1"] == "disk"
    engine.close()
    assert all(file.exists() for file in written)
    del engine
    gc.collect()
    assert not any(file.exists() for file in written)


def test_cache_folders_of_killed_processes_are_removed(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    stale = folder.parent / "cache" / "other.snug-4194399"  # above Linux's and others' largest process id in use
    mine = folder.parent / "cache" / "photos.4194399" / "notes.txt"
    stale.mkdir(parents=True)
    mine.parent.mkdir()
    mine.write_text("keep")
    load(spread(folder, "cpu", "disk"), quiet).close()
    assert not stale.exists()
    assert mine.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no owners by number")
def test_a_cache_folder_that_somebody_else_made_first_is_not_written_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write beside it can make folders for all coming processes, with links to the user's files in them."""
    folder, theirs = tmp_path / "cache" / f"tiny.snug-{os.getpid()}", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "probe").write_text("precious")

    def made() -> Path:
        return make_own_folder(folder.parent, "tiny", param="disk_cache_dir")

    assert made() == made() == folder and folder.stat().st_mode & 0o777 == 0o700
    with monkeypatch.context() as changed:
        changed.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
        with pytest.raises(BadValue, match="disk-cache-dir"):
            made()
    folder.rmdir()
    folder.symlink_to(theirs)
    with pytest.raises(BadValue, match="disk-cache-dir"):
        made()
    assert (theirs / "probe").read_text() == "precious"


def test_a_cache_folder_that_cannot_be_made_is_refused_before_loading(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    (folder.parent / "cache").write_text("a file in the way")
    with pytest.raises(BadValue, match="--disk-cache-dir"):
        load(spread(folder, "cpu", "disk"), quiet)


def test_a_full_disk_is_told_before_anything_is_written(
    copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("mixtral")
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskFull, match="1000 B free"):
        load(spread(folder, "cpu", "disk"), quiet)
    assert not list((folder.parent / "cache").rglob("*.safetensors"))


def test_a_model_that_vanished_since_it_was_planned_is_named(copied: Callable[[str], Path]) -> None:
    plan = plan_of(copied("llama"))
    shutil.rmtree(plan.spec.path)
    with pytest.raises(ModelNotFound, match="llama"):
        load(plan, quiet)


def test_weights_cut_short_since_planning_are_named(copied: Callable[[str], Path]) -> None:
    plan = plan_of(copied("llama"))
    file = plan.spec.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(BadSafetensors, match="damaged"):
        load(plan, quiet)


def test_weights_that_are_gone_since_planning_are_named(copied: Callable[[str], Path]) -> None:
    plan = plan_of(copied("llama"))
    (plan.spec.path / "model.safetensors").unlink()
    with pytest.raises(BadSafetensors, match="missing"):
        load(plan, quiet)


def test_missing_tensors_are_refused_instead_of_made_up(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    plan = plan_of(folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadSafetensors, match=r"lacks 1 of its tensors, model\.layers\.1\.mlp\.up_proj\.weight"):
        load(plan, quiet)


def _with_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def test_large_missing_tensors_are_refused_before_they_are_made_up(copied: Callable[[str], Path]) -> None:
    folder = _with_config(copied("llama"), intermediate_size=2**20)
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "mlp" not in name}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadSafetensors, match=r"lacks 6 of its tensors, model\.layers\.0\.mlp\.down_proj.*GiB"):
        load(plan_of(folder), quiet)


def test_large_tables_that_no_file_holds_are_refused_before_they_are_made(copied: Callable[[str], Path]) -> None:
    folder = _with_config(copied("gptj"), n_positions=2**25)
    with pytest.raises(BadConfig, match=r"asks for tables of 2\.00 GiB"):
        load(plan_of(folder), quiet)


@pytest.mark.parametrize("damage", ["gone", "garbage", "empty"])
def test_a_tokenizer_that_is_missing_or_broken_is_named(damage: str, copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    if damage == "gone":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    else:
        (folder / "tokenizer.json").write_text("{{{" if damage == "garbage" else "")
    with pytest.raises(BadTokenizer, match="llama"):
        load(plan_of(folder), quiet)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_a_tokenizer_class_that_is_a_models_is_refused_before_it_loads_one(
    place: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("llama")
    file = folder / place
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "AutoModelForCausalLM"}))
    with pytest.raises(BadTokenizer, match="names a tokenizer that is none: 'AutoModelForCausalLM'"):
        load(plan_of(folder), quiet)


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_code_that_a_model_brings_is_never_run(place: str, copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    plan = plan_of(folder)  # planned before the code came: only the loader stands in its way
    canary = folder / "canary"
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / place).read_text())
    if place == "config.json":
        config["model_type"] = "evil"
        config["auto_map"] = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    else:
        config["tokenizer_class"] = "EvilTokenizer"
        config["auto_map"] = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
    (folder / place).write_text(json.dumps(config))
    try:
        load(plan, quiet).close()
    except SnugError as error:
        assert isinstance(error, RemoteCodeDisabled)
    assert not canary.exists()
    assert not [name for name in sys.modules if "_evil" in name]


def test_attention_that_a_model_does_not_have_is_named(tiny_folder: Path) -> None:
    plan = plan_of(tiny_model("bloom", tiny_folder))
    asked = replace(plan, run=replace(plan.run, attention="flex_attention"))
    with pytest.raises(NotAvailableHere, match="--attn-implementation flex_attention"):
        load(asked, quiet)


def test_anything_else_is_one_line_with_its_cause(copied: Callable[[str], Path]) -> None:
    folder = copied("llama")
    plan = plan_of(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    with pytest.raises(LoadFailed) as caught:
        load(plan, quiet)
    assert "\n" not in caught.value.message
    assert "could not be loaded" in caught.value.message


def test_the_ends_of_replies_come_from_all_who_name_one() -> None:
    def token(content: str) -> SimpleNamespace:
        return SimpleNamespace(content=content)

    tokenizer = SimpleNamespace(
        eos_token_id=7,
        chat_template="{{ text }}<|im_end|>",
        added_tokens_decoder={
            7: token("</s>"),
            8: token("<|im_end|>"),
            9: token("<|eot_id|>"),
            10: token("<|im_start|>"),
        },
    )
    several = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[3, 4]))
    none = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=None))
    assert find_eos_ids(several, tokenizer) == {3, 4, 7, 8}
    assert find_eos_ids(none, tokenizer) == {7, 8}


def test_plans_made_by_hand_load_too(tiny_folder: Path) -> None:
    spec = inspect(tiny_model("opt", tiny_folder))
    plan = Plan(spec, RunSpec(dtype="bfloat16", context_tokens=128), "transformers", {"": "cpu"})
    engine = huggingface.load(plan, quiet)
    try:
        assert engine.info.dtype == "bfloat16"
        assert Ask("r1", engine.encode([TextPiece(TEXT)]), greedy(4)).run(engine).end.reason == "length"
    finally:
        engine.close()
