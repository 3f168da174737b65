"""Regular expressions as grammars: what they let through is what Python's own matching does."""

from __future__ import annotations

import json
import re

import llguidance
import pytest

from modules.engine.llamacpp.schema_grammar import checked_grammar_of
from modules.engine.loops.guidance import gbnf_grammar
from modules.errors import BadGrammar
from modules.forms.regex_grammar import MAX_LENGTH, grammar_of_choices, grammar_of_regex

TEXTS = [
    "", "a", "b", "y", "xy", "ab", "a b", "aab", "red", "blue", "redblue", "re", "12", "123", "1234", "1.a_ abc",
    "a\nb", "aéb", '"a-]^é"', '"\n"', "]-^[xx", '${"q\\"}', "bx", "b1", "é中", "\x0b", "1 a", "-",
]  # fmt: skip


def lets_through(grammar: str, text: str) -> bool:
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), gbnf_grammar(grammar), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return all(matcher.consume_token(byte) for byte in text.encode()) and bool(matcher.is_accepting())


@pytest.mark.parametrize(
    "pattern",
    [
        "(red|blue)", "[0-9]{3}", r'"[^"\\\x00-\x1f]*"', r"^\d+\.\w*?\s(?:a|bc)+(?P<x>c)?$", "a.b", r"[\]\[\-\^]+x{2,}",
        r'\$\{"q\\"\}', r"[^a]\D", "(|x)y", "[à-ÿ中]+", "a{0}b", r"\S+", "[^a]", "", r"a+\sb|-",
        r"[\d\s]{3}.?", r"[\D\s]+", r"[\s\S]*", r"[^\S1]b?",
    ],
)  # fmt: skip
def test_a_grammar_lets_through_what_its_expression_matches(pattern: str) -> None:
    grammar = grammar_of_regex(pattern, "regex")
    for text in TEXTS:
        assert lets_through(grammar, text) == bool(re.fullmatch(pattern, text, re.ASCII)), (pattern, text)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)b", r"\bx", r"(a)\1", "(?i)a", "(?i:a)", "(", "a{99999999999999}", "a" * (MAX_LENGTH + 1),
        "(" * 4000 + ")" * 4000, r"\ud83d", r"[\ud83d]",
    ],
)  # fmt: skip
def test_an_expression_that_no_grammar_says_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(BadGrammar) as caught:
        grammar_of_regex(pattern, "guided_regex")
    assert caught.value.param == "guided_regex"


@pytest.mark.parametrize(
    "pattern", [r"^\d{3}$", "b", "^a", r"x{2}$", r"^[ -~]*$", r"^[^a]+$", "a.b", r'\$\{"q', "[à-ÿ中]", r"^\S*$"]
)
def test_a_string_of_a_schema_matches_its_pattern_and_is_json(pattern: str) -> None:
    grammar = checked_grammar_of(json.dumps({"type": "string", "pattern": pattern}))
    let_through = [text for text in TEXTS if lets_through(grammar, json.dumps(text, ensure_ascii=False))]
    matching = [text for text in TEXTS if re.search(pattern, text, re.ASCII)]
    plain = [text for text in matching if text == json.dumps(text, ensure_ascii=False)[1:-1]]
    assert let_through and set(plain) <= set(let_through) <= set(matching)
    assert not any(lets_through(grammar, f'"{text}"') for text in TEXTS if '"' in text or "\n" in text)


def test_choices_are_let_through_to_the_letter() -> None:
    grammar = grammar_of_choices(['say "hi"\n', "\\x", "中"])
    assert all(lets_through(grammar, text) for text in ('say "hi"\n', "\\x", "中"))
    assert not lets_through(grammar, "say")
