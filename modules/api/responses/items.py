"""Items of the Responses API's input → turns of a conversation."""

from __future__ import annotations

from pydantic_core import PydanticCustomError

from modules.api.schemas import MAX_MESSAGES
from modules.api.tool_schemas import NO_NAME, is_tool_name
from modules.api.turns import answerable
from modules.api.whole import whole
from modules.messages import ChatMessage, Role, ToolCall

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text", "text")


def _bad(place: str, problem: str) -> PydanticCustomError:
    return PydanticCustomError("input", f"{place}{problem}")


def read_items(value: object) -> tuple[ChatMessage, ...]:
    """A text, or items: messages, calls and their results, and thoughts, which no model is told again.

    Calls belong to the assistant's message before them. Raises PydanticCustomError.
    """
    if isinstance(value, str):
        return (ChatMessage("user", whole(value)),)
    if not isinstance(value, list) or not value:
        raise _bad("", "it must be a text, or a list of items that is not empty")
    if len(value) > MAX_MESSAGES:
        raise _bad("", f"it has more than {MAX_MESSAGES} items")
    turns: list[ChatMessage] = []
    names: dict[str, str] = {}
    for number, item in enumerate(value):
        _take(item, f"item {number} ", turns, names)
    if not turns or turns[-1].tool_calls:
        raise _bad("", "it must end with a message, or with the results of the tools that were called")
    return tuple(answerable(turns))


def _take(item: object, place: str, turns: list[ChatMessage], names: dict[str, str]) -> None:
    """Add one item to `turns`; `names` are those of the tools called so far."""
    if not isinstance(item, dict):
        raise _bad(place, "must be an object")
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise _bad(place, f"must have a role: {', '.join(_ROLES)}")
        turns.append(ChatMessage(_ROLES[role], _content(item.get("content"), place)))
    elif kind == "function_call":
        call = ToolCall(*(_string(item, name, place) for name in ("call_id", "name", "arguments")))
        if not is_tool_name(call.name):
            raise _bad(place, NO_NAME)
        names[call.id] = call.name
        last = turns.pop() if turns and turns[-1].role == "assistant" else ChatMessage("assistant", "")
        turns.append(ChatMessage("assistant", last.content, tool_calls=(*last.tool_calls, call)))
    elif kind == "function_call_output":
        call_id = _string(item, "call_id", place)
        output = _content(item.get("output"), place, "output")
        turns.append(ChatMessage("tool", output, call_id=call_id, tool=names.get(call_id, "")))
    elif kind != "reasoning":
        known = "message, function_call, function_call_output and reasoning"
        raise _bad(place, f"is of type {str(kind)[:40]!r}; Snug reads {known}")


def _string(item: dict[str, object], name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise _bad(place, f'needs a text as "{name}"')
    return whole(value)


def _content(content: object, place: str, name: str = "content") -> str:
    if isinstance(content, str):
        return whole(content)
    if not isinstance(content, list):
        raise _bad(place, f"must have {name}: a text or a list of parts")
    return "".join(_part(part, place) for part in content)


def _part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and kind in _TEXTS and isinstance(part.get("text"), str):
        return whole(part["text"])
    if kind == "input_image":
        raise _bad(place, "holds an image, which this route does not take: /v1/chat/completions does, as image_url")
    raise _bad(place, 'holds a part that is not {"type": "input_text", "text": "…"}')
