"""Presets: the shipped ones load, one's own are kept, and no name or file can do harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modules.chat.presets import MAX_PRESET_BYTES, Presets
from modules.errors import BadName, BadPreset, NotFound, StoreFailed
from modules.sampling import GenerationParams

SHIPPED = Path(__file__).parent.parent / "presets"
HOSTILE_NAMES = [
    "..", ".", "", " ", "/abs", "a/../../b", "a\x00b", "x" * 5000, "CON", "nul.txt", "dot.", "space ", "%2e%2e", "~",
    "a\nb", "-rf", "a\\b", "a:b", "\u202ename", "\ud83d",
]  # fmt: skip


@pytest.fixture
def presets(tmp_path: Path) -> Presets:
    return Presets(SHIPPED, tmp_path / "presets")


def write(tmp_path: Path, content: bytes | str) -> None:
    folder = tmp_path / "presets"
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_bytes(content.encode() if isinstance(content, str) else content)


def test_the_shipped_presets_load_and_say_what_they_are_for(presets: Presets) -> None:
    assert presets.names() == ["Balanced", "Creative", "Deterministic", "Precise"]
    assert presets.get("Balanced") == GenerationParams()
    assert presets.get("Deterministic").greedy
    assert (
        presets.get("Creative").temperature > presets.get("Balanced").temperature > presets.get("Precise").temperature
    )
    for path in SHIPPED.glob("*.yaml"):
        assert path.read_text().startswith("# ")


def test_a_grammar_is_one_requests_own(presets: Presets, tmp_path: Path) -> None:
    presets.save("mine", GenerationParams(top_k=3, grammar='root ::= "a"'))
    assert presets.get("mine") == GenerationParams(top_k=3)
    write(tmp_path, 'json_schema: "{}"')
    with pytest.raises(BadPreset, match="json_schema"):
        presets.get("mine")


def test_a_saved_preset_comes_back_as_it_was(presets: Presets) -> None:
    params = GenerationParams(temperature=1.3, stop=("\nUser:", "百"), seed=2**62, temperature_last=True)
    presets.save("Für mich", params)
    assert presets.get("Für mich") == params
    assert presets.names()[-1] == "Für mich"
    presets.save("Für mich", GenerationParams())
    assert presets.get("Für mich") == GenerationParams()
    presets.delete("Für mich")
    with pytest.raises(NotFound):
        presets.get("Für mich")
    with pytest.raises(NotFound):
        presets.delete("Für mich")
    presets.restore("Für mich")
    assert presets.get("Für mich") == GenerationParams()


@pytest.mark.parametrize("name", ["Balanced", "balanced", "PRECISE"])
def test_shipped_presets_cannot_be_changed_or_deleted(presets: Presets, name: str) -> None:
    before = {path: path.read_bytes() for path in SHIPPED.iterdir()}
    with pytest.raises(BadPreset, match="comes with Snug"):
        presets.save(name, GenerationParams())
    with pytest.raises(BadPreset, match="comes with Snug"):
        presets.delete(name)
    assert {path: path.read_bytes() for path in SHIPPED.iterdir()} == before


def test_a_preset_is_renamed_and_never_over_another(presets: Presets) -> None:
    presets.save("one", GenerationParams(top_k=1))
    presets.save("two", GenerationParams(top_k=2))
    presets.rename("one", "One")
    assert presets.get("One").top_k == 1
    for taken in ("two", "TWO", "Balanced", "balanced"):
        with pytest.raises(BadPreset):
            presets.rename("One", taken)
    with pytest.raises(BadPreset, match="comes with Snug"):
        presets.rename("Balanced", "mine")
    with pytest.raises(NotFound):
        presets.rename("none", "other")
    assert {name: presets.get(name).top_k for name in ("One", "two")} == {"One": 1, "two": 2}


def test_a_deleted_preset_does_not_come_back_over_a_new_one_of_its_name(presets: Presets) -> None:
    presets.save("mine", GenerationParams(top_k=1))
    presets.delete("mine")
    presets.save("Mine", GenerationParams(top_k=2))
    with pytest.raises(BadPreset, match="only in case"):
        presets.restore("mine")
    presets.rename("Mine", "mine")
    with pytest.raises(BadPreset, match="exists already"):
        presets.restore("mine")
    assert presets.get("mine").top_k == 2
    presets.rename("mine", "other")
    presets.restore("mine")
    assert (presets.get("mine").top_k, presets.get("other").top_k) == (1, 2)


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("Big O.yaml", "Big O"), ("../../etc/passwd", "etc passwd"), ("x.yaml.txt", "x"), ("..", "Imported preset"),
        ("CON.yaml", "CON preset"), ("", "Imported preset"), ("Balanced.yaml", "Balanced 2"),
        ("a" * 900 + ".json", "a" * 60),
        ("\u202egnp.yaml", "gnp"), ("-rf.yml", "rf"), ("Für mich.yaml", "Für mich"),
    ],
)  # fmt: skip
def test_a_file_from_elsewhere_is_kept_as_it_is_under_a_name_that_is_free(
    presets: Presets, tmp_path: Path, file_name: str, name: str
) -> None:
    text = "# From elsewhere.\ntemperature: 1.5\npenalty_alpha: 0.6\n"
    assert presets.take_in(file_name, text) == name
    assert presets.text(name) == text
    assert presets.read(name).notes
    assert presets.take_in(file_name, text) not in ("", name)
    assert {path.parent.name for path in tmp_path.rglob("*.yaml")} == {"presets"}


@pytest.mark.parametrize("text", ["temprature: 1", "[1]", "{", "x" * (MAX_PRESET_BYTES + 1), "a: \ud83d", "top_k: -1"])
def test_a_file_that_is_no_preset_is_not_kept(presets: Presets, text: str) -> None:
    with pytest.raises(BadPreset):
        presets.take_in("mine.yaml", text)
    assert "mine" not in presets.names()


def test_names_that_differ_only_in_case_are_refused(presets: Presets) -> None:
    presets.save("Mine", GenerationParams())
    with pytest.raises(BadPreset, match="only in case"):
        presets.save("mine", GenerationParams())


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_hostile_names_are_refused_and_touch_nothing(presets: Presets, tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.yaml").write_text("temperature: 1")
    presets.save("inside", GenerationParams())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    verbs: list[Callable[[], object]] = [
        lambda: presets.get(name), lambda: presets.save(name, GenerationParams()), lambda: presets.delete(name),
        lambda: presets.built_in(name), lambda: presets.rename("inside", name), lambda: presets.restore(name),
    ]  # fmt: skip
    for verb in verbs:
        with pytest.raises(BadName):
            verb()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before


def test_a_link_that_leads_out_is_refused(presets: Presets, tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("temperature: 1")
    presets.save("inside", GenerationParams())
    (tmp_path / "presets" / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    with pytest.raises(BadName, match="leads out"):
        presets.get("link")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("temperature: 1\ntemperature: 2\n", "line 2.*twice"),
        ("a: &a [1]\nb: *a\n", "aliases"),
        ("temperature: !!python/object/apply:os.system ['true']\n", "line 1"),
        ("temperature: 1\n\ttop_p: 1\n", "line 2"),
        (b"\xff\xfe\x00binary", "cannot be read"),
        ("- 1\n- 2\n", "name: value"),
        ("just text", "name: value"),
        ("temprature: 1\n", "unknown parameter 'temprature'. Did you mean temperature"),
        ("trust_remote_code: true\n", "unknown parameter 'trust_remote_code'"),
        ("x" * (MAX_PRESET_BYTES + 1), "larger than"),
    ],
)
def test_broken_files_are_refused_with_line_or_name(
    presets: Presets, tmp_path: Path, content: bytes | str, words: str
) -> None:
    write(tmp_path, content)
    assert "mine" in presets.names()
    with pytest.raises(BadPreset, match=words) as caught:
        presets.get("mine")
    assert caught.value.remedy


BAD_VALUES = [
    ".nan",
    ".inf",
    "-.inf",
    "1e309",
    "'5'",
    "[1]",
    "{a: 1}",
    "-1000000",
    "1.0e+30",
    "text",
    "null",
    "2001-01-01",
]


@pytest.mark.parametrize("field", [name for name in GenerationParams.model_fields if name != "stop"])
@pytest.mark.parametrize("value", BAD_VALUES)
def test_every_field_refuses_values_of_another_kind_or_range(
    presets: Presets, tmp_path: Path, field: str, value: str
) -> None:
    write(tmp_path, f"{field}: {value}\n")
    with pytest.raises(BadPreset, match=field) as caught:
        presets.get("mine")
    assert caught.value.param == field


@pytest.mark.parametrize("field", ["max_new_tokens", "top_k", "seed", "dry_allowed_length", "logprobs", "temperature"])
def test_a_yes_is_no_number(presets: Presets, tmp_path: Path, field: str) -> None:
    write(tmp_path, f"{field}: yes\n")
    with pytest.raises(BadPreset, match=field):
        presets.get("mine")


@pytest.mark.parametrize("value", ["['']", "text", "[1]", f"[{'x' * 501}]", f"[{', '.join('abc' for _ in range(65))}]"])
def test_bad_stop_strings_are_refused(presets: Presets, tmp_path: Path, value: str) -> None:
    write(tmp_path, f"stop: {value}\n")
    with pytest.raises(BadPreset, match="stop"):
        presets.get("mine")


@given(st.floats(0, 100), st.integers(0, 10**6), st.lists(st.text(min_size=1, max_size=20), max_size=5))
@example(0.0, 0, ["\x85", "x\x85\né"])
@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_parameters_survive_saving(presets: Presets, temperature: float, top_k: int, stop: list[str]) -> None:
    params = GenerationParams(temperature=temperature, top_k=top_k, stop=tuple(stop))
    presets.save("any", params)
    assert presets.get("any") == params


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreFailed, match="not saved"):
        Presets(SHIPPED, tmp_path / "file" / "presets").save("mine", GenerationParams())


def test_each_owner_has_one_shelf_and_so_one_lock(presets: Presets) -> None:
    assert presets.whose("ana") is presets.whose("ana") is not presets.whose("ben")
    assert presets.whose("") is presets
