"""What a model writes → thought, answer and tool calls, while it is being written.

A ReplyReader gets text as it comes and gives parts; joined, they say the same however the text was cut. What looks like
a call and is none, or calls a tool that was not offered, is answer. Nothing here knows of any client's JSON.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from modules.chat.call_formats import CallFormat
from modules.chat.harmony import HarmonySplitter, Piece, held_back
from modules.chat.json_span import JsonSpan
from modules.chat.thinking import MARKS
from modules.forms.tools import Offer, Tool
from modules.messages import ToolCall

_NAME = re.compile(r"[\w.\-]{1,128}", re.ASCII)
_LONGEST_NAME = 256
_LONGEST_GAP = 4096  # characters between two calls
_STRETCH = 4096  # a server may send megabytes at once, and what is left of a text is copied at each sign in it
_PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True, slots=True)
class Thought:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class Said:
    """More of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The model calls the tool `name`; its arguments follow."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part: TypeAlias = Thought | Said | CallBegun | CallArguments


class ReplyReader:
    """The parts of one reply. `feed` it text, then `end` it; `calls` counts the calls begun.

    `done` turns True after the first call where the offer permits only one: what follows is dropped.
    """

    def __init__(self, form: CallFormat | None = None, offer: Offer | None = None, *, opens: str = "") -> None:
        """`opens` is BuiltPrompt's: the mark of a thought that the prompt has begun. Without `form` no calls."""
        self._thinks = _ThoughtReader(opens)
        self._calls: _CallReader | _HarmonyReader | None = None
        if form is not None and form.style == "harmony":
            self._calls = _HarmonyReader(offer)
        elif form is not None and offer is not None:
            self._calls = _CallReader(form, offer)

    @property
    def calls(self) -> int:
        """How many calls were begun."""
        return self._calls.count if self._calls else 0

    @property
    def done(self) -> bool:
        """Whether nothing that follows counts."""
        return bool(self._calls and self._calls.done)

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        return [part for at in range(0, len(text), _STRETCH) for part in self._fed(text[at : at + _STRETCH])]

    def _fed(self, text: str) -> list[Part]:
        if isinstance(self._calls, _HarmonyReader):
            return self._calls.feed(text)
        return self._joined(*self._thinks.feed(text))

    def end(self) -> list[Part]:
        """What was held back, now that the reply is whole."""
        parts = self._joined(*self._thinks.end())
        return parts + (self._calls.end() if self._calls else [])

    def _joined(self, thought: str, answer: str) -> list[Part]:
        parts: list[Part] = [Thought(thought)] if thought else []
        if self._calls:
            return parts + self._calls.feed(answer)
        return [*parts, Said(answer)] if answer else parts


@dataclass(frozen=True, slots=True)
class ReadReply:
    """A whole reply."""

    thought: str
    answer: str
    calls: tuple[ToolCall, ...]


def put_together(parts: Sequence[Part]) -> ReadReply:
    """The reply that `parts` make."""
    begun = [part for part in parts if isinstance(part, CallBegun)]
    arguments = [
        "".join(part.text for part in parts if isinstance(part, CallArguments) and part.index == call.index)
        for call in begun
    ]
    return ReadReply(
        "".join(part.text for part in parts if isinstance(part, Thought)).strip(),
        "".join(part.text for part in parts if isinstance(part, Said)),
        tuple(ToolCall(call.id, call.name, text) for call, text in zip(begun, arguments, strict=True)),
    )


class _ThoughtReader:
    """Parts thought from answer. A reply without a thought passes through unchanged."""

    def __init__(self, opens: str) -> None:
        self._held = ""
        self._state: Literal["begin", "thought", "gap", "answer"] = "begin"
        self._closing = ""
        self._trims = False
        for opening, closing in MARKS:
            if opens.startswith(opening):
                self._think(closing)

    def feed(self, text: str) -> tuple[str, str]:
        self._held += text
        thought = ""
        if self._state == "begin":
            self._begin()
        if self._state == "thought":
            thought = self._read_thought()
        if self._state == "gap":
            self._held = self._held.lstrip()
            self._state = "answer" if self._held else "gap"
        if self._state == "answer":
            answer, self._held = self._held, ""
            return thought, answer
        return thought, ""

    def end(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return (held.rstrip(), "") if self._state == "thought" else ("", held)

    def _think(self, closing: str) -> None:
        self._state, self._closing, self._trims = "thought", closing, True

    def _begin(self) -> None:
        begin = self._held.lstrip()
        for opening, closing in MARKS:
            if begin.startswith(opening):
                self._held = begin[len(opening) :]
                return self._think(closing)
        if not any(opening.startswith(begin) for opening, _ in MARKS):
            self._state = "answer"
        return None

    def _read_thought(self) -> str:
        if self._trims:
            self._held = self._held.lstrip()
            self._trims = not self._held
        place = self._held.find(self._closing)
        if place >= 0:
            thought, self._held = self._held[:place].rstrip(), self._held[place + len(self._closing) :]
            self._state = "gap"
            return thought
        border = len(self._held) - held_back(self._held, (self._closing,))
        border = len(self._held[:border].rstrip())
        thought, self._held = self._held[:border], self._held[border:]
        return thought


class _CallReader:
    """Parts calls from answer."""

    def __init__(self, form: CallFormat, offer: Offer) -> None:
        self.count = 0
        self.done = False
        self._form = form
        self._several = offer.parallel
        self._must = offer.must_call
        self._tools = {tool.name: tool for tool in offer.callable}
        lead = form.lead.rstrip("[ \n").strip() if form.in_object else form.lead.strip()
        self._trigger = lead or ("" if form.in_object else form.head.strip())
        self._furniture = _furniture(form)
        self._buffer = ""
        self._raw = ""  # what was taken since the last part, to be said if it is no call
        self._state: Literal["text", "gap", "name", "object", "tags"] = "text" if self._trigger else "gap"
        self._may_begin = not self._trigger
        self._bare = not self._trigger  # calls have no sign of their own: only the whole reply can be some
        self._span = JsonSpan()
        self._current: CallBegun | None = None
        self._sent = 0

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        self._buffer += text
        return self._run(last=False)

    def end(self) -> list[Part]:
        """What is left."""
        parts = self._run(last=True)
        if self._state in ("name", "tags") or (self._state == "object" and self._current is None):
            parts += self._said(self._raw + self._buffer)
        elif self._state == "text":
            parts += self._said(self._buffer)
        elif self._state == "gap" and (self._may_begin or not self._cut_sign()):
            parts += self._said(self._raw + self._buffer)
        self._buffer = self._raw = ""
        if self._must and self._only_begins(parts):
            return [part for part in parts if not isinstance(part, Said)]
        return parts

    def _only_begins(self, parts: Sequence[Part]) -> bool:
        """Whether the reply, which has to call, was cut before the name of its last call was whole."""
        if self.count:
            return self._state != "text"
        text = "".join(part.text for part in parts if isinstance(part, Said)).lstrip()
        return bool(self._trigger) and (text.startswith(self._trigger) or self._trigger.startswith(text))

    def _cut_sign(self) -> bool:
        """Whether the reply ended in the midst of what stands behind a call."""
        return any(sign.startswith(self._buffer.strip()) for sign in self._furniture)

    def _run(self, *, last: bool) -> list[Part]:
        parts: list[Part] = []
        while not self.done:
            before = (self._state, len(self._buffer), self.count)
            parts += getattr(self, f"_read_{self._state}")(last)
            if before == (self._state, len(self._buffer), self.count):
                return parts
        self._buffer = ""
        return parts

    def _read_text(self, last: bool) -> list[Part]:
        place = self._buffer.find(self._trigger) if self._trigger else -1
        if place >= 0:
            said, self._buffer = self._buffer[:place].rstrip(), self._buffer[place + len(self._trigger) :]
            self._raw = self._trigger
            self._may_begin = True
            self._state = "gap" if self._form.in_object or self._form.lead.strip() else self._after_head
            return self._said(said)
        if last or not self._trigger:
            said, self._buffer = self._buffer, ""
            return self._said(said)
        border = len(self._buffer) - held_back(self._buffer, (self._trigger,))
        border = len(self._buffer[:border].rstrip())
        said, self._buffer = self._buffer[:border], self._buffer[border:]
        return self._said(said)

    @property
    def _after_head(self) -> Literal["name", "tags"]:
        return "tags" if self._form.style == "tags" else "name"

    def _read_gap(self, last: bool) -> list[Part]:
        """Between calls: white space and what the format writes there."""
        if len(self._raw) > _LONGEST_GAP:
            return self._no_call()
        stripped = self._buffer.lstrip()
        self._take(len(self._buffer) - len(stripped))
        if not stripped:
            return []
        if self._form.in_object and stripped[0] == "{" and self._may_begin:
            self._span = JsonSpan()
            self._state = "object"
            return []
        if any(sign.startswith(stripped) and sign != stripped for sign in self._furniture) and not (
            last and stripped in self._furniture
        ):
            return []
        sign = next((sign for sign in self._furniture if stripped.startswith(sign)), "")
        if not sign:
            return self._no_call()
        self._take(len(sign))
        if not self._form.in_object and sign.endswith(self._form.head.strip()):
            self._state = self._after_head
        elif not self._may_begin:
            self._may_begin = sign not in (self._form.trail.strip(), self._form.tail.strip(), "]")
            self._raw = self._opening(sign) if self._may_begin else ""
        return []

    def _opening(self, sign: str) -> str:
        """Of a sign that stands between two calls what begins the next one."""
        ends = (self._form.trail.strip(), self._form.tail.strip())
        return next((sign[len(end) :].lstrip() for end in ends if end and sign.startswith(end)), sign)

    def _read_name(self, last: bool) -> list[Part]:  # noqa: ARG002 - one face for all states
        """The name before arguments that are an object of their own."""
        place = self._buffer.find("{")
        if place < 0 and len(self._buffer) < _LONGEST_NAME:
            return []
        found = _NAME.match(self._buffer.lstrip())
        if place < 0 or not found or found[0] not in self._tools:
            return self._no_call()
        self._take(place)
        self._span = JsonSpan()
        self._state = "object"
        return self._begin(found[0])

    def _read_tags(self, last: bool) -> list[Part]:  # noqa: ARG002
        """A call whose arguments stand between tags: read when it is whole."""
        closing = self._form.closing
        place = self._buffer.find(closing)
        if place < 0:
            return []
        body = self._buffer[:place]
        found = _NAME.match(body.lstrip())
        if not found or found[0] not in self._tools:
            return self._no_call()
        arguments = _tagged(body[body.index(found[0]) + len(found[0]) :], self._form, self._tools[found[0]])
        self._take(place + len(closing))
        parts = [*self._begin(found[0]), CallArguments(self.count - 1, json.dumps(arguments, ensure_ascii=False))]
        self._finish()
        return parts

    def _read_object(self, last: bool) -> list[Part]:  # noqa: ARG002
        self._take(self._span.feed(self._buffer))
        parts = self._in_object() if self._form.in_object else self._arguments(0, None)
        if not self._span.ended:
            return parts
        if self._current is None:
            return parts + self._no_call()
        if not self._sent:
            parts.append(CallArguments(self._current.index, "{}"))
        self._finish()
        return parts

    def _in_object(self) -> list[Part]:
        """What can be told of a call that is one object."""
        parts: list[Part] = []
        if self._current is None:
            start, end = self._span.members.get("name", (0, None))
            if end is None:
                return []
            name = _value(self._span.text[start:end])
            if not isinstance(name, str) or name not in self._tools:
                return []
            parts = self._begin(name)
        written = [self._span.members[key] for key in ("arguments", "parameters") if key in self._span.members]
        if written:  # of two the first counts: its text may have been told before the other came
            parts += self._arguments(*min(written, key=lambda place: place[0]))
        return parts

    def _arguments(self, start: int, end: int | None) -> list[Part]:
        assert self._current is not None
        text = self._span.text[start:end]
        if text.startswith('"'):  # the object as a string
            whole = _value(text) if end is not None and not self._sent else None
            text = whole if isinstance(whole, str) else ""
        elif end is not None:
            text = text.rstrip()
        new = text[self._sent :]
        self._sent += len(new)
        return [CallArguments(self._current.index, new)] if new else []

    def _begin(self, name: str) -> list[Part]:
        self._current = CallBegun(self.count, new_call_id(), name)
        self.count += 1
        self._sent = 0
        return [self._current]

    def _finish(self) -> None:
        self._raw = ""
        self._current = None
        self._state = "gap"
        self._may_begin = self._bare
        self.done = not self._several

    def _no_call(self) -> list[Part]:
        """What was taken since the last call is answer after all; after a call white space and signs are not."""
        self._state = "text"
        raw, self._raw = self._raw, ""
        if self._bare:
            self._trigger = _PYTHON_TAG if _PYTHON_TAG in self._form.control else ""
        return [] if self.count and not raw.strip() else self._said(raw)

    def _take(self, count: int) -> None:
        self._raw += self._buffer[:count]
        self._buffer = self._buffer[count:]

    def _said(self, text: str) -> list[Part]:
        return [Said(text)] if text else []


class _HarmonyReader:
    """The parts of a reply whose messages are marked as such."""

    def __init__(self, offer: Offer | None) -> None:
        self.count = 0
        self.done = False
        self._names = {tool.name for tool in offer.callable} if offer else set()
        self._several = offer is None or offer.parallel
        self._splitter = HarmonySplitter()

    def feed(self, text: str) -> list[Part]:
        """The parts that `text` completes."""
        return [part for piece in self._splitter.feed(text) for part in self._told(piece)]

    def end(self) -> list[Part]:
        """What was held back."""
        return [part for piece in self._splitter.end() for part in self._told(piece)]

    def _told(self, piece: Piece) -> list[Part]:
        if self.done:
            return []
        if piece.kind == "thought":
            return [Thought(piece.text)] if piece.text else []
        if piece.kind == "answer" or piece.name not in self._names:
            return [Said(piece.text)] if piece.text else []
        parts: list[Part] = []
        if piece.first:
            parts = [CallBegun(self.count, new_call_id(), piece.name)]
            self.count += 1
        if piece.text:
            parts.append(CallArguments(self.count - 1, piece.text))
        self.done = piece.last and not self._several
        return parts


def new_call_id() -> str:
    """An id for a call, as OpenAI's look."""
    return f"call_{uuid.uuid4().hex[:24]}"


def _furniture(form: CallFormat) -> list[str]:
    """What may stand around calls, longest first."""
    lead, head = form.lead.strip(), "" if form.in_object else form.head.strip()
    signs = {form.between.strip(), form.trail.strip(), lead, head, ",", ";", "[", "]"}
    if form.in_object:
        signs |= {_PYTHON_TAG}
    else:
        signs = (signs | {(form.between + form.head).strip(), form.tail.strip()}) - {"[", "]"}
    if form.in_object and lead.endswith("["):
        signs |= {lead[:-1].strip()}
    return sorted((sign for sign in signs if sign), key=len, reverse=True)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _tagged(text: str, form: CallFormat, tool: Tool) -> dict[str, Any]:
    """Arguments between tags, each in the type that the tool's schema gives it."""
    properties = tool.parameters.get("properties", {})
    return {
        key: _typed(value, properties.get(key, {}) if isinstance(properties, Mapping) else {})
        for key, value in _between_tags(text, form)
    }


def _between_tags(text: str, form: CallFormat) -> Iterator[tuple[str, str]]:
    """Keys and values, each tag looked for from where the last one ended: one pattern for all would go back, and take
    minutes where a model begins a thousand and ends none.
    """
    tags = (form.key_before.lstrip("> \n"), form.key_after, form.value_after)
    before, between, after = (re.compile(r"\s*".join(map(re.escape, tag.split()))) for tag in tags)
    place = 0
    while (
        (begin := before.search(text, place))
        and (middle := between.search(text, begin.end()))
        and (end := after.search(text, middle.end()))
    ):
        place = end.end()
        if key := text[begin.end() : middle.start()].strip():
            yield key, text[middle.end() : end.start()].removeprefix("\n").removesuffix("\n")


def _typed(text: str, schema: object) -> Any:
    """`text` as JSON where the schema wants something else than a string."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string":
        return text
    value = _value(text)
    return text if value is None and text.strip() != "null" else value
