"""Messages through a chat template into pieces, so that it is known of each stretch whether the template wrote it.

The template is rendered twice: with the messages, and with an unguessable mark in place of each content. Where both
agree, the marks tell the places of the contents, and content stays text whatever it looks like. No tokens here.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from modules.chat.templates import TemplateRefused, TemplateWorker
from modules.engine.base import TextPiece
from modules.messages import ChatMessage

Neutralise = Callable[[str], str]
NEUTRALISED = (
    "This model's chat template rewrites messages, so control words in them were broken up with invisible spaces."
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A prompt as pieces in order; `notice` says what had to be changed in the messages, "" for nothing."""

    pieces: tuple[TextPiece, ...]
    notice: str = ""


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A model's template with what it may read beside the messages: `special_tokens` by name ("bos_token"), `variables`
    such as `enable_thinking`."""

    text: str
    special_tokens: dict[str, str]
    worker: TemplateWorker
    variables: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[ChatMessage]) -> str:
        """The text up to where the reply begins. Raises BadChatTemplate."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        variables = {
            **self.special_tokens, **self.variables, "messages": turns, "tools": None, "documents": None,
            "add_generation_prompt": True,
        }  # fmt: skip
        return self.worker.render(self.text, variables)


def render_pieces(template: ChatTemplate, messages: Sequence[ChatMessage], neutralise: Neutralise) -> Rendered:
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
        if number + 1 == len(variants) or _shows_system(rendered, variant):
            return rendered
    assert objection is not None
    raise objection


def _render_variant(template: ChatTemplate, messages: Sequence[ChatMessage], neutralise: Neutralise) -> Rendered:
    text = template.render(messages)
    marks = {f"m{secrets.token_hex(16)}": message for message in messages if message.content.strip()}
    by_message = {id(message): mark for mark, message in marks.items()}
    try:
        marked = template.render([ChatMessage(m.role, by_message.get(id(m), m.content)) for m in messages])
    except TemplateRefused:
        marked = ""
    parts = re.split("(" + "|".join(marks) + ")", marked) if marks else [marked]
    contents = [marks[part].content for part in parts[1::2]]
    shown = _align(text, parts[0::2], contents)
    if shown is None and set(parts[1::2]) == marks.keys():
        shown = contents  # the template looks into the contents; taken as plain text they are safe
    if shown is None:
        harmless = [ChatMessage(m.role, neutralise(m.content)) for m in messages]
        changed = NEUTRALISED if harmless != list(messages) else ""
        return Rendered((TextPiece(template.render(harmless), template=True),), changed)
    pieces = [TextPiece(parts[0], template=True)]
    for content, literal in zip(shown, parts[2::2], strict=True):
        pieces += TextPiece(content), TextPiece(literal, template=True)
    return Rendered(tuple(piece for piece in pieces if piece.text))


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
    for candidate in (content, content.rstrip(), content.lstrip(), content.strip()):
        end = position + len(candidate)
        if text.startswith(candidate + literal, position) and (not last or end + len(literal) == len(text)):
            return candidate
    if last:
        end = len(text) - len(literal)
        return text[position:end] if text.endswith(literal) and text[position:end] in content else None
    end = text.rfind(literal, position, position + len(content) + len(literal)) if literal else -1
    while end >= position:
        if text[position:end] in content:
            return text[position:end]
        end = text.rfind(literal, position, end + len(literal) - 1)
    return None


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
            rest[number] = ChatMessage("user", f"{system}\n\n{message.content}")
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
    """Messages of one role in a row made one."""
    runs = groupby(messages, key=lambda message: message.role)
    return [ChatMessage(role, "\n\n".join(m.content for m in run)) for role, run in runs]
