"""Messages through a chat template into pieces, so that it is known of each stretch whether the template wrote it.

The template is rendered twice: with the messages, and with an unguessable mark in place of each content. Where both
agree, the marks tell the places of the contents, and content stays text whatever it looks like. No tokens here.

A model that sees gets contents as lists of parts, as its template wants them; where the template writes the model's
image token, a picture stands, and as many of them as there are pictures.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Literal

from modules.chat.forms import places
from modules.chat.templates import TemplateRefused, TemplateWorker
from modules.engine.base import TextPiece
from modules.errors import ContextLengthExceeded
from modules.messages import ChatMessage, Picture, Role

Neutralise = Callable[[str], str]
_MARK = re.compile("m[0-9a-f]{32}")
NEUTRALISED = (
    "This model's chat template rewrites messages, so control words in them were broken up with invisible spaces."
)
BEFORE_TEXT = "This chat template has no place for pictures, so they stand right before the message."


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as pieces in order; `notice` says what had to be changed in the messages, "" for nothing. `rewritten`:
    the template wrote something of its own in the places of all contents."""

    pieces: tuple[TextPiece, ...]
    notice: str = ""
    rewritten: bool = False


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's template with what it may read beside the messages: `special_tokens` by name ("bos_token"), `variables`
    such as `enable_thinking`. `arguments_as_text`: it wants a tool call's arguments as JSON text, not as values.
    `image_token` is how a model that sees writes the place of a picture; `parts` says that contents are given as lists
    of parts. `own`: somebody wrote it into a conversation. `longest` is the most characters that it may make, 0 for any
    number.
    """

    text: str
    special_tokens: dict[str, str]
    worker: TemplateWorker
    variables: Mapping[str, Any] = field(default_factory=dict)
    arguments_as_text: bool = False
    image_token: str = ""
    parts: bool = False
    own: bool = False
    longest: int = 0

    def render(self, messages: Sequence[ChatMessage], *, reply_next: bool = True) -> str:
        """The text up to where the reply begins, or where the last message ends.

        Raises BadChatTemplate, ContextLengthExceeded for a text that no model could read.
        """
        turns = [turn_of(message, arguments_as_text=self.arguments_as_text, parts=self.parts) for message in messages]
        variables = {
            "tools": None, **self.special_tokens, **self.variables, "messages": turns, "documents": None,
            "add_generation_prompt": reply_next,
        }  # fmt: skip
        text = self.worker.render(self.text, variables, own=self.own)
        if self.longest and len(text) > self.longest:
            raise ContextLengthExceeded(
                f"The chat template makes {len(text):,} characters of the messages; the model reads {self.longest:,}.",
                remedy="Shorten the messages, or correct the template.",
                param="messages",
            )
        return text


def turn_of(message: ChatMessage, *, arguments_as_text: bool = False, parts: bool = False) -> dict[str, Any]:
    """A message as templates expect it; with `parts`, its content as a list of them."""
    turn: dict[str, Any] = {"role": message.role, "content": _parts(message) if parts else message.content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if arguments_as_text else json_value(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    if message.role == "tool":
        turn |= {"tool_call_id": message.call_id, "name": message.tool}
    return turn


def json_value(text: str) -> Any:
    """What `text` spells in JSON; `text` itself where it spells nothing."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    return value


def render_pieces(template: ChatTemplate, messages: Sequence[ChatMessage], neutralise: Neutralise) -> Rendered:
    """The messages as the template writes them, with the places of their pictures where the model sees.

    Raises BadChatTemplate with the template's first objection.
    """
    in_parts = replace(template, parts=True)
    if template.image_token:
        seen = _with_pictures(in_parts, messages, neutralise)
        if seen is not None:
            return seen
        return _as_texts(template, messages, neutralise)
    rendered = _as_texts(template, messages, neutralise)
    # Some templates of models that see write nothing of a content that is no list.
    lost = not rendered.rewritten and not _shows_users(rendered, messages)
    return (_with_pictures(in_parts, messages, neutralise) if lost else None) or rendered


def _shows_users(rendered: Rendered, messages: Sequence[ChatMessage]) -> bool:
    """Whether all that users wrote is in what was rendered."""
    whole = {piece.text.strip() for piece in rendered.pieces if not piece.template}
    written = [message.content.strip() for message in messages if message.role == "user"]
    sought = [content for content in written if content not in whole]
    text = "".join(piece.text for piece in rendered.pieces) if sought else ""
    return all(content in text for content in sought)


def _with_pictures(template: ChatTemplate, messages: Sequence[ChatMessage], neutralise: Neutralise) -> Rendered | None:
    """The messages as lists of parts; None where the template does not know those, or writes no places for pictures."""
    try:
        rendered = _as_texts(template, messages, neutralise)
    except TemplateRefused:
        return None
    listed = any(piece.template and "'type'" in piece.text.lower() for piece in rendered.pieces)
    if listed or not _shows_users(rendered, messages):
        return None
    if not template.image_token:
        return rendered
    pictures = [picture for message in messages for picture in message.pictures]
    pieces = tuple(_placed(rendered.pieces, template.image_token, pictures))
    return replace(rendered, pieces=pieces) if sum(1 for piece in pieces if piece.picture) == len(pictures) else None


def _placed(pieces: Sequence[TextPiece], image_token: str, pictures: Sequence[Picture]) -> Iterator[TextPiece]:
    """`pieces` with the next picture wherever the template writes `image_token`."""
    left = iter(pictures)
    for piece in pieces:
        if not piece.template:
            yield piece
            continue
        before, *rest = piece.text.split(image_token)
        if before:
            yield TextPiece(before, template=True)
        for literal in rest:
            picture = next(left, None)
            if picture is not None:
                yield from places([picture], image_token)
            yield from [TextPiece(literal, template=True)] if literal else []


def _as_texts(template: ChatTemplate, messages: Sequence[ChatMessage], neutralise: Neutralise) -> Rendered:
    """The messages as the template writes them.

    Where it refuses a system message or drops it, that goes before the first user message; where it wants users and
    replies to alternate, messages in a row are joined, and before a reply that comes first stands a user message with
    what the system was to say. `neutralise` makes a content harmless for a template that
    rewrites contents. Raises BadChatTemplate with the template's first objection.
    """
    objection: TemplateRefused | None = None
    variants = list(_variants(messages))
    for number, variant in enumerate(variants):
        try:
            rendered = _render_variant(template, variant, neutralise)
        except TemplateRefused as error:
            objection = objection or error
            continue
        if number + 1 == len(variants) or rendered.rewritten or _shows_system(rendered, variant):
            return rendered
    assert objection is not None
    raise objection


def _render_variant(template: ChatTemplate, messages: Sequence[ChatMessage], neutralise: Neutralise) -> Rendered:
    text = template.render(messages)
    marks = {_new_mark(): message for message in messages if message.content.strip()}
    by_message = {id(message): mark for mark, message in marks.items()}
    try:
        marked = template.render([replace(m, content=by_message.get(id(m), m.content)) for m in messages])
    except TemplateRefused:
        marked = ""
    parts = _parted(marked, marks)
    contents = [marks[part].content for part in parts[1::2]]
    shown, rewritten = _align(text, parts[0::2], contents), False
    if shown is None and (found := _written_between(template, messages, marks, {*parts[1::2]})):
        parts, contents = found
        shown, rewritten = _align(text, parts[0::2], contents) or contents, True
    if shown is None and set(parts[1::2]) == marks.keys():
        shown = contents  # the template looks into the contents; taken as plain text they are safe
    if shown is None:
        harmless = [replace(m, content=neutralise(m.content)) for m in messages]
        changed = NEUTRALISED if harmless != list(messages) else ""
        return Rendered((TextPiece(template.render(harmless), template=True),), changed)
    pieces = [TextPiece(parts[0], template=True)]
    before = "" if template.parts else template.image_token
    for mark, content, literal in zip(parts[1::2], shown, parts[2::2], strict=True):
        pieces += [*places(marks[mark].pictures, before), TextPiece(content), TextPiece(literal, template=True)]
    placed = any(piece.picture for piece in pieces)
    return Rendered(tuple(piece for piece in pieces if piece.text), BEFORE_TEXT if placed else "", rewritten)


def _written_between(
    template: ChatTemplate, messages: Sequence[ChatMessage], marks: Mapping[str, ChatMessage], shown: Container[str]
) -> tuple[list[str], list[str]] | None:
    """For a template that looks into contents (SmolLM3's takes "/no_think" out of a system prompt and thinks no more):
    what `_parted` gives, and what the template writes of each content. None where one of them is cut, or its mark is
    not `shown` although the template does something with it.
    """
    ends = {mark: _new_mark() for mark in marks if mark in shown}
    mark_of = {id(message): mark for mark, message in marks.items()}

    def written(others: str) -> str:
        def marked(message: ChatMessage) -> ChatMessage:
            mark = mark_of.get(id(message), "")
            around = f"{mark}{message.content}{ends[mark]}" if mark in ends else others
            return replace(message, content=around) if mark else message

        return template.render([marked(message) for message in messages])

    try:
        text = written(_new_mark())
        if not ends or (len(ends) < len(marks) and text != written(_new_mark())):
            return None
    except TemplateRefused:
        return None
    parts = _parted(text, {*ends, *ends.values()})
    opened, closed = parts[1::4], parts[3::4]
    if sorted(opened) != sorted(ends) or [ends[mark] for mark in opened] != closed:
        return None
    return [part for number, part in enumerate(parts) if number % 4 < 2], parts[2::4]


def _new_mark() -> str:
    return f"m{secrets.token_hex(16)}"


def _parted(marked: str, marks: Container[str]) -> list[str]:
    """`marked` cut at `marks`, which stand between what is around them. In one pass, however many marks there are and
    however much that begins like one."""
    parts, at = [], 0
    for found in _MARK.finditer(marked):
        if found[0] in marks:
            parts += [marked[at : found.start()], found[0]]
            at = found.end()
    return [*parts, marked[at:]]


def _align(text: str, literals: Sequence[str], contents: Sequence[str]) -> list[str] | None:
    """What `text` shows of each content, given what stands between them; None if that does not explain it.

    Of several explanations the one that takes more for content wins, so that content is never taken for template.
    """
    if not text.startswith(literals[0]):
        return None
    position = len(literals[0])
    shown = []
    for number, (content, literal) in enumerate(zip(contents, literals[1:], strict=True)):
        last = number + 1 == len(contents)
        found = _shown_part(text, position, content, literal, last=last)
        if found is None:
            return None
        shown.append(found)
        position += len(found) + len(literal)
    return shown if position == len(text) else None


def _shown_part(text: str, position: int, content: str, literal: str, *, last: bool) -> str | None:
    """The part of `content` that stands at `position`, before `literal`: all of it, stripped, or a stretch of it."""
    written = json.dumps(content, ensure_ascii=False)[1:-1]  # a tool's result as `tojson` writes it
    for candidate in (content, content.rstrip(), content.lstrip(), content.strip(), written):
        end = position + len(candidate)
        if text.startswith(candidate + literal, position) and (not last or end + len(literal) == len(text)):
            return candidate
    if last:
        end = len(text) - len(literal)
        return text[position:end] if text.endswith(literal) and text[position:end] in content else None
    shown = _longest_shown(text, position, content)
    end = text.rfind(literal, position, position + shown + len(literal)) if literal else -1
    return text[position:end] if end >= position else None


def _longest_shown(text: str, position: int, content: str) -> int:
    """How many characters from `position` on are in `content` as they stand: with more none is in it that has these,
    so it is found by halves, not by a look for each of a million.
    """
    shown, too_many = 0, min(len(content), len(text) - position) + 1
    while too_many - shown > 1:
        middle = (shown + too_many) // 2
        if text[position : position + middle] in content:
            shown = middle
        else:
            too_many = middle
    return shown


def _shows_system(rendered: Rendered, messages: Sequence[ChatMessage]) -> bool:
    """Whether the system messages, if there are any, are in what was rendered, so far as that can be seen."""
    if len(rendered.pieces) == 1:
        return True
    text = "".join(piece.text for piece in rendered.pieces)
    return all(m.content.strip() in text for m in messages if m.role == "system")


def _variants(messages: Sequence[ChatMessage]) -> list[list[ChatMessage]]:
    """The messages as they are, then in the forms that stricter templates accept, without repetition."""
    merged = _system_into_user(messages)
    forms = [list(messages), merged, _joined(merged), _user_first(messages)]
    return [form for number, form in enumerate(forms) if form not in forms[:number]]


def _system_into_user(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    rest = [m for m in messages if m.role != "system"]
    for number, message in enumerate(rest):
        if message.role == "user" and system.strip():
            rest[number] = replace(message, content=f"{system}\n\n{message.content}")
            break
    return rest


def _user_first(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """For a greeting: templates that know no system message mostly want the user to begin."""
    rest = [m for m in messages if m.role != "system"]
    if not rest or rest[0].role == "user":
        return _joined(_system_into_user(messages))
    system = "\n\n".join(m.content for m in messages if m.role == "system")
    return _joined([ChatMessage("user", system), *rest])


def _joined(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Messages of one role in a row made one; those about tools stay as they are."""
    joined: list[ChatMessage] = []
    runs = groupby(messages, key=lambda m: (m.role, bool(m.tool_calls or m.role == "tool")))
    for (role, about_tools), run in runs:
        turns = list(run)
        joined += turns if about_tools else [_as_one(role, turns)]
    return joined


def _as_one(role: Role | Literal["tool"], turns: Sequence[ChatMessage]) -> ChatMessage:
    pictures = tuple(picture for turn in turns for picture in turn.pictures)
    return ChatMessage(role, "\n\n".join(turn.content for turn in turns), pictures)


def _parts(message: ChatMessage) -> list[dict[str, str]]:
    """A message as templates of models that see want it: its pictures, then its text."""
    text = [{"type": "text", "text": message.content}] if message.content or not message.pictures else []
    return [*({"type": "image"} for _ in message.pictures), *text]
