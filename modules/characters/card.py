"""Character cards ↔ Character: JSON (v1, v2, v3), and PNG pictures that carry such JSON (`chara`, `ccv3`).

Specifications: github.com/malfoyslastname/character-card-spec-v2, github.com/kwaroran/character-card-spec-v3. Cards
come from strangers: sizes are checked before anything is decoded, and a picture is never kept as it came.
"""

from __future__ import annotations

import base64
import binascii
import json
from math import isfinite
from typing import Any, NoReturn

from PIL.PngImagePlugin import PngInfo

from modules.characters.character import Character, checked, holds_more_values
from modules.characters.pictures import MAX_PICTURE_BYTES, as_png, open_picture, placeholder
from modules.characters.yaml_form import is_form, to_character
from modules.errors import BadCharacter
from modules.units import MiB, format_size

MAX_JSON_BYTES = 6 * MiB
MOST_VALUES = 500_000  # twice what as many entries as a lorebook may have come to
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNKS = ("ccv3", "chara")  # the newer form first
_V3_ONLY = {"nickname", "creator_notes_multilingual", "source", "group_only_greetings", "assets", "creation_date",
            "modification_date", "user_name"}  # fmt: skip


def from_json(data: bytes, where: str) -> Character:
    """A Character of a card's JSON: v3 and v2 (`spec`, `data`), v1 (flat), or text-generation-webui's older form.

    Raises BadCharacter.
    """
    values = parse_json(data, where)
    if not isinstance(values, dict):
        raise BadCharacter(f"{where} is not a character card.", remedy="A card is a JSON object with a name.")
    spec = values.get("spec")
    if isinstance(values.get("data"), dict):
        if spec not in (None, "chara_card_v2", "chara_card_v3"):
            raise BadCharacter(
                f"{where} is of the kind {str(spec)[:60]!r}.", remedy="Snug reads cards v1, v2 and v3.", param="spec"
            )
        return checked(Character, values["data"], where)
    return to_character(values, where) if is_form(values) else checked(Character, values, where)


def from_png(data: bytes, where: str) -> Character:
    """The Character that a PNG carries. Raises BadCharacter if it carries none."""
    texts = getattr(open_picture(data, where), "text", {})
    found = next((texts[name] for name in _CHUNKS if name in texts), None)
    if found is None:
        raise BadCharacter(
            f"{where} is a picture without a character in it.",
            remedy="Take the original file: many sites and programs remove the card when they save a picture anew.",
        )
    if len(found) > MAX_JSON_BYTES * 4 // 3:
        _too_large(where)
    try:
        decoded = base64.b64decode(found, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadCharacter(f"The card in {where} is damaged: {error}.", remedy="Get it again.") from error
    return from_json(decoded, f"The card in {where}")


def to_json(character: Character, *, version: int = 3) -> str:
    """A card as JSON text, v3 or v2."""
    data = character.model_dump(mode="json", exclude={"user_name"} if not character.user_name else None)
    if data.get("character_book") is None:
        del data["character_book"]
    data.setdefault("extensions", {})
    if version == 2:
        data = {key: value for key, value in data.items() if key not in _V3_ONLY}
        return json.dumps({"spec": "chara_card_v2", "spec_version": "2.0", "data": data}, ensure_ascii=False)
    data.setdefault("group_only_greetings", [])
    for entry in data.get("character_book", {}).get("entries", ()):
        entry.setdefault("extensions", {})
    return json.dumps({"spec": "chara_card_v3", "spec_version": "3.0", "data": data}, ensure_ascii=False, indent=1)


def to_png(character: Character, picture: bytes | None) -> bytes:
    """A card as a PNG that every program for cards reads: v2 in `chara`, v3 in `ccv3`."""
    image = open_picture(picture, "The picture") if picture else placeholder(character.name)
    info = PngInfo()
    for name, version in (("chara", 2), ("ccv3", 3)):
        info.add_text(name, base64.b64encode(to_json(character, version=version).encode("utf-8", "replace")).decode())
    return as_png(image, info)


def is_png(data: bytes) -> bool:
    """Whether `data` begins as a PNG does."""
    return data.startswith(PNG_SIGNATURE)


def parse_json(data: bytes, where: str) -> Any:
    """JSON from a stranger, within limits. Raises BadCharacter."""
    if len(data) > MAX_JSON_BYTES:
        _too_large(where)
    try:
        values = json.loads(data.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
    except RecursionError as error:
        raise BadCharacter(f"{where} is nested too deeply.", remedy="Is this the right file?") from error
    except ValueError as error:
        raise BadCharacter(f"{where} is not valid JSON: {error}.", remedy="Get it again.") from error
    if holds_more_values(values, MOST_VALUES):
        raise BadCharacter(f"{where} holds more than {MOST_VALUES:,} values.", remedy="Is this the right file?")
    return values


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    """A number that can be written again: 1e999 is read as infinite, for which JSON has no word."""
    return float(text) if isfinite(float(text)) else _no_number(text)


def _too_large(where: str) -> NoReturn:
    raise BadCharacter(
        f"{where} holds more than {format_size(MAX_JSON_BYTES)} of text.", remedy="Take out a part of its lorebook."
    )


__all__ = ["MAX_JSON_BYTES", "MAX_PICTURE_BYTES", "from_json", "from_png", "is_png", "parse_json", "to_json", "to_png"]
