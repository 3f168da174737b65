"""Lorebooks by themselves: world files of SillyTavern and their kin → Lorebook.

Read are `lorebook_v3`, the book of a character card, SillyTavern's worlds, the like of NovelAI, Agnai and Risu. What
only SillyTavern knows of an entry goes to its `extensions` under the names that SillyTavern looks for in cards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from modules.characters.card import parse_json
from modules.characters.character import MAX_ENTRIES, Lorebook, checked
from modules.errors import BadCharacter

_NAMES = {
    "keys": ("keys", "key", "keywords"),
    "secondary_keys": ("secondary_keys", "keysecondary", "secondkey"),
    "content": ("content", "text", "entry"),
    "comment": ("comment", "displayName", "name"),
    "insertion_order": ("insertion_order", "order", "insertorder"),
    "constant": ("constant", "forceActivation", "alwaysActive"),
    "case_sensitive": ("case_sensitive", "caseSensitive"),
    "id": ("id", "uid"),
}
_KEPT = {"selective", "priority", "use_regex", "extensions"}
_AS_THEY_ARE = {"useProbability", "selectiveLogic"}


def read_book(data: bytes, where: str) -> Lorebook:
    """The lorebook of a JSON file. Raises BadCharacter for anything else, or where it holds no entry."""
    values = parse_json(data, where)
    values = values if isinstance(values, dict) else {"entries": values}
    inner = values.get("data")
    if isinstance(inner, dict):
        values = inner
    if isinstance(values.get("character_book"), dict):
        values = values["character_book"]
    entries = values.get("data") if values.get("type") == "risu" else values.get("entries")
    found = list(entries.values()) if isinstance(entries, dict) else entries
    if not isinstance(found, list) or not found:
        raise BadCharacter(
            f"{where} holds no lorebook entries.",
            remedy="Snug reads lorebooks of character cards and world files of SillyTavern, as JSON.",
        )
    if len(found) > MAX_ENTRIES:
        raise BadCharacter(
            f"{where} holds {len(found):,} entries.", remedy=f"Snug takes up to {MAX_ENTRIES:,}: split it."
        )
    book = {name: value for name, value in values.items() if name not in ("entries", "spec", "data", "originalData")}
    return checked(Lorebook, book | {"entries": [_entry(one, at, where) for at, one in enumerate(found)]}, where)


def _entry(values: object, at: int, where: str) -> dict[str, Any]:
    """The fields of one entry under our names; what is not known of a card's entry stays as it is."""
    if not isinstance(values, dict):
        raise BadCharacter(f"{where}: entry {at + 1} is no object.", remedy="Is this a lorebook?")
    if "keys" in values and "content" in values:
        return values
    taken = {ours: _first(values, theirs) for ours, theirs in _NAMES.items()}
    known = {name for names in _NAMES.values() for name in names} | _KEPT | {"disable", "enabled", "position"}
    extensions = values.get("extensions")
    more = {_their_name(str(name)): value for name, value in values.items() if name not in known}
    if "position" in values:
        more["position"] = values["position"]
    return {
        **{name: value for name, value in taken.items() if value is not None},
        **{name: values[name] for name in _KEPT & values.keys()},
        "keys": _words(taken["keys"]),
        "secondary_keys": _words(taken["secondary_keys"]),
        "enabled": not values["disable"] if "disable" in values else values.get("enabled"),
        "position": "before_char" if values.get("position") == 0 else "after_char",
        "extensions": (extensions if isinstance(extensions, dict) else {}) | more,
    }


def _first(values: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _words(value: Any) -> Any:
    """Keys as a list; some programs join them by commas."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _their_name(name: str) -> str:
    """`excludeRecursion` → `exclude_recursion`."""
    return name if name in _AS_THEY_ARE else re.sub(r"(?<=[a-z])[A-Z]", lambda found: f"_{found[0].lower()}", name)
