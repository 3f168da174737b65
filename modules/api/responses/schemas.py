"""What clients of OpenAI's Responses API may send: the body of /v1/responses.

Nothing is kept between two requests: whoever refers to an earlier response is told so, instead of getting a reply that
knows nothing of it.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from modules.api.prompting import Asked
from modules.api.responses.items import STATELESS, read_items
from modules.api.schemas import MAX_LOGPROBS, Effort, SamplingFields, sampling, strings
from modules.api.sent import Sent, shown_by_users
from modules.api.tool_schemas import (
    MAX_TOOLS,
    AllowedChoice,
    AllowedTools,
    Choice,
    Function,
    NamedFunction,
    NamedTool,
    ToolSpec,
    offer_of,
    own_choice,
    refuse_hosted,
    schema_text,
)
from modules.api.whole import whole
from modules.errors import BadValue
from modules.few import FIRST_FAULT
from modules.messages import ChatMessage
from modules.sampling import MAX_STOP_STRINGS, GenerationParams, StopString

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "previous_response_id": ((), STATELESS),
    "conversation": ((), STATELESS),
    "prompt": ((), "Snug keeps no prompts: send instructions and input"),
    "background": ((False,), "Snug answers while you wait"),
}
"""Fields that Snug does not have, the values of each that ask for nothing, and what to tell who asks for more."""


def _refuse(value: object, *, name: str) -> object:
    allowed, problem = _NEUTRAL[name]
    if value is not None and value not in allowed:
        raise PydanticCustomError("unsupported", problem)
    return value


_LOGPROBS = "message.output_text.logprobs"


class TextFormat(BaseModel):
    """The form of the reply. Every schema is held strictly."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None

    @property
    def as_text(self) -> str:
        """The schema as JSON; "" for none. Raises BadValue."""
        if self.type == "text":
            return ""
        if self.type == "json_object":
            return '{"type": "object"}'
        if self.schema_ is None:
            raise BadValue("A format of type json_schema needs schema.", remedy="Send one.", param="text.format")
        return schema_text(self.schema_, "text.format")


class TextOptions(BaseModel):
    """How the text shall be."""

    model_config = _STRICT

    format: TextFormat | None = None


class Reasoning(BaseModel):
    """How much to think, as far as the model's template lets one choose."""

    model_config = _STRICT

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = Field(
        None, description="Thoughts, which are never summed up here, are told in the summary's place."
    )


class FlatTool(Function):
    """A function that the model may ask for, as this API writes it. `namespace` is the group that it came in."""

    type: Literal["function"]
    namespace: Annotated[str, Field(max_length=128), AfterValidator(whole)] | None = None

    @property
    def spec(self) -> ToolSpec:
        """The same as chat completions write it."""
        function = Function(name=self.name, description=self.description, parameters=self.parameters, strict=None)
        return ToolSpec(type="function", function=function)


class FlatChoice(NamedFunction):
    """The function that must be called."""

    type: Literal["function"]


class FlatAllowed(BaseModel):
    """Those of the functions that may be called, and whether one must be."""

    model_config = _STRICT

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FlatChoice], Field(min_length=1, max_length=MAX_TOOLS)]


def _functions(tools: object) -> object:
    """The functions among `tools`, those of namespaces too. What runs elsewhere, or has no JSON schema, is left out
    where functions stand beside it, and refused where it is all that is offered.
    """
    if not isinstance(tools, list):
        return tools
    flat = [one for tool in tools for one in _within(tool)]
    own = [tool for tool in flat if not isinstance(tool, dict) or tool.get("type") == "function"]
    return own or refuse_hosted(flat, kind="function")


def _within(tool: object) -> list[object]:
    """The tools of a namespace, each with its name; any other tool itself."""
    if not isinstance(tool, dict) or tool.get("type") != "namespace" or not isinstance(tool.get("tools"), list):
        return [tool]
    return [one | {"namespace": tool.get("name")} if isinstance(one, dict) else one for one in tool["tools"]]


class ResponsesRequest(SamplingFields):
    """The body of POST /v1/responses, with every sampling parameter of Snug's beside OpenAI's."""

    model_config = _STRICT

    model: Annotated[str, Field(max_length=500)] | None = Field(
        None, description="Any name: the loaded model answers, under its own name. A request never loads a model."
    )
    input: Annotated[
        tuple[Sent, ...], BeforeValidator(read_items, json_schema_input_type=str | list[dict[str, Any]])
    ] = Field(description="A text, or the conversation as items; the last message is the user's.")
    instructions: Annotated[str, AfterValidator(whole)] | None = Field(None, description="The system prompt.")
    max_output_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    stop: Annotated[
        tuple[StopString, ...],
        FIRST_FAULT,
        Field(max_length=MAX_STOP_STRINGS),
        BeforeValidator(strings, json_schema_input_type=str | list[str] | None),
    ] = Field((), description="The reply ends before any of these strings.")
    stream: bool | None = Field(None, description="Send the response as it is made, as server-sent events.")
    text: TextOptions | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: leave out the oldest turns where the whole does not fit."
    )
    metadata: Annotated[dict[str, str], FIRST_FAULT, Field(max_length=16)] | None = Field(
        None, description="Given back as it came; nobody reads it."
    )
    previous_response_id: Annotated[Any, AfterValidator(partial(_refuse, name="previous_response_id"))] = None
    conversation: Annotated[Any, AfterValidator(partial(_refuse, name="conversation"))] = None
    prompt: Annotated[Any, AfterValidator(partial(_refuse, name="prompt"))] = None
    background: Annotated[Any, AfterValidator(partial(_refuse, name="background"))] = None
    tools: Annotated[
        Annotated[list[FlatTool], Field(max_length=MAX_TOOLS)] | None,
        BeforeValidator(_functions, json_schema_input_type=list[FlatTool] | None),
    ] = Field(None, description="Functions that the model may ask the client to call; OpenAI's own tools are not here.")
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | FlatChoice | FlatAllowed | None, BeforeValidator(own_choice)
    ] = None
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call a reply.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Report the log-probability of each token of the message and of this many alternatives."
    )
    include: Annotated[list[Annotated[str, Field(max_length=200)]] | None, Field(max_length=64)] = Field(
        None,
        description="message.output_text.logprobs asks for log-probabilities; other things are not here.",
    )

    @property
    def params(self) -> GenerationParams:
        """The sampling parameters, with defaults for what was not given."""
        form = self.text.format.as_text if self.text and self.text.format else None
        # The engine reports nothing at 0 alternatives; what the client calls 0 is cut down to it in the answer.
        logprobs = None if self.alternatives is None else max(1, self.alternatives)
        return sampling(self, max_new_tokens=self._length, stop=self.stop, json_schema=form, logprobs=logprobs)

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report beside each token; None for no log-probabilities at all."""
        asks = bool(self.top_logprobs) or _LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if asks else None

    @property
    def limited(self) -> bool:
        """Whether the client says how long the reply may be."""
        return self._length is not None

    @property
    def _length(self) -> int | None:
        return self.max_new_tokens if self.max_output_tokens is None else self.max_output_tokens

    @property
    def asked(self) -> Asked:
        """The conversation, instructions first. Raises BadValue."""
        told = (self.instructions or "").strip()
        sent = [*([Sent(ChatMessage("system", told))] if told else []), *shown_by_users(self.input)]
        effort = (self.reasoning.effort or "") if self.reasoning else ""
        specs = [tool.spec for tool in self.tools or ()]
        offer = offer_of(specs, _choice(self.tool_choice), parallel=self.parallel_tool_calls is not False)
        return Asked([one.turn for one in sent], None, offer, effort, [one.files for one in sent])

    @property
    def namespaces(self) -> dict[str, str]:
        """Which namespace each function belongs to that has one."""
        return {tool.name: tool.namespace for tool in self.tools or () if tool.namespace}


def _choice(choice: Literal["none", "auto", "required"] | FlatChoice | FlatAllowed | None) -> Choice | None:
    """The same as chat completions write it."""
    if isinstance(choice, FlatChoice):
        return _named(choice)
    if isinstance(choice, FlatAllowed):
        allowed = AllowedTools(mode=choice.mode, tools=[_named(one) for one in choice.tools])
        return AllowedChoice(type="allowed_tools", allowed_tools=allowed)
    return choice


def _named(choice: FlatChoice) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=choice.name))
