"""Conversations with tools → prompts, and how to read what comes back.

Tools and calls go through the model's own chat template where it writes them, else in words through the system prompt.
Strings of the client's stay text: what a template would let them become is broken up first.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from modules.chat import thinking
from modules.chat.call_formats import GENERIC, HARMONY, CallFormat, find_format
from modules.chat.forms import PLAIN, Form
from modules.chat.harmony import ANSWER, is_harmony
from modules.chat.prompts import (
    BuiltPrompt,
    PromptEngine,
    Prompts,
    all_neutralised,
    refuse_giant,
    stays_text,
    whole_characters,
)
from modules.chat.rendering import json_value
from modules.chat.reply_reading import ReplyReader
from modules.errors import BadChatTemplate, BadValue
from modules.forms.tools import CallShape, Offer, Tool
from modules.messages import ChatMessage, ToolCall

_FORMATS_KEPT = 32
_SHORT = re.compile(r"[A-Za-z0-9]{9}")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_RESULT = "<tool_response>\n{}\n</tool_response>"
_RESULT_STOP = "<tool_response>"


@dataclass(frozen=True, slots=True)
class OfferedPrompt:
    """A prompt, and what is needed to hold the reply to its form and to read it.

    `shape` is what the reply must look like where it has to call, or may instead of following a form of its own, None
    where it need not;
    `shows` are control tokens whose text the engine must not leave out.
    """

    built: BuiltPrompt
    form: CallFormat | None = None
    offer: Offer | None = None
    shape: CallShape | None = None
    shows: tuple[str, ...] = ()

    def reader(self) -> ReplyReader:
        """What reads one reply to it."""
        return ReplyReader(self.form, self.offer, opens=self.built.opens)


class Toolbox:
    """Builds such prompts. Safe to use from any thread."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts = prompts
        self._formats: dict[str, CallFormat] = {}
        self._lock = threading.Lock()

    def chat(
        self,
        engine: PromptEngine,
        messages: Sequence[ChatMessage],
        offer: Offer | None = None,
        *,
        max_new_tokens: int,
        thinks: str = "",
        held: bool = False,
    ) -> OfferedPrompt:
        """The prompt for a reply to `messages`, which may call what `offer` holds. Nothing is cut to make it fit.

        `thinks` is one of the choices that the template offers; with `held`, and where the reply has to be a call, the
        model does not think first, since a grammar holds it from its first token. Raises what Prompts.chat raises.
        """
        offer = offer if offer is not None and offer.tools and offer.choice != "none" else None
        follows = held or bool(offer and offer.must_call)
        template = engine.info.chat_template
        form = replace(PLAIN, variables=thinking.variables(template, "off" if follows else thinks))

        def build(turns: Sequence[ChatMessage], form: Form) -> BuiltPrompt:
            answers = held and offer is None
            closes = answers or (follows and not is_harmony(template))
            return self._build(engine, turns, form, max_new_tokens=max_new_tokens, held=closes)

        if offer is None and not any(m.tool_calls or m.role == "tool" for m in messages):
            channels = HARMONY if engine.info.takes == "tokens" and is_harmony(template) else None
            return OfferedPrompt(build(messages, form), channels, shows=channels.control if channels else ())
        if engine.info.is_encoder_decoder:
            raise BadValue("This model reads one text and knows no tools.", remedy="Leave them out.", param="tools")
        found = self.format_of(engine)
        if found.native:
            try:
                built = build(*self._native(engine, messages, offer, found, form))
            except BadChatTemplate:
                found = GENERIC
        if not found.native:
            built = build(_in_words(messages, offer), form)
            built = replace(built, stop=(*built.stop, _RESULT_STOP))
        shape = found.shape(offer) if offer and (offer.must_call or held) else None
        shown = offer is not None or found.style == "harmony"
        return OfferedPrompt(built, found, offer, shape, found.control if shown else ())

    def format_of(self, engine: PromptEngine) -> CallFormat:
        """How the loaded model writes calls."""
        info = engine.info
        if info.takes == "words" or not info.chat_template:
            return GENERIC
        key = hashlib.blake2b(info.chat_template.encode("utf-8", "replace"), digest_size=16).hexdigest()
        with self._lock:
            known = self._formats.get(key)
        if known is None:
            known = find_format(self._prompts.template(engine), ends=info.end_texts)
            with self._lock:
                if len(self._formats) >= _FORMATS_KEPT:
                    self._formats.clear()
                self._formats[key] = known
        return known

    def _build(
        self, engine: PromptEngine, turns: Sequence[ChatMessage], form: Form, *, max_new_tokens: int, held: bool
    ) -> BuiltPrompt:
        make = partial(self._prompts.chat, engine, turns, max_new_tokens=max_new_tokens, truncate=False, form=form)
        return without_thought(engine, make) if held else make()

    def _native(
        self,
        engine: PromptEngine,
        messages: Sequence[ChatMessage],
        offer: Offer | None,
        found: CallFormat,
        form: Form,
    ) -> tuple[list[ChatMessage], Form]:
        """The messages and the form with which the model's own template writes tools."""
        tools = [tool.told for tool in offer.callable] if offer else None
        calls = [ChatMessage("assistant", call.arguments) for message in messages for call in message.tool_calls]
        refuse_giant([*messages, *calls, ChatMessage("system", json.dumps(tools))], engine.info, 0)
        harmless = _harmless(engine)
        turns = [
            replace(
                message,
                call_id=_short_id(message.call_id),
                tool_calls=tuple(
                    ToolCall(_short_id(call.id), call.name, _again(harmless(json_value(call.arguments))))
                    for call in message.tool_calls
                ),
            )
            for message in messages
        ]
        variables = {**form.variables, "tools": harmless(tools)}
        return turns, replace(form, variables=variables, arguments_as_text=found.arguments_as_text)


def without_thought(engine: PromptEngine, make: Callable[..., BuiltPrompt]) -> BuiltPrompt:
    """The prompt that `make` makes, which takes `begun` of Prompts.chat, such that the answer comes at once: a grammar
    holds the reply from its first token.
    """
    built = make()
    closing = next((end for begin, end in thinking.MARKS if built.opens.startswith(begin)), "")
    begun = f"\n{closing}\n\n" if closing else ANSWER if is_harmony(engine.info.chat_template) else ""
    return replace(make(begun=begun), opens="") if begun and built.words is None else built


def _harmless(engine: PromptEngine) -> Callable[[Any], Any]:
    """What breaks up control tokens in the strings of a JSON value, and leaves one without them as it is."""

    def checked(value: Any) -> Any:
        if not value:
            return value
        text = whole_characters(json.dumps(value, ensure_ascii=False))
        whole = json.loads(text)
        if stays_text(engine, text):
            return whole
        broken = all_neutralised(engine, list(_strings(whole)))
        return _replaced(whole, broken)

    return checked


def _strings(value: Any) -> Iterator[str]:
    """All strings of a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _strings(item)


def _replaced(value: Any, by: Mapping[str, str]) -> Any:
    """A JSON value with those strings replaced that are in `by`."""
    if isinstance(value, str):
        return by.get(value, value)
    if isinstance(value, list):
        return [_replaced(item, by) for item in value]
    if isinstance(value, Mapping):
        return {by.get(key, key): _replaced(item, by) for key, item in value.items()}
    return value


def _again(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short_id(call_id: str) -> str:
    """An id as the strictest templates want it: nine letters or digits, the same for the same."""
    if not call_id or _SHORT.fullmatch(call_id):
        return call_id
    number = int.from_bytes(hashlib.blake2b(call_id.encode("utf-8", "replace"), digest_size=16).digest(), "big")
    return "".join(_LETTERS[number // len(_LETTERS) ** place % len(_LETTERS)] for place in range(9))


def _in_words(messages: Sequence[ChatMessage], offer: Offer | None) -> list[ChatMessage]:
    """The conversation for a model whose template writes no tools: all of it in messages that every template takes."""
    turns: list[ChatMessage] = []
    for message in messages:
        if message.role == "tool":
            result = _RESULT.format(message.content)
            if turns and turns[-1].role == "user" and turns[-1].content.startswith(_RESULT_STOP):
                turns[-1] = ChatMessage("user", f"{turns[-1].content}\n{result}")
            else:
                turns.append(ChatMessage("user", result))
        elif message.tool_calls:
            said = [message.content] if message.content else []
            turns.append(ChatMessage("assistant", "\n".join([*said, *map(_call_in_words, message.tool_calls)])))
        else:
            turns.append(message)
    if offer is None:
        return turns
    explained = _explained(offer)
    if turns and turns[0].role == "system":
        return [ChatMessage("system", f"{turns[0].content}\n\n{explained}"), *turns[1:]]
    return [ChatMessage("system", explained), *turns]


def _call_in_words(call: ToolCall) -> str:
    written = {"name": call.name, "arguments": json_value(call.arguments)}
    return f"{GENERIC.lead}{json.dumps(written, ensure_ascii=False)}{GENERIC.trail}"


def _explained(offer: Offer) -> str:
    """What the tools are and how to call them."""
    listed = "\n".join(json.dumps(_listed(tool), ensure_ascii=False) for tool in offer.callable)
    many = "" if not offer.parallel else " Several blocks, one after the other, call several tools."
    must = " You must call a tool now." if offer.must_call else " Call one only where it helps; else answer in words."
    return (
        "You can call the following tools. Each line is one of them; parameters is the JSON schema of its arguments.\n"
        f"{listed}\n"
        "To call a tool, end your message with a block of this form:\n"
        '<tool_call>\n{"name": "the name of the tool", "arguments": {…}}\n</tool_call>\n'
        f"Its result comes in the next message, between <tool_response> and </tool_response>.{many}{must}"
    )


def _listed(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = tool.told["function"]
    return function
