"""The Parameters tab: every sampling parameter with its help; the usual ones in sight, the rest in folds.

The values in force are those that differ from the defaults; the page's script keeps them and sends them with each
message. Presets are presets_bar.py's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from pydantic import ValidationError

from modules.sampling import GROUP_TITLES, GenerationParams, controls
from modules.services import Services
from modules.ui import presets_bar
from modules.ui.labels import STOP_INFO
from modules.ui.views import Json
from modules.ui.widgets import DIRECT, parameter_control
from modules.ui.words import t, told

Controls = dict[str, gr.components.Component]


@dataclass(frozen=True, slots=True)
class Reading:
    """What was made of values: `params`, in which the default stands for each that is `invalid` (name → why)."""

    params: GenerationParams
    invalid: dict[str, str] = field(default_factory=dict)

    def view(self) -> Json:
        """As static/params.js takes it: what differs from the defaults, and a sentence about each invalid value."""
        defaults = GenerationParams()
        return {
            "params": changed(self.params),
            "invalid": {name: _until(why, getattr(defaults, name, "")) for name, why in self.invalid.items()},
        }


def _until(why: str, default: object) -> str:
    counts = t("Until it is corrected the default counts: {default}.", default=str(default))
    return f"{told(f'{why}.')} {counts}"


class ParametersTab:
    """The controls by parameter name, and what they show."""

    def __init__(self) -> None:
        self.controls: Controls = {}

    def read(self, data: dict[gr.components.Component, Any]) -> Reading:
        """The parameters that the controls show."""
        values = {name: data[control] for name, control in self.controls.items() if data[control] is not None}
        values["stop"] = tuple(line for line in str(values.get("stop", "")).split("\n") if line)
        return read(values)

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
    tab = ParametersTab()
    channel = gr.HTML(
        {"params": {}, "invalid": {}},
        js_on_load="snug.mountParams(element, props, trigger, watch); // 'restore'",
        visible="hidden",
        elem_classes=["channel"],
    )
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<h1>Parameters</h1><p>How the next token is chosen, from your next message on.</p>")
        presets_bar.build(services)
        for group, found in controls().items():
            with gr.Column(elem_id=f"params-{group}", elem_classes=["param-group"]):
                gr.HTML(_heading(group, GROUP_TITLES[group]))
                for name, control in found.items():
                    tab.controls[name] = parameter_control(name, control)
                if group == "other":
                    tab.controls["stop"] = _stop_strings()
    everything = set(tab.controls.values())

    def take(data: dict[gr.components.Component, Any]) -> Json:
        return tab.read(data).view()

    def restore(event: gr.EventData) -> Any:
        reading = Reading(read(dict(event._data)["params"]).params)
        return tab.show(reading.params) | {channel: reading.view() | {"shown": time.monotonic_ns()}}

    # The controls' values come as they are: a slider would refuse what lies beyond it, though the box beside it may
    # go there. GenerationParams checks them.
    gr.on(
        [control.change for control in everything],
        take,
        inputs=everything,
        outputs=channel,
        trigger_mode="always_last",
        preprocess=False,
        **DIRECT,
    )
    channel.restore(restore, outputs={*everything, channel}, **DIRECT)


def _heading(group: str, title: str) -> str:
    """The title of a group: of all but the usual ones, a button that folds it."""
    if group == "common":
        return f"<h2>{title}</h2>"
    return (
        f'<h2><button type="button" class="fold-button" aria-expanded="false" data-fold="{group}">'
        f'{title}<span class="fold-count"></span></button></h2>'
    )


def _stop_strings() -> gr.components.Component:
    return gr.Textbox(
        label="Stop strings",
        info=STOP_INFO,
        lines=2,
        max_lines=6,
        elem_id="param-stop",
        elem_classes=["param"],
    )
