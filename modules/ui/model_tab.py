"""The Model tab: what is in models/, every load option, what loading would do, and what is loaded."""

from __future__ import annotations

import html
from typing import Any

import gradio as gr

from modules.errors import BadValue, SnugError
from modules.services import Services
from modules.settings import GROUP_TITLES, LoadOptions, flag_of
from modules.ui.picture import info_html, plan_html
from modules.ui.widgets import DIRECT, note, notes, option_control, read_options, shown_option
from modules.units import format_size

Controls = dict[str, gr.components.Component]


class ModelTab:
    """The controls by option name, and the HTML of the cards."""

    def __init__(self, services: Services) -> None:
        self.models = services.models
        self.controls: Controls = {}

    def options(self, data: dict[gr.components.Component, Any]) -> LoadOptions:
        """What the controls ask for."""
        return read_options({name: data[control] for name, control in self.controls.items()})

    def mirrored(self, name: str | None) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show how the loaded model was loaded; else choose a model that is alone."""
        options = self.models.options
        if options:
            return {
                control: shown_option(option, getattr(options, option)) for option, control in self.controls.items()
            }
        usable = [entry.name for entry in self.models.list() if not entry.problem]
        return {self.controls["model"]: usable[0]} if not name and len(usable) == 1 else {}

    def load(self, data: dict[gr.components.Component, Any]) -> None:
        """Start the load that the controls ask for."""
        options = self.options(data)
        if options.model is None:
            raise BadValue("No model is chosen.", remedy="Choose one in the list.", param="model")
        self.models.start_load(options)

    def list_html(self, chosen: str | None) -> str:
        """One card a model, the chosen one marked; what cannot be loaded says why."""
        entries = self.models.list()
        if not entries:
            return '<p class="nothing">models/ is empty. Put a model folder there, then press Refresh.</p>'
        return '<div class="model-list">' + "".join(self._entry_html(entry, chosen) for entry in entries) + "</div>"

    def _entry_html(self, entry: Any, chosen: str | None) -> str:
        problem = f'<span class="entry-problem">{html.escape(str(entry.problem))}</span>' if entry.problem else ""
        return (
            f'<button type="button" class="entry" data-model="{html.escape(entry.name)}" '
            f'aria-pressed="{str(entry.name == chosen).lower()}"{" disabled" if entry.problem else ""}>'
            f'<span class="entry-name">{html.escape(entry.name)}</span>'
            f'<span class="entry-facts">{html.escape(entry.kind)} · {format_size(entry.size_bytes)}</span>'
            f"{problem}</button>"
        )

    def plan_html(self, data: dict[gr.components.Component, Any]) -> str:
        """What loading would do with the options on show, or why it cannot be done."""
        try:
            options = self.options(data)
            return plan_html(self.models.plan(options)) if options.model else '<p class="nothing">Choose a model.</p>'
        except SnugError as error:
            return problem_html(error)

    def state_html(self) -> str:
        """What is loaded now, how far a load is, or what went wrong."""
        state = self.models.state
        name = html.escape(state.name or "")
        if state.status == "loading":
            stage, share = (state.progress.stage, state.progress.fraction) if state.progress else ("Starting", 0.0)
            return (
                f'<div class="state"><h2>Loading {name}</h2>'
                f'<div class="bar"><span data-load-bar style="width:{share:.0%}"></span></div>'
                f"<p data-load-stage>{html.escape(stage)}</p></div>"
            )
        problem = problem_html(state.error) if state.error else ""
        if state.info is None:
            title = f"{name} could not be loaded" if state.error else "No model is loaded"
            text = problem or "<p>Choose one; what it needs is shown below.</p>"
            return f'<div class="state"><h2>{title}</h2>{text}</div>'
        title = html.escape(state.info.name) + (" stopped" if state.status == "died" else "")
        layers = state.plan.spec.layers if state.plan else 0
        return f'<div class="state"><h2>{title}</h2>{problem}{info_html(state.info, layers)}</div>'


def problem_html(error: SnugError) -> str:
    """An error card with the remedy."""
    return (
        f'<div class="problem" role="alert"><p><strong>{html.escape(error.message)}</strong></p>'
        f"<p>{html.escape(error.remedy)}</p></div>"
    )


def build(services: Services) -> None:
    """Put the tab's content here."""
    tab = ModelTab(services)
    defaults = services.models.defaults
    told = notes()
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<h1>Model</h1><p>What is in models/, and how it is to be loaded.</p>")
        with gr.Row(elem_classes=["split"]):
            with gr.Column(elem_classes=["models"]):
                with gr.Row(elem_classes=["section-head"]):
                    gr.HTML("<h2>Models</h2>")
                    refresh = gr.Button("Refresh", elem_classes=["quiet"], elem_id="snug-refresh", scale=0)
                models = gr.HTML(
                    tab.list_html(defaults.model),
                    js_on_load="snug.mountModelList(element, trigger, watch); // 'pick'",
                    elem_id="snug-models",
                )
            with gr.Column(elem_classes=["aside"]):
                card = gr.HTML(
                    js_on_load="snug.mountModelCard(element, trigger); // 'refresh'",
                    elem_id="snug-model-card",
                )
                with gr.Row(elem_classes=["load-buttons"]):
                    load = gr.Button("Load", variant="primary", elem_id="snug-load")
                    unload = gr.Button("Unload", elem_id="snug-unload")
                gr.HTML("<h2>What loading would do</h2>")
                plan = gr.HTML('<p class="nothing">Choose a model.</p>', elem_id="snug-plan")
            with gr.Column(elem_classes=["options"]):
                _option_groups(tab, defaults)
    everything = set(tab.controls.values())
    name = tab.controls["model"]

    def pick(event: gr.EventData) -> Any:
        chosen = str(event._data["name"])
        return {name: chosen, models: tab.list_html(chosen)}

    def look(data: dict[gr.components.Component, Any], event: gr.EventData) -> Any:
        updates = tab.mirrored(data[name]) if event._data.get("mirror") else {}
        seen = {**updates, card: tab.state_html(), models: tab.list_html(updates.get(name, data[name]))}
        return seen | {plan: tab.plan_html(data | updates)}

    def start(data: dict[gr.components.Component, Any]) -> Any:
        try:
            tab.load(data)
        except SnugError as error:
            return {told: note(error)}
        return {card: tab.state_html()}

    def stop() -> Any:
        try:
            tab.models.unload()
        except SnugError as error:
            return {told: note(error)}
        return {card: tab.state_html()}

    models.pick(pick, outputs={name, models}, **DIRECT)
    refresh.click(tab.list_html, inputs=name, outputs=models, **DIRECT)
    gr.on(
        [control.change for control in everything],
        tab.plan_html,
        inputs=everything,
        outputs=plan,
        trigger_mode="always_last",
        **DIRECT,
    )
    card.refresh(look, inputs=everything, outputs={*everything, card, models, plan}, **DIRECT)
    pulse = "() => snug.pulse()"
    load.click(start, inputs=everything, outputs={card, told}, **DIRECT).then(fn=None, js=pulse)
    unload.click(stop, outputs={card, told}, **DIRECT).then(fn=None, js=pulse)


def _option_groups(tab: ModelTab, defaults: LoadOptions) -> None:
    """One fold a group of flags, in the order of the flags."""
    for group, title in GROUP_TITLES.items():
        names = [name for name in LoadOptions.model_fields if flag_of(name).group == group]
        if not names:
            continue
        with gr.Accordion(title, open=group in ("model", "quantization"), elem_classes=["fold"]):
            for name in names:
                control = option_control(name, getattr(defaults, name))
                control.visible = name != "model"
                tab.controls[name] = control
