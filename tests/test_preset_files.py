"""Preset files of text-generation-webui and SillyTavern open as they are, and what Snug cannot do is named."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from modules.chat.preset_files import OFF, read_preset, write_preset
from modules.errors import BadPreset
from modules.sampling import GenerationParams

DATA = Path(__file__).parent / "data" / "presets"
SHIPPED = Path(__file__).parent.parent / "presets"


def read(name: str) -> tuple[GenerationParams, list[str]]:
    """A file of tests/data/presets: its parameters and its notes."""
    preset = read_preset(name, (DATA / name).read_text(encoding="utf-8"))
    return preset.params, list(preset.notes)


def differing(params: GenerationParams) -> dict[str, object]:
    """What differs from an empty file."""
    off = OFF.model_dump()
    return {name: value for name, value in params.model_dump().items() if value != off[name]}


def test_what_a_file_does_not_say_is_off_and_penalties_look_at_1024_tokens() -> None:
    params, notes = read("plain.yaml")
    assert differing(params) == {
        "temperature": 1.5, "min_p": 0.1, "top_k": 40, "repetition_penalty": 1.12, "repetition_penalty_range": 1024,
    }  # fmt: skip
    assert notes == []
    assert read_preset("x", "").params == OFF


def test_a_dynamic_temperature_keeps_its_low_and_its_high() -> None:
    params, notes = read("dynamic.yaml")
    assert (params.temperature - params.dynatemp_range, params.temperature + params.dynatemp_range) == (0.5, 1.75)
    assert (params.dynatemp_exponent, params.smoothing_factor, params.top_n_sigma) == (1.2, 0.3, 1)
    assert notes == []
    still = read_preset("x", "dynamic_temperature: false\ndynatemp_low: 0.1\ndynatemp_high: 3\n")
    assert still.params == OFF


def test_cutoffs_are_read_in_the_units_of_the_file() -> None:
    params, notes = read("tails.yaml")
    assert params.epsilon_cutoff == pytest.approx(0.0003)
    assert params.eta_cutoff == pytest.approx(0.00005), "the file is recognised by its other keys"
    assert (params.tfs, params.top_a, params.encoder_repetition_penalty) == (0.95, 0.2, 1.1)
    assert params.repetition_penalty_range == 512
    assert notes == []
    assert read_preset("x", "eta_cutoff: 6\n").params.eta_cutoff == pytest.approx(0.0006)
    assert read_preset("x", "eta_cutoff: 0.002\n").params.eta_cutoff == 0.002


def test_no_sampling_is_temperature_zero_and_what_has_no_place_here_is_named() -> None:
    params, notes = read("contrastive.yaml")
    assert params.greedy
    assert notes == ["penalty_alpha 0.6 is left out: Snug has no contrastive search."]


def test_a_file_with_every_key_opens_and_only_what_does_something_is_told() -> None:
    params, notes = read("everything.yaml")
    assert differing(params) == {
        "temperature": 0.8, "temperature_last": True, "min_p": 0.05, "top_p": 0.95, "top_k": 20, "typical_p": 0.9,
        "dry_multiplier": 0.8, "dry_allowed_length": 3, "dry_base": 1.8, "frequency_penalty": 0.2,
        "presence_penalty": 0.1, "repetition_penalty_range": 1024,
    }  # fmt: skip
    told = "\n".join(notes)
    for name in (
        "guidance_scale 1.5", "mirostat_mode 1", "dry_sequence_breakers", "sampler_priority", "grammar_string",
        "a_sampler_of_next_year",
    ):  # fmt: skip
        assert name in told
    assert len(notes) == 6


def test_a_preset_of_sillytavern_opens_by_its_own_names() -> None:
    params, notes = read("tavern.json")
    assert params.temperature == pytest.approx(1.1)
    assert params.dynatemp_range == pytest.approx(0.2)
    assert (params.repetition_penalty, params.repetition_penalty_range, params.frequency_penalty) == (1.07, 2048, 0.1)
    assert notes == ["Snug does not know 'sampler_order'."]


@pytest.mark.parametrize(
    ("order", "last", "told"),
    [
        ("temperature\ntop_k\nmin_p", False, False),
        ("top_k\nmin_p\ntemperature", True, False),
        (["top_k", "min_p", "temperature"], True, False),
        ("top_k\ntemperature\nmin_p", False, True),
        ("min_p\ntop_k\ntemperature", True, True),
        ("penalties, top_k, min_p, temperature", True, False),
        (5, False, False),
    ],
)
def test_an_order_of_samplers_is_followed_where_it_can_be_and_told_where_not(
    order: object, last: bool, told: bool
) -> None:
    text = f"temperature: 2\ntop_k: 5\nmin_p: 0.1\nsampler_priority: {order!r}\n".replace("\\n", ",")
    preset = read_preset("x", text)
    assert preset.params.temperature_last is last
    assert bool(preset.notes) is told


@pytest.mark.parametrize(
    "text",
    [
        "dynamic_temperature: true\ndynatemp_low: 2\ndynatemp_high: 1\n",
        "dynamic_temperature: true\ndynatemp_low: low\n",
        "dynamic_temperature: true\ndynatemp_low: .nan\n",
    ],
)
def test_a_range_that_is_none_is_told(text: str) -> None:
    assert "dynamic temperature" in " ".join(read_preset("x", text).notes)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("do_sample: true\ntop_k: 1.5\n", "top_k"),
        ("do_sample: true\nepsilon_cutoff: 1.0e+9\n", "epsilon_cutoff"),
        ("do_sample: true\nrepetition_penalty: [1]\n", "repetition_penalty"),
        ("epsilon_cutoff: .inf\n", "epsilon_cutoff"),
        ("temperature: yes\n", "temperature"),
        ("sampler_priority: [[1]]\ntemperature: x\n", "temperature"),
    ],
)
def test_a_bad_value_is_named_in_files_from_elsewhere_too(text: str, field: str) -> None:
    with pytest.raises(BadPreset, match=field) as caught:
        read_preset("x", text)
    assert caught.value.param == field


ANY_TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())
PARAMS = st.builds(
    GenerationParams,
    temperature=st.floats(0, 100), top_p=st.floats(0.001, 1), top_k=st.integers(0, 10**6), tfs=st.floats(0.01, 1),
    epsilon_cutoff=st.floats(0, 0.999), eta_cutoff=st.floats(0, 0.999), dynatemp_range=st.floats(0, 100),
    repetition_penalty=st.floats(0.1, 10), repetition_penalty_range=st.sampled_from([0, 1024, 5]),
    presence_penalty=st.sampled_from([0.0, 0.5]), mirostat_mode=st.sampled_from([0, 2]),
    seed=st.integers(-1, 2**63 - 1),
    temperature_last=st.booleans(), max_new_tokens=st.integers(1, 10**6), stop=st.tuples(ANY_TEXT),
)  # fmt: skip


@given(PARAMS)
@hypothesis_settings(max_examples=60, deadline=None)
def test_any_parameters_come_back_from_the_file_that_is_written(params: GenerationParams) -> None:
    preset = read_preset("any", write_preset(params))
    assert preset.params == params
    assert preset.notes == ()


@pytest.mark.parametrize("path", sorted([*SHIPPED.glob("*.yaml"), *DATA.iterdir()]), ids=lambda path: path.name)
def test_a_preset_that_was_opened_and_saved_says_the_same(path: Path) -> None:
    preset = read_preset(path.stem, path.read_text(encoding="utf-8"))
    assert read_preset("again", write_preset(preset.params)).params == preset.params


def test_the_comment_at_the_top_says_what_a_preset_is_for() -> None:
    assert read_preset("x", "# For stories.\ntemperature: 1\n").about == "For stories."
    assert read_preset("x", "temperature: 1\n# no\n").about == ""


@pytest.mark.parametrize(
    "text",
    [
        "eta_cutoff: 1" + "0" * 400,
        "dynamic_temperature: true\ndynatemp_low: 1\ndynatemp_high: 1" + "0" * 400,
        "dry_sequence_breakers: '" + "[" * 50_000 + "'\ndry_multiplier: 1",
    ],
)
def test_numbers_and_lists_beyond_all_sense_are_faults_of_the_file(text: str) -> None:
    with suppress(BadPreset):
        read_preset("x", text)
