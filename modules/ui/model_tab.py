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
from modules.ui import download_panel
from modules.ui.model_memory import memory_html
from modules.ui.picture import info_html
from modules.ui.plan_picture import plan_html
from modules.ui.plan_values import Measured, measured_by_device
from modules.ui.ways import FOLDERS, options_of, reasons_html, same_load, ways_html
from modules.ui.widgets import (
    DIRECT,
    for_admins,
    note,
    notes,
    option_control,
    owner_of,
    person_of,
    read_options,
    shown_option,
)
from modules.ui.words import format_size, t, tn, told

Controls = dict[str, gr.components.Component]
Data = dict[gr.components.Component, Any]
ALIASES = ("bf16",)  # options that another control says: --bf16 is --dtype bf16
# Shown while a dry run is under way; the number tells the page whether its picture knows of the last answer.
COUNTING = '<p class="plan-counting" data-answered="{}">{}</p>'


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
        self.presets = services.presets
        self.controls: Controls = {}

    def options(self, data: Data) -> LoadOptions:
        """What the controls ask for."""
        return read_options({name: data[control] for name, control in self.controls.items()})

    def in_known_folders(self, data: Data) -> Data:
        """`data` without folders that neither the start nor the loaded model's load named."""
        known = [options for options in (self.models.defaults, self.models.options) if options]
        shown = {name: {shown_option(name, getattr(options, name)) for options in known} for name in FOLDERS}
        others = [name for name in FOLDERS if str(data[self.controls[name]] or "") not in shown[name]]
        return {**data, **{self.controls[name]: "" for name in others}}

    def mirrored(self, name: str | None) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show how the loaded model was loaded; else choose a model that is alone."""
        if self.models.options:
            return self.showing(self.models.options)
        usable = [entry.name for entry in self.models.list() if not entry.problem]
        if name or len(usable) != 1:
            return {}
        known = self.models.memory.of(usable[0]).options
        return self.showing(known) if known else {self.controls["model"]: usable[0]}

    def showing(self, options: LoadOptions) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show `options`."""
        plain = without_aliases(options)
        return {control: shown_option(name, getattr(plain, name)) for name, control in self.controls.items()}

    def load(self, data: Data) -> None:
        """Start the load that the controls ask for."""
        options = self.options(data)
        if options.model is None:
            raise BadValue("No model is chosen.", remedy="Choose one in the list.", param="model")
        self.models.start_load(options, remember=True)

    def picked(self, name: str, *, anew: bool) -> dict[gr.components.Component, Any]:
        """Updates that make the controls show a model as it was loaded last.

        For one that never was they stay as they are, unless what they show is another one's (`anew`).
        """
        known = self.models.memory.of(name).options
        usual = self.models.defaults.model_copy(update={"model": name})
        return self.showing(known or usual) if known or anew else {self.controls["model"]: name}

    def list_html(self, chosen: str | None) -> str:
        """One card a model, the chosen one marked; what cannot be loaded says why, folded away below."""
        entries = self.models.list()
        if not entries:
            return (
                f'<p class="nothing">{html.escape(t("Nothing is in {folder} yet.", folder=self.folder))} '
                f"{t('Get a model below, or put its folder there and press Refresh.')}</p>"
            )
        sound = [self._entry_html(entry, chosen) for entry in entries if not entry.problem]
        broken = [self._entry_html(entry, chosen) for entry in entries if entry.problem]
        cards = f'<div class="model-list">{"".join(sound)}</div>' if sound else ""
        if broken:
            count = tn("{count} model cannot be loaded", "{count} models cannot be loaded", len(broken))
            cards += (
                f'<details class="broken-models"{"" if sound else " open"}><summary>{count}</summary>'
                f'<div class="model-list">{"".join(broken)}</div></details>'
            )
        return cards

    def _entry_html(self, entry: ModelEntry, chosen: str | None) -> str:
        problem = f'<span class="entry-problem">{html.escape(told(str(entry.problem)))}</span>' if entry.problem else ""
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
            return self._pictured(options) if options.model else Seen(f'<p class="nothing">{t("Choose a model.")}</p>')
        except SnugError as error:
            control = self.controls.get(error.param or "")
            if control is None or error.param in (None, "model") or data[control] in ("", None, False):
                return Seen(problem_html(error))
            without = self.seen({**data, control: None})
            return replace(without, wrong={error.param: self._wrong(data, error), **without.wrong})

    def _wrong(self, data: Data, error: SnugError) -> dict[str, str]:
        """What is wrong with an option, in the page's words, and a value that would do."""
        if error.param != "ctx_size":
            why = error.message.partition(": ")[2] or error.message
            return {"told": f"{told(why[:1].upper() + why[1:])} {told(error.remedy)}".strip(), "use": ""}
        given = str(data[self.controls["ctx_size"]]).strip()
        if not given.isdecimal():
            return {"told": t("“{text}” is not a number of tokens: write digits alone.", text=given[:20]), "use": ""}
        name = data[self.controls["model"]]
        if not name or not int(given):
            return {"told": t("A context has at least one token."), "use": ""}
        most = self.models.plans(LoadOptions.model_validate({"model": name})).spec.max_context
        return {"told": t("{name} was made for at most {count} tokens.", name=name, count=most), "use": str(most)}

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
        return Seen(
            picture + COUNTING.format(answered, t("Counting what this way really allocates…")),
            ways,
            loaded=bool(measured),
        )

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
            gr.update(value=t("Load again") if seen.loaded and not loading else t("Load"), interactive=not seen.wrong),
            gr.update(
                value=t("Stop loading") if loading and state.info is None else t("Unload"),
                interactive=loading or state.info is not None,
            ),
        )

    def state_html(self) -> str:
        """What is loaded now, how far a load is, or what went wrong."""
        state = self.models.state
        name = html.escape(state.name or "")
        if state.status == "loading":
            stage, share = (state.progress.stage, state.progress.fraction) if state.progress else (t("Starting"), 0.0)
            return (
                f'<div class="state"><h2>{t("Loading {name}", name=name)}</h2>'
                f'<div class="bar"><span data-load-bar style="width:{share:.0%}"></span></div>'
                f"<p data-load-stage>{html.escape(told(stage))}</p></div>"
            )
        problem = problem_html(state.error) if state.error else ""
        if state.info is None:
            title = t("{name} could not be loaded", name=name) if state.error else t("No model is loaded")
            text = problem or f"<p>{t('Choose one, then press Load.')}</p>"
            return f'<div class="state"><h2>{title}</h2>{text}</div>'
        name = html.escape(state.info.name)
        title = t("{name} stopped", name=name) if state.status == "died" else t("{name} is loaded", name=name)
        return (
            f'<div class="state {state.status}"><h2><span class="dot"></span>{title}</h2>{problem}'
            f'<details class="how"><summary>{t("How it runs")}</summary>{info_html(state.info)}</details></div>'
        )


def _facts(entry: ModelEntry) -> str:
    return (
        t("on another server")
        if entry.kind == "remote"
        else f"{t('folder') if entry.kind == 'folder' else entry.kind} · {format_size(entry.size_bytes)}"
    )


def elsewhere_html(plan: Plan) -> str:
    """What is to be said of a model that runs on another server, before anybody has asked that."""
    reasons = "".join(f"<p>{html.escape(told(reason))}</p>" for reason in plan.reasons)
    return (
        '<div class="plan"><div class="plan-head"><div class="verdict ok"><span class="dot"></span>'
        f"<strong>{html.escape(told(plan.title))}</strong></div>{reasons}</div></div>"
    )


def without_aliases(options: LoadOptions) -> LoadOptions:
    """The same, said by the options that have a control."""
    return options.model_copy(update={"dtype": "bf16", "bf16": False}) if options.bf16 else options


def problem_html(error: SnugError) -> str:
    """An error card with the remedy."""
    return (
        f'<div class="problem stacked" role="alert"><p><strong>{html.escape(told(error.message))}</strong></p>'
        f"<p>{html.escape(told(error.remedy))}</p></div>"
    )


def build(services: Services) -> None:
    """Put the tab's content here."""
    tab = ModelTab(services)
    defaults = without_aliases(services.models.defaults)
    notices = notes()
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
                download_panel.build(services)
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
                gr.HTML(
                    '<p class="only-admins">Loading and unloading is for administrators.</p>',
                    apply_default_css=False,
                    elem_classes=["for-guests"],
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
                memory = gr.HTML(
                    js_on_load="snug.mountMemory(element, trigger); // 'forget'",
                    apply_default_css=False,
                    elem_id="snug-memory",
                )
                _option_groups(tab, defaults)
    shown = gr.State("")  # the model of the picture
    offered = gr.State("")  # the model whose last load the controls show
    wrong = gr.HTML(
        js_on_load="watch('value', () => snug.markOptions(props.value || {}))",
        visible="hidden",
        elem_classes=["channel"],
    )
    turn = gr.HTML(
        js_on_load="watch('value', () => snug.modelTabSeen(props.value || {}))",
        visible="hidden",
        elem_classes=["channel"],
    )
    name, lora = tab.controls["model"], tab.controls["lora"]
    everything, drawn = {*tab.controls.values(), shown}, {plan, ways, load, unload, wrong, shown, lora}

    def pick(before: str, event: gr.EventData, request: gr.Request) -> Any:
        chosen = str(event._data["name"])
        noted = tab.models.memory.of(chosen)
        seen = {models: tab.list_html(chosen), memory: memory_html(noted, tab.presets.whose(owner_of(request)))}
        anew = bool(before or event._data.get("anew"))
        return tab.picked(chosen, anew=anew) | seen | {offered: chosen if noted.options else ""}

    @for_admins
    def forget(chosen: str | None) -> Any:
        usual = tab.models.defaults.model_copy(update={"model": chosen})
        try:
            tab.models.memory.forget(chosen or "")
        except SnugError as error:
            return {notices: note(error)}
        return tab.showing(usual) | {memory: "", offered: ""}

    def draw(data: Data, request: gr.Request) -> Any:
        admin = person_of(request).admin
        seen = tab.seen(data if admin else tab.in_known_folders(data))
        load_button, unload_button = tab.buttons(seen)
        if not admin:
            load_button, unload_button = gr.update(interactive=False), gr.update(interactive=False)
        buttons = {load: load_button, unload: unload_button, wrong: seen.wrong, lora: tab.adapters(data)}
        if seen.wrong and data[shown] == data[name]:
            return buttons  # the last picture stays until the option is right again
        return {**buttons, plan: seen.plan, ways: seen.ways, shown: data[name]}

    def look(data: Data, event: gr.EventData, request: gr.Request) -> Any:
        updates = tab.mirrored(data[name]) if event._data.get("mirror") else {}
        chosen = updates.get(name, data[name])
        kept = memory_html(tab.models.memory.of(chosen), tab.presets.whose(owner_of(request)))
        seen = {**updates, card: tab.state_html(), models: tab.list_html(chosen), memory: kept}
        drawing = draw(data | updates, request)
        if lora in updates:
            drawing[lora] |= {"value": updates[lora]}
            seen[offered] = chosen
        return seen | drawing | {turn: {"turn": event._data.get("turn"), "mirrored": bool(updates)}}

    def take(data: Data, event: gr.EventData) -> Any:
        try:
            return tab.take(data, [str(flag) for flag in event._data["flags"]])
        except SnugError as error:
            return {notices: note(error)}

    def set_context(event: gr.EventData) -> str:
        tokens = event._data.get("tokens")
        return "" if tokens is None else str(int(tokens))

    @for_admins
    def start(data: Data) -> Any:
        try:
            # Who is faster than the first look at the folder means the model that it would have chosen.
            tab.load(data if data[name] else data | tab.mirrored(None))
        except SnugError as error:
            return {notices: note(error)}
        return {card: tab.state_html()}

    @for_admins
    def stop() -> Any:
        try:
            tab.models.unload()
        except SnugError as error:
            return {notices: note(error)}
        return {card: tab.state_html()}

    models.pick(pick, inputs=offered, outputs={*tab.controls.values(), models, memory, offered}, **DIRECT)
    memory.forget(forget, inputs=name, outputs={*tab.controls.values(), memory, offered, notices}, **DIRECT)
    refresh.click(tab.list_html, inputs=name, outputs=models, **DIRECT)
    gr.on(
        [control.change for control in tab.controls.values()],
        draw,
        inputs=everything,
        outputs=drawn,
        trigger_mode="always_last",
        **DIRECT,
    )
    card.refresh(look, inputs=everything, outputs={*everything, card, models, memory, offered, turn, *drawn}, **DIRECT)
    ways.take(take, inputs=everything, outputs={*everything, notices}, **DIRECT)
    context.set(set_context, outputs=tab.controls["ctx_size"], trigger_mode="always_last", **DIRECT)
    pulse = "() => snug.pulse()"
    load.click(start, inputs=everything, outputs={card, notices}, **DIRECT).then(fn=None, js=pulse)
    unload.click(stop, outputs={card, notices}, **DIRECT).then(fn=None, js=pulse)


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
