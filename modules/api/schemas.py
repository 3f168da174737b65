"""What clients may send: the bodies of OpenAI's text routes, of embeddings and of a model load.

Sampling fields and load options are derived from GenerationParams and LoadOptions, ranges and descriptions included.
Types are strict ("5" and true are no numbers). Fields that nobody declared are ignored, except in a model load.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from modules.errors import BadValue
from modules.sampling import MAX_STOP_STRINGS, GenerationParams, StopString
from modules.settings import LoadOptions, flag_of

MAX_CHOICES = 8
MAX_MESSAGES = 2048
MAX_INPUTS = 2048
MAX_LOGPROBS = 20

Prompt = str | tuple[int, ...]

RESHAPED = frozenset({"stop", "logprobs", "json_schema"})
"""Parameters that OpenAI's bodies hold in another shape than GenerationParams."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "suffix": ("",),
    "best_of": (1,),
}
"""Fields of OpenAI's that Snug does not have yet, and the values of each that ask for nothing."""

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, protected_namespaces=())


def _refuse(value: object, *, name: str) -> object:
    """Better an error than a reply that quietly did not do what was asked."""
    if value is not None and value not in NEUTRAL[name]:
        raise PydanticCustomError("unsupported", "Snug does not support this field yet")
    return value


def _annotated(field: FieldInfo) -> Any:
    """The whole type of a field: ranges and validators included, which pydantic keeps apart."""
    annotated: Any = Annotated
    return annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _optional(name: str) -> tuple[Any, FieldInfo]:
    """The sampling parameter `name` as create_model wants it; null or absent is the default."""
    field = GenerationParams.model_fields[name]
    info: Any = Field(None, description=f"{field.description} Default: {field.default}.")
    return _annotated(field) | None, info


def _unsupported(name: str) -> tuple[Any, FieldInfo]:
    """A field that is refused, unless it asks for nothing."""
    allowed = ", ".join(["null", *(repr(value) for value in NEUTRAL[name])])
    info: Any = Field(None, description=f"Not supported yet; {allowed} is accepted.")
    return Annotated[Any, AfterValidator(partial(_refuse, name=name))], info


if TYPE_CHECKING:
    DerivedFields = BaseModel
else:
    DerivedFields = create_model(
        "DerivedFields",
        __config__=_STRICT,
        **{name: _optional(name) for name in GenerationParams.model_fields if name not in RESHAPED},
        max_tokens=_optional("max_new_tokens"),
        max_completion_tokens=_optional("max_new_tokens"),
        **{name: _unsupported(name) for name in NEUTRAL},
    )


def _whole(text: str) -> str:
    """`text`, if it is Unicode text. JSON can spell half a character, a lone surrogate, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("lone_surrogate", "it holds half a character (a lone surrogate)") from error
    return text


def _strings(stop: object) -> object:
    """One stop string, a list of them, or null → a tuple."""
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    return (
        tuple(_whole(item) if isinstance(item, str) else item for item in strings)
        if isinstance(strings, list)
        else stop
    )


class TextPart(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _text_of(content: object) -> object:
    """A string as it is; a list of text parts joined."""
    if isinstance(content, str):
        return _whole(content)
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError("content_part", 'every part must be {"type": "text", "text": "…"}')
        texts.append(_whole(part["text"]))
    return "".join(texts)


def _prompts(value: object) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either → one prompt or more."""
    several = isinstance(value, list) and bool(value) and isinstance(value[0], (str, list))
    return tuple(_prompt(item) for item in (value if several and isinstance(value, list) else [value]))


def _prompt(value: object) -> Prompt:
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return tuple(value)
    if isinstance(value, str) and value:
        return _whole(value)
    raise PydanticCustomError("prompt", "it must be a text, a list of token ids, or a list of either, and not empty")


def _user_last(messages: list[RequestMessage]) -> list[RequestMessage]:
    if messages[-1].role != "user":
        raise PydanticCustomError("user_last", "the last message must be the user's")
    return messages


class RequestMessage(BaseModel):
    """One turn of the conversation."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of, json_schema_input_type=str | list[TextPart])]


class StreamOptions(BaseModel):
    """What a stream carries besides the text."""

    model_config = _STRICT

    include_usage: bool | None = Field(None, description="Send the token counts in a last event of their own.")


class NamedSchema(BaseModel):
    """What OpenAI's `response_format` holds under `json_schema`. Every schema is held strictly."""

    model_config = _STRICT

    schema_: dict[str, Any] | bool = Field(alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """The form of a reply: any text, any JSON object, or JSON of a schema."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @property
    def text(self) -> str:
        """The schema as JSON; "" for none. Raises BadValue."""
        if self.type == "text":
            return ""
        if self.type == "json_object":
            return '{"type": "object"}'
        if self.json_schema is None:
            raise BadValue(
                "response_format of type json_schema needs json_schema.",
                remedy='Send {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}.',
                param="response_format",
            )
        try:
            return json.dumps(self.json_schema.schema_, ensure_ascii=False)
        except RecursionError as error:
            raise BadValue("The schema nests too deeply.", remedy="Use $defs.", param="response_format") from error


class TextRequest(DerivedFields):
    """What both text routes take, besides the sampling parameters."""

    model_config = _STRICT

    model: Annotated[str, Field(max_length=500)] | None = Field(
        None, description="Any name: the loaded model answers, under its own name. A request never loads a model."
    )
    stream: bool | None = Field(None, description="Send the reply as it is made, as server-sent events.")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(None, description="How many replies to make.")
    stop: Annotated[
        tuple[StopString, ...],
        Field(max_length=MAX_STOP_STRINGS),
        BeforeValidator(_strings, json_schema_input_type=str | list[str] | None),
    ] = Field((), description="The reply ends before any of these strings.")

    response_format: ResponseFormat | None = Field(
        None, description="JSON of a schema, or any JSON object, in place of free text. GGUF files only."
    )

    @property
    def choices(self) -> int:
        """How many replies to make."""
        return self.n or 1

    @property
    def alternatives(self) -> int | None:
        """How many alternatives to report beside each token; None for no log-probabilities at all."""
        raise NotImplementedError

    def params(self) -> GenerationParams:
        """The sampling parameters, with defaults for what was not given."""
        given = {name: getattr(self, name) for name in GenerationParams.model_fields if name not in RESHAPED}
        given["max_new_tokens"] = self._length()
        # The engine reports nothing at 0 alternatives; what OpenAI calls 0 is cut down to it in the answer.
        given["logprobs"] = None if self.alternatives is None else max(1, self.alternatives)
        given["json_schema"] = self.response_format.text if self.response_format else None
        return GenerationParams(stop=self.stop, **{name: value for name, value in given.items() if value is not None})

    def _length(self) -> int | None:
        names = ("max_completion_tokens", "max_tokens", "max_new_tokens")
        return next((value for name in names if (value := getattr(self, name)) is not None), None)


class ChatRequest(TextRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[
        list[RequestMessage], Field(min_length=1, max_length=MAX_MESSAGES), AfterValidator(_user_last)
    ]  # fmt: skip
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="With logprobs: report this many alternatives to each token."
    )

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _alternatives_to_something(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise BadValue("top_logprobs needs logprobs.", remedy="Set logprobs to true.", param="top_logprobs")
        return self


class CompletionRequest(TextRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(_prompts, json_schema_input_type=str | list[int] | list[str] | list[list[int]]),
    ] = Field(description="The text to continue, or its token ids; several of either for several replies.")
    echo: bool | None = Field(None, description="Begin the reply with the prompt.")
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Report the log-probability of each token and of this many alternatives."
    )

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if len(self.prompt) * self.choices > MAX_CHOICES:
            raise BadValue(
                f"{len(self.prompt)} prompts × n = {self.choices} are more than {MAX_CHOICES} replies.", param="n"
            )
        return self


def _own_length(value: object) -> object:
    if value is not None:
        raise PydanticCustomError("unsupported", "the vectors have the model's own length, and Snug does not cut them")
    return value


class EmbeddingRequest(BaseModel):
    """The body of POST /v1/embeddings."""

    model_config = _STRICT

    model: Annotated[str, Field(max_length=500)] | None = Field(None, description="Any name, as for the other routes.")
    input: Annotated[
        tuple[Prompt, ...],
        PlainValidator(_prompts, json_schema_input_type=str | list[int] | list[str] | list[list[int]]),
    ] = Field(description=f"A text, or its token ids; or up to {MAX_INPUTS} of either.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers (the default), or their 32-bit floats in base64."
    )
    dimensions: Annotated[Any, AfterValidator(_own_length)] = Field(
        None, description="Not supported; null is accepted."
    )

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if len(self.input) > MAX_INPUTS:
            raise BadValue(
                f"{len(self.input)} inputs are more than {MAX_INPUTS}.", remedy="Send several requests.", param="input"
            )
        return self


def _loadable() -> dict[str, tuple[Any, FieldInfo]]:
    """The load options that a request may set: all but folders, which are fixed at start-up, and a required model."""
    fields = {
        name: (_annotated(field), Field(field.default, description=field.description))
        for name, field in LoadOptions.model_fields.items()
        if flag_of(name).metavar != "FOLDER"
    }
    return fields | {"model": (str, Field(min_length=1, max_length=500, description="What to load, as listed."))}


if TYPE_CHECKING:
    LoadableFields = BaseModel
else:
    LoadableFields = create_model("LoadableFields", **_loadable())


class LoadRequest(LoadableFields):
    """The body of POST /v1/internal/model/load. Unknown fields are refused: a misspelt option must not pass."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    stream: bool | None = Field(None, description="Send the progress as server-sent events.")

    def options(self, defaults: LoadOptions) -> LoadOptions:
        """The start-up flags, with what this request says in their place."""
        given = {name: getattr(self, name) for name in self.model_fields_set if name in LoadOptions.model_fields}
        return defaults.model_copy(update=given)
