"""YAML that people edit: plain values come through, everything else is refused with its line."""

from __future__ import annotations

import pytest

from modules.yaml_files import parse_yaml


def test_plain_values_come_through() -> None:
    assert parse_yaml("a: 1\nb: [x, 2.5, true]\nc: null\n") == {"a": 1, "b": ["x", 2.5, True], "c": None}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: *x\n", "line 2: aliases"),
        ("a: &x [1]\nb: *x\n", "line 2: aliases"),
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' stands there twice"),
        ("a: 1\n\tb: 2\n", "line 2: "),
        ("a: !!python/object:os.system x\n", "line 1: could not determine a constructor"),
        ("a: !!python/object/apply:os.system ['true']\n", "line 1: could not determine a constructor"),
        ("a: [1\n", "line 2: "),
        ("a: \x00", "special characters are not allowed"),
        ("[" * 5000, "nested too deeply|line"),
    ],
)
def test_anything_else_is_refused_with_its_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)


@pytest.mark.parametrize(
    "text",
    ["? [a]\n: b", "? {a: b}\n: c", "a: !!bool abc", "a: !!timestamp abc", "a: !!int ''", "a: !!map [b]",
     "a: " + "1:" * 1000 + "1", "a: 0x" + "f" * 4000],
)  # fmt: skip
def test_a_value_that_is_not_what_it_says_is_refused_as_any_other_fault(text: str) -> None:
    with pytest.raises(ValueError, match=r"unhashable key|not what it says|more than 1000 digits"):
        parse_yaml(text)
