"""The Characters tab: a gallery of characters and personas; choose, edit, import, export, delete with undo."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import quote

import gradio as gr
from pydantic import Field

from modules.characters.character import Character, Persona, checked
from modules.characters.folder import Found
from modules.characters.library import ExportKind, Listed
from modules.errors import BadValue
from modules.messages import Manner, Setup
from modules.services import Services
from modules.ui.views import Json, printable, problem_view
from modules.ui.widgets import Body, Nothing, door

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


class Save(Body):
    """The fields of an editor; without an id, a new one. `picture` is base64, "" for no change."""

    id: str | None = Field(default=None, max_length=200)
    persona: bool = False
    fields: dict[str, str | list[str]]
    picture: str = ""


class Talk(Body):
    id: str = Field(max_length=200)
    persona: str = Field(default="", max_length=200)
    manner: Manner = "chat"


class CharacterDoors:
    """What the gallery may ask for; every answer is JSON for static/characters.js."""

    def __init__(self, services: Services) -> None:
        self.characters, self.personas = services.people.characters, services.people.personas
        self.chat, self.store = services.chat, services.store

    def people(self, _: str, __: Nothing) -> Json:
        """Everybody there is."""
        return {
            "characters": [character_view(listed) for listed in self.characters.list()],
            "personas": [persona_view(found) for found in self.personas.list()],
        }

    def character(self, _: str, body: Ident) -> Json:
        """One character whole, for its page and its editor."""
        found = self.characters.get(body.id)
        fields = found.model_dump(mode="json", include=set(_FIELDS))
        shown = {name: printable(value) if isinstance(value, str) else list(map(printable, value))
                 for name, value in fields.items()}  # fmt: skip
        entries = len(found.character_book.entries) if found.character_book else 0
        return {"id": body.id, "fields": shown, "lore": entries, "unused": list(found.unused)}

    def save_person(self, owner: str, body: Save) -> Json:
        """Keep a character or persona as it was edited; what the editor does not show stays."""
        picture = _decoded(body.picture) if body.picture else None
        ident: str | None
        if body.persona:
            ident, persona = body.id, checked(Persona, body.fields, "The persona")
            if ident is None:
                ident = self.personas.add(persona, picture)
            else:
                self.personas.save(ident, persona, picture)
        else:
            ident = body.id
            before = self.characters.get(ident).model_dump() if ident is not None else {}
            known = {name: value for name, value in body.fields.items() if name in _FIELDS}
            character = checked(Character, before | known, "The character")
            if ident is None:
                ident = self.characters.add(character, picture)
            else:
                self.characters.save(ident, character, picture)
        return self.people(owner, Nothing()) | {"saved": ident}

    def import_card(self, owner: str, body: Card) -> Json:
        """Keep the character of a card or a YAML file."""
        ident = self.characters.import_file(_decoded(body.data), body.name)
        told = self.characters.get(ident).unused
        return self.people(owner, Nothing()) | {"imported": ident, "unused": list(told)}

    def export_card(self, _: str, body: Handout) -> Json:
        """A character as a file to keep elsewhere."""
        made = self.characters.export(body.id, body.kind)
        return {"name": made.name, "data": base64.b64encode(made.data).decode("ascii")}

    def delete_person(self, owner: str, body: Ident) -> Json:
        """Put a character or persona aside; `restore_person` brings it back."""
        (self.personas if body.persona else self.characters).delete(body.id)
        return self.people(owner, Nothing())

    def restore_person(self, owner: str, body: Ident) -> Json:
        """Take a deletion back."""
        (self.personas if body.persona else self.characters).restore(body.id)
        return self.people(owner, Nothing())

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


def character_view(listed: Listed) -> Json:
    """A card of the gallery."""
    found, who = listed.found, listed.found.value
    about = (who.creator_notes or who.description or who.first_mes) if who else ""
    return person_view(found, "characters", who.name if who else found.id) | {
        "own": listed.own,
        "about": printable(" ".join(about.split())[:_SHOWN_CHARACTERS]),
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


def _decoded(data: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadValue("The file did not arrive whole.", remedy="Try again.", param="data") from error


def build(services: Services) -> None:
    """Put the tab's content here."""
    doors = CharacterDoors(services)
    gr.HTML(
        js_on_load="snug.mountCharacters(element, server)",
        apply_default_css=False,
        server_functions=[
            door(Nothing, "people", doors.people),
            door(Ident, "character", doors.character),
            door(Save, "save_person", doors.save_person),
            door(Card, "import_card", doors.import_card),
            door(Handout, "export_card", doors.export_card),
            door(Ident, "delete_person", doors.delete_person),
            door(Ident, "restore_person", doors.restore_person),
            door(Talk, "talk", doors.talk),
        ],
    )
