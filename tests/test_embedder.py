"""What a folder says of embedding, and the plan of a model that embeds: its bytes, its ways, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from modules.downloads.choices import list_choices
from modules.errors import BadConfig, BadValue, NotAvailableHere, OutOfMemory, RemoteCodeDisabled, UnsupportedModel
from modules.hardware import Inventory
from modules.memory.dryruns.live_bytes import LiveBytes
from modules.memory.forecasting.encoding import batch_bytes, batch_tokens
from modules.memory.forecasting.forecast import RunSpec, weight_bytes
from modules.memory.model.embedder import Embedder, read_embedder
from modules.memory.model.hub import inspect_hub
from modules.memory.model.hub_client import Listing
from modules.memory.model.listing import list_models
from modules.memory.model.meta import describe
from modules.memory.model.spec import ModelSpec, inspect
from modules.memory.planning.planner import Plan, PlanTable, Question, list_plans, make_plan
from modules.plan_command.as_json import table_json
from modules.plan_command.training import list_ways as training_ways
from modules.settings import LoadOptions
from modules.units import MiB
from tests.fake_hub import FakeHub, serve
from tests.shapes import machine
from tests.tiny_encoders import CONFIGS, POSITIONS, encoder_folder, write_modules


def table_of(folder: Path, there: Inventory | None = None, **options: Any) -> PlanTable:
    asked = LoadOptions.model_validate({"model": folder.name} | options)
    return list_plans(Question(inspect(folder), asked, there or machine(), folder / "cache"))


def plan_of(folder: Path, there: Inventory | None = None, **options: Any) -> Plan:
    return make_plan(table_of(folder, there, **options).question)


def embedder_of(spec: ModelSpec) -> Embedder:
    assert spec.embedder is not None
    return spec.embedder


@pytest.mark.parametrize(("stated", "read"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last")])
def test_the_pooling_is_read_as_old_and_new_files_write_it(stated: str, read: str, tmp_path: Path) -> None:
    write_modules(tmp_path, stated, normalizes=True)
    assert read_embedder(tmp_path) == Embedder(read, normalizes=True)  # type: ignore[arg-type]
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": stated, "embedding_dimension": 8}))
    assert read_embedder(tmp_path) == Embedder(read, normalizes=True)  # type: ignore[arg-type]
    write_modules(tmp_path, stated)
    assert read_embedder(tmp_path) == Embedder(read)  # type: ignore[arg-type]


def test_limits_letters_and_prefixes_are_read(tmp_path: Path) -> None:
    write_modules(tmp_path, "mean")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    assert read_embedder(tmp_path) == Embedder("mean", longest_tokens=512)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert read_embedder(tmp_path) == Embedder("mean")
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256, "do_lower_case": True}))
    prompts = {"prompts": {"query": "query: ", "passage": "passage: ", "none": ""}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    expected = Embedder("mean", longest_tokens=256, lowercases=True, prompts=("query", "passage"))
    assert read_embedder(tmp_path) == expected


def test_prefixes_are_told_and_not_added(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "query: "}}))
    assert inspect(folder).warnings == (
        "tiny-bert was trained with prefixes (query). Snug adds none: put them before your texts, as "
        "config_sentence_transformers.json writes them.",
    )


def _dense(folder: Path) -> None:
    write_modules(folder, "mean", more=("Dense",))


def _foreign(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def _elsewhere(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = "../1_Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))


def _two(folder: Path) -> None:
    both = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(both))


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "kind", "told"),
    [
        (_dense, UnsupportedModel, "Transformer, then Pooling, then Dense"),
        (_foreign, RemoteCodeDisabled, "custom_st.Transformer"),
        (_elsewhere, BadConfig, "names the folder"),
        (_two, UnsupportedModel, "cls and mean"),
        (lambda folder: write_modules(folder, "max"), UnsupportedModel, "by max"),
        (lambda folder: write_modules(folder, "none"), UnsupportedModel, "by nothing"),
        (_write("modules.json", "[]"), UnsupportedModel, "nothing"),
        (_write("modules.json", "{}"), BadConfig, "list"),
        (_write("modules.json", "[1]"), BadConfig, "no module"),
        (_write("modules.json", "[" * 90_000), BadConfig, "modules.json"),
        (_write("1_Pooling/config.json", "[]"), BadConfig, "object"),
        (_write("sentence_bert_config.json", '{"max_seq_length": -4}'), BadConfig, "max_seq_length"),
    ],
)
def test_what_is_not_built_or_not_sound_is_refused_and_listed_with_the_reason(
    spoil: Callable[[Path], object], kind: type[Exception], told: str, tmp_path: Path
) -> None:
    folder = encoder_folder(tmp_path, "bert")
    spoil(folder)
    with pytest.raises(kind, match=told) as caught:
        inspect(folder)
    assert getattr(caught.value, "remedy", "")
    (entry,) = list_models(tmp_path)
    assert entry.problem == str(caught.value)


def test_an_encoder_that_says_nothing_takes_the_mean_and_a_causal_model_that_says_nothing_generates(
    tmp_path: Path,
) -> None:
    spec = inspect(encoder_folder(tmp_path, "bert", pooling="", headed=True))
    assert embedder_of(spec) == Embedder("mean", longest_tokens=POSITIONS - 2, stated=False)
    assert "the mean of a text's tokens is taken" in spec.warnings[0]
    folder = encoder_folder(tmp_path, "qwen3", pooling="", headed=True)
    assert inspect(folder).embedder is None
    write_modules(folder, "lasttoken")
    assert (inspect(folder).architecture, embedder_of(inspect(folder)).pooling) == ("Qwen3Model", "last")


@pytest.mark.parametrize(("model_type", "told"), [("t5", "does not embed"), ("deberta-v2", "does not embed")])
def test_families_that_were_not_tried_are_refused(model_type: str, told: str, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=told):
        inspect(folder)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_text_may_be_as_long_as_the_model_has_positions(family: str, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, family, pooling="mean")
    (folder / "tokenizer_config.json").write_text("{}")
    behind = family in ("roberta", "xlm-roberta", "camembert", "mpnet")  # two rows for the padding and what is before
    spec = inspect(folder)
    assert spec.max_context == (POSITIONS - 2 if behind else POSITIONS)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model(input_ids=torch.full((1, spec.max_context), 5))
    if behind:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, spec.max_context + 1), 5))


@pytest.mark.parametrize("family", CONFIGS)
def test_headers_agree_with_the_model_that_the_config_builds(family: str, tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, family, headed=True, pooling="mean")
    spec = inspect(folder, describe=describe)
    assert (spec.warnings, spec.tied_embeddings) == ((), False)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    model.pooler = None
    held = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    whole = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    assert weight_bytes(spec, RunSpec("float32")) == whole
    assert {tensor.name for tensor in spec.tensors} <= set(dict(model.named_parameters()))


def test_a_config_alone_can_be_planned(tmp_path: Path) -> None:
    whole = encoder_folder(tmp_path, "bert")
    (whole / "model.safetensors").unlink()
    spec = inspect(whole)
    assert (spec.weights_here, spec.architecture) == (False, "BertModel")
    assert spec.parameters == sum(p.numel() for n, p in transformers.AutoModel.from_config(
        transformers.AutoConfig.from_pretrained(whole)).named_parameters() if not n.startswith("pooler."))  # fmt: skip


@torch.no_grad()
def _counted(model: Any, texts: int, tokens: int) -> int:
    """Most bytes that live while so many texts of so many tokens are read, one of them shorter where there are some."""
    ids, mask = torch.full((texts, tokens), 5), torch.ones(texts, tokens, dtype=torch.long)
    if texts > 1:
        mask[0, -tokens // 8 :] = 0
    with LiveBytes(inner=False) as counting:
        for tensor in (*model.parameters(), *model.buffers()):
            counting.add(tensor)
        base = counting.begin()
        model(input_ids=ids, attention_mask=mask)
        most: int = counting.peak - base
        return most


_WIDE = {
    "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 260,
    "max_position_embeddings": 1026, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_SHAPES = {
    "bert": _WIDE, "xlm-roberta": _WIDE, "mpnet": _WIDE,
    "modernbert": {**_WIDE, "intermediate_size": 192, "num_hidden_layers": 4},
    "qwen3": {**_WIDE, "intermediate_size": 384, "num_key_value_heads": 1, "head_dim": 64, "use_cache": False},
}  # fmt: skip


@pytest.mark.parametrize("family", _SHAPES)
@pytest.mark.parametrize("context", [128, 512, 1024])
def test_what_a_batch_takes_is_forecast(family: str, context: int, tmp_path: Path) -> None:
    config = transformers.CONFIG_MAPPING[family](**_SHAPES[family])  # type: ignore[arg-type]
    config.save_pretrained(tmp_path)
    write_modules(tmp_path, "mean")
    model = transformers.AutoModel.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    run = RunSpec("float32", context_tokens=context, prefill_chunk=128)
    most = batch_tokens(run)
    assert most == max(context, 512)
    counted = max(_counted(model, most // tokens, tokens) for tokens in {context, context // 2, 64})
    forecast = batch_bytes(inspect(tmp_path), run)
    print(f"{family} {context}: {counted / MiB:.1f} MiB, forecast {forecast / counted:.2f} of it")
    assert 0.99 * counted <= forecast <= 1.25 * counted


def test_the_plan_has_weights_and_a_batch_and_no_cache(tmp_path: Path) -> None:
    plan = plan_of(encoder_folder(tmp_path, "bert", normalizes=True))
    budget = plan.budgets["cpu"]
    assert set(budget.figures) == {"weights", "activations", "allocator", "context"}
    assert budget["activations"] == batch_bytes(plan.spec, plan.run)
    assert (plan.title, plan.loader, plan.quality, plan.fits) == ("32-bit on the CPU", "transformers", 1.0, True)
    assert plan.tokens_per_s == plan.prefill_tokens_per_s
    told = " ".join(plan.reasons)
    for words in ("embeds texts for /v1/embeddings", "the mean of a text's tokens", "length 1", "may have 128 tokens"):
        assert words in told
    for words in ("context", "Writes", "prompt", "KV cache"):
        assert words not in told


def test_each_precision_is_a_way_on_the_gpu_and_on_the_cpu(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    table = table_of(folder, machine(2, 8))
    question = table.question
    places = {(plan.run.dtype, plan.run.quantization, *plan.placement.values()) for plan in table.plans}
    assert ("float32", "none", "cuda:0") in places
    assert all(set(plan.placement) == {""} for plan in table.plans)
    assert table.chosen is not None and table.chosen.placement == {"": "cuda:0"}
    assert {plan.run.kv_cache for plan in table.plans} == {"plain"}
    assert {plan.title.partition(" on ")[0] for plan in table.plans} >= {"32-bit", "16-bit", "8-bit"}
    asked: list[tuple[dict[str, Any], str]] = [
        ({"cpu": True}, "32-bit on the CPU"), ({"bf16": True, "cpu": True}, "16-bit on the CPU"),
        ({"load_in_8bit": True, "cpu": True}, "8-bit on the CPU"), ({"bf16": True}, "16-bit on GPU 0"),
    ]  # fmt: skip
    for options, title in asked:
        assert plan_of(folder, machine(2, 8), **options).title == title
    assert table_json(table, longest_context=0)["model"]["embeds"] == {"pooling": "mean", "normalizes": False}
    for plan in table.plans:
        if plan.fits:  # what is to be typed gives exactly that
            again = LoadOptions.model_validate({"model": folder.name} | _typed(plan))
            assert make_plan(question.asking(again)).title == plan.title


def _typed(plan: Plan) -> dict[str, Any]:
    from modules.settings import build_parser

    found = vars(build_parser().parse_args(list(plan.flags)))
    return {name: value for name, value in found.items() if name in LoadOptions.model_fields and name != "model"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kv_cache": "int8"}, "no KV cache"),
        ({"deepspeed": True}, "whole on one device"),
        ({"auto_devices": True}, "whole on one device"),
        ({"disk": True}, "whole on one device"),
        ({"loader": "vllm"}, "transformers embeds with it"),
        ({"lora": ("some",)}, "not merged"),
        ({"draft_model": "other"}, "no tokens that could be guessed"),
    ],
)
def test_flags_that_do_not_go_with_it_are_refused_by_name(options: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(NotAvailableHere, match=told) as caught:
        table_of(encoder_folder(tmp_path, "bert"), machine(1, 8), **options)
    assert (caught.value.param, caught.value.remedy[:5]) == (next(iter(options)), "Drop ")


def test_the_flag_for_embeddings_changes_nothing(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    plan = plan_of(folder, embeddings=True)
    assert (plan.budgets, plan.reasons, plan.embeds) == (plan_of(folder).budgets, plan_of(folder).reasons, False)


def test_what_does_not_fit_is_refused_with_what_is_lacking(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path, "bert")
    with pytest.raises(OutOfMemory, match="does not fit"):
        plan_of(folder, machine(ram_gib=0.4))
    with pytest.raises(BadValue, match="at most 128"):
        plan_of(folder, ctx_size=4096)


def test_training_is_not_planned(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableHere, match="embeds texts"):
        training_ways(inspect(encoder_folder(tmp_path, "bert")), "full", machine(), tokens=None, cpu=True)


def test_on_the_hub_it_is_what_it_is_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = encoder_folder(tmp_path, "qwen3", pooling="lasttoken", normalizes=True, headed=True)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with serve(FakeHub(files)) as hub:
        there = inspect_hub("org/name", cache_folder=tmp_path / "cache", endpoint=hub.endpoint)
        assert (there.embedder, there.tensors) == (inspect(folder).embedder, inspect(folder).tensors)
        assert embedder_of(there).pooling == "last"
        asked = len(hub.served)
        again = inspect_hub("org/name", cache_folder=tmp_path / "cache", endpoint=hub.endpoint)
        assert (again, len(hub.served)) == (there, asked)
        (tmp_path / "cache").joinpath(there.path.name, "modules.json").unlink()  # as a version before this one left it
        assert (
            inspect_hub("org/name", cache_folder=tmp_path / "cache", endpoint=hub.endpoint).embedder == there.embedder
        )


def test_a_download_takes_what_says_how_it_embeds() -> None:
    names = ("modules.json", "1_Pooling/config.json", "2_Normalize/config.json", "config.json", "model.safetensors")
    others = ("onnx/config.json", "1_Pooling/evil.py", "openvino/model.xml", "1_Pooling/deep/config.json")
    (choice,) = list_choices(Listing("a" * 40, dict.fromkeys((*names, *others), 9), name="org/name"))
    assert set(choice.files) == set(names)
