"""Every parameter is declared once, explained, shown or named as not shown, and refuses bad values by name."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from modules.sampling import GROUP_TITLES, MAX_STOP_STRINGS, UNSAVED, GenerationParams, control_of, controls

WITHOUT_SLIDER = {"stop", "logprobs", *UNSAVED}
NUMBERS = sorted(
    name
    for name, field in GenerationParams.model_fields.items()
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
)
INTEGERS = [name for name in NUMBERS if isinstance(GenerationParams.model_fields[name].default, int)]
SWITCHES = ["temperature_last", "ban_eos_token"]


def refused_fields(values: dict[str, object]) -> set[str]:
    with pytest.raises(ValidationError) as caught:
        GenerationParams.model_validate(values)
    return {str(error["loc"][0]) for error in caught.value.errors()}


@pytest.mark.parametrize("name", GenerationParams.model_fields)
def test_every_parameter_has_help_of_one_or_two_sentences(name: str) -> None:
    text = GenerationParams.model_fields[name].description
    assert text
    assert text[0].isupper()
    assert text.endswith(".")
    assert len(text) < 120


@pytest.mark.parametrize("name", GenerationParams.model_fields)
def test_every_parameter_is_shown_or_known_to_have_no_slider(name: str) -> None:
    assert (control_of(name) is None) == (name in WITHOUT_SLIDER)


def test_the_controls_are_all_parameters_with_a_slider_in_titled_groups() -> None:
    shown = [name for group in controls().values() for name in group]
    assert sorted(shown) == sorted(set(GenerationParams.model_fields) - WITHOUT_SLIDER)
    assert list(controls()) == list(GROUP_TITLES)
    assert all(controls().values())


@pytest.mark.parametrize("name", [name for group in controls().values() for name in group])
def test_a_slider_stays_inside_the_allowed_range_and_holds_the_default(name: str) -> None:
    control = control_of(name)
    assert control is not None
    default = GenerationParams.model_fields[name].default
    if isinstance(default, bool):
        return
    low = 0 if control.minimum is None else control.minimum
    high = 1 if control.maximum is None else control.maximum
    assert low < high
    assert low <= default <= high
    for value in (low, high):
        if value == 0 and name in {"top_p", "typical_p"}:
            continue
        assert getattr(GenerationParams.model_validate({name: value}), name) == value


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "5", "", True, None, [1], {"a": 1}, 1e30, -1e30])
def test_a_bad_number_is_refused_by_the_name_of_its_field(name: str, value: object) -> None:
    assert refused_fields({name: value}) == {name}


@pytest.mark.parametrize("name", INTEGERS)
def test_a_fraction_is_no_count(name: str) -> None:
    assert refused_fields({name: 1.5}) == {name}


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [0, 1, "true", "yes", None, 1.0])
def test_a_switch_takes_only_true_and_false(name: str, value: object) -> None:
    assert refused_fields({name: value}) == {name}


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("max_new_tokens", [1, 1_000_000], [0, -1, 1_000_001, 10**9]),
        ("temperature", [0, 0.0, 2, 100], [-0.01, 100.1]),
        ("top_p", [1e-9, 1, 1.0], [0, 1.01, -1]),
        ("top_k", [0, 1_000_000], [-1, 1_000_001]),
        ("min_p", [0, 1], [-0.1, 1.1]),
        ("typical_p", [0.001, 1], [0, 2]),
        ("epsilon_cutoff", [0, 0.99], [1, -0.1]),
        ("eta_cutoff", [0, 0.99], [1, -0.1]),
        ("top_n_sigma", [0, 100], [-1, 101]),
        ("tfs", [0.001, 1], [0, 2]),
        ("top_a", [0, 1], [-0.1, 1.1]),
        ("dynatemp_range", [0, 100], [-1, 101]),
        ("dynatemp_exponent", [0.1, 100], [0, 101]),
        ("smoothing_factor", [0, 100], [-1, 101]),
        ("smoothing_curve", [1, 100], [0.9, 101]),
        ("repetition_penalty_range", [0, 1_000_000], [-1, 1_000_001]),
        ("encoder_repetition_penalty", [0.5, 1, 10], [0, -1, 10.1]),
        ("xtc_threshold", [0, 1], [-0.1, 1.1]),
        ("xtc_probability", [0, 1], [-0.1, 1.1]),
        ("repetition_penalty", [0.5, 1, 10], [0, -1, 10.1]),
        ("presence_penalty", [-10, 2, 10], [-10.1, 10.1]),
        ("frequency_penalty", [-10, 2, 10], [-10.1, 10.1]),
        ("no_repeat_ngram_size", [0, 1000], [-1, 1001]),
        ("dry_multiplier", [0, 100], [-1, 101]),
        ("dry_base", [1, 100], [0.9, 101]),
        ("dry_allowed_length", [1, 1000], [0, 1001]),
        ("mirostat_mode", [0, 2], [1, -1, 3]),
        ("mirostat_tau", [0, 100], [-1, 101]),
        ("mirostat_eta", [0, 1], [-0.1, 1.1]),
        ("seed", [-1, 0, 2**63 - 1], [-2, 2**63]),
        ("logprobs", [0, 100], [-1, 101, 10**6]),
    ],
)
def test_ranges_include_their_ends_and_nothing_beyond(name: str, allowed: list[float], refused: list[float]) -> None:
    for value in allowed:
        assert getattr(GenerationParams.model_validate({name: value}), name) == value
    for value in refused:
        assert refused_fields({name: value}) == {name}


def test_stop_strings_are_few_short_and_not_empty() -> None:
    assert GenerationParams.model_validate({"stop": ["\n", "é" * 500]}).stop == ("\n", "é" * 500)
    for bad in ([""], ["x" * 501], ["x"] * (MAX_STOP_STRINGS + 1), [5], [None], "text", None):
        assert refused_fields({"stop": bad}) == {"stop"}


def test_an_unknown_parameter_is_refused_by_name() -> None:
    assert refused_fields({"temprature": 1.0}) == {"temprature"}


def test_parameters_are_frozen_and_survive_json() -> None:
    chosen = GenerationParams(temperature=0.3, stop=("a",), seed=5)
    with pytest.raises(ValidationError):
        chosen.temperature = 1.0
    assert GenerationParams.model_validate_json(chosen.model_dump_json()) == chosen


@pytest.mark.parametrize(("temperature", "greedy"), [(0, True), (0.0, True), (0.01, False)])
def test_temperature_zero_is_greedy(temperature: float, greedy: bool) -> None:
    assert GenerationParams(temperature=temperature).greedy is greedy
