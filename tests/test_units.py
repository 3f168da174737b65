"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.units import GiB, MiB, format_duration, format_rate, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("10", 10 * GiB),
        (10, 10 * GiB),
        (0.5, GiB // 2),
        ("8722MiB", 8722 * MiB),
        (" 10 gib ", 10 * GiB),
        ("10GB", 10**10),
        ("3kb", 3000),
        ("1.5TiB", 1536 * GiB),
        (".5", GiB // 2),
        ("12B", 12),
    ],
)
def test_sizes_are_read_with_gib_as_the_default_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("rate", "text"),
    [(140.0, "140"), (1234.0, "1,200"), (41.3, "41"), (5.23, "5.2"), (8.0, "8.0"), (0.3, "0.3"), (0.00741, "0.0074"),
     (0.000012, "0.000012"), (0.0, "0")],
)  # fmt: skip
def test_rates_have_two_digits_and_no_exponent(rate: float, text: str) -> None:
    assert format_rate(rate) == text


@given(st.integers(1, 2**50))
def test_what_is_rounded_up_is_enough(size: int) -> None:
    assert parse_size(format_size(size, up=True)) >= size


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1e309", "1e3", "10 GiBs", "GiB", "0.1B", "9" * 400])
def test_what_is_no_size_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="Write 10"):
        parse_size(text)


@given(st.text(max_size=20))
def test_no_text_gives_anything_but_a_size_or_a_value_error(text: str) -> None:
    try:
        assert 1 <= parse_size(text) <= 2**53
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (417 * MiB, "417 MiB"), (int(8.25 * GiB), "8.25 GiB"),
     (1024**3 - 1, "1.00 GiB"), (-5 * MiB, "-5.00 MiB"), (23.6 * GiB, "23.6 GiB"), (2048 * GiB, "2.00 TiB")],
)  # fmt: skip
def test_sizes_are_shown_with_three_digits(size_bytes: float, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.42 s"), (12.3, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_are_shown_in_the_fitting_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
