"""The Characters tab: a gallery of characters and personas; choose, edit, import, export, delete with undo."""

from __future__ import annotations

import base64
from typing import Annotated, Literal
from urllib.parse import quote

import gradio as gr
from pydantic import Field

from modules.characters.character import Character, Persona, checked
from modules.characters.folder import Found
from modules.characters.library import Characters, ExportKind, Listed, Personas
from modules.few import FIRST_FAULT
from modules.messages import Manner, Setup
from modules.services import Services
from modules.ui import lorebook_panel
from modules.ui.lorebook_panel import LorebookDoors
from modules.ui.views import Json, printable, problem_view
from modules.ui.widgets import Body, Nothing, decoded, door
from modules.ui.words import t, told

_SHOWN_CHARACTERS = 160
_FIELDS = ("name", "description", "personality", "scenario", "first_mes", "alternate_greetings", "mes_example",
           "system_prompt", "post_history_instructions", "creator_notes", "user_name", "tags", "creator",
           "character_version")  # fmt: skip


class Ident(Body):
    """One character or persona."""

    id: str = Field(max_length=200)
    persona: bool = False


class Handout(Body):
    id: str = Field(max_length=200)
    kind: ExportKind


class Card(Body):
    """A file that was dropped on the page; `data` is base64."""

    name: str = Field(max_length=1000)
    data: str


class Find(Body):
    """Which characters the gallery shows, and in which order."""

    query: str = Field(default="", max_length=200)
    order: Literal["name", "used"] = "name"


class Save(Body):
    """The fields of an editor; without an id, a new one. `picture` is base64, "" for no change."""

    id: str | None = Field(default=None, max_length=200)
    persona: bool = False
    fields: Annotated[dict[str, str | list[str]], FIRST_FAULT]
    picture: str = ""


class Talk(Body):
    id: str = Field(max_length=200)
    persona: str = Field(default="", max_length=200)
    manner: Manner = "chat"


class CharacterDoors:
    """What the gallery may ask for; every answer is JSON for static/characters.js."""

    def __init__(self, services: Services) -> None:
        self.everybody = services.library
        self.chat, self.store = services.chat, services.store

    def people(self, owner: str, __: Nothing) -> Json:
        """Everybody there is."""
        return {
            "characters": [character_view(listed) for listed in self.everybody.whose(owner).characters.list()],
            "personas": [persona_view(found) for found in self.everybody.whose(owner).personas.list()],
        }

    def find(self, owner: str, body: Find) -> Json:
        """The ids of the characters that hold all words of a query, by name or the last used ones first."""
        words = body.query.casefold().split()
        used = self.store.shelf.last_used(owner) if body.order == "used" else {}
        found = [one.found for one in self.everybody.whose(owner).characters.list()]
        shown = [one for one in found if _holds(one, words)]
        shown.sort(key=lambda one: (-used.get(one.id, 0), (one.value.name if one.value else one.id).casefold()))
        return {"ids": [one.id for one in shown]}

    def character(self, owner: str, body: Ident) -> Json:
        """One character whole, for its page and its editor."""
        found = self.everybody.whose(owner).characters.get(body.id)
        fields = found.model_dump(mode="json", include=set(_FIELDS))
        shown = {name: printable(value) if isinstance(value, str) else list(map(printable, value))
                 for name, value in fields.items()}  # fmt: skip
        entries = len(found.character_book.entries) if found.character_book else 0
        return {"id": body.id, "fields": shown, "lore": entries, "unused": list(map(told, found.unused))}

    def save_person(self, owner: str, body: Save) -> Json:
        """Keep a character or persona as it was edited; what the editor does not show stays."""
        picture = decoded(body.picture) if body.picture else None
        ident: str | None
        if body.persona:
            ident = body.id
            before = self.everybody.whose(owner).personas.get(ident).model_dump() if ident is not None else {}
            persona = checked(Persona, before | body.fields, "The persona")
            if ident is None:
                ident = self.everybody.whose(owner).personas.add(persona, picture)
            else:
                self.everybody.whose(owner).personas.save(ident, persona, picture)
        else:
            ident = body.id
            before = self.everybody.whose(owner).characters.get(ident).model_dump() if ident is not None else {}
            known = {name: value for name, value in body.fields.items() if name in _FIELDS}
            character = checked(Character, before | known, "The character")
            if ident is None:
                ident = self.everybody.whose(owner).characters.add(character, picture)
            else:
                self.everybody.whose(owner).characters.save(ident, character, picture)
        return self.people(owner, Nothing()) | {"saved": ident}

    def import_card(self, owner: str, body: Card) -> Json:
        """Keep the character of a card or a YAML file."""
        characters = self.everybody.whose(owner).characters
        ident = characters.import_file(decoded(body.data), body.name)
        unused = characters.get(ident).unused
        return self.people(owner, Nothing()) | {"imported": ident, "unused": list(map(told, unused))}

    def export_card(self, owner: str, body: Handout) -> Json:
        """A character as a file to keep elsewhere."""
        made = self.everybody.whose(owner).characters.export(body.id, body.kind)
        return {"name": made.name, "data": base64.b64encode(made.data).decode("ascii")}

    def delete_person(self, owner: str, body: Ident) -> Json:
        """Put a character or persona aside; `restore_person` brings it back."""
        self._folder(owner, body).delete(body.id)
        return self.people(owner, Nothing())

    def restore_person(self, owner: str, body: Ident) -> Json:
        """Take a deletion back."""
        self._folder(owner, body).restore(body.id)
        return self.people(owner, Nothing())

    def _folder(self, owner: str, body: Ident) -> Characters | Personas:
        """Where one lies."""
        theirs = self.everybody.whose(owner)
        return theirs.personas if body.persona else theirs.characters

    def talk(self, owner: str, body: Talk) -> Json:
        """A conversation with a character that nobody has written in yet: a fresh one, or the last one left so."""
        setup = Setup(manner=body.manner, character=body.id, persona=body.persona)
        for conversation in self.store.list(owner, limit=20):
            if conversation.setup == setup and not conversation.title and conversation.head_id:
                path = self.store.path(owner, conversation.id)
                cast = self.chat.greetings(conversation)
                if len(path) == 1 and path[0].content in cast and len(path[0].siblings) == len(cast):
                    return {"conversation": conversation.id}
        return {"conversation": self.chat.begin(owner, setup).id}


def _holds(found: Found[Character], words: list[str]) -> bool:
    """Whether an entry of the gallery holds these words; one that cannot be read goes by its file's name."""
    if found.value is None:
        return all(word in found.id.casefold() for word in words)
    return found.value.holds(words)


def character_view(listed: Listed) -> Json:
    """A card of the gallery."""
    found, who = listed.found, listed.found.value
    about = (who.creator_notes or who.description or who.first_mes) if who else ""
    return person_view(found, "characters", who.name if who else found.id) | {
        "own": listed.own,
        "about": printable(t(" ".join(about.split()))[:_SHOWN_CHARACTERS]),
        "tags": [printable(tag)[:40] for tag in who.tags[:4]] if who else [],
        "lore": len(who.character_book.entries) if who and who.character_book else 0,
    }


def persona_view(found: Found[Persona]) -> Json:
    """A persona of the gallery."""
    who = found.value
    return person_view(found, "personas", who.name if who else found.id) | {
        "description": printable(who.description) if who else ""
    }


def person_view(found: Found[Character] | Found[Persona], room: str, name: str) -> Json:
    """What both have: a name, a picture's address that changes with the picture, a problem."""
    address = f"/pictures/{room}/{quote(found.id, safe='')}?v={quote(found.stamp)}" if found.picture else ""
    problem = problem_view(found.problem) if found.problem else None
    return {"id": found.id, "name": printable(name), "picture": address, "problem": problem}


def build(services: Services) -> None:
    """Put the tab's content here."""
    doors, lore = CharacterDoors(services), LorebookDoors(services)
    gr.HTML(
        js_on_load="snug.mountCharacters(element, server)",
        apply_default_css=False,
        server_functions=[
            door(Nothing, "people", doors.people),
            door(Find, "find_people", doors.find),
            door(Ident, "character", doors.character),
            door(Save, "save_person", doors.save_person),
            door(Card, "import_card", doors.import_card),
            door(Handout, "export_card", doors.export_card),
            door(Ident, "delete_person", doors.delete_person),
            door(Ident, "restore_person", doors.restore_person),
            door(Talk, "talk", doors.talk),
            door(lorebook_panel.Look, "lorebook", lore.lorebook),
            door(lorebook_panel.Place, "lore_entry", lore.lore_entry),
            door(lorebook_panel.Entry, "save_lore", lore.save_lore),
            door(lorebook_panel.Switch, "switch_lore", lore.switch_lore),
            door(lorebook_panel.Place, "delete_lore", lore.delete_lore),
            door(lorebook_panel.Restore, "restore_lore", lore.restore_lore),
            door(lorebook_panel.Configure, "configure_lore", lore.configure_lore),
            door(lorebook_panel.File, "import_lore", lore.import_lore),
        ],
    )
