"""Tools that a client offers to a model, and the form of the calls that a reply is held to: values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Choice = Literal["none", "auto", "required"]
MAX_DEPTH = 64
"""How deep a schema may nest."""
CALLS_AT_ONCE = 16
"""How many calls a reply can consist of that has to call: a small model that may go on calling does."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the client's. `parameters` is the JSON schema of its arguments, {} where it takes any."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """The tool as chat templates expect it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        return {"type": "function", "function": function | {"parameters": dict(self.parameters) or EMPTY}}


EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
"""The schema of no arguments in particular."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The tools of one request. With `only` the model must call the tool of that name; `parallel`: several at once."""

    tools: tuple[Tool, ...]
    choice: Choice = "auto"
    only: str = ""
    parallel: bool = True

    @property
    def must_call(self) -> bool:
        """Whether the reply has to be a call."""
        return bool(self.only) or self.choice == "required"

    @property
    def callable(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        return tuple(tool for tool in self.tools if not self.only or tool.name == self.only)


@dataclass(frozen=True, slots=True)
class CallPattern:
    """One way to write a call: `before`, arguments of the JSON schema `schema`, `after`."""

    before: str
    schema: str
    after: str


@dataclass(frozen=True, slots=True)
class Tags:
    """Arguments that each stand between tags: `key_before` KEY `key_after` VALUE `value_after`. Strings stand as they
    are, all else as JSON. `closing` ends a call: neither it nor `value_after` can stand in a string.
    """

    key_before: str
    key_after: str
    value_after: str
    closing: str


@dataclass(frozen=True, slots=True)
class CallShape:
    """A reply that consists of calls: `lead`, one of `calls`, more of them each after `between` where `several` may be
    (CALLS_AT_ONCE in all), `trail`. Control tokens are written as their texts. With `tags` arguments are no JSON
    object, but tagged.
    """

    calls: tuple[CallPattern, ...]
    lead: str = ""
    between: str = ""
    trail: str = ""
    several: bool = False
    tags: Tags | None = None


def shape_from(value: Mapping[str, Any]) -> CallShape:
    """The shape of which `value` is dataclasses.asdict."""
    calls, tags = tuple(CallPattern(**call) for call in value["calls"]), value["tags"]
    return CallShape(**(dict(value) | {"calls": calls, "tags": Tags(**tags) if tags else None}))


def names_anything(schema: Any) -> bool:
    """Whether a schema for the names of members lets every name be: all of JSON's are texts."""
    return schema is True or schema in ({}, {"type": "string"})


def without_idle(schema: Any) -> Any:
    """A schema without `propertyNames` that say nothing, as zod writes them of every record."""
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "propertyNames" or not names_anything(value)}
    for key, value in kept.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            kept[key] = {name: without_idle(one) for name, one in value.items()}
        elif key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            kept[key] = [without_idle(one) for one in value]
        elif key in _ONE_SCHEMA:
            kept[key] = without_idle(value)
    return kept


def bounded(schema: Any) -> Any:
    """A schema whose objects have the members that they declare and no others, and whose integers are those that every
    reader of JSON holds exactly, where it leaves that open.

    A small model goes on with members of its own, or digits, to the reply's limit, and functions get arguments that
    they do not know. As it is where schemas are combined: what one part declares another would forbid.
    """
    return _bounded(schema) if _stands_alone(schema) else schema


def _stands_alone(schema: Any) -> bool:
    """Whether no object that declares members anywhere in `schema` is combined with other schemas."""
    if isinstance(schema, list):
        return all(map(_stands_alone, schema))
    if not isinstance(schema, dict):
        return True
    combined = "allOf" in schema or ("properties" in schema and not _COMBINING.isdisjoint(schema))
    return not combined and all(map(_stands_alone, schema.values()))


def _bounded(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = dict(schema)
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            kept[key] = {name: _bounded(one) for name, one in value.items()}
        elif key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            kept[key] = [_bounded(one) for one in value]
        elif key in _ONE_SCHEMA:
            kept[key] = _bounded(value)
    if _declares_all(schema):
        kept.setdefault("additionalProperties", False)
    return kept | _bounds(schema)


def _declares_all(schema: dict[str, Any]) -> bool:
    declared, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(declared, dict) or not isinstance(required, list):
        return False
    return bool(declared) and all(isinstance(name, str) and name in declared for name in required)


def _bounds(schema: dict[str, Any]) -> dict[str, int]:
    """What an integer lacks of bounds; none where one that it has lies farther out."""
    kinds = schema["type"] if isinstance(schema.get("type"), list) else [schema.get("type")]
    if "integer" not in kinds or "number" in kinds or not schema.keys().isdisjoint({"enum", "const"}):
        return {}
    given = [schema[key] for pair in _BOUNDS.values() for key in pair if key in schema]
    if not all(isinstance(value, (int, float)) and abs(value) < MOST_EXACT for value in given):
        return {}
    return {key: MOST_EXACT * sign for (key, sign), pair in _BOUNDS.items() if schema.keys().isdisjoint(pair)}


MOST_EXACT = 2**53 - 1
_BOUNDS = {("minimum", -1): ("minimum", "exclusiveMinimum"), ("maximum", 1): ("maximum", "exclusiveMaximum")}
_COMBINING = frozenset({"$ref", "anyOf", "oneOf"})
_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_ONE_SCHEMA = frozenset({"items", "additionalProperties"})


def deeper_than(limit: int, value: Any) -> bool:
    """Whether lists and objects nest in `value` deeper than `limit`; without recursion."""
    level = [value]
    for _ in range(limit + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
