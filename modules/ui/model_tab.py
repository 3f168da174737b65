"""The Model tab: what is in models/, every load option, what loading would do, and what is loaded."""

from __future__ import annotations

import html
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from modules.errors import BadValue, SnugError
from modules.memory.model.listing import ModelEntry
from modules.memory.model.lora import list_loras
from modules.memory.planning.planner import Plan, longest_context
from modules.services import Services
from modules.settings import GROUP_TITLES, LoadOptions, flag_of
from modules.ui.picture import info_html
from modules.ui.plan_picture import plan_html
from modules.ui.plan_values import Measured, measured_by_device
from modules.ui.ways import options_of, reasons_html, same_load, ways_html
from modules.ui.widgets import DIRECT, note, notes, option_control, read_options, shown_option
from modules.units import format_size

Controls = dict[str, gr.components.Component]
Data = dict[gr.components.Component, Any]
ALIASES = ("bf16",)  # options that another control says: --bf16 is --dtype bf16
# Shown while a dry run is under way; the number tells the page whether its picture knows of the last answer.
COUNTING = '<p class="plan-counting" data-answered="{}">Counting what this way really allocates…</p>'


@dataclass(frozen=True, slots=True)
class Seen:
    """HTML of the picture and of the ways to run; `loaded` if the loaded model was loaded in just that way.

    `wrong` are options that cannot be, by name, each with what to say and what to use instead ("" where there is
    nothing): the picture then is that without them.
    """

    plan: str
    ways: str = ""
    loaded: bool = False
    wrong: dict[str, dict[str, str]] = field(default_factory=dict)


class ModelTab:
    """The controls by option name, and the HTML of the cards."""

    def __init__(self, services: Services) -> None:
        self.models = services.models
        self.folder = f"{services.settings.model_dir.name}/"
        self.lora_dir = services.settings.lora_dir
        self.controls: Controls = {}

    def options(self, data: Data) -> LoadOptions:
        """What the controls ask for."""
        return read_options({name: data[control] for name, control in self.controls.items()})

    def mirrored(self, name: str | None) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show how the loaded model was loaded; else choose a model that is alone."""
        if self.models.options:
            return self.showing(self.models.options)
        usable = [entry.name for entry in self.models.list() if not entry.problem]
        return {self.controls["model"]: usable[0]} if not name and len(usable) == 1 else {}

    def showing(self, options: LoadOptions) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show `options`."""
        plain = without_aliases(options)
        return {control: shown_option(name, getattr(plain, name)) for name, control in self.controls.items()}

    def load(self, data: Data) -> None:
        """Start the load that the controls ask for."""
        options = self.options(data)
        if options.model is None:
            raise BadValue("No model is chosen.", remedy="Choose one in the list.", param="model")
        self.models.start_load(options)

    def list_html(self, chosen: str | None) -> str:
        """One card a model, the chosen one marked; what cannot be loaded says why, folded away below."""
        entries = self.models.list()
        if not entries:
            return (
                f'<p class="nothing">Nothing is in {html.escape(self.folder)} yet. '
                "Put a model folder there, then press Refresh.</p>"
            )
        sound = [self._entry_html(entry, chosen) for entry in entries if not entry.problem]
        broken = [self._entry_html(entry, chosen) for entry in entries if entry.problem]
        cards = f'<div class="model-list">{"".join(sound)}</div>' if sound else ""
        if broken:
            count = "1 model" if len(broken) == 1 else f"{len(broken)} models"
            cards += (
                f'<details class="broken-models"{"" if sound else " open"}><summary>{count} cannot be loaded</summary>'
                f'<div class="model-list">{"".join(broken)}</div></details>'
            )
        return cards

    def _entry_html(self, entry: ModelEntry, chosen: str | None) -> str:
        problem = f'<span class="entry-problem">{html.escape(str(entry.problem))}</span>' if entry.problem else ""
        return (
            f'<button type="button" class="entry" data-model="{html.escape(entry.name)}" '
            f'aria-pressed="{str(entry.name == chosen).lower()}"{" disabled" if entry.problem else ""}>'
            f'<span class="entry-name">{html.escape(entry.name)}</span>'
            f'<span class="entry-facts">{html.escape(_facts(entry))}</span>'
            f"{problem}</button>"
        )

    def seen(self, data: Data) -> Seen:
        """What loading would do with the options on show and the ways to run, or why it cannot be."""
        try:
            options = self.options(data)
            return self._pictured(options) if options.model else Seen('<p class="nothing">Choose a model.</p>')
        except SnugError as error:
            control = self.controls.get(error.param or "")
            if control is None or error.param in (None, "model") or data[control] in ("", None, False):
                return Seen(problem_html(error))
            without = self.seen({**data, control: None})
            return replace(without, wrong={error.param: self._wrong(data, error), **without.wrong})

    def _wrong(self, data: Data, error: SnugError) -> dict[str, str]:
        """What is wrong with an option, in the page's words, and a value that would do."""
        if error.param != "ctx_size":
            told = error.message.partition(": ")[2] or error.message
            return {"told": f"{told[:1].upper()}{told[1:]} {error.remedy}".strip(), "use": ""}
        given = str(data[self.controls["ctx_size"]]).strip()
        if not given.isdecimal():
            return {"told": f"“{given[:20]}” is not a number of tokens: write digits alone.", "use": ""}
        name = data[self.controls["model"]]
        if not name or not int(given):
            return {"told": "A context has at least one token.", "use": ""}
        most = self.models.plans(LoadOptions.model_validate({"model": name})).spec.max_context
        return {"told": f"{name} was made for at most {most:,} tokens.", "use": str(most)}

    def _pictured(self, options: LoadOptions) -> Seen:
        answered = self.models.dry_run_progress.answered
        table = self.models.plans(options)
        if table.chosen is not None and table.chosen.remote is not None:
            return Seen(elsewhere_html(table.chosen), loaded=self.models.state.plan == table.chosen)
        misses = (plan for plan in table.plans if not plan.fits)
        plan = table.chosen or min(misses, key=lambda miss: miss.short_bytes, default=next(iter(table.plans), None))
        free = options_of((), options)
        others = table if options == free else self.models.plans(free)
        if plan is None:
            problem = problem_html(table.refusal) if table.refusal else ""
            return Seen(problem, ways_html(others, None, narrowed=options != free))
        measured = self._measured(plan)
        picture = plan_html(
            plan,
            table.inventory,
            fits_tokens=longest_context(table, plan),
            context_chosen=options.ctx_size is None,
            measured=measured,
            refusal=table.refusal,
            instead=next((other for other in others.plans if other.fits), None) if table.refusal else None,
        )
        ways = ways_html(others, plan, narrowed=options != free) + reasons_html(plan)
        return Seen(picture + COUNTING.format(answered), ways, loaded=bool(measured))

    def _measured(self, plan: Plan) -> dict[str, Measured]:
        """What the loaded model takes, if it was loaded as `plan` says."""
        state = self.models.state
        if state.info is None or state.plan is None or state.status == "died" or not same_load(plan, state.plan):
            return {}
        return measured_by_device(state.info, self.models.stats())

    def take(self, data: Data, flags: list[str]) -> dict[gr.components.Component, Any]:
        """Updates that make the controls ask for what `flags` say."""
        return self.showing(options_of(flags, self.options(data)))

    def adapters(self, data: Data) -> Any:
        """The choice of LoRA adapters, out of sight where there is none to make: llama.cpp alone applies them."""
        there, taken = list_loras(self.lora_dir), data[self.controls["lora"]] or []
        native = str(data[self.controls["model"]] or "").lower().endswith(".gguf")
        fitting = native and data[self.controls["loader"]] in ("auto", "llamacpp")
        return gr.update(choices=sorted({*there, *taken}), visible=bool(taken or (there and fitting)))

    def buttons(self, seen: Seen) -> tuple[Any, Any]:
        """How Load and Unload are labelled, and whether there is anything to unload."""
        state = self.models.state
        loading = state.status == "loading"
        return (
            gr.update(value="Load again" if seen.loaded and not loading else "Load", interactive=not seen.wrong),
            gr.update(
                value="Stop loading" if loading and state.info is None else "Unload",
                interactive=loading or state.info is not None,
            ),
        )

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
            text = problem or "<p>Choose one, then press Load.</p>"
            return f'<div class="state"><h2>{title}</h2>{text}</div>'
        title = html.escape(state.info.name) + (" stopped" if state.status == "died" else " is loaded")
        return (
            f'<div class="state {state.status}"><h2><span class="dot"></span>{title}</h2>{problem}'
            f'<details class="how"><summary>How it runs</summary>{info_html(state.info)}</details></div>'
        )


def _facts(entry: ModelEntry) -> str:
    return "on another server" if entry.kind == "remote" else f"{entry.kind} · {format_size(entry.size_bytes)}"


def elsewhere_html(plan: Plan) -> str:
    """What is to be said of a model that runs on another server, before anybody has asked that."""
    reasons = "".join(f"<p>{html.escape(reason)}</p>" for reason in plan.reasons)
    return (
        '<div class="plan"><div class="plan-head"><div class="verdict ok"><span class="dot"></span>'
        f"<strong>{html.escape(plan.title)}</strong></div>{reasons}</div></div>"
    )


def without_aliases(options: LoadOptions) -> LoadOptions:
    """The same, said by the options that have a control."""
    return options.model_copy(update={"dtype": "bf16", "bf16": False}) if options.bf16 else options


def problem_html(error: SnugError) -> str:
    """An error card with the remedy."""
    return (
        f'<div class="problem stacked" role="alert"><p><strong>{html.escape(error.message)}</strong></p>'
        f"<p>{html.escape(error.remedy)}</p></div>"
    )


def build(services: Services) -> None:
    """Put the tab's content here."""
    tab = ModelTab(services)
    defaults = without_aliases(services.models.defaults)
    told = notes()
    with gr.Column(elem_classes=["sheet"]):
        gr.HTML("<h1>Model</h1><p>What it needs, where it goes and how fast it will be, before anything is loaded.</p>")
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
                    js_on_load="snug.mountModelCard(element, trigger, watch); // 'refresh'",
                    elem_id="snug-model-card",
                )
                plan = gr.HTML(
                    '<p class="nothing">Choose a model.</p>',
                    js_on_load="snug.mountPlan(element, watch)",
                    apply_default_css=False,
                    elem_id="snug-plan",
                )
                context = gr.HTML(
                    js_on_load="snug.mountContext(element, trigger); // 'set'",
                    apply_default_css=False,
                    elem_id="snug-context",
                )
                with gr.Row(elem_classes=["load-buttons"]):
                    load = gr.Button("Load", variant="primary", elem_id="snug-load")
                    unload = gr.Button("Unload", elem_id="snug-unload", interactive=False)
                ways = gr.HTML(
                    js_on_load="snug.mountWays(element, trigger, watch); // 'take'",
                    apply_default_css=False,
                    elem_id="snug-ways",
                )
            with gr.Column(elem_classes=["options"]):
                _option_groups(tab, defaults)
    shown = gr.State("")  # the model of the picture
    wrong = gr.HTML(
        js_on_load="watch('value', () => snug.markOptions(props.value || {}))",
        visible="hidden",
        elem_classes=["channel"],
    )
    name, lora = tab.controls["model"], tab.controls["lora"]
    everything, drawn = {*tab.controls.values(), shown}, {plan, ways, load, unload, wrong, shown, lora}

    def pick(event: gr.EventData) -> Any:
        chosen = str(event._data["name"])
        return {name: chosen, models: tab.list_html(chosen)}

    def draw(data: Data) -> Any:
        seen = tab.seen(data)
        load_button, unload_button = tab.buttons(seen)
        buttons = {load: load_button, unload: unload_button, wrong: seen.wrong, lora: tab.adapters(data)}
        if seen.wrong and data[shown] == data[name]:
            return buttons  # the last picture stays until the option is right again
        return {**buttons, plan: seen.plan, ways: seen.ways, shown: data[name]}

    def look(data: Data, event: gr.EventData) -> Any:
        updates = tab.mirrored(data[name]) if event._data.get("mirror") else {}
        seen = {**updates, card: tab.state_html(), models: tab.list_html(updates.get(name, data[name]))}
        drawing = draw(data | updates)
        if lora in updates:
            drawing[lora] |= {"value": updates[lora]}
        return seen | drawing

    def take(data: Data, event: gr.EventData) -> Any:
        try:
            return tab.take(data, [str(flag) for flag in event._data["flags"]])
        except SnugError as error:
            return {told: note(error)}

    def set_context(event: gr.EventData) -> str:
        tokens = event._data.get("tokens")
        return "" if tokens is None else str(int(tokens))

    def start(data: Data) -> Any:
        try:
            # Who is faster than the first look at the folder means the model that it would have chosen.
            tab.load(data if data[name] else data | tab.mirrored(None))
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
        [control.change for control in tab.controls.values()],
        draw,
        inputs=everything,
        outputs=drawn,
        trigger_mode="always_last",
        **DIRECT,
    )
    card.refresh(look, inputs=everything, outputs={*everything, card, models, *drawn}, **DIRECT)
    ways.take(take, inputs=everything, outputs={*everything, told}, **DIRECT)
    context.set(set_context, outputs=tab.controls["ctx_size"], trigger_mode="always_last", **DIRECT)
    pulse = "() => snug.pulse()"
    load.click(start, inputs=everything, outputs={card, told}, **DIRECT).then(fn=None, js=pulse)
    unload.click(stop, outputs={card, told}, **DIRECT).then(fn=None, js=pulse)


def _option_groups(tab: ModelTab, defaults: LoadOptions) -> None:
    """One fold a group of flags, in the order of the flags."""
    for group, title in GROUP_TITLES.items():
        names = [name for name in LoadOptions.model_fields if flag_of(name).group == group and name not in ALIASES]
        if not names:
            continue
        with gr.Accordion(title, open=group in ("model", "quantization"), elem_classes=["fold"]):
            for name in names:
                control = option_control(name, getattr(defaults, name))
                control.visible = name not in ("model", "lora")
                tab.controls[name] = control
