"""The Extensions tab: what runs, what went wrong, a switch for each, and the controls that extensions bring along.

Which extensions there are was decided when Snug started; the page switches those off and on again, and no other. An
extension's `ui` is built in a part of its own before the page is: one that fails leaves nothing behind.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.context import Context
from pydantic import Field

from modules.accounts.person import Person
from modules.errors import SnugError
from modules.extensions.faults import Problem
from modules.extensions.manager import Card, Extensions
from modules.services import Services
from modules.ui.views import Json, printable
from modules.ui.widgets import Body, Nothing, door, for_admins, personal_door
from modules.ui.words import t, told

_EVERYWHERE = "chat, notebook, your next message"
WHERE = {
    "setup": "once, as Snug starts",
    "ui": "once, for its controls here",
    "custom_css": "every page",
    "custom_js": "every page",
    "history_modifier": "chat",
    "state_modifier": "chat, notebook",
    "chat_input_modifier": "chat",
    "input_modifier": "chat, notebook",
    "bot_prefix_modifier": "chat",
    "logits_processor_modifier": f"{_EVERYWHERE}; in the engine's process",
    "custom_generate_reply": _EVERYWHERE,
    "output_modifier": "chat, notebook",
}
"""Where each hook is called, for people. The API calls none."""
STATES = ("change", "input", "release", "select", "blur")  # events that tell a control's value, not a deed


class Switch(Body):
    id: str = Field(max_length=200)
    on: bool


@dataclass(frozen=True, slots=True)
class Part:
    """The controls of one extension, ready to be put on the page."""

    name: str
    title: str
    blocks: gr.Blocks
    own_tab: bool


class ExtensionDoors:
    """What the page may ask for."""

    def __init__(self, extensions: Extensions) -> None:
        self._extensions = extensions

    def cards(self, person: Person, _: Nothing) -> Json:
        """All extensions as they are now."""
        return {"cards": [card_view(card, whole=person.admin) for card in self._extensions.cards()]}

    def switch(self, person: Person, body: Switch) -> Json:
        """Switch one that was started off, or on again."""
        self._extensions.switch(body.id, on=body.on)
        return self.cards(person, Nothing())

    def assets(self, _: str, __: Nothing) -> Json:
        """The style sheets and scripts of those that run."""
        return {"css": self._extensions.texts("custom_css"), "js": self._extensions.texts("custom_js")}


def build(services: Services) -> None:
    """The tab's list; the controls come after it."""
    doors = ExtensionDoors(services.extensions)
    gr.HTML(
        js_on_load="snug.mountExtensions(element, server)",
        apply_default_css=False,
        server_functions=[
            personal_door(Nothing, "cards", doors.cards),
            personal_door(Switch, "switch", doors.switch, admin="Switching extensions"),
        ],
    )


def build_assets(services: Services) -> None:
    """What brings style sheets and scripts to the page; nothing where no extension runs."""
    if services.extensions.take_part:
        gr.HTML(
            js_on_load="snug.loadExtensions(server)",
            apply_default_css=False,
            elem_classes=["channel"],
            server_functions=[door(Nothing, "assets", ExtensionDoors(services.extensions).assets)],
        )


def build_parts(extensions: Extensions) -> list[Part]:
    """The controls of every extension that has some. To be called outside of any other Blocks."""
    return [part for name in extensions.having("ui") if (part := _part(extensions, name)) is not None]


def _part(extensions: Extensions, name: str) -> Part | None:
    def make() -> gr.Blocks:
        with gr.Blocks() as blocks:
            extensions.run_ui(name)
        return blocks

    try:
        blocks = extensions.build(name, make)
    finally:
        Context.root_block = Context.block = None  # where it did not come back, they are still its own
    if blocks is None or not blocks.blocks:
        return None
    kept = _Kept()
    for function in blocks.fns.values():
        if function.fn is not None:
            function.fn = for_admins(_guarded(extensions, name, function, kept))
    for block in blocks.blocks.values():
        for_admins(block)  # a component may have doors of its own, a list of files for one
    with blocks:
        kept.restore_on(blocks)
    return Part(name, extensions.title(name), blocks, extensions.own_tab(name))


class _Kept:
    """What the controls were last set to, for pages that are opened later."""

    def __init__(self) -> None:
        self.values: dict[int, Any] = {}
        self._controls: dict[int, Any] = {}

    def watch(self, function: Any) -> None:
        """Remember the controls whose value an event of this function tells."""
        if any(event in STATES for _, event in function.targets):
            self._controls |= {block._id: block for block in function.inputs if not isinstance(block, gr.State)}

    def set(self, function: Any, values: tuple[Any, ...]) -> None:
        """An event has told these values."""
        if function.inputs_as_dict or len(values) != len(function.inputs):
            return  # the handler takes them in another way
        for block, value in zip(function.inputs, values, strict=True):
            if block._id in self._controls:
                self.values[block._id] = value

    def restore_on(self, blocks: gr.Blocks) -> None:
        """Show the values on every page that is opened."""
        controls = list(self._controls.values())
        if controls:
            blocks.load(
                lambda: _one_or_all([self.values.get(block._id, gr.skip()) for block in controls]),
                outputs=controls,
                show_progress="hidden",
            )


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _guarded(extensions: Extensions, name: str, function: Any, kept: _Kept) -> Callable[..., Any]:
    """A handler of a control: its failure is the extension's, and what it sets is kept."""
    handler: Callable[..., Any] = function.fn
    kept.watch(function)

    def failed(error: Exception) -> gr.Error:
        problem: Problem = extensions.blame(name, f"the handler {getattr(handler, '__name__', '')}", error)
        return gr.Error(told(problem.sentence), print_exception=False)

    if inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler):
        return handler  # Gradio's own message names it less well

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*values: Any, **options: Any) -> Any:
            try:
                yield from handler(*values, **options)
            except (gr.Error, SnugError):
                raise
            except Exception as error:
                raise failed(error) from error
            finally:
                extensions.keep(name)

        return stream

    @functools.wraps(handler)
    def call(*values: Any, **options: Any) -> Any:
        try:
            made = handler(*values, **options)
        except (gr.Error, SnugError):
            raise
        except Exception as error:
            raise failed(error) from error
        kept.set(function, values)
        extensions.keep(name)
        return made

    return call


def card_view(card: Card, *, whole: bool) -> Json:
    """A card for the page; texts of scripts are text there.

    What an exception says may be what somebody wrote: administrators alone are told it, the others what came of it.
    """
    return {
        "name": card.name,
        "title": t(printable(card.title)),
        "about": t(printable(card.about)),
        "running": card.running,
        "started": bool(card.hooks) or card.running is True,
        "hooks": [{"name": name, "where": told(WHERE[name])} for name in card.hooks],
        "remarks": [told(printable(remark)) for remark in card.remarks],
        "problems": [
            {
                "hook": printable(problem.hook),
                "reason": told(printable(problem.reason if whole else problem.reason.partition(":")[0])),
                "trace": printable(problem.trace) if whole else "",
            }
            for problem in card.problems
        ],
    }
