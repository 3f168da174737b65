"""Items of the Responses API's input → turns of a conversation."""

from __future__ import annotations

from dataclasses import replace

from pydantic_core import PydanticCustomError

from modules.api.image_parts import ONLY_USERS, bytes_at
from modules.api.schemas import MAX_MESSAGES
from modules.api.sent import Sent
from modules.api.tool_schemas import NO_NAME, is_tool_name
from modules.api.turns import answerable
from modules.api.whole import whole
from modules.messages import ChatMessage, Role, ToolCall

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_PARTS = """{"type": "input_text", "text": "…"} or {"type": "input_image", "image_url": "data:…"}"""
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Parts that are words, and the field that holds them."""
STATELESS = "Snug keeps no responses: send the whole conversation as input (many programs do with store: false)"


def _bad(place: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("input", f"{place}{problem}")


def read_items(value: object) -> tuple[Sent, ...]:
    """A text, or items: messages, calls and their results, and thoughts, which no model is told again.

    Calls belong to the assistant's message before them. Raises PydanticCustomError.
    """
    if isinstance(value, str):
        return (Sent(ChatMessage("user", whole(value))),)
    if not isinstance(value, list) or not value:
        raise _bad("", "it must be a text, or a list of items that is not empty")
    if len(value) > MAX_MESSAGES:
        raise _bad("", f"it has more than {MAX_MESSAGES} items")
    sent: list[Sent] = []
    names: dict[str, str] = {}
    for number, item in enumerate(value):
        _take(item, f"item {number} ", sent, names)
    if not sent or sent[-1].turn.tool_calls:
        raise _bad("", "it must end with a message, or with the results of the tools that were called")
    turns = answerable([one.turn for one in sent])
    return tuple(replace(one, turn=turn) for one, turn in zip(sent, turns, strict=True))


def _take(item: object, place: str, sent: list[Sent], names: dict[str, str]) -> None:
    """Add one item to `sent`; `names` are those of the tools called so far."""
    if not isinstance(item, dict):
        raise _bad(place, "must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise _bad(place, f"must have a role: {', '.join(_ROLES)}")
        text, files = _content(item.get("content"), place)
        if files and role != "user":
            raise _bad(place, f"holds an image; {ONLY_USERS}")
        sent.append(Sent(ChatMessage(_ROLES[role], text), files))
    elif kind == "function_call":
        call = ToolCall(*(_string(item, name, place) for name in ("call_id", "name", "arguments")))
        if not is_tool_name(call.name):
            raise _bad(place, NO_NAME)
        names[call.id] = call.name
        last = sent.pop().turn if sent and sent[-1].turn.role == "assistant" else ChatMessage("assistant", "")
        sent.append(Sent(ChatMessage("assistant", last.content, tool_calls=(*last.tool_calls, call))))
    elif kind == "function_call_output":
        call_id = _string(item, "call_id", place)
        text, files = _content(item.get("output"), place, "output")
        sent.append(Sent(ChatMessage("tool", text, call_id=call_id, tool=names.get(call_id, "")), files))
    elif kind == "item_reference":
        raise _bad(place, f"refers to an earlier item; {STATELESS}")
    elif kind != "reasoning":
        known = "message, function_call, function_call_output and reasoning"
        raise _bad(place, f"is of type {str(kind)[:40]!r}; Snug reads {known}")


def _string(item: dict[str, object], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise _bad(place, f'needs a text as "{name}"')
    return whole(value)


def _content(content: object, place: str, name: str = "content") -> tuple[str, tuple[bytes, ...]]:
    """The text of a content, and its pictures."""
    if isinstance(content, str):
        return whole(content), ()
    if not isinstance(content, list):
        raise _bad(place, f"must have {name}: a text or a list of parts")
    parts = [_part(part, place) for part in content]
    texts = "\n".join(part for part in parts if isinstance(part, str))
    return texts, tuple(part for part in parts if isinstance(part, bytes))


def _part(part: object, place: str) -> str | bytes:
    """The text of a part, or its picture."""
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get(_TEXTS[kind]) if isinstance(part, dict) and isinstance(kind, str) and kind in _TEXTS else None
    if isinstance(text, str):
        return whole(text)
    if isinstance(part, dict) and kind == "input_image":
        return _picture(part, place)
    raise _bad(place, f"holds a part that is not {_PARTS}")


def _picture(part: dict[str, object], place: str) -> bytes:
    url = part.get("image_url")
    if not isinstance(url, str):
        raise _bad(place, 'holds an image without "image_url": "data:image/png;base64,…" (Snug keeps no files)')
    try:
        return bytes_at(url)
    except PydanticCustomError as error:
        raise _bad(place, f"holds an image: {error.message()}") from error
