"""Schemas, grammars and tools that are made to take for ever, or too much, when they are read or followed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def pattern(text: str) -> dict[str, Any]:
    """A string of that pattern."""
    return {"type": "string", "pattern": text}


def chain(count: int, keyword: str) -> dict[str, Any]:
    """References that lead on twice each: 2 ** `count` ways when written out."""
    steps: dict[str, Any] = {
        f"a{n}": {keyword: [{"$ref": f"#/$defs/a{n + 1}"}] * 2}
        if keyword != "properties"
        else {"type": "object", "properties": {key: {"$ref": f"#/$defs/a{n + 1}"} for key in "lr"}}
        for n in range(count)
    }
    return {"$defs": steps | {f"a{count}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


def nested(depth: int) -> dict[str, Any]:
    """Objects in each other."""
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


_ALIKE = [{"type": "array", "items": {"$ref": "#/$defs/a"}}] * 280
_LISTS: dict[str, Any] = {"type": "integer"}
for _ in range(3):
    _LISTS = {"type": "array", "minItems": 2000, "items": _LISTS}

SCHEMAS: dict[str, Any] = {
    "depth 60": nested(60), "depth 400": nested(400), "lists of lists of lists": _LISTS,
    "30 references twice": chain(30, "properties"), "300 references twice": chain(300, "properties"),
    "30 anyOf twice": chain(30, "anyOf"), "300 anyOf twice": chain(300, "anyOf"), "20 allOf twice": chain(20, "allOf"),
    "allOf of anyOf": {
        "allOf": [
            {"anyOf": [{"type": "object", "required": [f"p{n}{m}"], "properties": {f"p{n}{m}": {}}} for m in range(4)]}
            for n in range(8)
        ]
    },
    "oneOf of 600": {"oneOf": [{"type": "object", "properties": {f"p{n}": {"type": "null"}}} for n in range(600)]},
    "280 alike": {"$defs": {"a": {"anyOf": [*_ALIKE, {"type": "null"}]}}, "$ref": "#/$defs/a"},
    "4,000 values": {"enum": [f"value {n}" for n in range(4000)]},
    "values that begin alike": {"enum": ["x" * n for n in range(340)]},
    "a value of 60,000 signs": {"enum": ["x" * 60_000]},
    "2,000 members": {"type": "object", "properties": {f"k{n}": {} for n in range(2000)}},
    "1,500 strings": {"type": "object", "properties": {f"k{n}": {"type": "string"} for n in range(1500)}},
    "3,000 first items": {"type": "array", "prefixItems": [{"type": "integer"}] * 3000},
    "minItems of a billion": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "minItems of a million": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "maxLength of a billion": {"type": "string", "maxLength": 10**9},
    "minLength of a million": {"type": "string", "minLength": 10**6},
    "500 spans of numbers": {
        "anyOf": [{"type": "number", "minimum": 1 + n / 7, "maximum": 1e9 + n / 13} for n in range(500)]
    },
    "primes": {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (7919, 7907, 7901, 7883, 7879)]},
    "patterns of names": {"patternProperties": {f"^(.*a.{{{n}}}){{3}}$": {} for n in range(100)}},
    "ten patterns at once": {"allOf": [pattern(f"^(.*{sign}.{{12}}.*)$") for sign in "abcdefghij"]},
    **{
        f"pattern {number}": pattern(text)
        for number, text in enumerate((
            "^(a+)+$", "^(a|a)*b{1,1000}$", "^(([a-z])+.)+[A-Z]([a-z])+$", "^(.*a.{20}){20}$",
            "^((a{0,1000}){0,1000}){0,1000}$", "^" + "(a?){50}" * 20 + "$", "^(.{0,1000}a){1000}$",
            "^(" + "|".join(f"a{{0,{n}}}b" for n in range(200)) + ")*$", "^" + "(" * 60 + "a" + "){0,9}" * 60 + "$",
            "^(" + "|".join(f"(.*x.{{{n}}}y.*)" for n in range(100)) + ")$", r"^(\p{L}{1,500}\p{N}{1,500}){1,500}$",
            "^(" + "|".join(f"[a-z]{{{n}}}.*[0-9]" for n in range(2000)) + ")$", "a{60000}",
        ))
    },
}  # fmt: skip

GRAMMARS: dict[str, str] = {
    "20,000 texts of nothing": "root ::= " + '"" ' * 20_000 + '"a"',
    "two ways alike for long": f'root ::= {"a " * 8000} "x" root | {"a " * 8000} "y" root | "z"\na ::= "q"',
    "two texts alike for long": f'root ::= {chr(34)}q{chr(34)} '
    + '"q" ' * 7000 + 'root "k" | "q" ' + '"q" ' * 7000 + 'root "l" | "z"',
    "2,500 ways deeper": "root ::= " + " | ".join(f'"a{n}" root "b"' for n in range(2500)) + ' | "z"',
    "a billion": 'root ::= x{1000}\nx ::= y{1000}\ny ::= z{1000}\nz ::= "a"',
    "deeper or not": 'root ::= ("a" | "a" root)*',
    "10,000 brackets": "root ::= " + "(" * 10_000 + '"a"' + ")" * 10_000,
    "1,900 that may be": "root ::= " + '"a"? ' * 1900,
    "2,000 rules": "root ::= r0\n"
    + "\n".join(f'r{n} ::= "a" r{n + 1} | "b" r{n * 7 % 2000}' for n in range(2000)) + '\nr2000 ::= "z"',
    "begins with itself": 'root ::= root "a" | "a"',
}  # fmt: skip


def forms() -> Iterator[tuple[str, dict[str, Any]]]:
    """All of them with their names, as parameters."""
    for name, schema in SCHEMAS.items():
        yield name, {"json_schema": json.dumps(schema)}
    for name, grammar in GRAMMARS.items():
        yield name, {"grammar": grammar}
