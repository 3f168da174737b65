"""What every tab is built from: controls that derive from declarations, and the doors for requests of the page."""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, get_args

import gradio as gr
from pydantic import ConfigDict, Field, ValidationError

from modules.accounts.person import Person, person_in
from modules.errors import BadValue, SnugError
from modules.few import FewFields
from modules.models.remembered import as_flag
from modules.sampling import Control, GenerationParams
from modules.settings import LoadOptions, choices_of, flag_name
from modules.ui.labels import label_of
from modules.ui.views import Json, problem_view
from modules.ui.words import told

log = logging.getLogger(__name__)


class Body(FewFields):
    """The body of a request of the page: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Nothing(Body):
    """A request without a body."""


class Pick(Body):
    """A request about one thing."""

    id: str = Field(max_length=64)


BodyKind = TypeVar("BodyKind", bound=Body)
Handler = TypeVar("Handler", bound=Callable[..., Any])


def person_of(request: Any) -> Person:
    """Who sent a request of the page: what the doors in front found out. Raises Unauthorized for nobody."""
    inner = request.request if isinstance(request, gr.Request) else request
    return person_in(inner.scope if inner is not None else {})


def owner_of(request: Any) -> str:
    """Whose conversations a request may see."""
    return person_of(request).owner


def door(
    kind: type[BodyKind], name: str, handler: Callable[[str, BodyKind], Json], *, admin: str = ""
) -> Callable[..., Json]:
    """A server function `name` for the page's script: checks the body, calls `handler(owner, body)`.

    Every failure comes back as {"problem": {code, message, remedy}}; what is not a SnugError is logged. `admin` names
    the deed, if only administrators may do it.
    """
    return personal_door(kind, name, lambda person, body: handler(person.owner, body), admin=admin)


def personal_door(
    kind: type[BodyKind], name: str, handler: Callable[[Person, BodyKind], Json], *, admin: str = ""
) -> Callable[..., Json]:
    """Likewise, for a handler that needs to know more of who asks."""

    def answer(payload: Any, request: gr.Request) -> Json:
        try:
            person = person_of(request)
            if admin:
                person.require_admin(admin)
            return handler(person, read_body(kind, payload))
        except SnugError as error:
            return {"problem": problem_view(error)}
        except Exception:
            log.exception("The page's request %r failed", name)
            return {"problem": problem_view(SnugError("Something went wrong.", remedy="The log has the details."))}

    answer.__name__ = name
    return answer


def for_admins(handler: Handler) -> Handler:
    """`handler` of an event of Gradio's, marked as the administrators' (sessions.py refuses the others)."""
    try:
        handler.only_admins = True  # type: ignore[attr-defined]
    except AttributeError:  # a method
        handler = partial(handler)  # type: ignore[assignment]
        handler.only_admins = True  # type: ignore[attr-defined]
    return handler


def is_for_admins(handler: object) -> bool:
    """Whether a handler is marked so."""
    return bool(getattr(handler, "only_admins", False))


def read_body(kind: type[BodyKind], payload: Any) -> BodyKind:
    """The checked body of a request. Raises BadValue naming the field."""
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if not where:
            raise BadValue(f"The body: {first['msg']}.") from error
        raise BadValue(f"{where}: {first['msg']}.", param=where) from error


def decoded(data: str) -> bytes:
    """A file that the page sent as base64. Raises BadValue."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadValue("The file did not arrive whole.", remedy="Try again.", param="data") from error


def scripted(mount: str, *doors: Callable[..., Json], follow: Callable[..., Any], show: str) -> None:
    """A part of the page that the script function `mount` draws, with its doors.

    Its event 'follow' starts the stream `follow`, of which each view goes to the script function `show`.
    """
    page = gr.HTML(
        js_on_load=f"{mount}(element, server, trigger); // 'follow'", apply_default_css=False, server_functions=[*doors]
    )
    channel = gr.HTML(
        js_on_load=f"watch('value', () => {show}(props.value))", visible="hidden", elem_classes=["channel"]
    )
    page.follow(follow, outputs=channel, show_progress="hidden", concurrency_limit=None, trigger_mode="multiple")


# Without the queue an event is one request and its answer. With it, Gradio's page now and then misses the answer to an
# event that begins as the stream of an earlier one ends; only what streams takes that road (the script asks again).
DIRECT: dict[str, Any] = {"queue": False, "show_progress": "hidden"}


def notes() -> gr.HTML:
    """Where a handler of Gradio's own controls puts a `note` to show it as a toast."""
    return gr.HTML(
        js_on_load="watch('value', () => props.value && snug.showNote(props.value))",
        visible="hidden",
        elem_classes=["channel"],
    )


def note(about: SnugError | str) -> Json:
    """A toast: an error's cause and remedy, or a sentence of good news. `id` tells equal ones apart."""
    plain = problem_view(about) if isinstance(about, SnugError) else {"code": "", "message": told(about), "remedy": ""}
    return plain | {"id": time.monotonic_ns()}


def option_control(name: str, value: Any) -> gr.components.Component:
    """The control of one field of LoadOptions, showing `value`; label, help and choices come from the field."""
    field = LoadOptions.model_fields[name]
    common = {
        "label": label_of(name),
        "info": field.description,
        "elem_id": f"option-{name}",
        "elem_classes": ["option"],
    }
    if field.annotation is bool:
        return gr.Checkbox(value=shown_option(name, value), **common)
    if choices := choices_of(field):
        empty = [("default", "")] if field.default is None else []
        values = [*empty, *((choice, choice) for choice in choices)]
        return gr.Radio(values, value=shown_option(name, value), **common)
    if name == "lora":
        return gr.Dropdown([], value=shown_option(name, value), multiselect=True, allow_custom_value=True, **common)
    return gr.Textbox(value=shown_option(name, value), placeholder=_placeholder(name), max_lines=1, **common)


def read_options(values: dict[str, Any]) -> LoadOptions:
    """LoadOptions from the controls' values; empty ones count as not given. Raises BadValue naming flag and value."""
    given = {name: value for name, value in values.items() if value not in ("", None, False)}
    try:
        return LoadOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise BadValue(
            f"{flag_name(name)} {str(given.get(name))[:60]}: {problem}.",
            remedy=LoadOptions.model_fields[name].description or "",
            param=name,
        ) from error


def shown_option(name: str, value: Any) -> Any:
    """What the control of one load option shows for `value`; texts are as the flag would take them."""
    field = LoadOptions.model_fields[name]
    if field.annotation is bool:
        return bool(value)
    if choices_of(field):
        return value or field.default or ""
    if value is None:
        return ""
    shown = as_flag(name, value)
    return shown if isinstance(shown, list) else str(shown)


def _placeholder(name: str) -> str:
    return "chosen by Snug" if LoadOptions.model_fields[name].default is None else ""


def parameter_control(name: str, control: Control) -> gr.components.Component:
    """The slider, switch or number of one sampling parameter, with its help."""
    field = GenerationParams.model_fields[name]
    common = {"label": control.label, "info": field.description, "elem_id": f"param-{name}", "elem_classes": ["param"]}
    if field.annotation is bool:
        return gr.Checkbox(value=field.default, **common)
    if values := get_args(field.annotation):
        return gr.Radio([(str(value) if value else "off", value) for value in values], value=field.default, **common)
    if control.maximum is not None and control.maximum > 10_000:
        return gr.Number(value=field.default, precision=0, **common)
    low = control.minimum if control.minimum is not None else 0
    high = control.maximum if control.maximum is not None else 1
    return gr.Slider(low, high, value=field.default, step=control.step, buttons=[], **common)
