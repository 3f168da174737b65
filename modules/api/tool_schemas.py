"""Tools in OpenAI's bodies: what a client offers, what a model called before, and what must be called now."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from modules.api.whole import whole
from modules.errors import BadValue
from modules.forms.json_schemas import MAX_DEPTH, deeper_than
from modules.forms.tools import Offer, Tool
from modules.messages import ToolCall

MAX_TOOLS = 128
MAX_TOOL_BYTES = 65_536
MAX_CALLS = 128

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,127}"
_Name = Annotated[str, Field(pattern=f"^{_NAME}$")]
_RUN_BY_CLIENTS = re.compile("bash_|text_editor_|computer_|memory_|local_shell|shell|apply_patch")
"""Types of vendors' tools that run where the client is; no form of their arguments comes with them."""
_TAUGHT = (
    "no model but its vendor's was taught its form: declare it as a tool of your own, with name, description and schema"
)
NO_NAME = "calls a tool by a name that is not made of letters, digits, _, . and -, at most 128 of them"


def schema_text(schema: object, param: str) -> str:
    """The schema of a reply, as JSON. Raises BadValue naming `param`."""
    try:
        text = whole(json.dumps(schema, ensure_ascii=False))
    except PydanticCustomError as error:
        raise BadValue(f"The schema: {error.message()}.", param=param) from error
    except RecursionError as error:
        raise BadValue("The schema nests too deeply.", remedy="Use $defs.", param=param) from error
    if len(text) > MAX_TOOL_BYTES:
        raise BadValue("The schema is longer than 64 KiB.", remedy="Send a smaller one.", param=param)
    return text


def is_tool_name(text: str) -> bool:
    """Whether `text` can name a tool. Templates write names as their own text, past calls' too."""
    return re.fullmatch(_NAME, text) is not None


def _small(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if deeper_than(MAX_DEPTH, value):
        raise PydanticCustomError("too_deep", "the schema of a tool may nest 64 levels deep")
    try:
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except ValueError as error:
        raise PydanticCustomError("no_json", "it holds a number or half a character that JSON does not have") from error
    if size > MAX_TOOL_BYTES:
        raise PydanticCustomError("too_large", "the schema of a tool may have up to 64 KiB")
    return value


class Function(BaseModel):
    """What a tool is: its name, what it does, the JSON schema of its arguments."""

    model_config = _STRICT

    name: _Name
    description: Annotated[str, Field(max_length=MAX_TOOL_BYTES), AfterValidator(whole)] | None = None
    parameters: Annotated[dict[str, Any] | None, AfterValidator(_small)] = None
    strict: bool | None = Field(None, description="Accepted; what has to be a call follows the schema in any case.")


class ToolSpec(BaseModel):
    """A tool that the model may ask for."""

    model_config = _STRICT

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """A function by its name."""

    model_config = _STRICT

    name: _Name


class NamedTool(BaseModel):
    """The tool that must be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(BaseModel):
    """Those of the tools that may be called, and whether one must be."""

    model_config = _STRICT

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedChoice(BaseModel):
    """Some of the tools that are sent: OpenAI's way to keep the list of them the same in every request."""

    model_config = _STRICT

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _written(arguments: object) -> object:
    """Arguments as JSON text: some libraries send the object itself, or nothing where a tool takes none."""
    if arguments in (None, ""):
        return "{}"
    if not isinstance(arguments, dict):
        return arguments
    try:
        return json.dumps(arguments, ensure_ascii=False)
    except RecursionError as error:
        raise PydanticCustomError("too_deep", "the arguments nest too deeply") from error


class WrittenFunction(BaseModel):
    """A function as a model called it; `arguments` is JSON text."""

    model_config = _STRICT

    name: _Name
    arguments: Annotated[
        str,
        Field(max_length=1_000_000),
        BeforeValidator(_written, json_schema_input_type=str | dict[str, Any] | None),
        AfterValidator(whole),
    ]


class WrittenCall(BaseModel):
    """A call of an assistant's message, as an earlier answer held it."""

    model_config = _STRICT

    id: Annotated[str, Field(max_length=500)]
    type: Literal["function"] = "function"
    function: WrittenFunction

    @property
    def call(self) -> ToolCall:
        """The call as a value."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


def refuse_hosted(value: object, *, kind: str) -> object:
    """`value`, if every tool in it is a client's own, of type `kind`. Others run on the servers of whose dialect this
    is, or at the client, but in a form that only the vendor's own models were taught.
    """
    for number, tool in enumerate(value if isinstance(value, list) else ()):
        given = str((tool.get("type") or kind) if isinstance(tool, dict) else kind)
        if given != kind:
            why = _TAUGHT if _RUN_BY_CLIENTS.match(given) else "only tools of the client's own work here"
            raise PydanticCustomError("hosted_tool", f"tool {number} is of type {given[:60]!r}; {why} ({kind})")
    return value


def own_choice(value: object) -> object:
    """`value`, if what it chooses may be a tool of the client's own; Mistral's "any" is what others call required."""
    if value == "any":
        return "required"
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise PydanticCustomError(
            "hosted_tool",
            f"it chooses a tool of type {kind[:60]!r}; only tools of the client's own work here (function)",
        )
    return value


Choice = Literal["none", "auto", "required"] | NamedTool | AllowedChoice


def offer_of(tools: list[ToolSpec] | None, choice: Choice | None, *, parallel: bool) -> Offer | None:
    """What is offered; None for nothing. Raises BadValue for a choice that cannot be made."""
    functions = [tool.function for tool in tools or ()]
    offered = tuple(Tool(each.name, each.description or "", each.parameters or {}) for each in functions)
    names = [tool.name for tool in offered]
    if len(set(names)) < len(names):
        raise BadValue("Two tools have the same name.", remedy="Give each its own.", param="tools")
    if isinstance(choice, AllowedChoice):
        offered, choice = _allowed(offered, choice.allowed_tools), choice.allowed_tools.mode
    only = choice.function.name if isinstance(choice, NamedTool) else ""
    if not offered and (only or choice == "required"):
        raise BadValue("tool_choice asks for a call of no tool.", remedy="Send tools.", param="tool_choice")
    if only and only not in names:
        raise _no_such(only)
    if not offered:
        return None
    return Offer(offered, "auto" if isinstance(choice, NamedTool) or choice is None else choice, only, parallel)


def _allowed(offered: tuple[Tool, ...], allowed: AllowedTools) -> tuple[Tool, ...]:
    """Those of the tools that are allowed, in their order. Raises BadValue for one that is not there."""
    names = {each.function.name for each in allowed.tools}
    if missing := names - {tool.name for tool in offered}:
        raise _no_such(min(missing))
    return tuple(tool for tool in offered if tool.name in names)


def _no_such(name: str) -> BadValue:
    return BadValue(f"tool_choice names {name[:100]!r}, which is none of the tools.", param="tool_choice")
