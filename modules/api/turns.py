"""Messages as OpenAI's clients send them → turns of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from modules.api.schemas import RequestMessage
from modules.messages import ChatMessage, Picture, Role

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def turns_of(
    messages: Sequence[RequestMessage], pictures: Sequence[tuple[Picture, ...]] | None = None
) -> list[ChatMessage]:
    """The turns; a tool's result gets the name of the tool that was called by its id, "" for an unknown id.

    `pictures` are those of each message.
    """
    turns: list[ChatMessage] = []
    names: dict[str, str] = {}
    for message, shown in zip(messages, pictures or [()] * len(messages), strict=True):
        calls = tuple(call.call for call in message.tool_calls or ()) if message.role == "assistant" else ()
        names |= {call.id: call.name for call in calls}
        content = message.content or ""
        if message.role == "tool":
            call_id = message.tool_call_id or ""
            turns.append(ChatMessage("tool", content, call_id=call_id, tool=names.get(call_id, "")))
        else:
            turns.append(ChatMessage(_ROLES[message.role], content, shown, tool_calls=calls))
    return answerable([turns[place] for place in by_calls(turns)])


def by_calls(turns: Sequence[ChatMessage]) -> list[int]:
    """The places of the turns, results in the order of the calls that they answer: most templates write no ids, and
    clients send results as they come in. Those of unknown calls stand behind.
    """
    keys: list[tuple[int, int]] = []
    ranks: dict[str, int] = {}
    for place, turn in enumerate(turns):
        if turn.role == "tool":
            keys.append((keys[-1][0] if keys else 0, ranks.get(turn.call_id, len(ranks) + 1)))
        else:
            ranks = {call.id: rank for rank, call in enumerate(turn.tool_calls, 1)}
            keys.append((place, 0))
    return sorted(range(len(turns)), key=keys.__getitem__)


def answerable(turns: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The turns; where the system alone speaks, its last message is the user's, which every chat template can take."""
    if turns and all(turn.role == "system" for turn in turns):
        return [*turns[:-1], replace(turns[-1], role="user")]
    return list(turns)
