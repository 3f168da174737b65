"""A JSON schema as a GBNF grammar for llama.cpp: every reply that it lets through is valid.

llama.cpp's own way to take schemas writes free text where it cannot read one, without a word. Here a keyword that no
grammar can hold is refused by name. Members come in the order of `properties`; no others are written beside them.
Pure; the syntax and the cost of what comes out are gbnf.py's to check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from modules.engine.llamacpp.gbnf import MAX_REPEATS, check_gbnf
from modules.errors import BadGrammar
from modules.forms.json_schemas import names_anything
from modules.forms.regex_grammar import body_in_json
from modules.units import KiB

MAX_BYTES = 64 * KiB
MAX_DEPTH = 32

_ANNOTATIONS = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "discriminator",
    "$schema", "$id", "$comment", "$defs", "definitions", "strict",
})  # fmt: skip
_KEYWORDS: dict[str, frozenset[str]] = {
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "string": frozenset({"minLength", "maxLength", "format", "pattern"}),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "number": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "boolean": frozenset(),
    "null": frozenset(),
}
_TYPES = tuple(_KEYWORDS)
_MOST = 10**15 - 1
"""Numbers are written with up to 15 digits, which every reader keeps."""
_MOST_DECIMALS = 6
# Choices of so many texts are branched where they part, up to so deep.
_MANY_TEXTS, _MOST_BRANCHINGS = 8, 6
_DAY = '("0" [1-9] | [12] [0-9])'
_DATE = (
    '[0-9]{3} [1-9] "-" ("02-" DAY28 | ("0" [469] | "11") "-" (DAY | "30") | '
    '("0" [13578] | "10" | "12") "-" (DAY | "3" [01]))'
).replace("DAY28", '("0" [1-9] | "1" [0-9] | "2" [0-8])').replace("DAY", _DAY)  # fmt: skip
_TIME = '("0" [0-9] | "1" [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? ("Z" | [+-] ("0" [0-9] | "1" [0-3]) ":" [0-5] [0-9])'  # noqa: E501
_HEX = "[0-9a-f]"
_ESCAPE = r'["\\/bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2})'  # no half characters
_RULES = {
    "ws": '(" " | "\\n" [ ]{0,20})?',
    "char": rf'[^"\\\x00-\x1F\x7F] | "\\" ({_ESCAPE})',
    "string": '"\\"" char* "\\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,14})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,14}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,2})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ":" ws value ("," ws string ":" ws value)* ws)? "}"',
    "array": '"[" ws (value ("," ws value)* ws)? "]"',
    "date": f'"\\"" {_DATE} "\\""',
    "time": f'"\\"" {_TIME} "\\""',
    "date-time": f'"\\"" {_DATE} "T" {_TIME} "\\""',
    "uuid": f'"\\"" {_HEX}{{8}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{4}} "-" {_HEX}{{12}} "\\""',
}
_NEEDS = {
    "string": ("char",), "value": ("object", "array", "string", "number", "boolean", "null"),
    "object": ("ws", "string", "value"), "array": ("ws", "value"),
}  # fmt: skip


def grammar_of(text: str) -> str:
    """The grammar of the schema that `text` spells in JSON. Raises BadValue naming the place and the keyword."""
    if len(text.encode()) > MAX_BYTES:
        raise _bad("", f"it is larger than {MAX_BYTES // KiB} KiB", "Make it smaller.")
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad("", "it is not JSON", "Correct it.") from error
    if _too_deep(schema):
        raise _bad("", f"it nests deeper than {MAX_DEPTH}", "Use $defs and $ref.")
    try:
        return _Writer(schema).grammar()
    except RecursionError as error:
        raise _bad("", "its references lead too far", "Use fewer, one after the other.") from error


def checked_grammar_of(text: str) -> str:
    """The same, if llama.cpp can take it. Raises BadGrammar."""
    grammar = grammar_of(text)
    try:
        check_gbnf(grammar)
    except BadGrammar as error:
        problem = error.message.replace("The grammar", "The JSON schema, written as a grammar,")
        raise BadGrammar(problem, remedy="Make it smaller, or less ambiguous.", param="response_format") from error
    return grammar


class _Writer:
    """Rules, as a schema needs them."""

    def __init__(self, schema: object) -> None:
        self._schema = schema
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}

    def grammar(self) -> str:
        """All rules, root first."""
        root = self._write(self._schema, "$")
        return "\n".join(f"{name} ::= {body}" for name, body in {"root": root, **self._rules}.items()) + "\n"

    def _write(self, schema: object, at: str) -> str:
        """What stands for `schema` in a sequence: a name, or a group."""
        if schema is True or schema == {}:
            return self._known("value")
        if not isinstance(schema, dict):
            raise _bad(at, f"{json.dumps(schema)[:40]} is no schema", "Use an object, or true.")
        kinds = _kinds(schema, at)
        for keyword in ("$ref", "anyOf", "oneOf", "allOf", "const", "enum"):
            if keyword in schema:
                _check_keywords(schema, at, {keyword, "type"} if keyword in ("const", "enum") else {keyword})
                return self._special(keyword, schema, kinds, at)
        _check_keywords(schema, at, {"type"}.union(*(_KEYWORDS[kind] for kind in kinds)))
        return _group([self._typed(kind, schema, at) for kind in kinds])

    def _special(self, keyword: str, schema: Mapping[str, Any], kinds: Sequence[str], at: str) -> str:
        given = schema[keyword]
        if keyword == "$ref":
            return self._ref(given, at)
        if keyword == "const":
            return self._one_of([given], kinds, at)
        if not isinstance(given, list) or not given:
            raise _bad(at, f"{keyword} is no list with something in it", "Correct it.")
        if keyword == "enum":
            return self._one_of(given, kinds, at)
        if keyword == "allOf" and len(given) > 1:
            raise _bad(at, "allOf of several schemas cannot be held", "Write them as one.")
        if keyword == "oneOf":
            given = self._apart(given, at)
        return _group([self._write(one, f"{at}.{keyword}[{number}]") for number, one in enumerate(given)])

    def _apart(self, options: Sequence[object], at: str) -> list[object]:
        """The options of a oneOf, if no value can be two of them: they differ in their types or their values, or, as
        tagged unions do, in the values of a member, which is then written in any case.
        """
        found = [self._resolved(one, at) for one in options]
        if _disjoint([_types(one, at) for one in found]) or _disjoint([_values(one) for one in found]):
            return list(options)
        for name in _members_of(found[0]):
            members = [one["properties"][name] if name in _members_of(one) else None for one in found]
            if _disjoint([_values(self._resolved(member, at)) for member in members]):
                return [
                    option if name in one.get("required", ()) else {**one, "required": [*one.get("required", ()), name]}
                    for option, one in zip(options, found, strict=True)
                ]
        raise _bad(
            at, "oneOf whose schemas may overlap cannot be held", "Use anyOf, or a member with another const in each."
        )

    def _resolved(self, schema: object, at: str) -> Mapping[str, Any]:
        """The schema itself, where it is a reference. {} for what says nothing."""
        seen = 0
        while isinstance(schema, dict) and "$ref" in schema and seen < MAX_DEPTH:
            schema, seen = self._found(schema["$ref"], at), seen + 1
        return schema if isinstance(schema, dict) else {}

    def _one_of(self, values: Sequence[object], kinds: Sequence[str], at: str) -> str:
        fitting = [value for value in values if any(_is_kind(value, kind) for kind in kinds)]
        if not fitting:
            raise _bad(at, "none of the values is of its type", "Correct one of both.")
        return _choice(list(dict.fromkeys(map(_json_text, fitting))))

    def _ref(self, ref: object, at: str) -> str:
        """The rule of what a reference points to, written once: it may lead back to itself."""
        found, place = self._found(ref, at), str(ref)
        if place not in self._refs:
            if len(self._refs) >= MAX_REPEATS:
                raise _bad(at, "it has too many references", "Use fewer.")
            self._refs[place] = name = self._new("ref", "")
            self._rules[name] = self._write(found, place)
        return self._refs[place]

    def _found(self, ref: object, at: str) -> object:
        """What a reference points to."""
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise _bad(at, f"$ref {str(ref)[:60]!r} leads out of the schema", "Put what it names under $defs.")
        found = self._schema
        for part in ref.split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or name not in found:
                raise _bad(at, f"$ref {ref[:60]!r} leads nowhere", "Put what it names under $defs.")
            found = found[name]
        return found

    def _typed(self, kind: str, schema: Mapping[str, Any], at: str) -> str:
        if kind == "object":
            return self._object(schema, at)
        if kind == "array":
            return self._array(schema, at)
        if kind == "string":
            return self._string(schema, at)
        if kind in ("integer", "number") and not _KEYWORDS[kind].isdisjoint(schema):
            return _integers(schema, at) if kind == "integer" else _numbers(schema, at)
        return self._known(kind)

    def _string(self, schema: Mapping[str, Any], at: str) -> str:
        if "format" in schema:
            if (
                schema["format"] not in ("date", "time", "date-time", "uuid")
                or len(_KEYWORDS["string"] & {*schema}) > 1
            ):
                raise _bad(at, f"format {schema['format']!r} cannot be held here", "Leave it out, check the reply.")
            return self._known(str(schema["format"]))
        if "pattern" in schema:
            return self._matching(schema, at)
        least, most = _count(schema, "minLength", at) or 0, _count(schema, "maxLength", at)
        if (least, most) == (0, None):
            return self._known("string")
        return f'"\\"" {self._known("char")}{_repeat(least, most, at)} "\\""' if most != 0 else '"\\"\\""'

    def _matching(self, schema: Mapping[str, Any], at: str) -> str:
        """A string that matches a regular expression, somewhere in it where that has no ^ or no $."""
        pattern = schema["pattern"]
        if not isinstance(pattern, str) or len(_KEYWORDS["string"] & {*schema}) > 1:
            raise _bad(at, "'pattern' cannot be held beside minLength or maxLength here", "Say it in the pattern.")
        try:
            body, begins, ends = body_in_json(pattern, "response_format")
        except BadGrammar as error:
            problem = error.message.replace("The regular expression:", "'pattern' cannot be held:").rstrip(".")
            raise _bad(at, problem, "Leave it out, and check the reply for it.") from error
        before, after = ("" if found else f"{self._known('char')}*" for found in (begins, ends))
        return " ".join(part for part in ('"\\""', before, body, after, '"\\""') if part)

    def _array(self, schema: Mapping[str, Any], at: str) -> str:
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise _bad(at, "prefixItems is no list", "Correct it.")
        least, most = _count(schema, "minItems", at) or 0, _count(schema, "maxItems", at)
        if most is not None and most < max(least, len(first)):
            raise _bad(at, "maxItems is less than what must be there", "Correct it.")
        ws = self._known("ws")
        items = [self._write(one, f"{at}.prefixItems[{number}]") for number, one in enumerate(first)]
        rest = schema.get("items", True)
        if rest is False or most == len(first):
            if least > len(first):
                raise _bad(at, "minItems is more than there can be", "Correct it.")
            return " ".join(['"["', ws, *_joined(items, f'"," {ws}'), *([ws] if items else []), '"]"'])
        item = self._new("item", self._write(rest, f"{at}.items"))
        least, most = max(0, least - len(first)), None if most is None else most - len(first)
        if items:
            more = f'("," {ws} {item}){_repeat(least, most, at)}'
            return " ".join(['"["', ws, *_joined(items, f'"," {ws}'), more, ws, '"]"'])
        tail = (
            ""
            if most == 1
            else f'("," {ws} {item}){_repeat(max(0, least - 1), None if most is None else most - 1, at)}'
        )
        some = f"{item} {tail} {ws}"
        return f'"[" {ws} {some} "]"' if least else f'"[" {ws} ({some})? "]"'

    def _object(self, schema: Mapping[str, Any], at: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _bad(at, "properties must be an object and required a list", "Correct them.")
        if missing := [str(name) for name in required if name not in properties]:
            if more is False:
                raise _bad(at, f"{missing[0][:60]!r} is required and not allowed", "Add it to properties.")
            properties = properties | dict.fromkeys(missing, more)
        ws = self._known("ws")
        if not properties:
            return f'"{{" {ws} "}}"' if more is False else self._map(more, at)
        members = [
            (f'{_json_literal(name)} ":" {ws} {self._write(one, f"{at}.{name}")}', name in required)
            for name, one in properties.items()
        ]
        return f'"{{" {ws} {self._members(members, ws)} "}}"'

    def _map(self, values: object, at: str) -> str:
        """An object of any members whose values are all alike."""
        ws, string = self._known("ws"), self._known("string")
        member = self._new("member", f'{string} ":" {ws} {self._write(values, f"{at}.additionalProperties")}')
        return f'"{{" {ws} ({member} ("," {ws} {member})* {ws})? "}}"'

    def _members(self, members: Sequence[tuple[str, bool]], ws: str) -> str:
        """Members in their order, of which the optional ones may be left out: what may follow each, as a rule."""
        names = [self._new("member", text) for text, _ in members]
        after = ws  # what follows the last one
        starts: list[str] = []
        for name, (_, needed) in zip(reversed(names), reversed(members), strict=True):
            starts = [f"{name} {after}"] if needed else [f"{name} {after}", *starts]
            more = f'"," {ws} {name} {after}'
            after = self._new("rest", more if needed else f"{more} | {after}")
        return _group(starts) + ("" if any(needed for _, needed in members) else "?")

    def _known(self, name: str) -> str:
        if name not in self._rules:
            self._rules[name] = _RULES[name]
            for other in _NEEDS.get(name, ()):
                self._known(other)
        return name

    def _new(self, kind: str, body: str) -> str:
        name = f"{kind}-{len(self._rules)}"
        self._rules[name] = body
        return name


def _kinds(schema: Mapping[str, Any], at: str) -> tuple[str, ...]:
    """The types that a schema names, or else that its keywords are about, or else all."""
    given = schema.get("type")
    if given is None:
        return tuple(kind for kind in _TYPES if not _KEYWORDS[kind].isdisjoint(schema))[:1] or _TYPES
    kinds = given if isinstance(given, list) else [given]
    if not kinds or any(kind not in _TYPES for kind in kinds):
        raise _bad(at, f"type {json.dumps(given)[:60]} is none of JSON's", f"Use {', '.join(_TYPES)}.")
    return tuple(dict.fromkeys(kinds))


def _members_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The members that the schema of an object names."""
    properties = schema.get("properties") if schema.get("type") == "object" else None
    return tuple(properties) if isinstance(properties, dict) else ()


def _types(schema: Mapping[str, Any], at: str) -> frozenset[str]:
    """The types that a schema allows; none where it does not say. Integers are numbers too."""
    kinds = frozenset(_kinds(schema, at)) if "type" in schema else frozenset[str]()
    return kinds | {"number"} if "integer" in kinds else kinds


def _values(schema: Mapping[str, Any]) -> frozenset[str]:
    """The values that a schema allows, as JSON; none where it does not tell them one by one."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    simple = isinstance(values, list) and all(isinstance(value, (str, bool, int)) or value is None for value in values)
    return frozenset(_json_literal(value) for value in values) if values and simple else frozenset()


def _disjoint(sets: Sequence[frozenset[str]]) -> bool:
    """Whether no two share anything, and each holds something."""
    return all(sets) and sum(map(len, sets)) == len(frozenset[str]().union(*sets))


def _check_keywords(schema: Mapping[str, Any], at: str, held: set[str]) -> None:
    """Refuse what says something about what is to be written, and is not `held`."""
    elsewhere = frozenset[str]().union(*_KEYWORDS.values()) if "type" in held else frozenset()
    for keyword in schema:
        idle = keyword == "propertyNames" and names_anything(schema[keyword])
        if keyword not in _ANNOTATIONS | held | elsewhere and not idle:
            raise _bad(at, f"{keyword!r} cannot be held here", "Leave it out, and check the reply for it.")


def _is_kind(value: object, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, (int, float)):
        return kind == "number" or (kind == "integer" and value == int(value))
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")


@dataclass(frozen=True, slots=True)
class _Bound:
    """One end of a range; a value on it is in the range unless it is `open`."""

    value: Decimal
    open: bool = False


def _bounds(schema: Mapping[str, Any], at: str) -> tuple[_Bound, _Bound]:
    """The lowest and the highest number, of those that are written. Raises BadGrammar."""
    low, high = _Bound(Decimal(-_MOST)), _Bound(Decimal(_MOST))
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        given = schema.get(keyword)
        if given is None:
            continue
        if isinstance(given, bool) or not isinstance(given, (int, float)) or not math.isfinite(given):
            raise _bad(at, f"{keyword} is no number", "Correct it.")
        bound = _Bound(Decimal(str(given)), keyword.startswith("exclusive"))
        if keyword.endswith("inimum") and (bound.value, bound.open) > (low.value, low.open):
            low = bound
        elif keyword.endswith("aximum") and (bound.value, not bound.open) < (high.value, not high.open):
            high = bound
    if low.value > high.value or (low.value == high.value and (low.open or high.open)):
        raise _bad(at, "no number of at most 15 digits lies between its bounds", "Correct them.")
    return low, high


def _inside(low: _Bound, high: _Bound, decimals: int) -> tuple[int, int]:
    """The first and the last number with so many decimals between two bounds, without their point."""
    scale = 10**decimals
    first, last = math.ceil(low.value * scale), math.floor(high.value * scale)
    return first + (low.open and first == low.value * scale), last - (high.open and last == high.value * scale)


def _integers(schema: Mapping[str, Any], at: str) -> str:
    """Integers of up to 15 digits between two bounds."""
    low, high = _inside(*_bounds(schema, at), 0)
    if low > high:
        raise _bad(at, "no integer lies between its bounds", "Correct them.")
    written = [f'"-" {_group(_digits(max(1, -high), -low))}'] if low < 0 else []
    return _group([*written, *(_digits(max(0, low), high) if high >= 0 else [])])


def _numbers(schema: Mapping[str, Any], at: str) -> str:
    """Numbers between two bounds, without exponents."""
    low, high = _bounds(schema, at)
    if max(_decimals(low.value), _decimals(high.value)) > _MOST_DECIMALS:
        raise _bad(at, f"its bounds have more than {_MOST_DECIMALS} decimals", "Round them.")
    zero, ways = _Bound(Decimal(0)), list[str]()
    if low.value < 0:
        turned = _Bound(-high.value, high.open) if high.value <= 0 else zero
        ways += [f'"-" {way}' for way in _magnitudes(turned, _Bound(-low.value, low.open))]
    if high.value >= 0:
        ways += _magnitudes(low if low.value >= 0 else zero, high)
    return _group(ways)


def _magnitudes(low: _Bound, high: _Bound) -> list[str]:
    """Ways to write the numbers between two bounds that are not negative: with the decimals that the bounds have, with
    fewer, and with more where what follows them cannot leave the range.
    """
    decimals = max(_decimals(low.value), _decimals(high.value))
    ways: list[str] = []
    for some in range(decimals + 1):
        ways += _pointed(*_inside(low, high, some), some)
    first, last = (int(bound.value * 10**decimals) for bound in (low, high))
    point = "" if decimals else ' "."'
    more = max(1, 14 - decimals)
    if not high.open:
        ways += [f'{way}{point} "0"{{1,{more}}}' for way in _pointed(last, last, decimals)]
    if low.open and first < last:  # what follows the bound itself must not be all zeros
        ways += [f"{way}{point} [0-9]{{0,{more}}} [1-9]" for way in _pointed(first, first, decimals)]
        first += 1
    return ways + [f"{way}{point} [0-9]{{1,{more}}}" for way in _pointed(first, last - 1, decimals)]


def _decimals(value: Decimal) -> int:
    exponent = value.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _pointed(first: int, last: int, decimals: int) -> list[str]:
    """Ways to write the numbers from `first` to `last`, neither negative, with a point before the last `decimals`."""
    ways: list[str] = []
    for length in range(decimals + 1, max(decimals + 1, len(str(max(0, last)))) + 1):
        low = max(first, 10 ** (length - 1) if length > decimals + 1 else 0)
        high = min(last, 10**length - 1)
        if low <= high:
            for way in _ways(str(low).zfill(length), str(high).zfill(length)):
                point = ['"."', *way[length - decimals :]] if decimals else []
                ways.append(" ".join([*way[: length - decimals], *point]))
    return ways


def _ways(low: str, high: str) -> list[list[str]]:
    """Ways to write the digits from `low` to `high`, which are as long: what each digit may be."""
    if not low or (set(low) == {"0"} and set(high) == {"9"}):
        return [["[0-9]"] * len(low)]
    if low[0] == high[0]:
        return [[f'"{low[0]}"', *rest] for rest in _ways(low[1:], high[1:])]
    rest = len(low) - 1
    first, last = int(low[0]) + 1, int(high[0]) - 1
    middle = [[f"[{first}-{last}]", *["[0-9]"] * rest]] if first <= last else []
    below = [[f'"{low[0]}"', *way] for way in _ways(low[1:], "9" * rest)]
    return [*below, *middle, *([f'"{high[0]}"', *way] for way in _ways("0" * rest, high[1:]))]


def _digits(low: int, high: int) -> list[str]:
    """Ways to write the numbers from `low` to `high`, neither negative."""
    found: list[str] = []
    for length in range(len(str(low)), len(str(high)) + 1):
        least = max(low, 10 ** (length - 1) if length > 1 else 0)
        found += _same_length(str(least), str(min(high, 10**length - 1)))
    return found


def _same_length(low: str, high: str) -> list[str]:
    rest = len(low) - 1
    if not rest or (set(low[1:]) == {"0"} and set(high[1:]) == {"9"}):
        return [f"[{low[0]}-{high[0]}]" + (f" [0-9]{{{rest}}}" if rest else "")]
    if low[0] == high[0]:
        return [f'"{low[0]}" {_group(_same_length(low[1:], high[1:]))}']
    first, last = int(low[0]) + 1, int(high[0]) - 1
    middle = [f"[{first}-{last}] [0-9]{{{rest}}}"] if first <= last else []
    return [
        f'"{low[0]}" {_group(_same_length(low[1:], "9" * rest))}', *middle,
        f'"{high[0]}" {_group(_same_length("0" * rest, high[1:]))}',
    ]  # fmt: skip


def _count(schema: Mapping[str, Any], keyword: str, at: str) -> int | None:
    value = schema.get(keyword)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_REPEATS:
        raise _bad(at, f"{keyword} {str(value)[:20]} is no count up to {MAX_REPEATS}", "Use a smaller one, or none.")
    return value


def _repeat(least: int, most: int | None, at: str) -> str:
    if most is not None and most < least:
        raise _bad(at, "the most is less than the least", "Correct them.")
    if most is None:
        return "*" if not least else f"{{{least},}}"
    return "" if least == most == 1 else f"{{{least},{most}}}"


def _joined(items: Sequence[str], between: str) -> list[str]:
    return [part for number, item in enumerate(items) for part in ([between] if number else []) + [item]]


def _group(alternatives: Sequence[str]) -> str:
    return f"({' | '.join(alternatives)})"


def _choice(texts: Sequence[str], depth: int = 0) -> str:
    """One of `texts`, which differ. What many of them begin with is written once: llama.cpp tries its whole vocabulary
    on each way that is open."""
    if len(texts) < _MANY_TEXTS or depth == _MOST_BRANCHINGS:
        return _group(list(map(_literal, texts)))
    alike: dict[str, list[str]] = {}
    for text in texts:
        alike.setdefault(text[:1], []).append(text)
    return _group([_branch(ones, depth) for ones in alike.values()])


def _branch(texts: Sequence[str], depth: int) -> str:
    """One of `texts`, which begin alike."""
    if len(texts) == 1:
        return _literal(texts[0])
    ends = min(texts), max(texts)
    shared = next((place for place, two in enumerate(zip(*ends, strict=False)) if two[0] != two[1]), len(ends[0]))
    return f"{_literal(texts[0][:shared])} {_choice([text[shared:] for text in texts], depth + 1)}"


def _json_literal(value: object) -> str:
    """The text that JSON spells `value` with, as GBNF spells texts."""
    return _literal(_json_text(value))


def _json_text(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _bad("", "it holds half a character (a lone surrogate)", "Correct it.") from error
    return text


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _too_deep(value: object) -> bool:
    """Whether values nest deeper than MAX_DEPTH times what a schema's level takes (a keyword, a name, a list)."""
    level = [value]
    for _ in range(3 * MAX_DEPTH):
        inner = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level = [item for items in inner for item in items]
        if not level:
            return False
    return True


def _bad(at: str, problem: str, remedy: str) -> BadGrammar:
    where = f"at {at[:120]}: " if at else ""
    return BadGrammar(f"The JSON schema cannot be used: {where}{problem}.", remedy=remedy, param="response_format")
