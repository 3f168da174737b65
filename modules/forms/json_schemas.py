"""JSON schemas as values: what they leave open, and how deep they nest. Which grammars hold them, engines say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
"""How deep a schema may nest."""
MOST_EXACT = 2**53 - 1
"""The largest integer that every reader of JSON holds exactly."""
_BOUNDS = {("minimum", -1): ("minimum", "exclusiveMinimum"), ("maximum", 1): ("maximum", "exclusiveMaximum")}
_COMBINING = frozenset({"$ref", "anyOf", "oneOf"})
_SCHEMAS_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS_OF_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_ONE_SCHEMA = frozenset({"items", "additionalProperties"})


def names_anything(schema: Any) -> bool:
    """Whether a schema for the names of members lets every name be: all of JSON's are texts."""
    return schema is True or schema in ({}, {"type": "string"})


def without_idle(schema: Any) -> Any:
    """A schema without `propertyNames` that say nothing, as zod writes them of every record, and without an `$id` to
    which nothing in it refers: griptape's is "Output Format", which is no address.
    """
    if isinstance(schema, dict) and "$id" in schema and not _refers_by_address(schema):
        schema = {key: value for key, value in schema.items() if key != "$id"}
    return _without_idle(schema)


def _refers_by_address(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_refers_by_address, schema))
    if not isinstance(schema, dict):
        return False
    ref = schema.get("$ref")
    return (isinstance(ref, str) and not ref.startswith("#")) or any(map(_refers_by_address, schema.values()))


def _without_idle(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "propertyNames" or not names_anything(value)}
    return _with_parts(kept, _without_idle)


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
    kept = _with_parts(schema, _bounded)
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


def _with_parts(schema: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """`schema` with each schema right in it as `change` makes it."""
    kept = dict(schema)
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, dict):
            kept[key] = {name: change(one) for name, one in value.items()}
        elif key in _LISTS_OF_SCHEMAS and isinstance(value, list):
            kept[key] = [change(one) for one in value]
        elif key in _ONE_SCHEMA:
            kept[key] = change(value)
    return kept


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
