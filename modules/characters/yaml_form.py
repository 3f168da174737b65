"""text-generation-webui's character files ↔ Character: YAML with name, greeting, context, example_dialogue.

The older JSON form of Pygmalion (char_name, char_persona, …) is read too. What the form has no place for goes into
lines of its own, which text-generation-webui leaves alone.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

from modules.characters.character import Character, Persona, checked, holds_more_values
from modules.errors import BadCharacter
from modules.units import KiB, format_size
from modules.yaml_files import parse_yaml

MAX_YAML_BYTES = 256 * KiB
MOST_VALUES = 20_000  # written in about half a second
_TO_CARD = {
    "context": "description",
    "greeting": "first_mes",
    "example_dialogue": "mes_example",
    "your_name": "user_name",
    "user": "user_name",
    "char_name": "name",
    "char_persona": "description",
    "char_greeting": "first_mes",
    "world_scenario": "scenario",
}
_FROM_CARD = {"description": "context", "first_mes": "greeting", "mes_example": "example_dialogue",
              "user_name": "your_name"}  # fmt: skip
_OLD_NAMES = {"char_name", "char_persona", "char_greeting"}


def read_values(data: bytes, where: str) -> object:
    """What a YAML file says. Raises BadCharacter naming the line, or the size."""
    if len(data) > MAX_YAML_BYTES:
        raise BadCharacter(
            f"{where} is larger than {format_size(MAX_YAML_BYTES)}.", remedy="Keep it shorter, or use a JSON card."
        )
    try:
        return parse_yaml(data.decode("utf-8-sig"))
    except ValueError as error:
        raise BadCharacter(f"{where} cannot be read: {error}.", remedy="Correct the file.") from error


def is_form(values: object) -> bool:
    """Whether these are the fields of this form rather than of a card."""
    return isinstance(values, dict) and ("context" in values or "greeting" in values or bool(_OLD_NAMES & set(values)))


def to_character(values: object, where: str) -> Character:
    """A Character of the fields of such a file. Raises BadCharacter."""
    if not isinstance(values, dict):
        raise BadCharacter(f"{where} must hold lines of the form name: value.", remedy="Is this a character file?")
    fields: dict[str, Any] = {}
    for key, value in values.items():
        name = _TO_CARD.get(str(key), str(key))
        if name not in fields or value not in (None, ""):
            fields[name] = value
    return checked(Character, fields, where)


def to_persona(values: object, where: str) -> Persona:
    """A Persona likewise."""
    return checked(Persona, values, where)


def character_yaml(character: Character) -> str:
    """A Character as such a file. Raises BadCharacter for one that is too large to be one: it would take a minute."""
    fields = character.model_dump(mode="json", exclude_defaults=True)
    size = len(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    if size > MAX_YAML_BYTES or holds_more_values(fields, MOST_VALUES):
        raise BadCharacter(f"{character.name} is too large for a YAML file.", remedy="Save it as JSON.")
    order = ["name", "greeting", "context", "example_dialogue", "your_name"]
    named = {_FROM_CARD.get(key, key): value for key, value in fields.items()}
    return as_yaml({key: named[key] for key in (*order, *named) if key in named})


def as_yaml(values: dict[str, Any]) -> str:
    """Values as YAML that people can read: long texts as blocks, line by line."""
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if parse_yaml(text) != values:  # characters that YAML folds or refuses
        return str(yaml.safe_dump(values, sort_keys=False))
    return str(text)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that writes texts of several lines as blocks, and never an alias."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """As in SafeDumper, for everything."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
