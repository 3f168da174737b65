"""How a model writes that it calls a tool: read off what its own chat template makes of a call.

A conversation with a call of unmistakable names is rendered, and what stands around the names is the format. Templates
that do not write tools, or write calls in a way not understood here, get GENERIC, which the system prompt explains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modules.chat.harmony import CONTROL, is_harmony
from modules.chat.rendering import ChatTemplate
from modules.chat.thinking import reads
from modules.errors import BadChatTemplate
from modules.forms.tools import EMPTY, CallPattern, CallShape, Offer, Tags, Tool
from modules.messages import ChatMessage, ToolCall

Style = Literal["json", "tags", "harmony"]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """The writing of calls: `lead`, then for each call `head` NAME `middle` ARGUMENTS `tail`, `between` them, `trail`.

    In style "json" the arguments are a JSON object; `name_last`: they come before the name. In style "tags" each
    argument is `key_before` KEY `key_after` VALUE `value_after`, and `middle` is "". Style "harmony" is harmony.py's.
    `control` are the control tokens in it, which must be shown. `several`: more than one call fits a message. `native`
    is False for GENERIC, which the model has to be told of. `arguments_as_text` is ChatTemplate's.
    """

    lead: str = ""
    head: str = ""
    middle: str = ""
    tail: str = ""
    between: str = ""
    trail: str = ""
    style: Style = "json"
    name_last: bool = False
    key_before: str = ""
    key_after: str = ""
    value_after: str = ""
    control: tuple[str, ...] = ()
    native: bool = True
    arguments_as_text: bool = False
    several: bool = False

    @property
    def in_object(self) -> bool:
        """Whether name and arguments are members of one JSON object."""
        return self.style == "json" and self.head.lstrip().startswith("{")

    @property
    def closing(self) -> str:
        """What ends a call whose arguments stand between tags."""
        return self.tail.strip().lstrip(">").strip()

    def shape(self, offer: Offer) -> CallShape:
        """What a reply must look like that has to call."""
        calls = tuple(self._pattern(tool) for tool in offer.callable)
        several = self.several and offer.parallel and not offer.only
        tags = Tags(self.key_before, self.key_after, self.value_after, self.closing) if self.style == "tags" else None
        return CallShape(calls, self.lead, self.between, self.trail, several, tags)

    def _pattern(self, tool: Tool) -> CallPattern:
        schema = json.dumps(dict(tool.parameters) or EMPTY, ensure_ascii=False)
        if self.name_last:
            return CallPattern(self.head, schema, f"{self.middle}{tool.name}{self.tail}")
        return CallPattern(f"{self.head}{tool.name}{self.middle}", schema, self.tail)


GENERIC = CallFormat(
    lead="<tool_call>\n",
    head='{"name": "',
    middle='", "arguments": ',
    tail="}",
    between="\n</tool_call>\n<tool_call>\n",
    trail="\n</tool_call>",
    native=False,
    several=True,
)

HARMONY = CallFormat(
    head="<|channel|>commentary to=functions.",
    middle=" <|constrain|>json<|message|>",
    style="harmony",
    control=CONTROL,
)

_NAME, _KEYS, _VALUES = "snug_probe_tool", ("snugkeyone", "snugkeytwo"), ("snugvalueone", "snugvaluetwo")
_OTHER = "snug_probe_more"
_SAID = "snugprobesaid"
_CALL_ID = "snugprobe"  # nine letters, as Mistral's templates want them
_TOOLS = [
    Tool(name, "A probe.", {"type": "object", "properties": {key: {"type": "string"} for key in _KEYS}}).told
    for name in (_NAME, _OTHER)
]
_ARGUMENTS = re.compile(
    rf'\{{\s*(\\?"){_KEYS[0]}\1\s*:\s*\1{_VALUES[0]}\1\s*,\s*\1{_KEYS[1]}\1\s*:\s*\1{_VALUES[1]}\1\s*\}}'
)
_EXTRA = re.compile(r'(,\s*"(?:id|type|call_id|tool_call_id)"\s*:\s*"[^"]*")')
_EXTRA_FIRST = re.compile(r'("(?:id|type|call_id|tool_call_id)"\s*:\s*"[^"]*"\s*,\s*)')
_OPTIONAL = ("<|python_tag|>",)
"""What a model may write before a call although its template does not."""
_CONTROL = re.compile(r"<[|｜][^<>]{1,60}[|｜]>|\[[A-Z_]{3,40}\]|<[a-zA-Z_/]{2,40}>")


def find_format(template: ChatTemplate, *, ends: Sequence[str] = ()) -> CallFormat:
    """The format in which `template` writes calls, GENERIC where it writes none. `ends` are texts of end tokens."""
    if is_harmony(template.text):
        return HARMONY if reads(template.text, "tools") else replace(HARMONY, native=False)
    if not reads(template.text, "tools"):
        return GENERIC
    told = replace(template, variables={**template.variables, "tools": _TOOLS})
    for as_text in (False, True):
        writes = _Probe(replace(told, arguments_as_text=as_text), ends)
        try:
            found = writes.format()
        except BadChatTemplate:
            continue
        if found is not None:
            return replace(found, arguments_as_text=as_text)
    return GENERIC


@dataclass(frozen=True, slots=True)
class _Probe:
    """Conversations rendered for what they show."""

    template: ChatTemplate
    ends: Sequence[str]

    def format(self) -> CallFormat | None:
        """What the template makes of one call and of two. Raises BadChatTemplate."""
        begin, end = self._frame()
        one = self._written(begin, end, [_call(_NAME)])
        found = _json_format(one) or _tags_format(one)
        if found is None:
            return None
        try:
            two = self._written(begin, end, [_call(_NAME), _call(_OTHER)])
        except BadChatTemplate:  # Llama 3.1's takes one call a message
            return self._shown(found)
        return self._shown(replace(_with_between(found, two), several=True))

    def _frame(self) -> tuple[str, str]:
        """What stands before a reply and after it."""
        said = self._render([ChatMessage("assistant", _SAID)])
        begin, _, end = said.partition(_SAID)
        return begin, end

    def _written(self, begin: str, end: str, calls: list[ToolCall]) -> str:
        """The reply that consists of `calls`."""
        text = self._render([ChatMessage("assistant", "", tool_calls=tuple(calls))])
        shared = _common(begin, text)
        asked = self.template.render([ChatMessage("user", "hello")])
        written = text[len(asked) if text.startswith(asked) else shared :]
        for ending in (end, end.rstrip(), *self.ends):
            if ending and written.rstrip().endswith(ending.rstrip()):
                return written.rstrip()[: -len(ending.rstrip())]
        return written

    def _shown(self, found: CallFormat) -> CallFormat:
        """`found`, with the control tokens that it may be written with."""
        parts = (found.lead, found.head, found.middle, found.tail, found.between, found.trail)
        tags = (found.key_before, found.key_after, found.value_after) if found.style == "tags" else ()
        maybe = [mark for mark in _OPTIONAL if mark in self.template.text]
        return replace(found, control=tuple(dict.fromkeys([*maybe, *_CONTROL.findall("".join((*parts, *tags)))])))

    def _render(self, reply: list[ChatMessage]) -> str:
        return self.template.render([ChatMessage("user", "hello"), *reply], reply_next=False)


def _call(name: str) -> ToolCall:
    return ToolCall(_CALL_ID, name, json.dumps(dict(zip(_KEYS, _VALUES, strict=True))))


def _common(first: str, second: str) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _json_format(written: str) -> CallFormat | None:
    """The format of a call whose arguments are JSON."""
    arguments, name = _ARGUMENTS.search(written), written.find(_NAME)
    if arguments is None or name < 0:
        return None
    first, last = arguments.span()
    if arguments[1] == '\\"' or written[first - 1 : first] == written[last : last + 1] == '"':
        first, last = first - 1, last + 1  # an object as a string
    name_last = name > first
    spans = sorted(((first, last), (name, name + len(_NAME))))
    begin, end = _object_around(written, spans[0][0], spans[1][1])
    head, middle, tail = written[begin : spans[0][0]], written[spans[0][1] : spans[1][0]], written[spans[1][1] : end]
    if head.startswith("{"):
        head, tail = _EXTRA_FIRST.sub("", head), _EXTRA.sub("", tail)
        return CallFormat(written[:begin], head, middle, tail, trail=written[end:], name_last=name_last)
    if name_last:
        return None
    return CallFormat(head=head, middle=middle, tail=tail or written[spans[1][1] :])


def _object_around(written: str, first: int, last: int) -> tuple[int, int]:
    """Where the innermost JSON object around a stretch begins and ends; the whole text where there is none."""
    decoder = json.JSONDecoder()
    begin = written.rfind("{", 0, first)
    while begin >= 0:
        try:
            _, end = decoder.raw_decode(written, begin)
        except ValueError:
            end = 0
        if end >= last:
            return begin, end
        begin = written.rfind("{", 0, begin)
    return 0, len(written)


def _tags_format(written: str) -> CallFormat | None:
    """The format of a call whose arguments stand between tags of their own."""
    places = [written.find(mark) for mark in (_NAME, _KEYS[0], _VALUES[0], _KEYS[1], _VALUES[1])]
    if min(places) < 0 or places != sorted(places):
        return None
    name, key, value, other, other_value = places
    key_after = written[key + len(_KEYS[0]) : value]
    follows = written[value + len(_VALUES[0]) : other]
    last = written[other_value + len(_VALUES[1]) :]
    before = written[name + len(_NAME) : key]
    size = _common(before[::-1], follows[::-1])
    key_before = before[len(before) - size :]
    value_after = follows[: len(follows) - size]
    if not (key_before.strip() and value_after.strip() and last.startswith(value_after)):
        return None
    return CallFormat(
        head=written[:name],
        middle=before[: len(before) - size],
        tail=last[len(value_after) :],
        style="tags",
        key_before=key_before,
        key_after=key_after,
        value_after=value_after,
    )


def _with_between(found: CallFormat, two: str) -> CallFormat:
    """`found`, with what stands between two calls; as it is where they are written otherwise."""
    if found.name_last:
        return found
    if found.style == "tags":
        end, other = two.find(found.tail) + len(found.tail), two.find(_OTHER) - len(found.head)
        return replace(found, between=two[end:other]) if 0 < end <= other else found
    start = two.find(_OTHER) - len(found.head)
    arguments = list(_ARGUMENTS.finditer(two))
    if start < 0 or len(arguments) < 2:
        return found
    if found.in_object:
        begin, end = _object_around(two, *_span_of(two, _NAME, arguments[0]))
        other, last = _object_around(two, *_span_of(two, _OTHER, arguments[1]))
        return replace(found, between=two[end:other], trail=two[last:]) if begin < end <= other else found
    if not two.startswith(found.head):
        return found
    # What is written once belongs to the whole, the rest to each call.
    rest = two[arguments[-1].end() :]
    inner = two[arguments[0].end() : two.find(_OTHER)]
    tail = inner[: _common(inner, rest)]
    opening = found.head[_lead_size(found.head, inner) :]
    between = inner[len(tail) : len(inner) - len(opening)]
    lead = found.head[: len(found.head) - len(opening)]
    return replace(found, lead=lead, head=opening, tail=tail, between=between, trail=rest[len(tail) :])


def _span_of(text: str, name: str, arguments: re.Match[str]) -> tuple[int, int]:
    place = text.find(name)
    return min(place, arguments.start()), max(place + len(name), arguments.end())


def _lead_size(head: str, inner: str) -> int:
    """How much of `head` is not written before a second call."""
    return len(head) - _common(head[::-1], inner[::-1])
