"""modules/memory/model/hub.py against a hub on loopback: few bytes of any repository, and every failure by its name."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import modules.memory.model.hub_client as hub_client
from modules.errors import (
    BadConfig,
    BadName,
    BadSafetensors,
    DownloadFailed,
    Forbidden,
    ModelNotFound,
    PickleRefused,
    RemoteCodeDisabled,
    SnugError,
    TimedOut,
    TooManyAttempts,
    UnsupportedModel,
)
from modules.memory.dryruns.asking import DryRuns
from modules.memory.model.hub import inspect_hub
from modules.memory.model.spec import ModelSpec, inspect
from modules.plan_command.report import find_sources
from modules.settings_reading import read_settings
from modules.units import GiB, MiB
from tests.fake_hub import FakeHub, repository, serve
from tests.test_spec import AUTO_MAP, LLAMA, make_model


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with HF_HUB_OFFLINE=1; here the hub is on loopback."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with a sound small model."""
    with serve(FakeHub(repository(make_model(tmp_path / "source")))) as running:
        yield running


def look(hub: FakeHub, tmp_path: Path, name: str = "org/name", **options: Any) -> ModelSpec:
    """inspect_hub against the fake one."""
    return inspect_hub(name, cache_folder=tmp_path / "cache", endpoint=hub.endpoint, token="hf_canary", **options)


def sharded(layers: int, shards: int, hidden: int = 8192) -> tuple[dict[str, bytes], dict[str, int]]:
    """A Llama-70B-like repository: whole headers, and weights that are only claimed. (files, sizes)"""
    modules = ["model.embed_tokens", "model.norm", "lm_head"]
    modules += [f"model.layers.{i}.mlp.{part}" for i in range(layers) for part in ("gate_proj", "up_proj", "down_proj")]
    files: dict[str, bytes] = {}
    sizes: dict[str, int] = {}
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        position = 0
        for module in modules[shard::shards]:
            size = hidden * hidden * 2
            tensor = {"dtype": "BF16", "shape": [hidden, hidden], "data_offsets": [position, position + size]}
            header[f"{module}.weight"] = tensor
            weight_map[f"{module}.weight"] = name
            position += size
        raw = json.dumps(header).encode()
        files[name] = struct.pack("<Q", len(raw)) + raw
        sizes[name] = 8 + len(raw) + position
    files["config.json"] = json.dumps({**LLAMA, "num_hidden_layers": layers}).encode()
    files["model.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["tokenizer.json"] = b"{}" * 5 * MiB
    return files, sizes


def test_a_model_on_the_hub_is_what_the_same_model_is_in_a_folder(hub: FakeHub, tmp_path: Path) -> None:
    there, here = look(hub, tmp_path), inspect(tmp_path / "source")
    assert there.name == "org/name"
    assert (there.tensors, there.layer_kinds, there.bare_modules) == (here.tensors, here.layer_kinds, here.bare_modules)
    assert not there.weights_here
    assert there.warnings == ()
    assert json.loads((there.path / "config.json").read_bytes()) == LLAMA


def test_of_hundreds_of_gigabytes_in_thirty_shards_a_few_hundred_kilobytes_are_read(tmp_path: Path) -> None:
    files, sizes = sharded(layers=800, shards=30)
    assert sum(sizes.values()) > 250 * GiB
    with serve(FakeHub(files, sizes)) as hub:
        started = time.perf_counter()
        spec = look(hub, tmp_path)
        print(
            f"{hub.served_bytes:,} bytes served in {time.perf_counter() - started:.2f} s, {len(hub.requests)} requests"
        )
        assert spec.parameters == (800 * 3 + 3) * 8192**2
        assert hub.served_bytes < 4 * MiB  # what the server had written before it saw that the client had enough
        assert "tokenizer.json" not in hub.served
        assert time.perf_counter() - started < 10


def test_what_was_looked_at_once_is_not_fetched_again_and_serves_without_a_network(
    hub: FakeHub, tmp_path: Path
) -> None:
    first = look(hub, tmp_path)
    fetched = len(hub.requests)
    assert look(hub, tmp_path) == first
    assert len(hub.requests) == fetched + 1  # the list of files alone: is it still the same commit?
    hub.fail = (503, "")
    again = look(hub, tmp_path)
    assert again.tensors == first.tensors
    assert "last looked at" in again.warnings[0]


@pytest.mark.parametrize(
    ("status", "code", "error", "says"),
    [
        (404, "RepoNotFound", ModelNotFound, "no org/name"),
        (404, "RevisionNotFound", ModelNotFound, "no revision 'main'"),
        (401, "", Forbidden, "private, gated, or not there"),
        (401, "RepoNotFound", Forbidden, "private, gated, or not there"),
        (401, "GatedRepo", Forbidden, "gated"),
        (403, "GatedRepo", Forbidden, "gated"),
        (403, "", Forbidden, "gated"),
        (429, "", TooManyAttempts, "wait"),
        (500, "", DownloadFailed, "500"),
        (503, "", DownloadFailed, "503"),
    ],
)
def test_what_the_hub_refuses_is_said_with_a_remedy(
    status: int, code: str, error: type[SnugError], says: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.fail = (status, code)
    with pytest.raises(error, match=says) as caught:
        look(hub, tmp_path)
    assert caught.value.remedy
    assert "hf_canary" not in str(caught.value)


def test_a_gated_model_whose_list_is_public_is_gated_at_its_files(hub: FakeHub, tmp_path: Path) -> None:
    hub.fail_files = (403, "GatedRepo")
    with pytest.raises(Forbidden, match="gated") as caught:
        look(hub, tmp_path)
    assert "HF_TOKEN" in caught.value.remedy


def test_without_a_network_the_hub_cannot_be_reached(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DownloadFailed, match="cannot be reached") as caught:
        inspect_hub("org/name", cache_folder=tmp_path, endpoint="http://127.0.0.1:9")
    assert "config.json" in caught.value.remedy
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE"):
        look(hub, tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "says"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b"x"}, BadConfig, "model_type"),
        ({"config.json": json.dumps(LLAMA).encode(), "pytorch_model.bin": b"x"}, PickleRefused, "pickles alone"),
        ({"pytorch_model.bin": b"x"}, PickleRefused, "pickles alone"),
        ({"model.Q4_K_M.gguf": b"GGUF"}, UnsupportedModel, "GGUF"),
        ({"config.json": json.dumps(LLAMA).encode()}, UnsupportedModel, "no weights"),
        ({"README.md": b"x"}, BadConfig, "no config"),
        ({"config.json": json.dumps({**LLAMA, "auto_map": AUTO_MAP}).encode()}, RemoteCodeDisabled, "code"),
        ({"config.json": json.dumps(LLAMA).encode(), "modeling_evil.py": b"x"}, RemoteCodeDisabled, "modeling_evil"),
        ({"config.json": b"{" * 200}, BadConfig, "JSON"),
        (
            {
                "config.json": json.dumps(LLAMA).encode(),
                "model.safetensors.index.json": json.dumps({"weight_map": {"a": "../../evil.safetensors"}}).encode(),
            },
            BadSafetensors,
            "elsewhere",
        ),
        (
            {
                "config.json": json.dumps(LLAMA).encode(),
                "model.safetensors.index.json": json.dumps({"weight_map": {"a": "b.safetensors"}}).encode(),
            },
            BadSafetensors,
            "missing",
        ),
    ],
)
def test_repositories_that_cannot_be_planned_say_why(
    files: dict[str, bytes], error: type[SnugError], says: str, tmp_path: Path
) -> None:
    with serve(FakeHub(files)) as hub, pytest.raises(error, match=says) as caught:
        look(hub, tmp_path)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 100 * MiB) + b"{}",
        b"",
        b"\x02\0\0",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 12) + b'{"a": {"dty',
    ],
)
def test_a_lying_header_is_refused_and_little_of_it_read(header: bytes, hub: FakeHub, tmp_path: Path) -> None:
    hub.files["model.safetensors"] = header
    hub.sizes["model.safetensors"] = 300 * GiB
    with pytest.raises(BadSafetensors):
        look(hub, tmp_path)
    assert hub.served.get("model.safetensors", 0) <= 256 * 1024


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_a_huge_small_file_is_refused_and_not_read_to_its_end(file: str, hub: FakeHub, tmp_path: Path) -> None:
    hub.files[file] = b" "
    hub.sizes[file] = 400 * GiB
    with pytest.raises(BadConfig, match="larger"):
        look(hub, tmp_path)
    assert hub.served[file] < 64 * MiB


def test_a_server_that_ignores_ranges_is_not_read_to_its_end(hub: FakeHub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.sizes["model.safetensors"] = len(hub.files["model.safetensors"])
    assert look(hub, tmp_path).layers == 2


def test_an_answer_that_drips_is_given_up(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "WHOLE_TIMEOUT_S", 0.3)
    hub.sizes["config.json"] = 8 * MiB
    hub.drip_s = 0.05
    with pytest.raises(TimedOut, match="slowly"):
        look(hub, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["", "name", "org/", "/name", "org/name/more", "../name", "org/..", "org/a--b", "org/na me", "http://x/y", "o/\0",
     "org/" + "n" * 200, "-o/name", "org/na\nme"],
)  # fmt: skip
def test_names_that_are_no_repository_never_reach_the_hub(name: str, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(BadName):
        look(hub, tmp_path, name)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "../x", "a b", "-x", "x" * 300])
def test_revisions_that_are_none_never_reach_the_hub(revision: str, hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(BadName):
        look(hub, tmp_path, revision=revision)
    assert hub.requests == []


def test_a_repository_without_a_tokenizer_says_so(hub: FakeHub, tmp_path: Path) -> None:
    del hub.files["tokenizer.json"]
    assert "no tokenizer" in look(hub, tmp_path).warnings[0]


def test_a_damaged_cache_is_fetched_anew(hub: FakeHub, tmp_path: Path) -> None:
    first = look(hub, tmp_path)
    (first.path / "files.json").write_text("{")
    assert look(hub, tmp_path).tensors == first.tensors


def test_plan_takes_a_name_on_the_hub(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    (tmp_path / "models").mkdir()
    folders = ["--model-dir", str(tmp_path / "models"), "--user-data-dir", str(tmp_path / "user_data")]
    with closing(DryRuns(tmp_path / "dryruns")) as dry_runs:
        (source,) = find_sources(read_settings(["--plan", "--model", "org/name", *folders]), dry_runs)
        spec = source.read()
    assert (spec.name, spec.layers, spec.weights_here) == ("org/name", 2, False)
    assert any("One of the two is wrong" in warning for warning in spec.warnings)  # 2 × 2 matrices in the tests' files


def test_shards_of_too_many_tensors_are_refused_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modules.memory.model.hub.MAX_MODEL_TENSORS", 10)
    files, sizes = sharded(layers=20, shards=3)
    with serve(FakeHub(files, sizes)) as hub, pytest.raises(BadSafetensors, match="more than 10 tensors"):
        look(hub, tmp_path)
