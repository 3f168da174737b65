"""What Anthropic's clients may send: the bodies of /v1/messages and /v1/messages/count_tokens.

Fields that nobody declared are ignored (metadata, service_tier, cache_control, …); blocks of content that Snug cannot
read are refused by name, since a reply without them would answer another question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from modules.api.image_parts import ONLY_USERS, bytes_at, bytes_in
from modules.api.prompting import Asked
from modules.api.schemas import MAX_MESSAGES, SamplingFields, sampling
from modules.api.sent import Sent, shown_by_users
from modules.api.tool_schemas import (
    MAX_TOOLS,
    NO_NAME,
    Choice,
    NamedTool,
    ToolSpec,
    is_tool_name,
    offer_of,
    refuse_hosted,
    schema_text,
)
from modules.api.whole import whole
from modules.errors import BadValue
from modules.messages import ChatMessage, ToolCall
from modules.sampling import MAX_STOP_STRINGS, GenerationParams, StopString

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())
MAX_BLOCKS = 2048
_UNSERVED = {
    "thread": "nothing is kept here: send the whole conversation as messages",
    "compaction": "nothing is summed up here: ask for a summary in a message",
    "mcp_servers": "no other servers are called here: offer their tools as tools of your own",
}
"""Fields of newer clients without which a reply would be to something else, and what to tell who sends them."""


def _unserved(value: object, *, name: str) -> object:
    if value not in (None, []):
        raise PydanticCustomError("unsupported", _UNSERVED[name])
    return value


class ToolOfAnthropic(BaseModel):
    """A tool that the model may ask for. Anthropic's own are refused: they run on their servers, or have no schema."""

    model_config = _STRICT

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    defer_loading: bool | None = Field(None, description="Not told to the model until the conversation names it.")

    @property
    def spec(self) -> ToolSpec:
        """The tool as OpenAI's clients send it, with the same limits."""
        given = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        try:
            return ToolSpec.model_validate({"type": "function", "function": given})
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise BadValue(f"The tool {self.name[:100]!r}: {problem}.", param="tools") from error


@dataclass(frozen=True, slots=True)
class Text:
    """Words of a message."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """What a reply thought before it answered; no model is told of it again."""

    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """A picture as it came."""

    file: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """What a tool answered to the call of that id, with the pictures that it returned and the tools that it found."""

    call_id: str
    text: str
    files: tuple[bytes, ...] = ()
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """In a result: a deferred tool that the client's own search found, callable from then on."""

    name: str


@dataclass(frozen=True, slots=True)
class ToolChange:
    """In a system message: from here on a tool is there, with a definition of its own or as declared, or is not."""

    name: str
    added: bool
    definition: ToolOfAnthropic | None = None


Block = Text | Thought | ToolCall | Result | Image | Reference | ToolChange


def _refused(place: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("content_block", f"{place} {problem}")


def _string(block: Mapping[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise _refused(place, f'needs a text as "{name}"')
    return whole(value)


def _document(block: Mapping[str, Any], place: str) -> Text:
    """A document that comes as text or as blocks of text; its title and context stand before it."""
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    blocks = _blocks(source.get("content")) if isinstance(source, dict) and kind == "content" else ()
    told = "\n\n".join(each.text for each in blocks if isinstance(each, Text))
    if not isinstance(source, dict) or kind not in ("text", "content") or not all(isinstance(b, Text) for b in blocks):
        raise _refused(place, "is a document, of which Snug reads plain text only: send its text")
    given = (block.get(name) for name in ("title", "context"))
    before = [whole(text) for text in given if isinstance(text, str) and text]
    return Text("\n\n".join([*before, told if blocks else _string(source, "data", place)]))


def _search_result(block: Mapping[str, Any], place: str) -> Text:
    """What a program's own search found: its title, where it is from, its text."""
    blocks = _blocks(block.get("content"))
    if not all(isinstance(each, Text) for each in blocks):
        raise _refused(place, "is a search result of which the content is no text")
    found = "\n\n".join(each.text for each in blocks if isinstance(each, Text))
    return Text(f"{_string(block, 'title', place)}\n{_string(block, 'source', place)}\n\n{found}")


def _image(block: Mapping[str, Any], place: str) -> Image:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or kind not in _SOURCES:
        raise _refused(place, 'needs a source: {"type": "base64", "media_type": "image/png", "data": "…"}')
    name, read = _SOURCES[kind]
    try:
        return Image(read(_string(source, name, place)))
    except PydanticCustomError as error:
        raise error if error.type == "content_block" else _refused(f"{place}:", error.message()) from error


def _tool_use(block: Mapping[str, Any], place: str) -> ToolCall:
    given = block.get("input")
    if not isinstance(given, dict):
        raise _refused(place, 'needs an object as "input"')
    try:
        arguments = whole(json.dumps(given, ensure_ascii=False))
    except (RecursionError, ValueError) as error:
        raise _refused(place, "nests too deeply, or holds what JSON cannot") from error
    name = _string(block, "name", place)
    if not is_tool_name(name):
        raise _refused(place, NO_NAME)
    return ToolCall(_string(block, "id", place), name, arguments)


def _tool_result(block: Mapping[str, Any], place: str) -> Result:
    content = block.get("content")
    blocks = () if content in (None, []) else _blocks(content)
    if not all(isinstance(each, (Text, Image, Reference)) for each in blocks):
        raise _refused(place, "is a result that is neither text, image nor tool_reference, and Snug reads no others")
    found = tuple(each.name for each in blocks if isinstance(each, Reference))
    told = [each.text for each in blocks if isinstance(each, Text)]
    text = "\n\n".join([*told, *([f"Tools that can be called now: {', '.join(found)}"] if found else [])])
    files = tuple(each.file for each in blocks if isinstance(each, Image))
    said = f"Error: {text}" if block.get("is_error") else text
    return Result(_string(block, "tool_use_id", place), said, files, found)


def _reference(block: Mapping[str, Any], place: str) -> Reference:
    return Reference(_tool_name(block, "tool_name", place))


def _tool_name(block: Mapping[str, Any], name: str, place: str) -> str:
    given = _string(block, name, place)
    if not is_tool_name(given):
        raise _refused(place, "names a tool by what can be no tool's name")
    return given


def _tool_change(block: Mapping[str, Any], place: str) -> ToolChange:
    """A tool that is added by name or with its definition, or removed by name."""
    tool, added = block.get("tool"), block["type"] == "tool_addition"
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(tool, dict) and kind == "tool_reference":
        return ToolChange(_tool_name(tool, "name", place), added)
    if not isinstance(tool, dict) or kind != "tool_definition" or not added:
        raise _refused(place, "needs a tool that is a tool_reference by name, or to be added a tool_definition")
    given = tool.get("definition")
    try:
        refuse_hosted([given], kind="custom")
        definition = ToolOfAnthropic.model_validate(given)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise _refused(place, f"has a definition of which {where or 'the whole'} is not as in tools") from error
    return ToolChange(definition.name, added, definition)


_SOURCES: dict[str, tuple[str, Callable[[str], bytes]]] = {"base64": ("data", bytes_in), "url": ("url", bytes_at)}
"""Where an image may come from: the field that holds it, and how it is read."""

_READERS: dict[str, Callable[[Mapping[str, Any], str], Block]] = {
    "text": lambda block, place: Text(_string(block, "text", place)),
    "thinking": lambda block, place: Thought(_string(block, "thinking", place)),
    "redacted_thinking": lambda _block, _place: Thought(""),
    "tool_use": _tool_use,
    "tool_result": _tool_result,
    "document": _document,
    "search_result": _search_result,
    "image": _image,
    "tool_reference": _reference,
    "tool_addition": _tool_change,
    "tool_removal": _tool_change,
}


def _blocks(content: object) -> tuple[Block, ...]:
    """A string, or a list of blocks."""
    if isinstance(content, str):
        return (Text(whole(content)),)
    if not isinstance(content, list) or not content:
        raise PydanticCustomError("content", "it must be a text, or a list of content blocks that is not empty")
    if len(content) > MAX_BLOCKS:
        raise PydanticCustomError("content", f"it has more than {MAX_BLOCKS} blocks")
    return tuple(_block(item, f"block {number}") for number, item in enumerate(content))


def _block(item: object, place: str) -> Block:
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(item, dict) or not isinstance(kind, str):
        raise _refused(place, 'must be an object with a "type"')
    if kind not in _READERS:
        raise _refused(place, f"is of type {kind[:40]!r}; Snug reads {', '.join(_READERS)}")
    return _READERS[kind](item, place)


def _system(content: object) -> str:
    """The system prompt: a text, or text blocks with an empty line between them."""
    if content is None:
        return ""
    blocks = () if content == [] else _blocks(content)
    if not all(isinstance(block, Text) for block in blocks):
        raise PydanticCustomError("system", "a system prompt has text blocks only")
    return "\n\n".join(block.text for block in blocks if isinstance(block, Text))


_CONTENT_SCHEMA = str | list[dict[str, Any]]


class AnthropicMessage(BaseModel):
    """One turn. `system` is what newer clients write within the conversation."""

    model_config = _STRICT

    role: Literal["user", "assistant", "system"]
    content: Annotated[tuple[Block, ...], BeforeValidator(_blocks, json_schema_input_type=_CONTENT_SCHEMA)]

    @property
    def text(self) -> str:
        """Its words, an empty line between blocks."""
        return "\n\n".join(block.text for block in self.content if isinstance(block, Text))

    def sent(self, names: dict[str, str]) -> list[Sent]:
        """It as turns: results of tools first, then what was said. `names` are those of the tools called so far."""
        calls = tuple(block for block in self.content if isinstance(block, ToolCall))
        if self.role == "assistant":
            names |= {call.id: call.name for call in calls}
            return [Sent(ChatMessage("assistant", self.text, tool_calls=calls))]
        results = [block for block in self.content if isinstance(block, Result)]
        turns = [
            Sent(ChatMessage("tool", block.text, call_id=block.call_id, tool=names.get(block.call_id, "")), block.files)
            for block in results
        ]
        files = tuple(block.file for block in self.content if isinstance(block, Image))
        said = files or any(isinstance(block, Text) for block in self.content)
        silent = not said and any(isinstance(block, (Result, ToolChange)) for block in self.content)
        return [*turns, *([] if silent else [Sent(ChatMessage(self.role, self.text), files)])]

    @model_validator(mode="after")
    def _pictures_from_users(self) -> Self:
        if self.role != "user" and any(isinstance(block, Image) for block in self.content):
            raise PydanticCustomError("image_role", ONLY_USERS)
        return self

    @model_validator(mode="after")
    def _tools_in_their_place(self) -> Self:
        if self.role != "system" and any(isinstance(block, ToolChange) for block in self.content):
            raise PydanticCustomError("tool_change_role", "tools are added and removed in system messages")
        if any(isinstance(block, Reference) for block in self.content):
            raise PydanticCustomError("reference_place", "a tool_reference stands in the content of a tool_result")
        return self


class Thinking(BaseModel):
    """Whether to think first, as far as the model's template lets one choose. A budget of tokens is not kept."""

    model_config = _STRICT

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    display: Literal["summarized", "omitted"] | None = None


class Format(BaseModel):
    """The form of the reply."""

    model_config = _STRICT

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(BaseModel):
    """How much to think, and the form of the reply."""

    model_config = _STRICT

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class ToolChoice(BaseModel):
    """Whether it calls any (auto), none, must call some (any), or one by its name (tool)."""

    model_config = _STRICT

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @property
    def choice(self) -> Choice:
        """The same in OpenAI's words."""
        if self.type == "tool":
            try:
                return NamedTool.model_validate({"type": "function", "function": {"name": self.name}})
            except ValidationError as error:
                raise BadValue("tool_choice of type tool needs the name of one.", param="tool_choice") from error
        return "required" if self.type == "any" else self.type


class Conversation(BaseModel):
    """What both routes take: a conversation."""

    model_config = _STRICT

    model: Annotated[str, Field(max_length=500)] | None = Field(
        None, description="Any name: the loaded model answers, under its own name. A request never loads a model."
    )
    messages: Annotated[list[AnthropicMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: Annotated[str, BeforeValidator(_system, json_schema_input_type=_CONTENT_SCHEMA | None)] = Field(
        "", description="A text or text blocks."
    )
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    tools: Annotated[
        Annotated[list[ToolOfAnthropic], Field(max_length=MAX_TOOLS)] | None,
        BeforeValidator(partial(refuse_hosted, kind="custom")),
    ] = Field(None, description="What the model may ask the client to do.")
    tool_choice: ToolChoice | None = None
    thread: Annotated[Any, AfterValidator(partial(_unserved, name="thread"))] = None
    compaction: Annotated[Any, AfterValidator(partial(_unserved, name="compaction"))] = None
    mcp_servers: Annotated[Any, AfterValidator(partial(_unserved, name="mcp_servers"))] = None

    @property
    def thinks(self) -> bool:
        """Whether a model shall think that can."""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def shows_thoughts(self) -> bool:
        """Whether the client wants to see what it thinks."""
        return self.thinks and self.thinking is not None and self.thinking.display != "omitted"

    @property
    def asked(self) -> Asked:
        """The conversation. Thinking is off unless asked for, where that can be chosen. Raises BadValue."""
        system = [Sent(ChatMessage("system", self.system))] if self.system.strip() else []
        names: dict[str, str] = {}
        sent = shown_by_users([*system, *(one for message in self.messages for one in message.sent(names))])
        turns = [one.turn for one in sent]
        if not turns:
            raise BadValue("The messages say nothing: they only add or remove tools.", param="messages")
        begun = turns[-1].role == "assistant" and not turns[-1].tool_calls
        effort = (self.output_config.effort if self.output_config else None) or ("medium" if self.thinks else "none")
        choice = self.tool_choice
        offer = offer_of(
            [tool.spec for tool in self._told_tools()], choice.choice if choice else None,
            parallel=not (choice and choice.disable_parallel_tool_use),
        )  # fmt: skip
        start = turns.pop().content if begun else None
        return Asked(turns, start, offer, effort, [one.files for one in sent[: len(turns)]])

    def _told_tools(self) -> list[ToolOfAnthropic]:
        """The tools that can be called where the conversation stands: as declared or as changed on the way, a deferred
        one once it was found or is chosen. Raises BadValue for too many.
        """
        told = {tool.name: not tool.defer_loading for tool in self.tools or ()}
        if self.tool_choice and self.tool_choice.name:
            told[self.tool_choice.name] = True
        added: dict[str, ToolOfAnthropic] = {}
        for block in (block for message in self.messages for block in message.content):
            if isinstance(block, Result):
                told |= dict.fromkeys(block.found, True)
            elif isinstance(block, ToolChange):
                told[block.name] = block.added
                added |= {block.name: block.definition} if block.definition else {}
        declared = [tool for tool in self.tools or () if tool.name not in added]
        tools = [tool for tool in (*declared, *added.values()) if told[tool.name]]
        if len(tools) > MAX_TOOLS:
            raise BadValue(f"The messages add tools to more than {MAX_TOOLS}.", param="messages")
        return tools


class MessagesRequest(SamplingFields, Conversation):
    """The body of POST /v1/messages, with every sampling parameter of Snug's beside Anthropic's."""

    model_config = _STRICT

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        description="The reply ends after this many tokens at the latest."
    )
    stop_sequences: Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        None, description="The reply ends before any of these."
    )
    output_format: Format | None = Field(None, description="An older place for output_config.format.")
    stream: bool | None = Field(None, description="Send the reply as it is made, as server-sent events.")

    @property
    def params(self) -> GenerationParams:
        """The sampling parameters, with defaults for what was not given."""
        return sampling(
            self, max_new_tokens=self.max_tokens, stop=tuple(self.stop_sequences or ()), json_schema=self._schema()
        )

    def _schema(self) -> str | None:
        form = (self.output_config.format if self.output_config else None) or self.output_format
        return None if form is None else schema_text(form.schema_, "output_config")


class CountRequest(Conversation):
    """The body of POST /v1/messages/count_tokens."""
