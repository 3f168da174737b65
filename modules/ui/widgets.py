"""What every tab is built from: controls that derive from declarations, and the doors for requests of the page."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modules.errors import BadValue, SnugError
from modules.sampling import Control, GenerationParams
from modules.settings import LoadOptions, choices_of, flag_name, flag_of
from modules.ui.views import Json, problem_view
from modules.units import GiB, KiB, MiB

log = logging.getLogger(__name__)

_WORDS = {
    "cpu": "CPU", "gpu": "GPU", "nvme": "NVMe", "deepspeed": "DeepSpeed", "bf16": "bf16", "8bit": "8-bit",
    "4bit": "4-bit", "ctx": "context", "dir": "folder", "dtype": "precision", "attn": "attention",
    "quant": "quantization", "kv": "KV", "lora": "LoRA",
}  # fmt: skip


class Body(BaseModel):
    """The body of a request of the page: unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Nothing(Body):
    """A request without a body."""


class Pick(Body):
    """A request about one thing."""

    id: str = Field(max_length=64)


BodyKind = TypeVar("BodyKind", bound=Body)


def owner_of(request: gr.Request | None) -> str:  # noqa: ARG001
    """Whose conversations a request may see: on a machine for one, everybody is the same owner."""
    return ""


def door(kind: type[BodyKind], name: str, handler: Callable[[str, BodyKind], Json]) -> Callable[..., Json]:
    """A server function `name` for the page's script: checks the body, calls `handler(owner, body)`.

    Every failure comes back as {"problem": {code, message, remedy}}; what is not a SnugError is logged.
    """

    def answer(payload: Any, request: gr.Request) -> Json:
        try:
            return handler(owner_of(request), read_body(kind, payload))
        except SnugError as error:
            return {"problem": problem_view(error)}
        except Exception:
            log.exception("The page's request %r failed", name)
            return {"problem": problem_view(SnugError("Something went wrong.", remedy="The log has the details."))}

    answer.__name__ = name
    return answer


def read_body(kind: type[BodyKind], payload: Any) -> BodyKind:
    """The checked body of a request. Raises BadValue naming the field."""
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadValue(f"{where}: {first['msg']}.", param=where) from error


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
    told = problem_view(about) if isinstance(about, SnugError) else {"code": "", "message": about, "remedy": ""}
    return told | {"id": time.monotonic_ns()}


def label_of(name: str) -> str:
    """`gpu_memory` → `GPU memory`."""
    words = [_WORDS.get(word, word) for word in name.split("_")]
    if words[0].isalpha() and words[0].islower():
        words[0] = words[0].capitalize()
    return " ".join(words)


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
    if flag_of(name).metavar == "SIZE":
        return " ".join(_exact_size(size) for size in (value if isinstance(value, tuple) else (value,)))
    if isinstance(value, tuple):
        return list(value)
    return str(value)


def _exact_size(size_bytes: int) -> str:
    """`10GiB`, `8722MiB`, `1000B`: no byte is lost, unlike in units.format_size."""
    for unit, name in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if size_bytes % unit == 0:
            return f"{size_bytes // unit}{name}"
    return f"{size_bytes}B"


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
