"""What people type or paste to name a model on the hub, and which of a repository's files that means."""

from __future__ import annotations

import pytest

from modules.downloads.address import HubAddress, read_address
from modules.downloads.choices import best_choice, find_choice, list_choices
from modules.errors import BadName, UnsupportedModel
from modules.memory.model.hub_client import Listing
from modules.units import GiB

MAIN = HubAddress("org/name")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", MAIN),
        ("  'org/name' ", MAIN),
        ("org/name/", MAIN),
        ("org/name@dev", HubAddress("org/name", "dev")),
        ("org/name:gptq-4bit", HubAddress("org/name", "gptq-4bit")),
        ("org/name:Q4_K_M", HubAddress("org/name", "main", "Q4_K_M")),
        ("hf.co/org/name:IQ2_XXS", HubAddress("org/name", "main", "IQ2_XXS")),
        ("huggingface.co/org/name@dev", HubAddress("org/name", "dev")),
        ("https://huggingface.co/org/name", MAIN),
        ("https://huggingface.co/org/name?show_file_info=x", MAIN),
        ("http://www.huggingface.co/org/name/#usage", MAIN),
        ("https://huggingface.co/org/name/tree/dev", HubAddress("org/name", "dev")),
        ("https://huggingface.co/org/name/tree/refs%2Fpr%2F1", HubAddress("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name/tree/refs/pr/1", HubAddress("org/name", "refs/pr/1")),
        ("https://huggingface.co/org/name/blob/main/a/b.gguf", HubAddress("org/name", "main", "a/b.gguf")),
        ("https://huggingface.co/org/name/resolve/dev/b.gguf?download=true", HubAddress("org/name", "dev", "b.gguf")),
        ("https://huggingface.co/org/name/discussions/3", MAIN),
        ("https://huggingface.co/api/models/org/name", MAIN),
    ],
)
def test_names_and_addresses_of_models_are_understood(text: str, meant: HubAddress) -> None:
    assert read_address(text) == meant


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "name", "../x", "../../etc/passwd", "org/..", "org/../x", "/etc/passwd", "C:\\x\\y", "org/name@../x",
        "org/@dev", "@/x", ":/:", "org/na me", "org/näme", "org/name@a b", "a" * 600, "org/" + "n" * 200, "org/a--b",
        "https://huggingface.co/", "https://huggingface.co/org", "https://huggingface.co/datasets/a/b",
        "https://huggingface.co/spaces/a/b", "https://example.com/org/name", "http://127.0.0.1:8000/org/name",
        "https://huggingface.co.evil.com/org/name", "https://huggingface.co@evil.com/org/name", "file:///etc/passwd",
        "ftp://huggingface.co/org/name", "https://", "org/name\x00", "<script>/x",
    ],
)  # fmt: skip
def test_everything_else_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(BadName) as caught:
        read_address(text)
    assert "organisation/model" in caught.value.remedy


def test_the_hub_of_one_s_own_may_be_named_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example:8080")
    assert read_address("http://hub.example:8080/org/name/tree/dev") == HubAddress("org/name", "dev")


def listing(*names: str, size: int = 1000, **sizes: int) -> Listing:
    """A repository of these files."""
    return Listing("a" * 40, {name: sizes.get(name, size) for name in names}, name="org/name")


def test_of_a_repository_with_everything_the_files_that_loading_reads_are_taken() -> None:
    names = (
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "LICENSE",
        "chat_template.jinja", "model.safetensors.index.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", "1_Pooling/config.json",
    )  # fmt: skip
    others = (
        "consolidated.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json",
        "modeling_x.py", "original/params.json", "onnx/model.onnx", "tf_model.h5", ".gitattributes",
        "training_args.bin", "flax_model.msgpack", "1_Pooling/notes.json", "picture.png", "rust_model.ot",
        "weird.model", "notes.txt",
    )  # fmt: skip
    [choice] = list_choices(listing(*names, *others))
    assert sorted(choice.files) == sorted(names)
    assert choice.size_bytes == 1000 * len(names) and choice.goal == "name"
    assert choice.weights == ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def test_a_file_beside_the_weights_that_is_far_too_large_stays_away() -> None:
    [choice] = list_choices(
        Listing("a" * 40, {"config.json": 1, "model.safetensors": 9, "x.json": 4 * GiB}, name="o/n")
    )
    assert choice.files == ("config.json", "model.safetensors")


def test_quantizations_are_told_by_their_names_small_ones_first() -> None:
    sizes = {
        f"Fox-7B-{kind}.gguf": size * GiB for kind, size in (("Q8_0", 8), ("IQ2_XS", 2), ("Q4_K_M", 5), ("BF16", 15))
    }
    choices = list_choices(Listing("a" * 40, sizes, name="org/Fox-GGUF"))
    assert [choice.title for choice in choices] == ["IQ2_XS", "Q4_K_M", "Q8_0", "BF16"]
    assert best_choice(choices, 16 * GiB).title == "Q4_K_M"
    assert best_choice(choices, 4 * GiB).title == "IQ2_XS"
    assert best_choice(choices, 1 * GiB).title == "IQ2_XS"
    assert find_choice(choices, "fox-7b-q8_0.gguf").title == "Q8_0"
    assert find_choice(choices, "*bf16*").title == "BF16"
    alike = list_choices(listing("A-Q4_0.gguf", "B-Q4_0.gguf", "imatrix.gguf", "mmproj-model-f16.gguf"))
    assert [choice.title for choice in alike] == ["A-Q4_0", "B-Q4_0"]


def test_a_set_of_parts_that_is_not_whole_is_not_offered() -> None:
    parts = [f"Q8/f-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    [choice] = list_choices(listing(*parts))
    assert choice.files == tuple(parts) and choice.goal == "f-00001-of-00003.gguf"
    with pytest.raises(UnsupportedModel):
        list_choices(listing(*parts[:2]))
