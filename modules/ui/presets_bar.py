"""The bar of presets above the parameters: choosing, saving, renaming, deleting, files in and out, comparing.

The page's script draws it (static/presets.js) and knows every preset's values, so that it tells at once which one is in
force and what differs. Here are its doors.
"""

from __future__ import annotations

import contextlib

import gradio as gr
from pydantic import Field

from modules.accounts.person import Person
from modules.errors import BadName, SnugError
from modules.sampling import UNSAVED, GenerationParams, controls
from modules.services import Services
from modules.ui.views import Json, printable, problem_view
from modules.ui.widgets import Body, Nothing, door, personal_door
from modules.ui.words import t, told

MAX_NAME = 300
MAX_FILE_CHARACTERS = 200_000
MAX_LISTED = 500


class Name(Body):
    """A preset."""

    name: str = Field(max_length=MAX_NAME)


class Save(Name):
    """What is to be kept under a name, in place of what stands there only if that was asked for."""

    params: GenerationParams
    replace: bool = False


class Rename(Name):
    """A preset's new name."""

    new: str = Field(max_length=MAX_NAME)


class File(Body):
    """A file from elsewhere."""

    name: str = Field(max_length=1000)
    text: str = Field(max_length=MAX_FILE_CHARACTERS)


class PresetDoors:
    """What the bar asks for. Everybody has the shipped presets and their own."""

    def __init__(self, services: Services) -> None:
        self.everybodys = services.presets
        self.models = services.models

    def look(self, owner: str, _: Nothing) -> Json:
        """Every preset with its values, the defaults, and what the loaded engine cannot do."""
        info = self.models.state.info
        return {
            "presets": [self._view(owner, name) for name in self.everybodys.whose(owner).names()[:MAX_LISTED]],
            "defaults": values_of(GenerationParams()),
            "labels": labels(),
            "lacks": {name: told(why) for name, why in info.lacks.items()} if info else {},
        }

    def chosen(self, person: Person, body: Name) -> Json:
        """Remember the preset as that of the loaded model, if it is an administrator's."""
        options = self.models.options
        theirs = self.everybodys.whose(person.owner).names()
        if options is not None and options.model and person.admin and body.name in theirs:
            with contextlib.suppress(BadName):  # a model on another server has a name that no file has
                self.models.memory.keep_preset(options.model, body.name)
        return {}

    def save(self, owner: str, body: Save) -> Json:
        """Keep parameters under a name; `exists` where that needs a yes first."""
        name = body.name.strip()
        theirs = self.everybodys.whose(owner)
        if not body.replace and name in theirs.names() and not theirs.built_in(name):
            return {"exists": name}
        theirs.save(name, body.params)
        return self.look(owner, Nothing()) | {"name": name}

    def rename(self, owner: str, body: Rename) -> Json:
        """Give a preset another name."""
        self.everybodys.whose(owner).rename(body.name, body.new.strip())
        return self.look(owner, Nothing()) | {"name": body.new.strip()}

    def remove(self, owner: str, body: Name) -> Json:
        """Put a preset away."""
        self.everybodys.whose(owner).delete(body.name)
        return self.look(owner, Nothing()) | {"done": True}

    def restore(self, owner: str, body: Name) -> Json:
        """Bring a deleted preset back."""
        self.everybodys.whose(owner).restore(body.name)
        return self.look(owner, Nothing()) | {"name": body.name}

    def take_in(self, owner: str, body: File) -> Json:
        """Keep a file of elsewhere as a preset."""
        name = self.everybodys.whose(owner).take_in(body.name, body.text)
        return self.look(owner, Nothing()) | {"name": name}

    def text(self, owner: str, body: Name) -> Json:
        """A preset's file."""
        return {"text": self.everybodys.whose(owner).text(body.name)}

    def _view(self, owner: str, name: str) -> Json:
        view: Json = {"name": printable(name), "own": True, "params": {}, "notes": [], "about": "", "problem": None}
        try:
            view["own"] = not self.everybodys.whose(owner).built_in(name)
            preset = self.everybodys.whose(owner).read(name)
            view |= {
                "params": values_of(preset.params),
                "notes": list(map(told, preset.notes)),
                "about": told(preset.about),
            }
        except SnugError as error:
            view["problem"] = problem_view(error)
        return view


def values_of(params: GenerationParams) -> Json:
    """All that a preset keeps."""
    return params.model_dump(mode="json", exclude=set(UNSAVED))


def labels() -> dict[str, str]:
    """The names that people read, in the order of the page."""
    shown = {name: t(control.label) for found in controls().values() for name, control in found.items()}
    return shown | {"stop": t("Stop strings")}


def build(services: Services) -> None:
    """Put the bar here."""
    doors = PresetDoors(services)
    gr.HTML(
        js_on_load="snug.mountPresets(element, server)",
        apply_default_css=False,
        elem_id="snug-presets",
        server_functions=[
            door(Nothing, "look", doors.look),
            personal_door(Name, "chosen", doors.chosen),
            door(Save, "save", doors.save),
            door(Rename, "rename", doors.rename),
            door(Name, "remove", doors.remove),
            door(Name, "restore", doors.restore),
            door(File, "take_in", doors.take_in),
            door(Name, "text", doors.text),
        ],
    )
