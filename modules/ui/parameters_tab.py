"""The Parameters tab: every sampling parameter with its help, and presets of them.

The values in force are those that differ from the defaults; the page's script sends them with each message.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from pydantic import ValidationError

from modules.errors import BadValue, SnugError
from modules.sampling import GROUP_TITLES, GenerationParams, controls
from modules.services import Services
from modules.ui.views import Json
from modules.ui.widgets import DIRECT, note, notes, parameter_control

Controls = dict[str, gr.components.Component]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was made of values: `params`, in which the default stands for each that is `invalid` (name → why)."""

    params: GenerationParams
    invalid: dict[str, str] = field(default_factory=dict)

    def view(self) -> Json:
        """As static/forms.js takes it: what differs from the defaults, and a sentence about each invalid value."""
        defaults = GenerationParams()
        return {
            "params": changed(self.params),
            "invalid": {
                name: f"{why}. Until it is corrected the default counts: {getattr(defaults, name, '')}."
                for name, why in self.invalid.items()
            },
        }


class ParametersTab:
    """The controls by parameter name, and what happens when they change."""

    def __init__(self, services: Services) -> None:
        self.presets = services.presets
        self.controls: Controls = {}

    def read(self, data: dict[gr.components.Component, Any]) -> Reading:
        """The parameters that the controls show."""
        values = {name: data[control] for name, control in self.controls.items() if data[control] is not None}
        values["stop"] = tuple(line for line in str(values.get("stop", "")).split("\n") if line)
        return read(values)

    def matching(self, params: GenerationParams, *, shown: str | None) -> str | None:
        """The preset that equals `params`, rather the one `shown`; None if none does."""
        names = self.presets.names()
        for name in [shown, *names] if shown in names else names:
            with contextlib.suppress(SnugError):
                if self.presets.get(name or "") == params:
                    return name
        return None

    def show(self, params: GenerationParams) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show `params`; a slider grows where a value lies beyond it."""
        updates: dict[gr.components.Component, Any] = {}
        for name, control in self.controls.items():
            value = getattr(params, name)
            if name == "stop":
                updates[control] = gr.update(value="\n".join(value))
            elif isinstance(control, gr.Slider):
                updates[control] = gr.update(
                    value=value, minimum=min(control.minimum, value), maximum=max(control.maximum, value)
                )
            else:
                updates[control] = gr.update(value=value)
        return updates


def read(values: Json) -> Reading:
    """GenerationParams of those `values` that are valid, and what is wrong with the others."""
    try:
        return Reading(GenerationParams.model_validate(values))
    except ValidationError as error:
        invalid = {str(problem["loc"][0]): problem["msg"] for problem in error.errors()}
    return Reading(GenerationParams.model_validate({k: v for k, v in values.items() if k not in invalid}), invalid)


def changed(params: GenerationParams) -> Json:
    """The parameters that differ from the defaults."""
    return params.model_dump(mode="json", exclude_defaults=True)


def build(services: Services) -> None:
    """Put the tab's content here."""
    tab = ParametersTab(services)
    channel = gr.HTML(
        {"params": {}, "invalid": {}},
        js_on_load="snug.mountParams(element, props, trigger, watch); // 'restore'",
        visible="hidden",
        elem_classes=["channel"],
    )
    told = notes()
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<h1>Parameters</h1><p>How the next token is chosen, from your next message on.</p>")
        with gr.Row(elem_classes=["toolbar"], equal_height=True):
            preset = gr.Dropdown(tab.presets.names(), value=None, label="Preset", elem_id="snug-preset", scale=3)
            delete = gr.Button("Delete", elem_id="snug-preset-delete", elem_classes=["quiet"], scale=0)
            title = gr.Textbox(label="Save as", placeholder="A name", max_lines=1, elem_id="snug-preset-name", scale=3)
            save = gr.Button("Save", elem_id="snug-preset-save", scale=0)
            reset = gr.Button("Reset all", elem_id="snug-reset", elem_classes=["quiet"], scale=0)
        with gr.Row(elem_classes=["groups"]):
            for group, found in controls().items():
                with gr.Column(elem_classes=["group"], min_width=320):
                    gr.HTML(f"<h2>{GROUP_TITLES[group]}</h2>")
                    for name, control in found.items():
                        tab.controls[name] = parameter_control(name, control)
                    if group == "other":
                        tab.controls["stop"] = _stop_strings()
    everything = set(tab.controls.values())

    def listed(reading: Reading, shown: str | None) -> Any:
        name = None if reading.invalid else tab.matching(reading.params, shown=shown)
        return gr.update(choices=tab.presets.names(), value=name)

    def take(data: dict[gr.components.Component, Any]) -> Any:
        reading = tab.read(data)
        return {channel: reading.view(), preset: listed(reading, data[preset])}

    def restore(event: gr.EventData) -> Any:
        reading = Reading(read(dict(event._data)).params)
        found = {preset: listed(reading, None)}
        if not event._data:  # as they are: what is typed meanwhile stays
            return found
        return found | tab.show(reading.params) | {channel: reading.view()}

    def load(name: str | None) -> Any:
        try:
            return tab.show(tab.presets.get(name)) if name else {}
        except SnugError as error:
            return {told: note(error)}

    def save_as(data: dict[gr.components.Component, Any]) -> Any:
        reading, name = tab.read(data), str(data[title]).strip()
        try:
            if reading.invalid:
                raise BadValue("One of the values cannot be used.", remedy="Correct what is marked, then save.")
            tab.presets.save(name, reading.params)
        except SnugError as error:
            return {told: note(error)}
        return {preset: listed(reading, name), title: "", told: note(f"Saved as {name}.")}

    def remove(data: dict[gr.components.Component, Any]) -> Any:
        name = data[preset] or ""
        try:
            tab.presets.delete(name)
        except SnugError as error:
            return {told: note(error)}
        return {preset: listed(tab.read(data), None), told: note(f"{name} is deleted.")}

    # The controls' values come as they are: a slider would refuse what lies beyond it, though the box beside it may
    # go there, and a list what another page saved. GenerationParams and Presets check them.
    raw: dict[str, Any] = {"preprocess": False, **DIRECT}
    gr.on(
        [control.change for control in everything],
        take,
        inputs={*everything, preset},
        outputs={channel, preset},
        trigger_mode="always_last",
        **raw,
    )
    channel.restore(restore, outputs={*everything, channel, preset}, **DIRECT)
    preset.input(load, inputs=preset, outputs={*everything, told}, **raw)
    save.click(save_as, inputs={*everything, preset, title}, outputs={preset, title, told}, **raw)
    delete.click(remove, inputs={*everything, preset}, outputs={preset, told}, **raw)
    reset.click(lambda: tab.show(GenerationParams()), outputs=everything, **DIRECT)


def _stop_strings() -> gr.components.Component:
    return gr.Textbox(
        label="Stop strings",
        info=f"{GenerationParams.model_fields['stop'].description} One a line.",
        lines=2,
        max_lines=6,
        elem_id="param-stop",
        elem_classes=["param"],
    )
