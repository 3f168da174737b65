"""The characters and personas of one Snug: shipped ones in characters/, the user's own in the user data folder.

A user's character of the same name stands before a shipped one; deleting it brings the shipped one back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modules.characters import card, yaml_form
from modules.characters.character import Character, Persona
from modules.characters.folder import Folder, Found
from modules.characters.pictures import kept_picture
from modules.errors import BadCharacter, NotFound, SnugError
from modules.files import can_be_written, check_name, home_of
from modules.units import format_size

ExportKind = Literal["png", "json", "yaml"]
_KEPT_ASCII = " -_.'()&,!"
_MAX_ID = 60


@dataclass(frozen=True, slots=True)
class Export:
    """A file to hand out."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Listed:
    """A character as a gallery shows it: `own` ones can be deleted."""

    found: Found[Character]
    own: bool


class Characters:
    """The characters of two folders by id, which is their file's name without its ending."""

    def __init__(self, shipped: Path, own: Path) -> None:
        self._shipped = Folder(shipped, read_character, cards=True)
        self._own = Folder(own, read_character, cards=True)
        self.changing = threading.RLock()
        """Held between a look and what is changed by it: a free name, a lorebook."""

    def list(self) -> list[Listed]:
        """The user's own, then the shipped ones that none of those stands before."""
        own = self._own.entries()
        taken = {found.id.casefold() for found in own}
        shipped = [found for found in self._shipped.entries() if found.id.casefold() not in taken]
        return [Listed(found, True) for found in own] + [Listed(found, False) for found in shipped]

    def get(self, ident: str) -> Character:
        """One character. Raises BadName, NotFound, BadCharacter."""
        character = self._own.get(ident) or self._shipped.get(ident)
        if character is None:
            raise NotFound(
                f"There is no character {ident!r} any more.", remedy="Choose another one, or the mode Instruct."
            )
        return character

    def picture(self, ident: str) -> bytes | None:
        """A character's picture as a small WebP, None if it has none. Raises BadName, BadCharacter."""
        return self._home(ident).picture(ident)

    def save(self, ident: str, character: Character, picture: bytes | None) -> None:
        """Keep a character of the user's own. Raises BadName, BadCharacter, StoreFailed."""
        _refuse_twin(ident, self._own.ids())
        kept = kept_picture(picture, "The picture") if picture else None
        if kept is None and ident not in self._own.ids():
            shown = self._shipped.whole_picture(ident)
            kept = kept_picture(shown, "The picture") if shown else None
        text = _short_yaml(character)
        if text:
            self._own.write(ident, ".yaml", text, kept)
        else:
            self._own.write(ident, ".json", card.to_json(character), kept)

    def add(self, character: Character, picture: bytes | None) -> str:
        """Keep a new character; its id, made of its name."""
        with self.changing:
            ident = free_id(character.name, [listed.found.id for listed in self.list()])
            self.save(ident, character, picture)
            return ident

    def import_file(self, data: bytes, file_name: str) -> str:
        """Keep the character of a card or a YAML file; its id. Raises BadCharacter, StoreFailed."""
        where = repr(Path(file_name.replace("\\", "/")).name[:80])
        character = read_character(data, _suffix(data, file_name), where)
        return self.add(character, data if card.is_png(data) else None)

    def export(self, ident: str, kind: ExportKind) -> Export:
        """A character as a file for other programs."""
        character = self.get(ident)
        if kind == "yaml":
            return Export(f"{ident}.yaml", yaml_form.character_yaml(character).encode("utf-8", "replace"))
        if kind == "json":
            return Export(f"{ident}.json", card.to_json(character).encode("utf-8", "replace"))
        made = card.to_png(character, self._home(ident).whole_picture(ident))
        if len(made) > card.MAX_PICTURE_BYTES:
            raise BadCharacter(
                f"{character.name} has too much text: the card is too large for a picture ({format_size(len(made))}).",
                remedy="Save it as JSON.",
            )
        return Export(f"{ident}.png", made)

    def delete(self, ident: str) -> None:
        """Delete a character of the user's own. Raises BadName, NotFound, BadCharacter for a shipped one."""
        if ident not in self._own.ids() and ident in self._shipped.ids():
            raise BadCharacter(f"The character {ident!r} comes with Snug and cannot be deleted.")
        self._own.delete(ident)

    def restore(self, ident: str) -> None:
        """Take the last deletion of that id back."""
        self._own.restore(ident)

    def _home(self, ident: str) -> Folder[Character]:
        return self._own if ident in self._own.ids() else self._shipped


class Personas:
    """Who the user may be: all the user's own."""

    def __init__(self, own: Path) -> None:
        self._own = Folder(own, read_persona, cards=False)
        self._lock = threading.Lock()  # between looking for a free name and taking it

    def list(self) -> list[Found[Persona]]:
        """All of them, by name."""
        return self._own.entries()

    def get(self, ident: str) -> Persona:
        """One persona. Raises BadName, NotFound, BadCharacter."""
        persona = self._own.get(ident)
        if persona is None:
            raise NotFound(f"There is no persona {ident!r} any more.", remedy="Choose another one, or none.")
        return persona

    def picture(self, ident: str) -> bytes | None:
        """A persona's picture as a small WebP, None if it has none."""
        return self._own.picture(ident)

    def save(self, ident: str, persona: Persona, picture: bytes | None) -> None:
        """Keep a persona. Raises BadName, BadCharacter, StoreFailed."""
        _refuse_twin(ident, self._own.ids())
        kept = kept_picture(picture, "The picture") if picture else None
        self._own.write(ident, ".yaml", yaml_form.as_yaml(persona.model_dump(mode="json", exclude_defaults=True)), kept)

    def add(self, persona: Persona, picture: bytes | None) -> str:
        """Keep a new persona; its id, made of its name."""
        with self._lock:
            ident = free_id(persona.name, self._own.ids())
            self.save(ident, persona, picture)
            return ident

    def delete(self, ident: str) -> None:
        """Delete a persona."""
        self._own.delete(ident)

    def restore(self, ident: str) -> None:
        """Take the last deletion of that id back."""
        self._own.restore(ident)


@dataclass(frozen=True, slots=True)
class Library:
    """Every character and persona: everybody that a conversation may be with, or of."""

    characters: Characters
    personas: Personas
    others: dict[str, Library] = field(default_factory=dict)
    made: Callable[[str], Library] | None = None

    @classmethod
    def of(cls, shipped: Path, user_data: Path) -> Library:
        """Those in `shipped` and in the user data folder."""

        def made(owner: str) -> Library:
            return cls.of(shipped, home_of(user_data, owner))

        return cls(Characters(shipped, user_data / "characters"), Personas(user_data / "personas"), made=made)

    def whose(self, owner: str) -> Library:
        """Those of one owner; "" is who has what lies in the user data folder itself."""
        if not owner or self.made is None:
            return self
        return self.others.get(owner) or self.others.setdefault(owner, self.made(owner))


def _short_yaml(character: Character) -> str:
    """What people may edit by hand; "" for what is kept as JSON: large ones, and those with a lorebook."""
    if character.character_book is not None:
        return ""
    try:
        text = yaml_form.character_yaml(character)
    except BadCharacter:
        return ""
    return text if len(text.encode("utf-8", "replace")) <= yaml_form.MAX_YAML_BYTES else ""


def read_character(data: bytes, suffix: str, where: str) -> Character:
    """The character of a file, by its ending. Raises BadCharacter."""
    if suffix == ".png":
        return card.from_png(data, where)
    if suffix == ".json":
        return card.from_json(data, where)
    return yaml_form.to_character(yaml_form.read_values(data, where), where)


def read_persona(data: bytes, _: str, where: str) -> Persona:
    """The persona of a file. Raises BadCharacter."""
    return yaml_form.to_persona(yaml_form.read_values(data, where), where)


def free_id(name: str, taken: list[str]) -> str:
    """A file name made of a person's name that is not taken yet, whatever the case. Never leads anywhere."""
    plain = "".join(c if (c.isalnum() and can_be_written(c)) or c in _KEPT_ASCII else " " for c in name)
    base = " ".join(plain.split())[:_MAX_ID].strip(" .-") or "Character"
    while len(base.encode("utf-8", "replace")) > 3 * _MAX_ID:
        base = base[:-1].strip()
    try:
        check_name(base)
    except SnugError:
        base = f"Character {base}"
    folded = {other.casefold() for other in taken}
    number, ident = 2, base
    while ident.casefold() in folded:
        number, ident = number + 1, f"{base} {number}"
    return check_name(ident)


def _refuse_twin(ident: str, ids: list[str]) -> None:
    for other in ids:
        if other != ident and other.casefold() == check_name(ident).casefold():
            raise BadCharacter(f"{ident!r} differs from {other!r} only in case.", remedy="Choose another name.")


def _suffix(data: bytes, file_name: str) -> str:
    """What a file is, by what it begins with rather than by its name."""
    if card.is_png(data):
        return ".png"
    if data[:4] == b"RIFF" or data[:3] == b"\xff\xd8\xff":
        raise BadCharacter(
            "Snug reads cards from PNG pictures only.", remedy="Get the card as PNG or JSON; this may be a copy."
        )
    begins = data[:64].lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return ".json" if begins == b"{" and not file_name.lower().endswith((".yaml", ".yml")) else ".yaml"
