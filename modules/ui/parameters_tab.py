"""The Parameters tab: every sampling parameter with its help, and presets of them.

The values in force are those that differ from the defaults; the page's script sends them with each message.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from pydantic import ValidationError

from modules.errors import BadValue, SnugError
from modules.sampling import GROUP_TITLES, GenerationParams, controls
from modules.services import Services
from modules.ui.views import Json
from modules.ui.widgets import DIRECT, note, notes, parameter_control

Controls = dict[str, gr.components.Component]


class ParametersTab:
    """The controls by parameter name, and what happens when they change."""

    def __init__(self, services: Services) -> None:
        self.presets = services.presets
        self.controls: Controls = {}

    def read(self, data: dict[gr.components.Component, Any]) -> GenerationParams:
        """The parameters that the controls show. Raises BadValue naming the field."""
        values = {name: data[control] for name, control in self.controls.items() if data[control] is not None}
        values["stop"] = tuple(line for line in str(values.get("stop", "")).split("\n") if line)
        return check(values)

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


def check(values: Json) -> GenerationParams:
    """GenerationParams of `values`. Raises BadValue naming the field."""
    try:
        return GenerationParams.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        raise BadValue(f"{name}: {first['msg']}.", param=name) from error


def changed(params: GenerationParams) -> Json:
    """The parameters that differ from the defaults."""
    return params.model_dump(mode="json", exclude_defaults=True)


def build(services: Services) -> None:
    """Put the tab's content here."""
    tab = ParametersTab(services)
    channel = gr.HTML(
        {},
        js_on_load="snug.mountParams(element, props, trigger, watch); // 'restore'",
        visible="hidden",
        elem_classes=["channel"],
    )
    told = notes()
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<h1>Parameters</h1><p>How the next token is chosen. They count from your next message on.</p>")
        with gr.Row(elem_classes=["toolbar"], equal_height=True):
            names = tab.presets.names()
            preset = gr.Dropdown(names, value=_matching(services), label="Preset", elem_id="snug-preset", scale=3)
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

    def take(data: dict[gr.components.Component, Any]) -> Any:
        try:
            return {channel: changed(tab.read(data))}
        except SnugError as error:
            return {told: note(error)}

    def restore(event: gr.EventData) -> Any:
        try:
            return tab.show(check(event._data))
        except SnugError:
            return tab.show(GenerationParams())

    def load(name: str | None) -> Any:
        try:
            return tab.show(tab.presets.get(name)) if name else {}
        except SnugError as error:
            return {told: note(error)}

    def save_as(data: dict[gr.components.Component, Any]) -> Any:
        try:
            name = str(data[title]).strip()
            tab.presets.save(name, tab.read(data))
        except SnugError as error:
            return {told: note(error)}
        kept = gr.update(choices=tab.presets.names(), value=name)
        return {preset: kept, title: "", told: note(f"Saved as {name}.")}

    def remove(name: str | None) -> Any:
        try:
            tab.presets.delete(name or "")
        except SnugError as error:
            return {told: note(error)}
        return {preset: gr.update(choices=tab.presets.names(), value=None), told: note(f"{name} is deleted.")}

    gr.on(
        [control.change for control in everything],
        take,
        inputs=everything,
        outputs={channel, told},
        trigger_mode="always_last",
        **DIRECT,
    )
    channel.restore(restore, outputs=everything, **DIRECT)
    preset.input(load, inputs=preset, outputs={*everything, told}, **DIRECT)
    save.click(save_as, inputs={*everything, title}, outputs={preset, title, told}, **DIRECT)
    delete.click(remove, inputs=preset, outputs={preset, told}, **DIRECT)
    reset.click(lambda: {**tab.show(GenerationParams()), preset: None}, outputs={*everything, preset}, **DIRECT)


def _matching(services: Services) -> str | None:
    """The preset that equals the defaults, None if there is none."""
    return next((name for name in services.presets.names() if services.presets.get(name) == GenerationParams()), None)


def _stop_strings() -> gr.components.Component:
    return gr.Textbox(
        label="Stop strings",
        info=f"{GenerationParams.model_fields['stop'].description} One a line.",
        lines=2,
        max_lines=6,
        elem_id="param-stop",
        elem_classes=["param"],
    )
