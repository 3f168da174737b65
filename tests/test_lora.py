"""LoRA adapters: named safely, checked before native code reads them, counted, and applied as merging would."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest

from modules.engine.base import Delta, TextPiece
from modules.errors import BadFlag, BadGguf, BadLora, BadName, ModelNotFound, NotAvailableHere, PickleRefused, SnugError
from modules.lora_names import MOST_LORAS, read_loras, split_lora
from modules.memory.dryruns.llamacpp_fit import read_load
from modules.memory.forecasting.forecast import RunSpec
from modules.memory.model.lora import Lora, find_loras, list_loras
from modules.memory.model.spec import inspect
from modules.memory.planning.candidates import list_ways
from modules.memory.planning.planner import Plan, Question, make_plan
from modules.settings import LoadOptions, check_together
from modules.settings_reading import read_settings
from modules.ui.ways import options_of, same_load
from modules.units import MiB
from tests.llamacpp_load import load_log
from tests.llamacpp_rig import TEXT, engine_of, long, plan_of
from tests.loop_rig import Ask
from tests.lora_files import ALPHA, RANK, Matrices, base_model, matrices_of, merged, write_lora
from tests.shapes import machine
from tests.tiny_models import tiny_gguf

Q = "blk.0.attn_q.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def matrices(model: Path) -> Matrices:
    return matrices_of(model)


@pytest.fixture
def folder(tmp_path: Path, matrices: Matrices) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    write_lora(folder / "style.gguf", matrices)
    return folder


def applied(folder: Path, model: Path, *wanted: str) -> Plan:
    return replace(plan_of(model), loras=find_loras(folder, wanted, model))


def written(plan: Plan) -> tuple[list[int], list[float]]:
    """Greedy tokens, and the log-probability of each."""
    with engine_of(plan) as engine:
        params = long(24).model_copy(update={"logprobs": 1})
        ask = Ask("written", engine.encode([TextPiece(TEXT)]), params).run(engine)
    return ask.tokens, [one.logprob for event in ask.events if isinstance(event, Delta) for one in event.logprobs]


def test_an_adapter_writes_what_the_model_with_it_merged_writes(
    model: Path, matrices: Matrices, folder: Path, tmp_path: Path
) -> None:
    plain, _ = written(plan_of(model))
    for wanted, scale in (("style", 1.0), ("style=-0.5", -0.5)):
        tokens, logprobs = written(applied(folder, model, wanted))
        own, theirs = written(plan_of(merged(model, matrices, tmp_path / f"merged{scale}.gguf", scale=scale)))
        assert tokens == own != plain
        assert logprobs == pytest.approx(theirs, abs=1e-3)


def test_a_scale_of_nought_changes_nothing_and_two_halves_are_a_whole(
    model: Path, matrices: Matrices, folder: Path
) -> None:
    assert written(applied(folder, model, "style=0")) == written(plan_of(model))
    write_lora(folder / "again.gguf", matrices)
    tokens, logprobs = written(applied(folder, model, "style=0.5", "again=0.5"))
    whole, theirs = written(applied(folder, model, "style.gguf"))
    assert tokens == whole and logprobs == pytest.approx(theirs, abs=1e-3)


def test_the_loaded_model_tells_its_adapters_and_what_of_them_it_left_out(
    model: Path, matrices: Matrices, folder: Path
) -> None:
    norm = numpy.ones(64, "float32")
    write_lora(folder / "normed.gguf", matrices, extra={"blk.0.attn_norm.weight": norm})
    with engine_of(applied(folder, model, "style", "normed=0.5")) as engine:
        assert engine.info.adapters == ("style", "normed × 0.5")
        assert any("normed, 1 norm cannot be applied" in told for told in engine.info.warnings)
        assert [one["scale"] for one in engine._server.ask("/lora-adapters")] == [1.0, 0.5]


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
def test_the_bytes_of_adapters_are_what_their_load_allocates(tmp_path: Path, kind: str) -> None:
    large = tiny_gguf(tmp_path, width=512, inner=1024, layers=4, kind=kind, context=1024)
    chance = numpy.random.default_rng(2)
    sizes = {"attn_q": (512, 512), "attn_output": (512, 512), "ffn_up": (1024, 512), "ffn_down": (512, 1024)}
    matrices = {
        f"blk.{layer}.{name}.weight": (
            chance.normal(0, 0.02, (63, columns)).astype("float16"),
            chance.normal(0, 0.02, (rows, 63)).astype("float16"),
        )
        for layer in range(4)
        for name, (rows, columns) in sizes.items()
    }
    write_lora(tmp_path / "large.gguf", matrices)
    (lora,) = find_loras(tmp_path, ["large"], large)
    run = RunSpec("float16", context_tokens=1024, prefill_chunk=512, runtime="llamacpp")
    plain, log = (load_log(large, run, loras=loras) for loras in ((), (lora.path,)))
    assert f"LoRA buffer size = {lora.size_bytes / MiB:8.2f} MiB" in log
    # With adapters the scheduler is made anew once they are there: the last of its buffers is the one that stays.
    without, beside = (read_load(one.splitlines())["cpu"] for one in (plain, log))
    before, after = (float(re.findall(r"compute buffer size =\s*([\d.]+) MiB", one)[-1]) * MiB for one in (plain, log))
    print(f"lora {kind}: {lora.size_bytes:,} forecast; compute {before:,.0f} without, {after:,.0f} with")
    assert (beside.model, beside.context) == (without.model, without.context)
    assert after - before <= 0.01 * lora.size_bytes


def broken(case: str, matrices: Matrices) -> Any:
    a, b = matrices[Q]
    only = {Q: (a, b)}
    table = "token_embd.weight"
    return {
        "a model": {"matrices": only, "general": "model"},
        "another kind": {"matrices": only, "adapter": "control_vector"},
        "another architecture": {"matrices": only, "architecture": "qwen2"},
        "nothing in it": {"matrices": {}},
        "an unknown target": {"matrices": {"blk.9.attn_q.weight": (a, b)}},
        "a strange tensor": {"matrices": only, "extra": {"blk.0.attn_q.weight": a}},
        "no B": {"matrices": {}, "extra": {f"{Q}.lora_a": a}},
        "a wrong input": {"matrices": {Q: (a[:, :32], b)}},
        "a wrong output": {"matrices": {Q: (a, b[:32])}},
        "two ranks": {"matrices": {Q: (a, b[:, :2])}},
        "a third dimension": {"matrices": {Q: (a[None], b[None])}},
        "a norm": {"matrices": {"blk.0.attn_norm.weight": (a, b)}},
        "whole numbers": {"matrices": {Q: (a.astype("int32"), b)}},
        "two ranks of the table": {"matrices": {table: (matrices[table][0][:, :2], matrices[table][1])}},
        "no finite alpha": {"matrices": only, "alpha": float("nan")},
    }[case]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("a model", "general.type is 'model'"), ("another kind", "adapter.type is 'control_vector'"),
        ("another architecture", "made for the architecture 'qwen2'"), ("nothing in it", "it changes nothing"),
        ("an unknown target", r"'blk.9.attn_q.weight', which \S+ does not have"),
        ("a strange tensor", "holds the tensor 'blk.0.attn_q.weight'"), ("no B", "lacks its B"),
        ("a wrong input", r"shapes \[4, 32\] and \[64, 4\], which do not fit \[64, 64\]"),
        ("a wrong output", r"\[32, 4\]"), ("two ranks", r"\[64, 2\]"), ("a third dimension", r"\[1, 4, 64\]"),
        ("a norm", "is no matrix"), ("whole numbers", "stored as I32"), ("two ranks of the table", "do not fit"),
        ("no finite alpha", "alpha is nan"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name_before_native_code_sees_it(
    case: str, why: str, matrices: Matrices, model: Path, tmp_path: Path
) -> None:
    write_lora(tmp_path / "odd.gguf", **broken(case, matrices))
    with pytest.raises(BadLora, match=rf"cannot be applied: odd\.gguf: .*{why}") as caught:
        find_loras(tmp_path, ["odd"], model)
    assert caught.value.param == "lora" and caught.value.remedy


def test_an_alpha_of_another_type_would_abort_llama_cpp_and_is_refused(model: Path, folder: Path) -> None:
    raw = (folder / "style.gguf").read_bytes()
    key = b"adapter.lora.alpha" + struct.pack("<I", 6)
    (folder / "typed.gguf").write_bytes(raw.replace(key, key[:-4] + struct.pack("<I", 5)))
    with pytest.raises(BadLora, match="is no 32-bit float"):
        find_loras(folder, ["typed"], model)


def test_cut_and_disguised_files_are_refused(model: Path, folder: Path) -> None:
    raw = (folder / "style.gguf").read_bytes()
    (folder / "cut.gguf").write_bytes(raw[: len(raw) // 2])
    (folder / "pickle.gguf").write_bytes(b"PK\x03\x04" + bytes(64))
    for name, kind in (("cut", BadGguf), ("pickle", PickleRefused)):
        with pytest.raises(kind, match=name):
            find_loras(folder, [name], model)


def test_the_file_made_of_an_adapters_folder_is_found_beside_it(model: Path, folder: Path) -> None:
    (folder / "style").mkdir()
    assert [lora.path for lora in find_loras(folder, ["style"], model)] == [folder / "style.gguf"]


def test_only_names_that_can_be_asked_for_are_listed(folder: Path) -> None:
    for name in ("r=8.gguf", "a,b.gguf", "OLD.GGUF", ".hidden.gguf", "notes.txt"):
        (folder / name).write_bytes(b"")
    assert list_loras(folder) == ["style"]


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("missing", ModelNotFound, "no LoRA adapter 'missing'"),
        ("link", BadName, "leads out"),
        ("peft", BadLora, "PEFT"),
    ],
)
def test_a_name_that_leads_nowhere_or_elsewhere_is_told(
    name: str, kind: type[SnugError], why: str, model: Path, folder: Path
) -> None:
    (folder / "peft").mkdir()
    (folder / "link.gguf").symlink_to(model)
    with pytest.raises(kind, match=why) as caught:
        find_loras(folder, [name], model)
    assert caught.value.param == "lora" and caught.value.remedy


def test_names_and_scales_are_read_from_flags_files_and_requests() -> None:
    assert split_lora("a.gguf=-0.5") == ("a.gguf", -0.5) and split_lora("my style") == ("my style", 1.0)
    assert read_loras("a, b=2") == read_loras(["a,b=2"]) == read_loras(("a", "b=2")) == ("a", "b=2")
    assert read_settings(["--lora", "a,b=0.5", "c", "--lora", "d"], {}).lora == ("a", "b=0.5", "c", "d")
    assert read_settings([], {"SNUG_LORA": "a,b=0.5"}).lora == ("a", "b=0.5")
    for odd in ("../a", "a=x", "a=nan", "a=1e9", "a=inf", ".a", "a,a=2", "a,a.gguf", ",".join("abcdefghi")):
        with pytest.raises(BadFlag, match="--lora"):
            read_settings(["--lora", odd], {})
    assert MOST_LORAS == 8
    with pytest.raises(BadFlag, match="--deepspeed and --lora"):
        check_together(LoadOptions.model_validate({"deepspeed": True, "lora": "a"}))


def planned(model: Path, loras: tuple[Lora, ...], **flags: Any) -> Plan:
    options = LoadOptions.model_validate({**flags, "lora": [lora.name for lora in loras]})
    return make_plan(Question(inspect(model), options, machine(0), Path("cache"), loras=loras))


def test_a_plan_counts_them_says_so_and_gives_them_back_as_flags(model: Path, folder: Path) -> None:
    loras = find_loras(folder, ["style=0.5"], model)
    plan, without = planned(model, loras), planned(model, (), loader="llamacpp")
    assert (plan.loader, plan.loras) == ("llamacpp", loras)
    assert plan.budgets["cpu"].adapters == loras[0].size_bytes > 0
    assert plan.budgets["cpu"].total == without.budgets["cpu"].total + loras[0].size_bytes
    assert plan.budgets["cpu"].figures["adapters"].method == "exact"
    assert "Changed by LoRA adapters: style × 0.5." in plan.reasons
    assert plan.flags[plan.flags.index("--lora") + 1] == "style"
    assert not same_load(plan, replace(plan, loras=()))
    base = LoadOptions.model_validate({"model": "m", "lora": "style=0.5,b"})
    assert options_of((), base).lora == ("style=0.5", "b"), "another way to run it changes it alike"
    assert options_of(["--lora", "b", "c=2"], base).lora == ("b", "c=2")


def test_what_llama_cpp_does_not_run_takes_no_adapters(model: Path) -> None:
    spec, options = inspect(model), LoadOptions.model_validate({"lora": "style"})
    assert {way.run.runtime for way in list_ways(spec, options, 0)[0]} == {"llamacpp"}
    asked = LoadOptions.model_validate({"lora": ["style"], "loader": "transformers"})
    with pytest.raises(NotAvailableHere, match=r"--lora style: .*cannot do that") as caught:
        make_plan(Question(spec, asked, machine(0), Path("cache")))
    assert caught.value.param == "lora" and "--loader llamacpp" in caught.value.remedy
    with pytest.raises(NotAvailableHere, match="--lora") as caught:
        list_ways(spec, LoadOptions.model_validate({"lora": "style", "dtype": "bf16"}), 0)
    assert caught.value.remedy == "Drop --lora."


def test_the_tests_own_adapter_has_a_scale_of_its_own() -> None:
    assert ALPHA / RANK == 2.0, "α/r of 1 would hide that it is left out"
