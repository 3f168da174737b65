"""JSON schemas as grammars and grammars' checks: what is refused, by name; what would take for ever is never begun."""

from __future__ import annotations

import itertools
import json
import re
import time
from decimal import Decimal
from typing import Any

import llguidance
import pytest

from modules.engine.base import GenerationRequest
from modules.engine.form_reading import form_of
from modules.engine.llamacpp.gbnf import MAX_REPEATS, check_gbnf
from modules.engine.llamacpp.schema_grammar import _digits, checked_grammar_of, grammar_of
from modules.engine.loops import guidance
from modules.errors import BadValue
from modules.forms.json_schemas import bounded, without_idle
from modules.sampling import GenerationParams

CHESS = """
# moves
root   ::= "1. " move " " move "\\n" ([1-9] [0-9]? ". " move " " move "\\n")+
move   ::= (pawn | nonpawn | castle) [+#]?
pawn   ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]
castle ::= "O-O" "-O"?
"""


@pytest.mark.parametrize(
    "grammar",
    [
        CHESS, 'root ::= "yes" | "no"', 'root ::= (\n  "a" |\n  "b"\n)\n', 'root ::= [^\\x00-\\x1F"\\\\]{1,20} "\\""',
        'root ::= r\nr ::= [a-z] r | [0-9] r | "!"',
        'root ::= (v ",")* v\nv ::= "[" (v ("," v)*)? "]" | "{" v "}" | [0-9]+',
        'root ::= expr\nexpr ::= term ("+" term)*\nterm ::= "(" expr ")" | [0-9]+', 'root ::= "a"{3} "b"{2,} .?',
    ],
)  # fmt: skip
def test_sound_grammars_pass(grammar: str) -> None:
    check_gbnf(grammar)


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ('root ::= "yes', "line 1: a literal that does not end"),
        ('foo ::= "a"', "no rule named root"),
        ('root ::= "a"\n  | foo', "the name of a rule is missing"),
        ("root ::= foo", "'foo', which does not exist"),
        ('root ::= root "a" | "a"', "'root' begins with itself"),
        ('root ::= a\na ::= "x"? b\nb ::= a "y"', "begins with itself"),
        ('root ::= ("a"', "closing bracket"),
        ("root ::= " + "(" * 100_000 + '"a"' + ")" * 100_000, "larger than|deeper"),
        ("root ::= " + "(" * 1000 + '"a"' + ")" * 1000, "deeper than"),
        ('root ::= "a"{1000000}', f"more than {MAX_REPEATS}"),
        ('root ::= ((("a"{0,30}){0,30}){0,30}){0,30}', "repeats what may be empty"),
        ('root ::= ("a"*)*', "repeats what may be empty"),
        ('root ::= "a" "b"?+', "repetition follows|cannot stand"),
        ('root ::= "a"{0}', "repeats nothing"),
        ("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}? r{n + 1}?" for n in range(40)) + '\nr40 ::= "z"', "ways"),
        ("root ::= r0\n" + "\n".join(f"r{n} ::= r{n + 1}" for n in range(400)) + '\nr400 ::= "z"', "begin with one"),
        ("root ::= " + " ".join('"abcdefghijklmnopqrstuvwxyz"{2000}' for _ in range(5)), "elements"),
        ('root ::= s\ns ::= "a" s "b" | "a" s "c"', "'s' leads back to itself"),
        ('root ::= s\ns ::= p | q\np ::= "a" s "b"\nq ::= "a" s "c"', "'s' leads back to itself"),
        ('root ::= s\ns ::= "a" (s "b")? s "c" | "d"', "'s' leads back to itself"),
        ('root ::= s\ns ::= "x" ("\\x61" s "b" | "a" s "c") | "d"', "'s' leads back to itself"),
        ("%llguidance {}\nstart: /a/", "is no grammar"),
        ("x" * 70_000, "larger than"),
    ],
)
def test_hostile_and_wrong_grammars_are_refused_at_once(grammar: str, problem: str) -> None:
    started = time.monotonic()
    with pytest.raises(BadValue, match=problem) as caught:
        check_gbnf(grammar)
    assert caught.value.param == "grammar" and caught.value.remedy
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, r"at \$: 'pattern' cannot be held: assert"),
        ({"type": "string", "pattern": '^["\\x01]$'}, "'pattern' cannot be held: a class has only"),
        ({"type": "string", "pattern": "^a$", "maxLength": 3}, "'pattern' cannot be held beside"),
        ({"type": "string", "pattern": "\ud83d"}, "half a character"),
        ({"type": "string", "pattern": 5}, "'pattern' cannot be held"),
        ({"type": "number", "multipleOf": 1}, "'multipleOf' cannot be held"),
        ({"type": "number", "minimum": 0.12345678}, "more than 6 decimals"),
        ({"type": "number", "exclusiveMinimum": 1, "maximum": 1}, "no number"),
        ({"type": "number", "minimum": True}, "minimum is no number"),
        ({"type": "object", "propertyNames": {"maxLength": 3}}, "'propertyNames' cannot be held"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "may overlap"),
        ({"oneOf": [{"properties": {"a": {}}}, {"type": "string"}]}, "may overlap"),
        ({"oneOf": [{"type": "object", "properties": {"a": {"const": 1}}}] * 2}, "may overlap"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' cannot be held"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, r"at \$\.a: 'not' cannot be held"),
        ({"type": "nonesuch"}, "none of JSON's"),
        ({"$ref": "http://localhost:1/x.json"}, "leads out of the schema"),
        ({"$ref": "#/$defs/gone"}, "leads nowhere"),
        ({"$ref": "#"}, "begins with itself"),
        ({"anyOf": [{"$ref": "#"}]}, "begins with itself"),
        ({"type": "string", "maxLength": 100_000}, "no count up to"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "less than the least"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "no number of"),
        ({"type": "integer", "minimum": 0.1, "maximum": 0.9}, "no integer"),
        ({"type": "integer", "minimum": 1e300}, "at most 15 digits"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "required and not allowed"),
        ({"enum": []}, "no list with something"),
        ({"type": "string", "enum": [1]}, "none of the values"),
        ({"const": "\ud800"}, "half a character"),
        (False, "is no schema"),
        ({"type": "array", "maxItems": 1, "prefixItems": [{}, {}]}, "maxItems is less"),
    ],
)
def test_what_no_grammar_can_hold_is_refused_by_place_and_name(schema: Any, problem: str) -> None:
    with pytest.raises(BadValue, match=problem) as caught:
        checked_grammar_of(json.dumps(schema))
    assert caught.value.param == "response_format" and caught.value.remedy


EXPRESSION = {
    "anyOf": [{"$ref": "#/$defs/add"}, {"$ref": "#/$defs/mul"}, {"type": "integer"}],
    "$defs": {
        name: {
            "type": "object", "required": ["op", "left"],
            "properties": {"op": {"const": name}, "left": {"$ref": "#"}, "right": {"$ref": "#"}, "more": {"$ref": "#"}},
        }
        for name in ("add", "mul")
    },
}  # fmt: skip


def test_recursive_schemas_pass_where_their_first_members_tell_them_apart() -> None:
    checked_grammar_of(json.dumps(EXPRESSION))
    alike = json.loads(json.dumps(EXPRESSION).replace('"op"', '"zz"').replace('{"const": "mul"}', "true"))
    for schema in alike["$defs"].values():
        schema["properties"].pop("zz")
        schema["required"].remove("zz")
    with pytest.raises(BadValue, match="leads back to itself") as caught:
        checked_grammar_of(json.dumps(alike))
    assert caught.value.param == "response_format"


def test_deep_and_large_schemas_are_refused() -> None:
    deep = '{"type": "array", "items": ' * 200 + "{}" + "}" * 200
    with pytest.raises(BadValue, match="nests deeper"):
        grammar_of(deep)
    with pytest.raises(BadValue, match="not JSON"):
        grammar_of("[" * 30_000)
    with pytest.raises(BadValue, match="larger than"):
        grammar_of(json.dumps("é" * 40_000, ensure_ascii=False))


def test_bounds_of_integers_are_exact() -> None:
    for low in range(0, 130, 7):
        for high in range(low, 1200, 13):
            pattern = re.compile("|".join(map(_as_regex, _digits(low, high))))
            found = {number for number in range(1300) if pattern.fullmatch(str(number))}
            assert found == set(range(low, high + 1)), (low, high)


def _as_regex(grammar: str) -> str:
    return f"(?:{grammar.replace(' ', '').replace(chr(34), '')})"


BOUNDS = (None, 0, 1, -1, 0.5, -0.5, 0.05, -2.25, 9.99, 100, 9007199254740991)
WHOLE, RESTS = (
    (0, 1, 2, 9, 10, 99, 100, 101),
    (".0", ".04", ".05", ".050", ".06", ".25", ".3", ".4999", ".5", ".5001", ".99"),
)
TEXTS = [f"{sign}{whole}{rest}" for sign in ("", "-") for whole in WHOLE for rest in ("", *RESTS)]


@pytest.mark.parametrize("keywords", [("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")])
def test_bounds_of_numbers_are_exact(keywords: tuple[str, str]) -> None:
    closed = keywords == ("minimum", "maximum")
    for low, high in itertools.product(BOUNDS[:-1], BOUNDS):
        schema = {name: bound for name, bound in zip(keywords, (low, high), strict=True) if bound is not None}
        if not schema or (low is not None and high is not None and low >= high):
            continue
        grammar = checked_grammar_of(json.dumps({"type": "number"} | schema))
        pattern = re.compile(_numbers_as_regex(grammar.splitlines()[0].removeprefix("root ::= ")))
        for text in TEXTS:
            value = Decimal(text)
            above = low is None or (value >= Decimal(str(low)) if closed else value > Decimal(str(low)))
            below = high is None or (value <= Decimal(str(high)) if closed else value < Decimal(str(high)))
            written = pattern.fullmatch(text) is not None
            assert not written or (above and below), (schema, text)
            odd = (text.startswith("-") and not value) or (not closed and text.endswith("0"))
            assert written or odd or not (above and below), (schema, text)


def _numbers_as_regex(grammar: str) -> str:
    return re.sub(r'"([^"]*)"', lambda found: re.escape(found[1]), grammar).replace(" ", "")


PETS = {
    "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}], "discriminator": {"propertyName": "kind"},
    "$defs": {
        name: {"type": "object", "properties": {"kind": {"const": name, "default": name}, "friend": {"$ref": "#"}}}
        for name in ("cat", "dog")
    },
}  # fmt: skip


def test_a_tagged_union_is_held_with_its_tag_written_in_any_case() -> None:
    grammar = checked_grammar_of(json.dumps(PETS))
    assert json.dumps('"kind"') in grammar and json.dumps('"dog"') in grammar
    for apart in ([{"const": "a"}, {"enum": ["b", None]}], [{"type": "string"}, {"type": ["integer", "null"]}]):
        checked_grammar_of(json.dumps({"oneOf": apart}))


def test_names_that_may_be_any_are_no_demand() -> None:
    record: dict[str, Any] = {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": {"type": "number"},
    }
    plain = {name: value for name, value in record.items() if name != "propertyNames"}
    assert grammar_of(json.dumps(record)) == grammar_of(json.dumps(plain))
    named: dict[str, Any] = {
        "type": "object",
        "properties": {"propertyNames": {"type": "string"}, "more": {"items": record}},
    }
    assert without_idle(named) == {"type": "object", "properties": {**named["properties"], "more": {"items": plain}}}


def test_an_id_that_nothing_refers_to_is_no_address() -> None:
    local = {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"type": "null"}}}
    assert without_idle({"$id": "Output Format", **local}) == local
    away = {"$id": "http://example.com/a", "items": {"$ref": "a#/$defs/a"}}
    assert without_idle(away) == away


DECLARED: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "text", "fits"),
    [
        (DECLARED, '{"a": 1, "b": 2}', False),
        (DECLARED, '{"a": 1}', True),
        (DECLARED, '{\n    "a":1\n}', True),
        (DECLARED, '{\n\n"a":1}', False),
        (DECLARED, '{"a": 9007199254740991}', True),
        (DECLARED, '{"a": 11111111111111111', False),
        ({"type": ["integer", "null"], "minimum": 1}, "11111111111111111", False),
        (DECLARED | {"additionalProperties": True}, '{"a": 1, "b": 2}', True),
        (DECLARED | {"required": ["a", "b"]}, '{"a": 1, "b": 2}', True),
        ({"type": "object"}, '{"b": 2}', True),
        ({"type": "array", "items": DECLARED}, '[{"b": 2}]', False),
        ({"$ref": "#/$defs/x", "$defs": {"x": DECLARED}}, '{"b": 2}', False),
        ({"anyOf": [DECLARED, {"type": "null"}]}, '{"b": 2}', False),
        ({"allOf": [DECLARED, {"properties": {"b": {"type": "integer"}}}]}, '{"a": 1, "b": 2}', True),
        (DECLARED | {"anyOf": [{"required": ["b"]}, {"required": ["c"]}]}, '{"a": 1, "b": 2}', True),
    ],
)
def test_members_and_digits_have_an_end_with_transformers_too(schema: dict[str, Any], text: str, fits: bool) -> None:
    matcher = guidance.matcher_of(
        llguidance.LLTokenizer("byte"), guidance.schema_grammar(json.dumps(schema)), "response_format"
    )
    assert matcher.consume_tokens(list(text.encode())) == fits


@pytest.mark.parametrize("more", [{"minimum": 10**18}, {"enum": [10**20]}, {"type": ["integer", "number"]}])
def test_numbers_that_lie_farther_out_have_no_other_end(more: dict[str, Any]) -> None:
    schema = {"type": "integer"} | more
    assert bounded(schema) == schema


def test_a_grammar_and_a_schema_or_a_ban_of_the_end_do_not_go_together() -> None:
    with pytest.raises(BadValue, match="not both"):
        GenerationParams(grammar='root ::= "a"', json_schema="{}")
    with pytest.raises(BadValue, match="ban_eos_token"):
        form_of(GenerationRequest("r", "u", (1,), GenerationParams(json_schema="true", ban_eos_token=True)), "llamacpp")
    assert form_of(GenerationRequest("r", "u", (1,), GenerationParams()), "llamacpp") is None
