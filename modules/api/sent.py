"""Turns with pictures as clients send them → turns that a model can be shown. For dialects with results that hold some.

Chat templates have places for pictures in users' messages alone, so those that a tool returned stand in the user's
message after its results, and where there is none, in one of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from modules.api.image_parts import look_at
from modules.api.prompting import Asked
from modules.api.turns import by_calls
from modules.engine.base import ModelInfo
from modules.messages import ChatMessage
from modules.services import Services

BELOW = "(a picture: see the next message)"
RETURNED = "What the tools returned is in the pictures of this message."


@dataclass(frozen=True, slots=True)
class Sent:
    """A turn, and its pictures as they came."""

    turn: ChatMessage
    files: tuple[bytes, ...] = ()


def shown_by_users(sent: Sequence[Sent]) -> list[Sent]:
    """`sent` with results in the order of their calls, and their pictures in the user's message that follows them."""
    found: list[Sent] = []
    waiting: tuple[bytes, ...] = ()
    for one in (sent[place] for place in by_calls([one.turn for one in sent])):
        if one.turn.role == "tool":
            waiting += one.files
            silent = one.files and not one.turn.content
            found.append(Sent(replace(one.turn, content=BELOW) if silent else one.turn))
            continue
        if waiting and one.turn.role != "user":
            found.append(Sent(ChatMessage("user", RETURNED), waiting))
        found.append(replace(one, files=(*waiting, *one.files)) if one.turn.role == "user" else one)
        waiting = ()
    return [*found, Sent(ChatMessage("user", RETURNED), waiting)] if waiting else found


def looked_at(asked: Asked, services: Services, info: ModelInfo, *, param: str) -> Asked:
    """`asked` with its pictures drawn anew; `param` is the field that they came in. Raises what look_at raises."""
    if not any(asked.files):
        return asked
    pictures = look_at(asked.files, services, info, param=param)
    turns = [replace(turn, pictures=shown) for turn, shown in zip(asked.turns, pictures, strict=True)]
    return replace(asked, turns=turns, files=())
