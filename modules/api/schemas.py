"""What clients may send: the bodies of OpenAI's text routes, of embeddings and of a model load.

Sampling fields and load options are derived from GenerationParams and LoadOptions, ranges and descriptions included.
Types are strict ("5" and true are no numbers). Fields that nobody declared are ignored, except in a model load.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from modules.api.forms_elsewhere import form_elsewhere
from modules.api.image_parts import ONLY_USERS, OR_IMAGE, ImagePart, bytes_of, files_of, is_image, pictures_apart
from modules.api.tool_schemas import (
    MAX_CALLS,
    MAX_TOOLS,
    Choice,
    ToolSpec,
    WrittenCall,
    offer_of,
    own_choice,
    schema_text,
)
from modules.api.whole import whole
from modules.errors import BadValue
from modules.few import FIRST_FAULT, FewFields
from modules.forms.tools import Offer
from modules.sampling import MAX_STOP_STRINGS, MAX_STOP_TOKENS, GenerationParams, StopString, StopToken
from modules.settings import LoadOptions, flag_of

MAX_CHOICES = 8
MAX_REPLIES = 32
"""Of one request with several prompts: LangChain sends 20 at once. Half of what may wait in the engine's queue."""
MOST_NEW_TOKENS = 1_000_000
LEAST_TOP_P = 1e-6
MAX_MESSAGES = 2048
MAX_INPUTS = 2048
MAX_LOGPROBS = 20
MAX_BIASES = 1024

Prompt = str | tuple[int, ...]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

RESHAPED = frozenset({"stop", "stop_token_ids", "logprobs", "sampled_logprobs", "json_schema", "logit_bias"})
"""Parameters that OpenAI's bodies hold in another shape than GenerationParams."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
}
"""Fields of OpenAI's that Snug does not have yet, and the values of each that ask for nothing."""

_THOUGHTS = ("thinking", "reasoning", "redacted_thinking")
"""Parts of an assistant's message that other dialects and libraries put beside its text."""
_RENAMED = {
    "n_predict": "max_new_tokens", "repeat_penalty": "repetition_penalty", "repeat_last_n": "repetition_penalty_range",
    "ignore_eos": "ban_eos_token", "random_seed": "seed",
}  # fmt: skip
"""What llama-server, vLLM and Mistral call parameters of Snug's."""
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
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


if TYPE_CHECKING:

    class SamplingFields(BaseModel):
        """See below."""

        max_new_tokens: int | None

else:
    SamplingFields = create_model(
        "SamplingFields",
        __config__=_STRICT,
        **{name: _optional(name) for name in GenerationParams.model_fields if name not in RESHAPED},
    )
    """Every sampling parameter as a field of a body, for dialects that have few of them or none."""


def sampling(body: SamplingFields, **ours: Any) -> GenerationParams:
    """The parameters that `body` gives, with `ours` over them and defaults for the rest; None is not given."""
    given = {name: getattr(body, name) for name in GenerationParams.model_fields if name not in RESHAPED} | ours
    return GenerationParams(**{name: value for name, value in given.items() if value is not None})


def strings(stop: object) -> object:
    """One stop string, a list of them, or null → a tuple."""
    strings = [stop] if isinstance(stop, str) else [] if stop is None else stop
    return (
        tuple(whole(item) if isinstance(item, str) else item for item in strings) if isinstance(strings, list) else stop
    )


class TextPart(BaseModel):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


def _text_of(content: object, info: ValidationInfo) -> object:
    """A string as it is; text parts with a line break between them, as other servers do. What an assistant thought is
    left out.
    """
    if isinstance(content, str):
        return whole(content)
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if is_image(part):
            bytes_of(part)
            continue
        if info.data.get("role") == "assistant" and isinstance(part, dict) and part.get("type") in _THOUGHTS:
            continue
        if isinstance(part, dict) and part.get("type") == "refusal" and isinstance(part.get("refusal"), str):
            part = {"type": "text", "text": part["refusal"]}
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError("content_part", 'every part must be {"type": "text", "text": "…"}' + OR_IMAGE)
        texts.append(whole(part["text"]))
    return "\n".join(texts)


def _prompts(value: object) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either → one prompt or more."""
    several = isinstance(value, list) and bool(value) and isinstance(value[0], (str, list))
    return tuple(_prompt(item) for item in (value if several and isinstance(value, list) else [value]))


def _prompt(value: object) -> Prompt:
    if isinstance(value, list) and value and all(type(token) is int for token in value):
        return tuple(value)
    if isinstance(value, str) and value:
        return whole(value)
    raise PydanticCustomError("prompt", "it must be a text, a list of token ids, or a list of either, and not empty")


def _answerable(messages: list[RequestMessage]) -> list[RequestMessage]:
    if messages[-1].tool_calls:
        raise PydanticCustomError("calls_last", "the last message calls tools: their results must follow")
    return messages


def _with_refusal(values: object) -> object:
    """A message with what OpenAI's models call a refusal as its content, where it has no other."""
    if isinstance(values, dict) and values.get("content") is None and isinstance(values.get("refusal"), str):
        return values | {"content": values["refusal"]}
    return values


def _unlimited(value: object) -> object:
    """-1, which other servers take for no limit, as the most that can be asked for."""
    return MOST_NEW_TOKENS if type(value) is int and value == -1 else value


def _by_other_names(body: object) -> object:
    """What other servers' clients write otherwise: -1 for a top_k that is off, 0 for the likeliest token alone, a
    schema beside response_format. OpenAI's seeds may be negative. Raises BadValue for a form that cannot be held.
    """
    if not isinstance(body, dict):
        return body
    ours = {ours: body[name] for name, ours in _RENAMED.items() if name in body and body.get(ours) is None}
    if ours.get("repetition_penalty_range") == -1:
        ours["repetition_penalty_range"] = 0
    body = body | ours
    body |= {name: _unlimited(body[name]) for name in _LENGTHS if name in body}
    if body.get("top_k") == -1:
        body["top_k"] = 0
    if body.get("top_p") == 0 and body["top_p"] is not False:
        body["top_p"] = LEAST_TOP_P
    if type(body.get("seed")) is int and -(2**63) <= body["seed"] < -1:
        body["seed"] %= 2**63
    if body.get("do_sample") is False:
        body["temperature"] = 0
    return body | form_elsewhere(body)


def _answered(call_id: str | None, info: ValidationInfo) -> str | None:
    if info.data.get("role") == "tool" and not call_id:
        raise PydanticCustomError("call_id", "a tool's result needs the id of the call that it answers")
    return call_id


def _there(content: str | None, info: ValidationInfo) -> str | None:
    if content is None and info.data.get("role") != "assistant":
        raise PydanticCustomError("content", "a message needs content")
    return content


def _biases(value: dict[str, float] | None) -> dict[str, float] | None:
    for token, bias in (value or {}).items():
        if not token.isdecimal() or len(token) > 9:
            raise PydanticCustomError("token_id", 'it maps token ids to numbers, as in {"50256": -100}')
        if not -100 <= bias <= 100:
            raise PydanticCustomError("bias", "a bias goes from -100 to 100")
    return value


class RequestMessage(BaseModel):
    """One turn of the conversation."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[WrittenCall], Field(max_length=MAX_CALLS)] | None = None
    tool_call_id: Annotated[
        Annotated[str, Field(max_length=500)] | None, AfterValidator(_answered), Field(validate_default=True)
    ] = None
    content: Annotated[
        str | None,
        BeforeValidator(_text_of, json_schema_input_type=str | list[TextPart | ImagePart] | None),
        AfterValidator(_there),
        Field(validate_default=True),
    ] = None
    pictures: SkipJsonSchema[Annotated[tuple[bytes, ...], BeforeValidator(files_of)]] = ()
    prefix: bool | None = Field(
        None, description="True, of the last message, the assistant's: the reply goes on from it (DeepSeek, Mistral)."
    )
    partial: bool | None = Field(None, description="The same under Moonshot's and Alibaba's name.")

    @model_validator(mode="before")
    @classmethod
    def _pictures_apart(cls, values: object) -> object:
        return pictures_apart(_with_refusal(values))

    @model_validator(mode="after")
    def _pictures_from_users(self) -> Self:
        if self.pictures and self.role != "user":
            raise PydanticCustomError("image_role", ONLY_USERS)
        return self


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
    """The form of a reply: any text, any JSON object, or JSON of a schema, which other servers take right here."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")

    @property
    def text(self) -> str:
        """The schema as JSON; "" for none. Raises BadValue."""
        if self.type == "text":
            return ""
        schema = self.json_schema.schema_ if self.json_schema else self.schema_
        if schema is None and self.type == "json_object":
            return '{"type": "object"}'
        if schema is None:
            raise BadValue(
                "response_format of type json_schema needs json_schema.",
                remedy='Send {"type": "json_schema", "json_schema": {"name": "…", "schema": {…}}}.',
                param="response_format",
            )
        return schema_text(schema, "response_format")


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
        FIRST_FAULT,
        Field(max_length=MAX_STOP_STRINGS),
        BeforeValidator(strings, json_schema_input_type=str | list[str] | None),
    ] = Field((), description="The reply ends before any of these strings.")
    stop_token_ids: Annotated[
        tuple[StopToken, ...],
        FIRST_FAULT,
        Field(max_length=MAX_STOP_TOKENS),
        BeforeValidator(strings, json_schema_input_type=list[int] | None),
    ] = Field((), description="The reply ends before any of these tokens (vLLM's field).")

    response_format: ResponseFormat | None = Field(
        None, description="JSON of a schema, or any JSON object, in place of free text."
    )
    logit_bias: Annotated[
        Annotated[dict[str, float], FIRST_FAULT] | None, Field(max_length=MAX_BIASES), AfterValidator(_biases)
    ] = Field(
        None, description="Token ids, and what is added to the score of each: -100 forbids it, 100 all but forces it."
    )
    cache_salt: Annotated[str, Field(max_length=200)] | None = Field(
        None, description="What is kept of this prompt shortens later ones with the same salt alone (vLLM's field)."
    )

    @model_validator(mode="before")
    @classmethod
    def _ours(cls, body: object) -> object:
        return _by_other_names(body)

    @property
    def choices(self) -> int:
        """How many replies to make."""
        return self.n or 1

    @property
    def limited(self) -> bool:
        """Whether the client says how long a reply may be."""
        return self._length() is not None

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
        given["logit_bias"] = tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())
        given |= {"stop": self.stop, "stop_token_ids": self.stop_token_ids}
        return GenerationParams(**{name: value for name, value in given.items() if value is not None})

    def _length(self) -> int | None:
        return next((value for name in _LENGTHS if (value := getattr(self, name)) is not None), None)


class TemplateVariables(BaseModel):
    """What other servers let clients tell a chat template of thinking. Nothing else of it reaches the template."""

    model_config = _STRICT

    enable_thinking: bool | None = None
    thinking: bool | None = None
    reasoning_effort: Effort | None = None


class ChatRequest(TextRequest):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[
        list[RequestMessage], Field(min_length=1, max_length=MAX_MESSAGES), AfterValidator(_answerable)
    ]  # fmt: skip
    logprobs: bool | None = Field(None, description="Report the log-probability of each token.")
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="With logprobs: report this many alternatives to each token."
    )

    tools: Annotated[list[ToolSpec], Field(max_length=MAX_TOOLS)] | None = Field(
        None, description="Functions that the model may ask the client to call."
    )
    tool_choice: Annotated[Choice | None, BeforeValidator(own_choice)] = Field(
        None, description="Whether it calls any (auto, the default), none, must call some, or one by its name."
    )
    parallel_tool_calls: bool | None = Field(None, description="False: at most one call a reply.")
    continue_final_message: bool | None = Field(
        None, description="True: the reply goes on from the last message, which is the assistant's."
    )
    continue_: bool | None = Field(None, description="The same under text-generation-webui's name.")
    add_generation_prompt: bool | None = Field(
        None, description="False only together with one of these, which imply it (vLLM's field)."
    )
    reasoning_effort: Effort | None = Field(
        None, description="How much a thinking model thinks first, where its chat template offers a choice."
    )
    enable_thinking: bool | None = Field(None, description="The same as yes or no.")
    chat_template_kwargs: TemplateVariables | None = Field(None, description="Another place for the same.")

    @property
    def effort(self) -> str:
        """How much to think first; "" where nothing is said."""
        given = self.chat_template_kwargs or TemplateVariables()
        thinks = next(
            (one for one in (self.enable_thinking, given.enable_thinking, given.thinking) if one is not None), None
        )
        said = "" if thinks is None else "medium" if thinks else "none"
        return self.reasoning_effort or given.reasoning_effort or said

    @property
    def continues(self) -> bool:
        """Whether the reply goes on from the last message."""
        last = self.messages[-1]
        asked = self.continue_final_message or self.continue_ or last.prefix or last.partial
        return bool(asked) and last.role == "assistant"

    @property
    def offer(self) -> Offer | None:
        """The tools that are offered. Raises BadValue."""
        return offer_of(self.tools, self.tool_choice, parallel=self.parallel_tool_calls is not False)

    @property
    def alternatives(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _alternatives_to_something(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise BadValue("top_logprobs needs logprobs.", remedy="Set logprobs to true.", param="top_logprobs")
        return self

    @model_validator(mode="after")
    def _somebody_to_speak(self) -> Self:
        if self.add_generation_prompt is False and not self.continues:
            raise BadValue(
                "add_generation_prompt: false leaves out who is to answer.",
                remedy="Leave it out, or go on from the assistant's last message by continue_final_message: true.",
                param="add_generation_prompt",
            )
        return self


class CompletionRequest(TextRequest):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        tuple[Prompt, ...],
        PlainValidator(_prompts, json_schema_input_type=str | list[int] | list[str] | list[list[int]]),
    ] = Field(description="The text to continue, or its token ids; several of either for several replies.")
    echo: bool | None = Field(None, description="Begin the reply with the prompt, its log-probabilities with logprobs.")
    max_tokens: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="The reply ends after this many tokens at the latest; 0, with echo, writes none."
    )
    suffix: Annotated[str, Field(max_length=1_000_000)] | None = Field(
        None, description="What follows the gap to be filled, for models with tokens for that."
    )
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(
        None,
        description="Make so many replies and return the n likeliest, by the mean of their tokens.",
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = Field(
        None, description="Report the log-probability of each token and of this many alternatives."
    )

    @property
    def scored(self) -> bool:
        """Whether the log-probabilities of the prompt's own tokens are wanted."""
        return bool(self.echo) and self.logprobs is not None

    @property
    def writes(self) -> bool:
        """Whether there is to be a reply."""
        return super()._length() != 0

    def _length(self) -> int | None:
        return super()._length() if self.writes else 1  # what is not written needs no room, but a limit

    @property
    def made(self) -> int:
        """How many replies to make of each prompt."""
        return self.choices if self.best_of is None else self.best_of

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        for name, count in (("n", self.choices), ("best_of", self.made)):
            if len(self.prompt) * count > MAX_REPLIES:
                problem = f"{len(self.prompt)} prompts × {name} = {count} are more than {MAX_REPLIES} replies."
                raise BadValue(problem, remedy="Ask for fewer.", param=name)
        if self.made < self.choices:
            raise BadValue(f"best_of ({self.made}) is less than n ({self.choices}).", param="best_of")
        if not self.writes and not self.echo:
            raise BadValue("max_tokens of 0 needs echo: there would be nothing to tell.", param="max_tokens")
        if self.scored and (self.stream or self.suffix):
            with_ = "suffix" if self.suffix else "stream"
            raise BadValue(f"echo with logprobs does not go with {with_}.", remedy=f"Leave out {with_}.", param="echo")
        if self.stream and self.made > self.choices:
            raise BadValue("best_of cannot be streamed.", remedy="Leave out one of them.", param="best_of")
        return self


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
    dimensions: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="Only so many first numbers of each vector, brought to length 1 again."
    )

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if len(self.input) > MAX_INPUTS:
            raise BadValue(
                f"{len(self.input)} inputs are more than {MAX_INPUTS}.", remedy="Send several requests.", param="input"
            )
        return self


def loadable() -> dict[str, tuple[Any, FieldInfo]]:
    """The load options that a request may set: all but folders, which are fixed at start-up, and a required model."""
    fields = {
        name: (_annotated(field), Field(field.default, description=field.description))
        for name, field in LoadOptions.model_fields.items()
        if flag_of(name).metavar != "FOLDER"
    }
    return fields | {"model": (str, Field(min_length=1, max_length=500, description="What to load, as listed."))}


if TYPE_CHECKING:
    LoadableFields = FewFields
else:
    LoadableFields = create_model("LoadableFields", __base__=FewFields, **loadable())


class LoadRequest(LoadableFields):
    """The body of POST /v1/internal/model/load. Unknown fields are refused: a misspelt option must not pass."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    stream: bool | None = Field(None, description="Send the progress as server-sent events.")

    @model_validator(mode="before")
    @classmethod
    def _by_webuis_names(cls, body: object) -> object:
        """text-generation-webui's `model_name` and `args`; its `settings` are the page's there, and change nothing."""
        if not isinstance(body, dict) or "model_name" not in body:
            return body
        given = {name: value for name, value in body.items() if name not in ("model_name", "args", "settings")}
        args = body.get("args") or {}
        return {"model": body["model_name"], **(args if isinstance(args, dict) else {"args": args}), **given}

    def options(self, defaults: LoadOptions) -> LoadOptions:
        """The start-up flags, with what this request says in their place."""
        given = {name: getattr(self, name) for name in self.model_fields_set if name in LoadOptions.model_fields}
        return defaults.model_copy(update=given)


class LorasRequest(FewFields):
    """The body of POST /v1/internal/lora/load: adapters as --lora names them."""

    model_config = ConfigDict(strict=True, extra="forbid")

    lora_names: Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=16)]


class DownloadRequest(FewFields):
    """The body of POST /v1/internal/downloads: a model as --download names it, and which of its files."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str = Field(max_length=500, description="organisation/model, organisation/model@branch, or its address.")
    file: str = Field("", max_length=500, description="A quantization, a file's name or a pattern.")
